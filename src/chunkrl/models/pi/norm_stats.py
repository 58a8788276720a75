"""Normalisation of states and actions exactly as the pi checkpoints were trained with it.

`chunkrl.data.normalize` is this project's own rule for its own networks; a pretrained checkpoint must keep the
arithmetic and the statistics it was trained with, to the epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from chunkrl.errors import CheckpointError
from chunkrl.files.json_files import numbers, read_json
from chunkrl.files.regular_files import check_regular, inside, is_there
from chunkrl.models.pi.config import NormalizationMode, PiSettings
from chunkrl.models.plugin_files import PREPROCESSOR
from chunkrl.types import TensorRecord

LEROBOT_NORMALIZER_STEP = "normalizer_processor"
LEROBOT_EPSILON: dict[NormalizationMode, float] = {"mean_std": 1e-8, "quantiles": 0.0, "identity": 0.0}
OWN_FILE = (
    "chunkrl_pi_stats.safetensors"  # beside the recipe, so that no rewritten file of LeRobot's loses them
)
OPENPI_FILE = "norm_stats.json"
_STATE, _ACTION = "observation.state", "action"
# Where a quantile range is empty and there is no epsilon, LeRobot divides by this.
_EMPTY_RANGE = 1e-8
# Narrower than this, a dimension is taken to be constant: rounding alone makes some width.
_CONSTANT = 1e-6
_CURE = "copy it again"
_NEEDED = {"mean_std": ("mean", "std"), "quantiles": ("q01", "q99"), "identity": ()}
_FLOATS = {name for names in _NEEDED.values() for name in names}


@dataclass(frozen=True)
class NormStats(TensorRecord):
    """Statistics of states and actions: name ("mean", "std", "q01", "q99", ...) -> float64 [D]."""

    state: Mapping[str, Tensor] = field(default_factory=dict)
    action: Mapping[str, Tensor] = field(default_factory=dict)

    def check(self, settings: PiSettings, source: str) -> None:
        """Raise CheckpointError unless what the settings need is here, finite and wide enough."""
        for name, stats, width in (
            ("state", self.state, settings.state_dim),
            ("action", self.action, settings.action_dim),
        ):
            for key in _NEEDED[settings.normalization]:
                values = stats.get(key)
                if width and (values is None or values.ndim != 1 or len(values) < width):
                    found = "absent" if values is None else f"of shape {list(values.shape)}"
                    raise CheckpointError(
                        f"{source}: {name}.{key} is {found}, but '{settings.normalization}' normalisation of "
                        f"{width} dimensions needs it; give the checkpoint's norm stats, or another recipe"
                    )
                if values is not None and not bool(torch.isfinite(values).all()):
                    raise CheckpointError(f"{source}: {name}.{key} holds NaN or infinity; compute it again")
            if width and settings.normalization != "identity":
                low, high = (stats[key][:width] for key in _NEEDED[settings.normalization])
                spread = high if settings.normalization == "mean_std" else high - low
                if bool((spread < 0).any()):
                    dimension, needed = int((spread < 0).nonzero()[0]), _NEEDED[settings.normalization]
                    wrong = "std is negative" if "std" in needed else "q99 lies below q01"
                    raise CheckpointError(
                        f"{source}: {name}, dimension {dimension}: {wrong}; compute it again"
                    )


def normalize(x: Tensor, stats: Mapping[str, Tensor], mode: NormalizationMode, eps: float) -> Tensor:
    """x [..., D] in the data's units -> float64 [..., D]; statistics wider than D are cut to D."""
    if mode == "identity":
        return x.double()
    if mode == "quantiles" and eps == LEROBOT_EPSILON[mode]:
        return _lerobot_quantiles(x, stats)
    offset, scale = _affine(stats, mode, eps, x)
    normed = (x.double() - offset) / scale
    if mode == "mean_std":
        return normed
    # as openpi's (x - q01) / (q99 - q01 + eps) * 2 - 1: rounding must not put it below, into the prompt's bin -1
    low = stats["q01"][: x.shape[-1]].to(x.device, torch.float64)
    return torch.where(x.double() == low, -1.0, normed)


def _lerobot_quantiles(x: Tensor, stats: Mapping[str, Tensor]) -> Tensor:
    """LeRobot's float32 arithmetic, operation for operation: a state on the edge of two of the prompt's bins, or one
    that never varies and is the statistic but for its rounding, must fall where LeRobot lets it fall."""
    low, high = (stats[key][: x.shape[-1]].to(x.device, torch.float32) for key in _NEEDED["quantiles"])
    spread = high - low
    spread = torch.where(spread == 0, torch.full_like(spread, _EMPTY_RANGE), spread)
    return (2.0 * (x.float() - low) / spread - 1.0).double()


def unnormalize(x: Tensor, stats: Mapping[str, Tensor], mode: NormalizationMode, eps: float) -> Tensor:
    """The inverse of `normalize`, float64 [..., D]."""
    if mode == "identity":
        return x.double()
    offset, scale = _affine(stats, mode, eps, x)
    return x.double() * scale + offset


def _affine(
    stats: Mapping[str, Tensor], mode: NormalizationMode, eps: float, x: Tensor
) -> tuple[Tensor, Tensor]:
    """(offset, scale): both modes are (x - offset) / scale, so one inverse serves both."""
    low, high = (stats[key][: x.shape[-1]].to(x.device, torch.float64) for key in _NEEDED[mode])
    if mode == "mean_std":
        return low, high + eps
    spread = high - low + eps
    half = torch.where(spread == 0, _EMPTY_RANGE, spread) / 2
    return low + half, half


def is_constant(stats: Mapping[str, Tensor], mode: NormalizationMode, width: int) -> Tensor:
    """bool [width], dimensions that do not vary in the data that the statistics are of; without statistics none."""
    if mode == "identity":
        return torch.zeros(width, dtype=torch.bool)
    low, high = (stats[key][:width] for key in _NEEDED[mode])
    return (high if mode == "mean_std" else high - low) < _CONSTANT


def find_openpi(folder: Path, asset_id: str | None) -> NormStats | None:
    """Statistics under `assets/<asset_id>/norm_stats.json`, or None where the folder has no assets.

    Raises:
        CheckpointError: several assets and no `asset_id`, no such asset, or an unreadable file.
    """
    files = {
        str(file.parent.relative_to(folder / "assets")): file
        for file in sorted((folder / "assets").rglob(OPENPI_FILE))
    }
    if asset_id is not None and asset_id not in files:
        raise CheckpointError(f"{folder}/assets has no '{asset_id}'; it has {sorted(files)}")
    if asset_id is None and len(files) > 1:
        raise CheckpointError(f"{folder}/assets has norm stats of {sorted(files)}; say which with asset_id")
    if not files:
        return None
    return read_openpi(files[asset_id] if asset_id is not None else next(iter(files.values())))


def read_openpi(file: Path) -> NormStats:
    """openpi's `norm_stats.json`: {"norm_stats": {"state": {...}, "actions": {...}}}."""
    data = read_json(file, dict, CheckpointError, _CURE, nan=True).get("norm_stats")
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is not an openpi norm_stats.json (no object 'norm_stats'): {_CURE}")
    return NormStats(*(_vectors(data.get(key), f"{file}: '{key}'") for key in ("state", "actions")))


def _vectors(stats: Any, where: str) -> dict[str, Tensor]:
    if not isinstance(stats, dict):
        raise CheckpointError(
            f"{where} is {stats!r:.60}, expected an object with mean, std, q01 and q99: {_CURE}"
        )
    return {
        key: torch.tensor(numbers(value, f"{where}, '{key}'", CheckpointError, _CURE), dtype=torch.float64)
        for key, value in stats.items()
        if value is not None
    }


def write_own(folder: Path, stats: NormStats) -> None:
    """`OWN_FILE`: every bit of the statistics."""
    tensors = {
        f"{name}.{key}": value.cpu().contiguous()
        for name, values in ((_STATE, stats.state), (_ACTION, stats.action))
        for key, value in values.items()
    }
    save_file(tensors, folder / OWN_FILE)


def find_own(folder: Path) -> NormStats | None:
    """What `write_own` wrote, or None where it did not (folders of earlier releases)."""
    file = folder / OWN_FILE
    return _read_tensors(file, "") if is_there(file, CheckpointError, _CURE) else None


def read_steps(file: Path) -> list[dict[str, Any]]:
    """The steps of a pipeline of LeRobot. Raises CheckpointError where the file holds none."""
    steps = read_json(file, dict, CheckpointError, _CURE, nan=True).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{file} is not a LeRobot pipeline ('steps' is no list of objects): {_CURE}")
    return steps


def find_lerobot(folder: Path) -> NormStats | None:
    """Statistics of a LeRobot policy's preprocessor, or None where it has none.

    Raises:
        CheckpointError: the preprocessor names a file that is not there or cannot be read.
    """
    pipeline = folder / PREPROCESSOR
    if not is_there(pipeline, CheckpointError, _CURE):
        return None
    names = [
        step["state_file"]
        for step in read_steps(pipeline)
        if step.get("registry_name") == LEROBOT_NORMALIZER_STEP and "state_file" in step
    ]
    if not names:
        return None
    file = inside(folder, names[0], f"{pipeline}: 'state_file'", CheckpointError)
    return _read_tensors(file, f", named by {pipeline.name},")


def _read_tensors(file: Path, named: str) -> NormStats:
    check_regular(file, CheckpointError, _CURE)
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}{named} cannot be read ({error}): {_CURE}") from error
    return NormStats(state=_pick(tensors, _STATE, file), action=_pick(tensors, _ACTION, file))


def _pick(tensors: Mapping[str, Tensor], feature: str, file: Path) -> dict[str, Tensor]:
    """The feature's statistics."""
    prefix, found = f"{feature}.", {}
    for key, value in tensors.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if name in _FLOATS and not value.is_floating_point():
            raise CheckpointError(f"{file}: {key} has dtype {value.dtype}, expected floats: {_CURE}")
        found[name] = value.double().flatten()
    return found
