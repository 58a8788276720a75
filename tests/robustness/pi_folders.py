"""Whole pi checkpoints of every layout to be damaged: ours, LeRobot's, openpi's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pi_tiny import GOLDEN, TOKENIZER, observation, tiny_policy, tiny_recipe, tiny_stats
from safetensors.torch import load_file, save_file

from chunkrl.models.pi import find_recipe, load_pretrained, save_pretrained
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.config import PiRecipe, pi05_config
from chunkrl.models.pi.lerobot_format import write_config
from chunkrl.run.policy_io import load_policy


def _ours(kind: Any, root: Path) -> None:
    """As `save_pretrained` writes it."""
    bare = root.with_name("bare")
    shutil.rmtree(bare, ignore_errors=True)
    save_pretrained(tiny_policy(kind), bare)
    save_pretrained(load_pretrained(bare, tokenizer=TOKENIZER), root)


def _foreign(root: Path) -> Path:
    """LeRobot's files without those that only we write."""
    _ours("pi05", root)
    lerobot = ("model.safetensors", "config.json", "policy_p")
    for file in root.iterdir():
        if not file.name.startswith(lerobot):
            file.unlink()
    return root


def _lerobot(root: Path) -> None:
    """Its config.json says the published sizes; the recipe for these weights is given."""
    recipe = replace(tiny_recipe("pi05"), config=pi05_config())
    write_config(_foreign(root), recipe, "float32")


def _openpi(root: Path) -> None:
    """Shards and an index, statistics among the assets."""
    tensors = {
        name.removeprefix("model."): t for name, t in load_file(_foreign(root) / "model.safetensors").items()
    }
    shutil.rmtree(root)
    names, stats = sorted(tensors), {"mean": [1.0] * 8, "std": [2.0] * 8, "q01": [-1.0] * 8, "q99": [1.5] * 8}
    asset = root / "assets/lab/arm/norm_stats.json"
    asset.parent.mkdir(parents=True)
    asset.write_text(json.dumps({"norm_stats": {"state": stats, "actions": stats}}))
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, members in shards.items():
        save_file({name: tensors[name].clone() for name in members}, root / file)
    index = {name: file for file, members in shards.items() for name in members}
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {"action_dim": 32, "action_horizon": 10, "precision": "float32"}
    (root / "config.json").write_text(json.dumps(config))


def _jax(root: Path) -> None:
    shutil.copytree(GOLDEN / "pi05/orbax_ckpt", root)


PI_FOLDERS: dict[str, Callable[[Path], None]] = {
    "pi0": partial(_ours, "pi0"),
    "pi05": partial(_ours, "pi05"),
    "lerobot": _lerobot,
    "openpi": _openpi,
}
if GOLDEN.is_dir():
    PI_FOLDERS["openpi-jax"] = _jax


def write_pi_folder(name: str, root: Path) -> Path:
    """The whole folder of this name."""
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    PI_FOLDERS[name](root)
    return root


def is_ours(name: str) -> bool:
    """Whether we wrote it, with checksums."""
    return name.startswith("pi0")


def act(name: str, root: Path, scratch: Path) -> dict[str, Any]:
    """Weights, settings, statistics and chunks of the policy."""
    if is_ours(name):
        actor = load_policy(root)
        assert isinstance(actor, PiActor)
        policy = actor.policy
    else:
        stats = tiny_stats() if name == "openpi-jax" else None
        policy = load_pretrained(root, recipe=tiny_recipe("pi05"), tokenizer=TOKENIZER, stats=stats)
    needed = {"mean_std": ("mean", "std"), "quantiles": ("q01", "q99"), "identity": ()}
    stats = policy.stats()
    return {
        "chunks": policy.sample(observation(), 2, 2, generator=torch.Generator().manual_seed(0)),
        "weights": policy.model.state_dict(),
        "recipe": policy.recipe,
        "stats": {
            f"{name}.{key}": getattr(stats, name)[key]
            for name in ("state", "action")
            for key in needed[policy.recipe.settings.normalization]
        },
    }


def recipe(root: Path, scratch: Path) -> PiRecipe:
    """What the folder says of itself."""
    return find_recipe(root)


def pi_probes(name: str, truth: Path) -> dict[str, Callable[[Path, Path], Any]]:
    """Of the folder of this name."""
    probes: dict[str, Callable[[Path, Path], Any]] = {"act": partial(act, name)}
    return probes if name.startswith("openpi") else probes | {"recipe": recipe}
