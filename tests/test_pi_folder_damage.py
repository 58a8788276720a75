"""Files of pi folders with other things inside: one error of ours that names the file, and it ends."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pi_tiny import tiny_policy, tiny_recipe, tiny_stats
from safetensors.torch import load_file, save_file

from chunkrl.errors import CheckpointError
from chunkrl.manifest import MANIFEST_FILE, write_manifest
from chunkrl.models.pi import PiConfig, PiRecipe, PiSettings, VisionConfig, load_pretrained, save_pretrained
from chunkrl.models.pi.lerobot_format import read_recipe
from chunkrl.models.pi.norm_stats import find_lerobot, read_openpi
from chunkrl.models.pi.recipes import choose_recipe

WRONG: tuple[Any, ...] = (None, True, "1", [], [1], {}, {"a": 1}, -1, 0, 1.5, math.nan, 10**9, 10**30)
RECIPE_FILE = "chunkrl_pi.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(with_stats(), tmp_path / "policy")


def with_stats() -> Any:
    policy = tiny_policy("pi05")
    policy.norm_stats = tiny_stats()
    return policy


NO_NUMBER = (None, True, "1", [], [1], {"a": 1}, math.nan)
NO_SIZE = (*NO_NUMBER, {}, -1, 0, 1.5, 10**9, 10**30)
NO_TEXT = (None, True, [], [1], {}, 1, math.nan)
WRONG_MODEL: dict[str, tuple[Any, ...]] = {
    "kind": (*NO_TEXT, "pi1", ""),
    "vision": (None, True, "1", [], [1], {"a": 1}, 1),
    "time_min_period": (*NO_NUMBER, -1, 0),
    "time_beta_alpha": (*NO_NUMBER, -1, 0),
    "time_offset": (*NO_NUMBER, -1),
}
WRONG_SETTINGS: dict[str, tuple[Any, ...]] = {
    "prompt_format": (*NO_TEXT, "pi2"),
    "cameras": (None, True, {"a": 1}, [1], [""], ["a", "a"], [["a"]], 1),
    "state_dim": (*NO_NUMBER, -1, 1.5, 10**9),
    "action_dim": NO_SIZE,
    "normalization": (*NO_TEXT, "min_max"),
    "normalization_epsilon": (*NO_NUMBER, -1),
    "resize": (*NO_TEXT, "x"),
    "delta_actions": (None, True, "1", [1], ["a"], {"a": 1}, [True] * 8),
    "overlong_prompt": (*NO_TEXT, "x"),
    "condition": NO_TEXT,
    "condition_place": (*NO_TEXT, "x"),
    "guidance": (*NO_NUMBER, -1),
    "guidance_from": (*NO_TEXT, "Advantage: negative"),
    "data_resize": (True, "1", [], [1], 1),
    "fps": (True, "1", [], [1], {"a": 1}, math.nan, 0, -1),
    "conditions": (None, True, 1, [1], {"a": 1}),
}


def test_our_recipe_is_checked_for_types_and_ranges(tmp_path: Path) -> None:
    file = tmp_path / RECIPE_FILE
    recipe = tiny_recipe("pi05", prompt_format="pi05_no_state")
    right = json.loads(recipe.to_json())
    file.write_text(json.dumps(right | {"manifest": MANIFEST_FILE}))
    assert choose_recipe(str(file)) == recipe
    model, chosen, vision = right["model"], right["settings"], right["model"]["vision"]
    sizes = [key for key in model if key not in WRONG_MODEL and not key.startswith("time_")]
    assert len(sizes) == 12 and WRONG_SETTINGS.keys() == chosen.keys()
    wrong: list[Any] = [right | {part: value} for part in right for value in (None, True, "1", [], [1], 1)]
    wrong += [right | {"model": model | {key: value}} for key in sizes for value in NO_SIZE]
    wrong += [right | {"model": model | {key: v}} for key, values in WRONG_MODEL.items() for v in values]
    wrong += [right | {"model": model | {"vision": vision | {key: v}}} for key in vision for v in NO_SIZE]
    wrong += [
        right | {"settings": chosen | {key: v}} for key, values in WRONG_SETTINGS.items() for v in values
    ]
    wrong += [right | {"more": 1}, {"model": model}, [right], right | {"model": model | {"more": 1}}]
    for content in wrong:
        file.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=RECIPE_FILE):
            choose_recipe(str(file))
    for text in ("", "{", '{"model": {}, "model": {}}', "[" * 10**5):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=RECIPE_FILE):
            choose_recipe(str(file))


@pytest.mark.parametrize("depth", [10**9, 10**30, 1025])
def test_an_absurd_depth_is_refused_before_it_is_counted_to(folder: Path, depth: int) -> None:
    file = folder / RECIPE_FILE
    right = json.loads(file.read_text())
    for model in ({"depth": depth}, {"vision": right["model"]["vision"] | {"depth": depth}}):
        file.write_text(json.dumps(right | {"model": right["model"] | model}))
        write_manifest(folder)
        with pytest.raises(
            CheckpointError, match=rf"{RECIPE_FILE}.*depth is {depth}; it must be a positive integer"
        ):
            load_pretrained(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: VisionConfig(depth=True),
        lambda: PiConfig(horizon=2**17),
        lambda: PiConfig(time_min_period=math.nan),
        lambda: PiConfig(time_scale="1"),  # pyright: ignore[reportArgumentType]
        lambda: PiSettings("pi0", ("a",), True, 7, "mean_std", normalization_epsilon=math.inf),
        lambda: PiSettings("pi0", "ab", 7, 7, "mean_std"),  # pyright: ignore[reportArgumentType]
        lambda: PiSettings("pi0", ("",), 7, 7, "mean_std"),
        lambda: PiSettings("pi0", ("a",), "7", 7, "mean_std"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_sizes_in_code_are_checked_alike(wrong: Any) -> None:
    with pytest.raises(CheckpointError):
        wrong()


LEROBOT = {
    "type": "pi05",
    "input_features": {
        "observation.images.a": {"type": "VISUAL", "shape": [3, 224, 224]},
        "observation.state": {"type": "STATE", "shape": [8]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
    "chunk_size": 50,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "image_resolution": [224, 224],
    "tokenizer_max_length": 200,
    "min_period": 4e-3,
    "max_period": 4.0,
    "time_sampling_scale": 0.999,
    "paligemma_variant": "gemma_2b",
    "use_relative_actions": False,
}


def test_lerobots_configuration_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LEROBOT | {"whatever": math.inf}))  # of keys that nobody reads
    assert read_recipe(file).settings.state_dim == 8
    for key in LEROBOT:
        for value in WRONG:
            if (key, value) in (
                ("min_period", 10**9),
                ("min_period", 1.5),
                ("use_relative_actions", True),
            ) or (type(value) in (int, float) and value > 0 and ("period" in key or "scale" in key)):
                continue
            file.write_text(json.dumps(LEROBOT | {key: value}))
            with pytest.raises(CheckpointError, match=r"config\.json"):
                read_recipe(file)


def test_openpis_statistics_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "norm_stats.json"
    stats = {"mean": [0.5], "std": [1], "q01": None}
    file.write_text(json.dumps({"norm_stats": {"state": stats, "actions": stats}}))
    assert read_openpi(file).state["std"].tolist() == [1.0] and "q01" not in read_openpi(file).action
    no_object = (None, True, "1", [], [1], 1)
    wrong: list[Any] = [{"norm_stats": value} for value in (*no_object, {}, {"state": stats})]
    wrong += [{"norm_stats": {"state": value, "actions": stats}} for value in no_object]
    wrong += [
        {"norm_stats": {"state": stats, "actions": stats | {"mean": value}}}
        for value in (True, "1", 1, {}, [[1.0]], ["1"], [True], [None])
    ]
    for content in (*wrong, [], [wrong]):
        file.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"norm_stats\.json"):
            read_openpi(file)


@pytest.mark.parametrize(
    ("key", "value", "named"), [("std", -1.0, "std is negative"), ("q99", -9.0, "q99 lies below")]
)
def test_statistics_that_turn_values_around_are_refused(key: str, value: float, named: str) -> None:
    mode = "mean_std" if key == "std" else "quantiles"
    settings = replace(tiny_recipe("pi05").settings, normalization=mode)
    good = tiny_stats()
    good.check(settings, "x")
    spoiled = good.action[key].clone()
    spoiled[2] = value
    with pytest.raises(CheckpointError, match=f"x: action, dimension 2: {named}"):
        replace(good, action={**good.action, key: spoiled}).check(settings, "x")


def test_the_preprocessor_is_checked(folder: Path) -> None:
    file = folder / "policy_preprocessor.json"
    right = json.loads(file.read_text())
    (step,) = [step for step in right["steps"] if "state_file" in step]
    for content in (
        [],
        {"steps": None},
        {"steps": {}},
        {"steps": [3]},
        {"steps": ["a"]},
        *(
            {"steps": [step | {"state_file": name}]}
            for name in (None, 3, "", "../x", "/etc/passwd", "a/../../b", "none")
        ),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=rf"{file.name}|none is missing"):
            find_lerobot(folder)
    file.write_text(json.dumps(right))
    state_file = folder / step["state_file"]
    tensors = load_file(state_file)
    save_file(
        tensors | {"action.q01": torch.ones(7, dtype=torch.int64), "action.count": torch.ones(1).long()},
        state_file,
    )
    with pytest.raises(CheckpointError, match=r"action\.q01 has dtype torch\.int64, expected floats"):
        find_lerobot(folder)
    state_file.unlink()
    os.mkfifo(state_file)
    with pytest.raises(CheckpointError, match="is a pipe"):
        find_lerobot(folder)


def test_the_index_names_files_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    save_pretrained(tiny_policy("pi05"), folder)
    tensors = load_file(folder / "model.safetensors")
    recipe = PiRecipe.read(folder / RECIPE_FILE)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    for file in (folder / MANIFEST_FILE, folder / RECIPE_FILE):
        file.unlink()
    index = folder / "model.safetensors.index.json"
    names = list(tensors)
    for value in (
        *WRONG,
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "none.safetensors",
        "",
    ):
        for content in ({"weight_map": value}, {"weight_map": dict.fromkeys(names, value)}, value):
            index.write_text(json.dumps(content))
            with pytest.raises(CheckpointError, match=r"index\.json"):
                load_pretrained(folder, recipe=recipe)
    os.mkfifo(folder / "pipe.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "pipe.safetensors")}))
    with pytest.raises(CheckpointError, match=r"pipe\.safetensors is a pipe"):
        load_pretrained(folder, recipe=recipe)
    (folder / "shard.safetensors").symlink_to(tmp_path / "outside.safetensors")  # as in the Hub's cache
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "shard.safetensors")}))
    load_pretrained(folder, recipe=recipe)
