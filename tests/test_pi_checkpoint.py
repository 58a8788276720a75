"""Loading from every layout, strictly; saving and reading back bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pi_tiny import (
    GOLDEN,
    KINDS,
    TOKENIZER,
    needs_golden,
    observation,
    random_model,
    tiny_config,
    tiny_policy,
    tiny_recipe,
    tiny_stats,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.models.pi import (
    PiConfig,
    PiPolicy,
    PiRecipe,
    PiSettings,
    find_recipe,
    inspect_pretrained,
    load_pretrained,
    save_pretrained,
)
from chunkrl.models.pi.checkpoint import published_tensors
from chunkrl.models.pi.config import ModelKind, pi0_config, pi0_libero, pi05_base, pi05_config, pi05_libero
from chunkrl.models.pi.layout import (
    converted_shapes,
    from_torch_name,
    jax_rules,
    parameter_shapes,
    to_torch_name,
)

REAL: dict[ModelKind, tuple[PiConfig, int]] = {
    "pi0": (pi0_config(), 3_238_048_528),
    "pi05": (pi05_config(), 3_353_433_872),
}
HEADS = (
    "paligemma_with_expert.paligemma.lm_head.weight",
    "paligemma_with_expert.gemma_expert.lm_head.weight",
)


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def openpi_tensors(kind: ModelKind) -> dict[str, Tensor]:
    """A tiny checkpoint as openpi's PyTorch code names it, with both names of the embedding."""
    policy = PiPolicy(random_model(kind), tiny_recipe(kind))
    return {name.removeprefix("model."): tensor for name, tensor in published_tensors(policy).items()}


def same_parameters(a: PiPolicy, b: PiPolicy) -> bool:
    first, second = dict(a.model.named_parameters()), dict(b.model.named_parameters())
    return first.keys() == second.keys() and all(
        torch.equal(p, second[n]) and p.dtype == second[n].dtype for n, p in first.items()
    )


# ---- real sizes


@pytest.mark.parametrize("kind", KINDS)
def test_real_size_has_the_published_number_of_parameters(kind: ModelKind) -> None:
    config, count = REAL[kind]
    assert sum(map(prod, parameter_shapes(config).values())) == count


@needs_golden
@pytest.mark.parametrize("kind", KINDS)
def test_real_size_matches_the_manifests_key_for_key(kind: ModelKind) -> None:
    def manifest(framework: str) -> dict[str, tuple[int, ...]]:
        data = json.loads((GOLDEN / "full_size_manifests" / f"{framework}_{kind}.json").read_text())
        return {name: tuple(entry["shape"]) for name, entry in data.items()}

    config, _ = REAL[kind]
    shapes = parameter_shapes(config)
    published = {to_torch_name(name): shape for name, shape in shapes.items()}
    published[HEADS[0]] = (config.vocab_size, config.prefix_width)
    published[HEADS[1]] = (config.vocab_size, config.expert_width)
    assert published == manifest("torch")
    jax = manifest("jax")
    assert set(jax_rules(config)) == set(jax)
    assert converted_shapes(jax_rules(config), jax) == (shapes, [])


@pytest.mark.parametrize("kind", KINDS)
def test_names_map_both_ways(kind: ModelKind) -> None:
    for name in parameter_shapes(tiny_config(kind)):
        assert from_torch_name(to_torch_name(name)) == name
        assert from_torch_name("model." + to_torch_name(name)) == name


# ---- every layout


@needs_golden
@pytest.mark.parametrize("kind", KINDS)
def test_all_layouts_give_the_same_bits(kind: ModelKind, tmp_path: Path) -> None:
    recipe = PiRecipe(tiny_config(kind), tiny_recipe(kind).settings)
    policies = []
    for name in ("lerobot", "openpi_pytorch"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(GOLDEN / kind / f"{name}.safetensors", folder / "model.safetensors")
        policies.append(load_pretrained(folder, recipe=recipe))
    pytest.importorskip("tensorstore", reason="the JAX layout needs chunkrl[pi]")
    for name in ("orbax_ckpt", "orbax_ckpt_pure"):
        policies.append(load_pretrained(GOLDEN / kind / name, recipe=recipe))
        policies.append(load_pretrained(GOLDEN / kind / name / "params", recipe=recipe))
    assert all(same_parameters(policies[0], other) for other in policies[1:])


@needs_golden
@pytest.mark.parametrize("kind", KINDS)
def test_golden_round_trip_gives_back_every_tensor(kind: ModelKind, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(GOLDEN / kind / "lerobot.safetensors", source / "model.safetensors")
    recipe = PiRecipe(tiny_config(kind), tiny_recipe(kind).settings)
    save_pretrained(load_pretrained(source, recipe=recipe), tmp_path / "saved")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "saved/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@needs_golden
def test_orbax_with_a_missing_or_damaged_chunk_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="the JAX layout needs chunkrl[pi]")
    recipe = PiRecipe(tiny_config("pi05"), tiny_recipe("pi05").settings)
    files = [
        f for f in (GOLDEN / "pi05/orbax_ckpt/params").rglob("*") if f.is_file() and f.parent.name == "d"
    ]
    assert files
    for index, file in enumerate(files):
        for damage in ("remove", "truncate"):
            copy = tmp_path / f"{index}-{damage}"
            shutil.copytree(GOLDEN / "pi05/orbax_ckpt", copy)
            target = copy / file.relative_to(GOLDEN / "pi05/orbax_ckpt")
            if damage == "remove":
                target.unlink()
            else:
                target.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            try:
                policy = load_pretrained(copy, recipe=recipe)
            except CheckpointError:
                continue
            # Orbax keeps files that its manifest no longer refers to; without them the weights are whole.
            assert same_parameters(policy, load_pretrained(GOLDEN / "pi05/orbax_ckpt", recipe=recipe))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("embedding", ["both", "lm_head", "embed_tokens"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_tied_embedding_under_either_name(
    kind: ModelKind, embedding: str, prefix: str, tmp_path: Path
) -> None:
    tensors = openpi_tensors(kind)
    if embedding != "both":
        drop = HEADS[0] if embedding == "embed_tokens" else to_torch_name("language.embed_tokens.weight")
        del tensors[drop]
    folder = write_weights(tmp_path / "x", {prefix + name: tensor for name, tensor in tensors.items()})
    policy = load_pretrained(folder, recipe=tiny_recipe(kind))
    assert same_parameters(policy, PiPolicy(random_model(kind), tiny_recipe(kind)))


def test_shards_are_joined_and_a_missing_one_is_named(tmp_path: Path) -> None:
    tensors = openpi_tensors("pi05")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name].clone() for name in members}, tmp_path / file)
    index = {name: file for file, members in shards.items() for name in members}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    policy = load_pretrained(tmp_path, recipe=tiny_recipe("pi05"))
    assert same_parameters(policy, PiPolicy(random_model("pi05"), tiny_recipe("pi05")))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shards \['b.safetensors'\]"):
        load_pretrained(tmp_path, recipe=tiny_recipe("pi05"))


# ---- saving


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_is_bit_exact(kind: ModelKind, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = tiny_policy(kind)
    policy.model.to(dtype)
    policy.model.action_in_proj.float()
    save_pretrained(policy, tmp_path / "saved")
    loaded = load_pretrained(tmp_path / "saved")
    assert same_parameters(policy, loaded)
    assert loaded.recipe == policy.recipe
    trainable = [{n for n, p in x.model.named_parameters() if p.requires_grad} for x in (policy, loaded)]
    assert trainable[0] == trainable[1]
    assert loaded.norm_stats is not None and policy.norm_stats is not None
    for name in ("state", "action"):
        before, after = getattr(policy.norm_stats, name), getattr(loaded.norm_stats, name)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    save_pretrained(loaded, tmp_path / "again")
    for file in (tmp_path / "saved").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    loaded.tokenizer = policy.tokenizer
    chunks = [
        p.sample(observation(), 2, 3, generator=torch.Generator().manual_seed(0)) for p in (policy, loaded)
    ]
    assert torch.equal(*chunks)


def test_loading_converts_the_dtype_on_request(tmp_path: Path) -> None:
    save_pretrained(tiny_policy("pi05"), tmp_path / "saved")
    policy = load_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}


def test_saving_replaces_only_on_request_and_leaves_nothing_behind(tmp_path: Path) -> None:
    first, second = (
        tiny_policy("pi05"),
        PiPolicy(random_model("pi05", seed=5), tiny_recipe("pi05"), tiny_stats()),
    )
    save_pretrained(first, tmp_path / "saved")
    with pytest.raises(CheckpointError, match="not empty"):
        save_pretrained(second, tmp_path / "saved")
    assert same_parameters(load_pretrained(tmp_path / "saved"), first)
    save_pretrained(second, tmp_path / "saved", overwrite=True)
    assert same_parameters(load_pretrained(tmp_path / "saved"), second)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_failed_save_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("pi05")
    save_pretrained(policy, tmp_path / "saved")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chunkrl.models.pi.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_pretrained(policy, tmp_path / "saved", overwrite=True)
    assert same_parameters(load_pretrained(tmp_path / "saved"), policy)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("pi05")
    save_pretrained(policy, tmp_path / "saved")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_pretrained(
            PiPolicy(random_model("pi05", seed=5), policy.recipe), tmp_path / "saved", overwrite=True
        )
    assert same_parameters(load_pretrained(tmp_path / "saved"), policy)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_saved_tensors_are_those_stock_lerobot_expects() -> None:
    policy = tiny_policy("pi05")
    tensors = published_tensors(policy)
    names = {"model." + to_torch_name(name) for name in parameter_shapes(policy.recipe.config)}
    assert set(tensors) == names | {"model." + head for head in HEADS}
    embedding = "model." + to_torch_name("language.embed_tokens.weight")
    assert torch.equal(tensors["model." + HEADS[0]], tensors[embedding])


MEASURE = """
import re, sys
from pathlib import Path
from chunkrl.models.pi import PiRecipe, load_pretrained
from chunkrl.models.pi.layout import parameter_shapes

def peak():
    # Not ru_maxrss: a child inherits its parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

recipe = PiRecipe.from_json(Path(sys.argv[2]).read_text(), "recipe")
parameter_shapes(recipe.config)  # torch imports a good deal more for its first meta tensor
before = peak()
policy = load_pretrained(sys.argv[1], recipe=recipe)
print((peak() - before) / sum(p.numel() * p.element_size() for p in policy.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_needs_little_more_than_one_copy(tmp_path: Path) -> None:
    recipe = tiny_recipe("pi05")
    config = replace(recipe.config, prefix_width=512, prefix_mlp_width=2048, vocab_size=20000, depth=6)
    shapes = parameter_shapes(config)
    write_weights(tmp_path / "x", {to_torch_name(name): torch.zeros(shape) for name, shape in shapes.items()})
    (tmp_path / "recipe.json").write_text(replace(recipe, config=config).to_json())
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "x"), str(tmp_path / "recipe.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # One copy, the largest tensor while it is moved, and the interpreter's own noise.
    assert 0.9 < float(result.stdout) < 1.3


# ---- recipes and statistics


@pytest.mark.parametrize("kind", KINDS)
def test_lerobot_config_gives_the_recipe(kind: ModelKind, tmp_path: Path) -> None:
    recipe = tiny_recipe(kind)
    real = replace(recipe, config=replace(REAL[kind][0], horizon=30))
    from chunkrl.models.pi import lerobot_format

    lerobot_format.write_config(tmp_path, real, "float32")
    lerobot_format.write_processors(tmp_path, real, tiny_stats())
    read = lerobot_format.read_recipe(tmp_path / "config.json")
    assert read.config == real.config
    assert read.settings.prompt_format == ("pi0" if kind == "pi0" else "pi05_state")
    assert read.settings.cameras == ("observation.images.front", "observation.images.wrist")
    assert (read.settings.state_dim, read.settings.action_dim) == (8, 7)
    assert read.settings.normalization == recipe.settings.normalization
    assert read.settings.resize == "bilinear"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "act"}, "type 'act'"),
        ({"paligemma_variant": "gemma_9b"}, "gemma_9b"),
        ({"normalization_mapping": {"STATE": "MIN_MAX", "ACTION": "MIN_MAX"}}, "MIN_MAX"),
        ({"normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "QUANTILES"}}, "differ in normalisation"),
        ({"time_sampling_beta_beta": 2.0}, "beta_beta"),
        ({"output_features": {}}, "action"),
    ],
)
def test_lerobot_configs_that_are_not_understood(change: dict, message: str, tmp_path: Path) -> None:
    from chunkrl.models.pi import lerobot_format

    lerobot_format.write_config(tmp_path, replace(tiny_recipe("pi05"), config=pi05_config()), "float32")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        lerobot_format.read_recipe(file)


def test_openpi_folder_needs_a_recipe_and_finds_norm_stats(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "x", openpi_tensors("pi05"))
    with pytest.raises(CheckpointError, match="pi05_libero"):
        load_pretrained(folder)
    assert load_pretrained(folder, recipe=tiny_recipe("pi05")).norm_stats is None
    stats = {"mean": [1.0] * 8, "std": [2.0] * 8, "q01": [-1.0] * 8, "q99": [1.5] * 8}
    for asset in ("lab/arm", "lab/other"):
        file = folder / "assets" / asset / "norm_stats.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"norm_stats": {"state": stats, "actions": stats}}))
    with pytest.raises(CheckpointError, match="asset_id"):
        load_pretrained(folder, recipe=tiny_recipe("pi05"))
    with pytest.raises(CheckpointError, match="has no 'arm'"):
        load_pretrained(folder, recipe=tiny_recipe("pi05"), asset_id="arm")
    policy = load_pretrained(folder, recipe=tiny_recipe("pi05"), asset_id="lab/arm")
    assert policy.norm_stats is not None and policy.norm_stats.state["q99"].tolist() == [1.5] * 8


def test_a_policy_that_cannot_act_says_where_it_is_from(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "x", openpi_tensors("pi05"))
    policy = load_pretrained(folder, recipe=tiny_recipe("pi05"), tokenizer=TOKENIZER)
    with pytest.raises(ChunkRLError, match=f"{folder} has no norm stats"):
        policy.sample(observation(), 1, 1)
    policy = load_pretrained(folder, recipe=tiny_recipe("pi05"), stats=tiny_stats())
    with pytest.raises(ChunkRLError, match=f"{folder} has no tokenizer"):
        policy.sample(observation(), 1, 1)
    (folder / "policy_preprocessor.json").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"policy_preprocessor\.json is missing"):
        load_pretrained(folder, recipe=tiny_recipe("pi05"))


def test_norm_stats_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "x", openpi_tensors("pi05"))
    good = tiny_stats()
    for wrong in (
        {"q01": good.state["q01"]},
        {**good.state, "q99": good.state["q99"][:3]},
        {**good.state, "q99": good.state["q99"] * float("nan")},
    ):
        with pytest.raises(CheckpointError, match=r"state\.q99"):
            load_pretrained(folder, recipe=tiny_recipe("pi05"), stats=replace(good, state=wrong))


def test_recipe_json_round_trip_and_unknown_keys() -> None:
    for recipe in (pi0_libero(), pi05_libero(), pi05_base(("a",), 7, 7), tiny_recipe("pi0")):
        assert PiRecipe.from_json(recipe.to_json(), "x") == recipe
    data = json.loads(pi05_libero().to_json())
    data["settings"]["promt_format"] = "pi0"
    with pytest.raises(CheckpointError, match="promt_format"):
        PiRecipe.from_json(json.dumps(data), "x")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        PiRecipe.from_json("{", "x")


@pytest.mark.parametrize(
    "build",
    [
        lambda: PiRecipe(pi0_config(), PiSettings("pi05_state", ("a",), 7, 7, "quantiles")),
        lambda: PiRecipe(pi05_config(), PiSettings("pi0", ("a",), 7, 7, "quantiles")),
        lambda: PiRecipe(pi05_config(), PiSettings("pi05_state", ("a",), 0, 7, "quantiles")),
        lambda: PiRecipe(pi05_config(), PiSettings("pi05_state", ("a",), 7, 33, "quantiles")),
        lambda: PiSettings("pi05_state", ("a", "a"), 7, 7, "quantiles"),
        lambda: PiSettings("pi05_no_state", (), 0, 7, "quantiles"),
        lambda: PiSettings("pi05_states", ("a",), 7, 7, "quantiles"),  # pyright: ignore[reportArgumentType]
        lambda: PiSettings("pi0", ("a",), 6, 7, "mean_std", delta_actions=(True,) * 7),
    ],
)
def test_contradicting_settings_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(CheckpointError):
        build()


# ---- strictness


def test_missing_unexpected_and_mis_shaped_are_all_reported(tmp_path: Path) -> None:
    tensors = openpi_tensors("pi05")
    del tensors["time_mlp_in.bias"]
    tensors["surplus.weight"] = torch.zeros(3)
    tensors["action_out_proj.weight"] = torch.zeros(31, 32)
    folder = write_weights(tmp_path / "x", tensors)
    report = inspect_pretrained(folder, tiny_recipe("pi05"))
    assert report.missing == ("time_mlp_in.bias",)
    assert report.unexpected == ("surplus.weight [3]",)
    assert report.mis_shaped == (("action_out_proj.weight", (31, 32), (32, 32)),)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder, recipe=tiny_recipe("pi05"))
    for part in ("time_mlp_in.bias", "surplus.weight", "[31, 32], must be [32, 32]"):
        assert part in str(caught.value)


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "x", openpi_tensors("pi0"))
    with pytest.raises(CheckpointError, match=r"does not fit a pi05 model .* \(it looks like a pi0 model\)"):
        load_pretrained(folder, recipe=tiny_recipe("pi05"))


def test_a_recipe_that_contradicts_openpis_config_is_refused(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "x", openpi_tensors("pi05"))
    config = {"action_dim": 32, "action_horizon": 10, "precision": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    load_pretrained(folder, recipe=tiny_recipe("pi05"))
    (folder / "config.json").write_text(json.dumps({**config, "action_horizon": 50}))
    with pytest.raises(CheckpointError, match="action_horizon 50 and the recipe 10"):
        load_pretrained(folder, recipe=tiny_recipe("pi05"))


def test_a_found_recipe_can_be_changed(tmp_path: Path) -> None:
    save_pretrained(tiny_policy("pi05"), tmp_path / "saved")
    recipe = find_recipe(tmp_path / "saved")
    assert recipe == tiny_recipe("pi05")
    changed = replace(recipe, settings=replace(recipe.settings, prompt_format="pi05_no_state"))
    assert (
        load_pretrained(tmp_path / "saved", recipe=changed).recipe.settings.prompt_format == "pi05_no_state"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    tensors = openpi_tensors("pi0")
    tensors["state_proj.weight"][3, 4] = value
    with pytest.raises(CheckpointError, match=r"state_proj\.weight holds NaN or infinity"):
        load_pretrained(write_weights(tmp_path / "x", tensors), recipe=tiny_recipe("pi0"))


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    tensors = openpi_tensors("pi0")
    tensors["state_proj.bias"] = tensors["state_proj.bias"].to(torch.int32)
    with pytest.raises(CheckpointError, match="int32"):
        load_pretrained(write_weights(tmp_path / "x", tensors), recipe=tiny_recipe("pi0"))


def test_a_name_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    tensors = openpi_tensors("pi0")
    tensors["model.state_proj.bias"] = tensors["state_proj.bias"] + 1
    with pytest.raises(CheckpointError, match="twice"):
        load_pretrained(write_weights(tmp_path / "x", tensors), recipe=tiny_recipe("pi0"))


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = save_pretrained(tiny_policy("pi05"), tmp_path_factory.mktemp("damage") / "saved")
    return folder, (folder / "model.safetensors").read_bytes()


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_an_error_or_the_same_bits(
    saved_bytes: tuple[Path, bytes], data: st.DataObject
) -> None:
    folder, whole = saved_bytes
    header = 8 + int.from_bytes(whole[:8], "little")
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        # A changed byte of the header; a changed weight is a weight, and no format here carries checksums.
        at = data.draw(st.integers(0, header - 1))
        damaged = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    (folder / "model.safetensors").write_bytes(damaged)
    try:
        policy = load_pretrained(folder)
    except CheckpointError:
        return
    assert same_parameters(policy, tiny_policy("pi05"))


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint folder nor a Hub"):
        load_pretrained(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(CheckpointError, match="holds neither"):
        load_pretrained(tmp_path)
    write_weights(tmp_path / "pretrained_model", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="did you mean its folder pretrained_model"):
        load_pretrained(tmp_path)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="never loaded"):
        load_pretrained(tmp_path / "pickled")


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "_METADATA").write_text("{}")
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"\[pi\]"):
        load_pretrained(tmp_path, recipe=tiny_recipe("pi0"))
    with pytest.raises(MissingExtraError, match=r"\[pi\]"):
        load_pretrained(tmp_path, recipe=tiny_recipe("pi0"), tokenizer=TOKENIZER)


def test_the_tokenizer_travels_with_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    save_pretrained(tiny_policy("pi05"), tmp_path / "without")
    assert load_pretrained(tmp_path / "without").tokenizer is None
    policy = load_pretrained(tmp_path / "without", tokenizer=TOKENIZER)
    save_pretrained(policy, tmp_path / "with")
    loaded = load_pretrained(tmp_path / "with")
    assert loaded.tokenizer is not None and policy.tokenizer is not None
    assert loaded.tokenizer.encode("open", True) == policy.tokenizer.encode("open", True)
    (tmp_path / "cache" / "tokenizer").mkdir(parents=True)
    shutil.copy(TOKENIZER, tmp_path / "cache" / "tokenizer" / "paligemma_tokenizer.model")
    assert load_pretrained(tmp_path / "without").tokenizer is not None
