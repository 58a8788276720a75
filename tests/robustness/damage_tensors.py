"""Damage to safetensors files that leaves readable files: other tensors, dtypes, shapes, values."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .damage import KINDS, pick

Tensors = dict[str, torch.Tensor]


def _on_tensors(name: str, change: Callable[[Tensors, random.Random], str | None]) -> None:
    def apply(root: Path, rng: random.Random) -> tuple[Path, str] | None:
        path = pick(root, rng, ".safetensors")
        if path is None:
            return None
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        told = change(tensors, rng)
        if told is None:
            return None
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
        return path, told

    KINDS[f"tensors/{name}"] = apply


def _any(tensors: Tensors, rng: random.Random, good: Callable[[torch.Tensor], bool] = bool) -> str | None:
    names = [name for name in sorted(tensors) if good(tensors[name])]
    return rng.choice(names) if names else None


def _with(value: float) -> Callable[[Tensors, random.Random], str | None]:
    """A value put into a tensor of floats."""

    def change(tensors: Tensors, rng: random.Random) -> str | None:
        name = _any(tensors, rng, lambda t: t.is_floating_point() and t.numel() > 0)
        if name is None:
            return None
        tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = value
        return f"{name} has {value}"

    return change


def _gone(tensors: Tensors, rng: random.Random) -> str | None:
    name = _any(tensors, rng, lambda t: True)
    if name is None:
        return None
    del tensors[name]
    return f"{name} is gone"


def _renamed(tensors: Tensors, rng: random.Random) -> str | None:
    name = _any(tensors, rng, lambda t: True)
    if name is None:
        return None
    tensors[name + "_"] = tensors.pop(name)
    return f"{name} renamed"


def _added(tensors: Tensors, rng: random.Random) -> str | None:
    tensors["added"] = torch.zeros(3)
    return "a tensor added"


def _as_type(tensors: Tensors, rng: random.Random) -> str | None:
    name = _any(tensors, rng, lambda t: True)
    if name is None:
        return None
    dtypes = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.float16, torch.bfloat16]
    dtype = rng.choice([d for d in dtypes if d != tensors[name].dtype])
    tensors[name] = tensors[name].to(dtype)
    return f"{name} as {dtype}"


def _swapped(tensors: Tensors, rng: random.Random) -> str | None:
    pairs = [
        (a, b)
        for a in sorted(tensors)
        for b in sorted(tensors)
        if a < b and tensors[a].shape == tensors[b].shape and tensors[a].dtype == tensors[b].dtype
    ]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    tensors[a], tensors[b] = tensors[b], tensors[a]
    return f"{a} and {b} swapped"


def _transposed(tensors: Tensors, rng: random.Random) -> str | None:
    name = _any(tensors, rng, lambda t: t.dim() == 2 and t.numel() > 1)
    if name is None:
        return None
    tensors[name] = tensors[name].T.contiguous()
    return f"{name} transposed"


def _another_shape(tensors: Tensors, rng: random.Random) -> str | None:
    name = _any(tensors, rng, lambda t: t.dim() > 0 and t.numel() > 1)
    if name is None:
        return None
    shapes = [tensors[name].reshape(-1), tensors[name][None], tensors[name][1:], tensors[name][..., :-1]]
    tensors[name] = rng.choice([t for t in shapes if t.shape != tensors[name].shape])
    return f"{name} has another shape"


def _zeroed(tensors: Tensors, rng: random.Random) -> str | None:
    name = _any(tensors, rng, lambda t: bool((t != 0).any()))
    if name is None:
        return None
    tensors[name] = torch.zeros_like(tensors[name])
    return f"{name} is zero"


for _name, _change in {
    "NaN": _with(float("nan")),
    "infinite": _with(float("-inf")),
    "another value": _with(0.0625),
    "a value out of proportion": _with(1e30),
    "one gone": _gone,
    "one renamed": _renamed,
    "one added": _added,
    "another dtype": _as_type,
    "two swapped": _swapped,
    "one transposed": _transposed,
    "another shape": _another_shape,
    "one zeroed": _zeroed,
}.items():
    _on_tensors(_name, _change)
