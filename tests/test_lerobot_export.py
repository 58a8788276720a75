"""Native LeRobot folders: what we write, what we read of others, and what stock LeRobot would do otherwise."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pi_tiny import ACTION_DIM, STATE_DIM, observation, random_model, tiny_policy, tiny_recipe, tiny_stats
from safetensors.torch import load_file
from torch import Tensor

from chunkrl.errors import CheckpointError
from chunkrl.integration.pi_training import warn_of_stock_lerobot
from chunkrl.manifest import MANIFEST_FILE
from chunkrl.models.pi import PiPolicy, PiRecipe, load_pretrained, save_pretrained
from chunkrl.models.pi.config import PiConfig, pi05_config
from chunkrl.models.pi.lerobot_check import check_export
from chunkrl.models.pi.lerobot_format import (
    as_lerobot,
    differences,
    read_recipe,
    write_config,
    write_processors,
)
from chunkrl.models.pi.lerobot_pipelines import relative_mask
from chunkrl.models.pi.norm_stats import OWN_FILE, NormStats, find_lerobot, normalize
from chunkrl.models.pi.prompt import build_prompt
from chunkrl.models.plugin_files import feature_key
from chunkrl.types import Observation

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
STOCK = {"resize": "bilinear", "normalization_epsilon": 0.0}
"""Settings of a tiny pi0.5 that stock LeRobot runs as it is."""


def written(folder: Path, recipe: PiRecipe, stats: NormStats | None = None) -> Path:
    """LeRobot's files of a recipe, without weights and without ours."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, recipe, "float32")
    write_processors(folder, recipe, stats or tiny_stats())
    return folder


def published(**settings: Any) -> PiRecipe:
    """A recipe of the sizes that LeRobot builds."""
    return replace(tiny_recipe("pi05", **settings), config=pi05_config())


def steps(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["steps"]


def names(file: Path) -> list[str]:
    return [step["registry_name"] for step in steps(file)]


def edit_steps(file: Path, keep: Any) -> None:
    data = json.loads(file.read_text())
    data["steps"] = [step for step in data["steps"] if keep(step)]
    file.write_text(json.dumps(data))


# ---- 1: the prompt's format


def test_a_folder_of_0_5_1_and_later_has_the_state_unpadded(tmp_path: Path) -> None:
    folder = written(tmp_path, published())
    assert names(folder / PRE)[2] == "relative_actions_processor"
    assert read_recipe(folder / "config.json").settings.prompt_format == "pi05_state"
    assert differences(published(**STOCK)) == []


def test_a_folder_that_does_not_say_its_release_is_refused_with_the_cure(tmp_path: Path) -> None:
    """0.4 pads the state, 0.5.0 does not, and neither has relative actions."""
    folder = written(tmp_path, published(prompt_format="pi05_padded_state"))
    assert "relative_actions_processor" not in names(folder / PRE)
    with pytest.raises(CheckpointError, match="--prompt-format pi05_state"):
        read_recipe(folder / "config.json")
    for chosen in ("pi05_state", "pi05_padded_state"):
        assert read_recipe(folder / "config.json", chosen).settings.prompt_format == chosen
    whole = published()
    full = replace(whole, settings=replace(whole.settings, state_dim=32, prompt_format="pi05_padded_state"))
    ramp = torch.arange(1, 33, dtype=torch.float64)
    wide = replace(tiny_stats(), state={"q01": -ramp, "q99": ramp})
    written(tmp_path / "full", full, wide)  # nothing is padded: both are the same
    assert read_recipe(tmp_path / "full" / "config.json").settings.prompt_format == "pi05_state"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_revision": None}))
    assert read_recipe(folder / "config.json").settings.prompt_format == "pi05_state"


# ---- 2: names of cameras


@pytest.mark.parametrize(
    ("camera", "key"),
    [
        ("front", "observation.images.front"),
        ("observation.images.front", "observation.images.front"),
        ("observation.image", "observation.image"),
        ("observation.image2", "observation.image2"),
    ],
)
def test_names_that_are_keys_of_lerobots_stay(camera: str, key: str) -> None:
    assert feature_key(camera) == key


def test_cameras_that_become_one_are_told() -> None:
    recipe = published(cameras=("front", "observation.images.front"), **STOCK)
    assert differences(recipe) == ["cannot tell the cameras front, observation.images.front apart"]


# ---- 3: images


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"resize": "bilinear"}, ""),
        ({"resize": "antialias"}, "without antialiasing, unless they come as 224 x 224"),
        ({"resize": "lerobot_0.4"}, "not as LeRobot 0.4"),
    ],
)
def test_another_resizing_is_told(settings: Mapping[str, Any], told: str) -> None:
    found = differences(published(**settings))
    assert (len(found) == 1 and told in found[0]) if told else found == []


# ---- 4: a state that never varies


def constant_stats(value: float) -> NormStats:
    """Dimension 2 of the state is `value`, in float64, as a JSON file has it."""
    stats = tiny_stats()
    state = {key: tensor.clone() for key, tensor in stats.state.items()}
    state["q01"][2] = state["q99"][2] = value
    return replace(stats, state=state)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, -0.7, 0.0, 123.456])
def test_a_constant_state_is_the_first_bin_as_in_lerobot(value: float) -> None:
    stats = constant_stats(value)
    state = torch.zeros(1, STATE_DIM)
    state[0, 2] = value  # the recording's float32
    normed = normalize(state, stats.state, "quantiles", 0.0)
    assert normed[0, 2] == -1.0
    assert build_prompt("pi05_state", "x", normed[0]).tail.split()[4] == "0"


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, -0.7, 0.0, 123.456])
@pytest.mark.parametrize("width", [0.0, 1e-3, 1.7])
def test_the_lowest_state_is_the_first_bin_with_an_epsilon_too(value: float, width: float) -> None:
    """As in openpi, where (q01 - q01) is 0: rounding put it a hair below -1, into the bin before."""
    low = torch.tensor([value]).double()  # a recorded float32
    stats = {"q01": low, "q99": low + width}
    assert normalize(low.float()[None], stats, "quantiles", 1e-6).item() == -1.0


def test_lerobots_quantiles_are_float32_to_the_bit() -> None:
    """Multiples of a hundredth lie on edges of bins in float32, and beside them in float64."""
    stats = {
        "q01": torch.tensor([0.0], dtype=torch.float64),
        "q99": torch.tensor([0.04], dtype=torch.float64),
    }
    x = torch.arange(0, 5).float()[:, None] * 0.01
    low, high = stats["q01"].float(), stats["q99"].float()
    expected = 2.0 * (x - low) / (high - low) - 1.0
    assert torch.equal(normalize(x, stats, "quantiles", 0.0), expected.double())


@pytest.mark.parametrize(
    ("value", "told"), [(0.5, False), (float(torch.tensor(0.3)), False), (0.3, True), (0.7, True)]
)
def test_a_constant_that_float32_changes_is_told_where_it_changes_the_prompt(
    value: float, told: bool, tmp_path: Path
) -> None:
    """With openpi's epsilon (0.3's rounding) / 1e-6 is bins away from -1, and LeRobot's arithmetic has none."""
    recipe = tiny_recipe("pi05", resize="bilinear")
    written(tmp_path, recipe, constant_stats(value))
    found = check_export(tmp_path, recipe, constant_stats(value))
    assert len(found) == told
    assert all("state into the prompt otherwise in dimensions 2:" in text for text in found)


# ---- 5: relative actions


@pytest.mark.parametrize(
    ("names", "excluded", "mask"),
    [
        (None, ["gripper"], (True, True, True)),
        (["a.pos", "Gripper.pos", "c"], ["gripper"], (True, False, True)),
        (["a", "b"], ["b"], (True, False, True)),
        (["a", "b", "c"], [], (True, True, True)),
    ],
)
def test_which_actions_lerobot_makes_relative(
    names: list[str] | None, excluded: list[str], mask: tuple[bool, ...]
) -> None:
    assert relative_mask(True, names, excluded, 3) == mask
    assert relative_mask(False, names, excluded, 3) == ()


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
@pytest.mark.parametrize("delta", [(True,) * 6 + (False,), (False, True), (True,) * 7])
def test_relative_actions_survive_the_folder(kind: Any, delta: tuple[bool, ...], tmp_path: Path) -> None:
    recipe = tiny_recipe(kind, delta_actions=delta)
    folder = written(tmp_path, recipe)
    read = read_recipe(folder / "config.json", sizes=recipe.config)
    assert read.settings.delta_actions == (delta[:-1] if delta[-1:] == (False,) else delta)
    assert any("newest state" in text for text in differences(recipe))
    assert check_export(folder, recipe, tiny_stats()) == []
    edit_steps(folder / POST, lambda step: "absolute" not in step["registry_name"])
    with pytest.raises(CheckpointError, match="the other does not"):
        read_recipe(folder / "config.json", sizes=recipe.config)


# ---- 6: statistics


def test_statistics_outlive_a_tool_that_rewrites_lerobots_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = tiny_policy("pi05")
    folder = save_pretrained(policy, tmp_path / "saved")
    for file in (PRE, POST):
        edit_steps(folder / file, lambda step: "normalizer" not in step["registry_name"])
    with caplog.at_level(logging.WARNING):
        loaded = load_pretrained(folder)
    assert "policy_postprocessor.json has changed" in caplog.text and "acts as before" in caplog.text
    loaded.tokenizer = policy.tokenizer
    chunks = [p.sample(observation(), noise=torch.zeros(2, 1, 10, 32)) for p in (policy, loaded)]
    assert torch.equal(*chunks)


def test_a_changed_file_that_we_read_is_still_refused(tmp_path: Path) -> None:
    folder = save_pretrained(tiny_policy("pi05"), tmp_path / "saved")
    content = bytearray((folder / OWN_FILE).read_bytes())
    content[-1] ^= 1
    (folder / OWN_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=OWN_FILE):
        load_pretrained(folder)


def test_a_folder_of_before_has_its_statistics_in_lerobots_files(tmp_path: Path) -> None:
    folder = save_pretrained(tiny_policy("pi05"), tmp_path / "saved")
    for file in (OWN_FILE, MANIFEST_FILE):
        (folder / file).unlink()
    recipe = json.loads((folder / "chunkrl_pi.json").read_text())
    del recipe["manifest"]
    (folder / "chunkrl_pi.json").write_text(json.dumps(recipe))
    loaded = load_pretrained(folder)
    assert loaded.norm_stats is not None and loaded.norm_stats.state["q01"].dtype == torch.float64


@pytest.mark.parametrize(("kind", "key"), [("pi05", "q99"), ("pi0", "std")])
def test_lerobots_arithmetic_on_its_statistics_is_ours(kind: Any, key: str, tmp_path: Path) -> None:
    """It has no epsilon of its own (quantiles) or another (1e-8): the statistics that it reads make up for it."""
    recipe = tiny_recipe(kind, normalization_epsilon=1e-3)
    written(tmp_path, recipe)
    read, ours = find_lerobot(tmp_path), tiny_stats()
    assert read is not None
    more = 1e-3 - (1e-8 if kind == "pi0" else 0.0)
    assert torch.equal(read.action[key], ours.action[key] + more)
    state = torch.linspace(-1, 1, STATE_DIM)[None]
    mode = recipe.settings.normalization
    theirs = normalize(state, read.state, mode, as_lerobot(recipe).settings.normalization_epsilon)
    assert torch.allclose(normalize(state, ours.state, mode, 1e-3), theirs, atol=1e-6)


def test_without_statistics_there_is_nothing_that_stock_lerobot_would_act_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = PiPolicy(random_model("pi05"), tiny_recipe("pi05"))
    with caplog.at_level(logging.WARNING):
        folder = save_pretrained(bare, tmp_path / "saved")
    assert not (folder / PRE).exists() and not (folder / POST).exists()
    assert "refuses the folder, which has no statistics" in caplog.text
    assert load_pretrained(folder).norm_stats is None


def test_a_policy_that_is_asked_for_a_label_has_lerobots_files(tmp_path: Path) -> None:
    """Stock LeRobot knows no labels, and what guidance leads away from is one of them."""
    labels = ("Advantage: negative", "Advantage: positive")
    asked = {"condition": labels[1], "conditions": labels, "guidance": 1.5, "guidance_from": labels[0]}
    recipe = published(condition_place="task", **asked, **STOCK)
    plain = as_lerobot(recipe).settings
    assert (plain.condition, plain.conditions, plain.guidance, plain.guidance_from) == ("", (), 1.0, "")
    assert check_export(written(tmp_path, recipe), recipe, tiny_stats()) == []
    assert differences(recipe)[-1] == "has no classifier-free guidance"


# ---- 7: the condition's place


@pytest.mark.parametrize(
    ("place", "told"), [("end", "cannot write ', A' after the state"), ("task", "ends with ', A'")]
)
def test_a_condition_is_told_by_its_place(place: str, told: str) -> None:
    (found,) = differences(published(condition="A", condition_place=place, **STOCK))
    assert told in found


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"condition": "A"}, True),
        ({"condition": "A", "condition_place": "task"}, False),
        ({}, False),
    ],
)
def test_the_place_is_told_before_training(
    settings: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_stock_lerobot(tiny_recipe("pi05", **settings))
    assert ("--pi.condition-place task" in caplog.text) == warns


# ---- sizes, and the check itself


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 1000}, {"head_dim": 128}, {"num_kv_heads": 2}, {"depth": 3}, {"prefix_width": 64}],
)
def test_sizes_that_lerobot_would_fill_with_random_weights_have_no_name_of_its(
    change: dict[str, int], tmp_path: Path
) -> None:
    """It refuses a variant that it does not know, and acts with random weights where a known one does not load."""
    recipe = published()
    config: PiConfig = replace(recipe.config, **change)
    write_config(tmp_path, replace(recipe, config=config), "float32")
    variants = json.loads((tmp_path / "config.json").read_text())["paligemma_variant"]
    assert variants.startswith("chunkrl_")
    write_config(tmp_path, recipe, "float32")
    assert json.loads((tmp_path / "config.json").read_text())["paligemma_variant"] == "gemma_2b"


def _lose_statistics(folder: Path) -> None:
    data = json.loads((folder / POST).read_text())
    for step in data["steps"]:
        step.pop("state_file", None)
    (folder / POST).write_text(json.dumps(data))


def _rename_camera(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("observation.images.front", "observation.images.side"))


def _other_tokenizer(folder: Path) -> None:
    text = (folder / PRE).read_text()
    (folder / PRE).write_text(text.replace("google/paligemma-3b-pt-224", "another/tokenizer"))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_lose_statistics, "a normaliser without statistics"),
        (_rename_camera, "cameras .*side.* where .*front"),
        (_other_tokenizer, "would tokenize with .*another"),
    ],
)
def test_files_that_do_not_say_what_was_written_are_an_error(damage: Any, told: str, tmp_path: Path) -> None:
    recipe = tiny_recipe("pi05")
    written(tmp_path, recipe)
    assert check_export(tmp_path, recipe, tiny_stats()) == []
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=told):
        check_export(tmp_path, recipe, tiny_stats())


def test_a_wrong_tensor_of_the_statistics_is_told_by_the_chunk(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    recipe = tiny_recipe("pi05")
    written(tmp_path, recipe)
    (step,) = [step for step in steps(tmp_path / PRE) if step["registry_name"] == "normalizer_processor"]
    tensors = load_file(tmp_path / step["state_file"])
    tensors["action.q99"][3] += 0.5
    save_file(tensors, tmp_path / step["state_file"])
    (found,) = check_export(tmp_path, recipe, tiny_stats())
    assert found == "gives actions otherwise in dimensions 3: its statistics are float32"


def as_stock_acts(policy: PiPolicy, folder: Path, seen: Observation) -> Tensor:
    """A chunk from the folder's LeRobot files alone, with the same model."""
    recipe = read_recipe(folder / "config.json", sizes=policy.recipe.config)
    stock = PiPolicy(policy.model, recipe, find_lerobot(folder), policy.tokenizer)
    seen = replace(seen, images={feature_key(name): picture for name, picture in seen.images.items()})
    return stock.sample(seen, noise=torch.zeros(2, 1, 10, 32), condition="")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prompt_format": "pi05_no_state"},
        {"resize": "antialias"},
        {"condition": "Advantage: positive"},
        {"condition": "Advantage: positive", "condition_place": "task"},
    ],
)
def test_every_difference_that_is_told_changes_actions_and_no_other_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    policy = tiny_policy("pi05", tiny_recipe("pi05", **{**STOCK, **settings}))
    folder = save_pretrained(policy, tmp_path / "saved")
    seen = observation()
    wide = {name: torch.nn.functional.pad(p, (0, 40), value=200) for name, p in seen.images.items()}
    seen = replace(seen, images={name: p[..., :70] * (p[..., :70] % 3) for name, p in wide.items()})
    ours = policy.sample(seen, noise=torch.zeros(2, 1, 10, 32))
    gap = float((ours - as_stock_acts(policy, folder, seen)).abs().max())
    assert ours.shape == (2, 1, 10, ACTION_DIM)
    assert gap > 1e-4 if settings else gap < 1e-5
