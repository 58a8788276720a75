"""Tiny pi models with random weights, and the golden files, for the tests of `chunkrl.models.pi`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from chunkrl.models.pi import PiConfig, PiModel, PiPolicy, PiRecipe, PiSettings, VisionConfig
from chunkrl.models.pi.config import ModelKind, PromptFormat
from chunkrl.models.pi.flow import PrefixInputs
from chunkrl.models.pi.norm_stats import NormStats
from chunkrl.types import Observation

# Tensors this small are slower on several threads, much slower on a machine that others use too.
torch.set_num_threads(1)

ASSETS = Path(__file__).parent / "assets"
TOKENIZER = ASSETS / "tiny_tokenizer.model"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden files of ../shared are not on this machine"
)
KINDS: tuple[ModelKind, ...] = ("pi0", "pi05")
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
STATE_DIM, ACTION_DIM = 8, 7


class CharacterTokenizer:
    """The golden prompts' stand-in: one token a character, bos 2, padding 0."""

    def encode(self, text: str, add_bos: bool) -> list[int]:
        return [2] * add_bos + [3 + ord(c) % 200 for c in text]


def tiny_config(kind: ModelKind) -> PiConfig:
    """The golden files' sizes."""
    return PiConfig(
        kind=kind,
        vision=VisionConfig(image_size=56, patch_size=14, width=48, depth=2, mlp_width=96, num_heads=4),
        vocab_size=512,
        prefix_width=64,
        prefix_mlp_width=160,
        expert_width=32,
        expert_mlp_width=80,
        depth=3,
        head_dim=16,
        horizon=10,
        max_prompt_tokens=12 if kind == "pi0" else 24,
    )


def tiny_recipe(kind: ModelKind, prompt_format: PromptFormat | None = None, **settings: object) -> PiRecipe:
    """Two cameras, 8-D state, 7-D action, room for long prompts."""
    chosen = prompt_format or ("pi0" if kind == "pi0" else "pi05_state")
    mode = "mean_std" if kind == "pi0" else "quantiles"
    base = PiSettings(chosen, ("front", "wrist"), STATE_DIM, ACTION_DIM, mode)
    return PiRecipe(replace(tiny_config(kind), max_prompt_tokens=200), replace(base, **settings))


def random_model(kind: ModelKind, seed: int = 0) -> PiModel:
    """All weights random, those that start at zero included."""
    model = PiModel(tiny_config(kind))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def tiny_stats() -> NormStats:
    def stats(width: int) -> dict[str, Tensor]:
        ramp = torch.arange(1, width + 1, dtype=torch.float64)
        return {"mean": ramp / 7, "std": 1 + ramp / 3, "q01": -1 - ramp / 5, "q99": 1 + ramp / 9}

    return NormStats(state=stats(STATE_DIM), action=stats(ACTION_DIM))


def tiny_policy(kind: ModelKind, recipe: PiRecipe | None = None) -> PiPolicy:
    return PiPolicy(random_model(kind), recipe or tiny_recipe(kind), tiny_stats(), CharacterTokenizer())


def observation(batch: int = 2, seed: int = 0, tasks: tuple[str, ...] | None = None) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, 56, 56)
    images = {
        camera: torch.randint(0, 256, shape, generator=generator, dtype=torch.int32).to(torch.uint8)
        for camera in ("front", "wrist")
    }
    state = torch.randn(batch, STATE_DIM, generator=generator)
    return Observation(images, state, tasks or ("push the red cup",) * batch)


def random_inputs(kind: ModelKind, batch: int = 2, seed: int = 0) -> PrefixInputs:
    """Three cameras of which row 0 has one and row 1 two, and prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    config = tiny_config(kind)
    images = {c: torch.rand(batch, 3, 56, 56, generator=generator) * 2 - 1 for c in CAMERAS}
    rows = torch.arange(batch)
    length = config.max_prompt_tokens
    return PrefixInputs(
        images=images,
        image_masks={camera: rows >= index for index, camera in enumerate(CAMERAS)},
        tokens=torch.randint(3, 512, (batch, length), generator=generator),
        token_mask=torch.arange(length)[None] < (5 + 2 * rows)[:, None],
        state=torch.randn(batch, 32, generator=generator) if kind == "pi0" else None,
    )


def golden_inputs(kind: ModelKind, case: int) -> tuple[PrefixInputs, dict[str, Tensor]]:
    """The model inputs of a golden case, and its actions, noise and times."""
    with np.load(GOLDEN / kind / f"case{case}_inputs.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    cameras = [camera for camera in CAMERAS if f"images/{camera}" in data]
    inputs = PrefixInputs(
        images={c: data[f"images/{c}"].permute(0, 3, 1, 2).float() / 255 * 2 - 1 for c in cameras},
        image_masks={c: data[f"image_masks/{c}"] for c in cameras},
        tokens=data["tokenized_prompt"].long(),
        token_mask=data["tokenized_prompt_mask"],
        state=data["state"] if kind == "pi0" else None,
    )
    return inputs, data


def golden_outputs(kind: ModelKind, case: int, reference: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / kind / f"case{case}_outputs_{reference}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def max_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.detach() - b).abs().max())
