"""The optimiser: AdamW (or 8-bit AdamW), learning-rate schedule, accumulation, clipping, precision, averages.

Library considered: torch.optim.swa_utils for averages: AveragedModel copies frozen weights too (1,011,010 numbers
where 10,010 train), renames all to module.*, and averages bfloat16 in bfloat16, which loses small steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.training.config import OptimConfig
from chunkrl.training.eight_bit import (
    eight_bit_adamw,
    is_packed,
    is_quantised,
    pack_moment,
    unpack_moment,
)
from chunkrl.training.shards import is_sharded, shard_like

# Devices on which PyTorch has a fused AdamW kernel for floating-point parameters.
_FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")
_MASTER_DTYPES = (torch.float32, torch.float64)


def learning_rate(config: OptimConfig, update: int, num_updates: int | None = None) -> float:
    """The rate of one update, a pure function: nothing to restore when a run resumes.

    With w = warmup_updates: lr (u + 1) / w for u < w; then lr, or with `cosine`
    lr (f + (1 - f) (1 + cos(pi p)) / 2), f = final_lr_ratio, p = (u - w) / (num_updates - 1 - w), so that the
    last update has the final rate. Updates beyond num_updates keep it.

    Args:
        update: u, counted from 0.
        num_updates: of the whole run; only `cosine` needs it.
    """
    if update < config.warmup_updates:
        return config.lr * (update + 1) / config.warmup_updates
    if config.schedule == "constant":
        return config.lr
    assert num_updates is not None, "Optimizer checks this"
    progress = min(1.0, (update - config.warmup_updates) / max(1, num_updates - 1 - config.warmup_updates))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 mixed precision on a GPU (fp32 masters, no loss scaling needed), full precision on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def prepare_precision(module: nn.Module, frozen_dtype: torch.dtype | None) -> None:
    """Trained parameters become float32 masters; frozen floating-point ones get `frozen_dtype` (None: stay).

    Call it after choosing what trains and before building the optimiser, and train under `autocast`.
    """
    for parameter in module.parameters():
        dtype = torch.float32 if parameter.requires_grad else frozen_dtype
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def frozen_dtype(device: torch.device) -> torch.dtype | None:
    """What `prepare_precision` casts frozen parameters to: bfloat16 on a GPU, nothing on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else None


class Optimizer:
    """AdamW over groups of parameters; each group is clipped by its own gradient norm.

    `step` is one update from one loss. To accumulate, call `backward` for each part of a batch (the losses add
    up: divide each by their number) and then `apply`.

    Args:
        groups: cross-fitted networks are a group each, because one norm over all of them would let the gradient
            of a network that sees an episode scale the step of the network that must not. Frozen parameters
            are left out.
        num_updates: of the whole run, which the cosine schedule needs.

    Raises:
        ChunkRLError: nothing to train, a trained parameter below float32, or a schedule without its length.
        MissingExtraError: `adamw_8bit` without its package.
    """

    def __init__(
        self, groups: Sequence[Iterable[nn.Parameter]], config: OptimConfig, num_updates: int | None = None
    ) -> None:
        self._groups = [[p for p in group if p.requires_grad] for group in groups]
        self._parameters = [p for group in self._groups for p in group]
        self._config, self._num_updates = config, num_updates
        self._num_applied = 0
        self._accumulating = False
        self._check()
        self._adam = _adamw(self._parameters, config)

    def _check(self) -> None:
        config, num_updates = self._config, self._num_updates
        if not self._parameters:
            raise ChunkRLError("every parameter is frozen: there is nothing to train; choose some that are")
        low = {str(p.dtype) for p in self._parameters if p.dtype not in _MASTER_DTYPES}
        if low:
            raise ChunkRLError(
                f"trained parameters in {', '.join(sorted(low))} lose small updates; call prepare_precision first"
            )
        if config.schedule != "cosine":
            return
        if num_updates is None:
            raise ChunkRLError(
                "the cosine schedule needs num_updates, the length of the run; or use constant"
            )
        if config.warmup_updates >= num_updates > 0:
            raise ChunkRLError(
                f"warmup_updates {config.warmup_updates} must be below the run's {num_updates} updates"
            )

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return learning_rate(self._config, self._num_applied, self._num_updates)

    @property
    def num_applied(self) -> int:
        """Updates applied so far, over resumes."""
        return self._num_applied

    def step(self, loss: Tensor) -> float:
        """One update down `loss` (a scalar); returns the norm of all gradients before clipping."""
        self.backward(loss)
        return self.apply()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` (a scalar) to those since the last update."""
        self._accumulating = True
        loss.backward()

    def apply(self) -> float:
        """One update by the gradients so far, then freed; returns their norm, over all groups, before clipping."""
        assert self._accumulating, "backward comes before apply"
        clip = self._config.grad_clip
        norms = [_to_float(torch.nn.utils.clip_grad_norm_(group, clip)) for group in self._groups]
        for group in self._adam.param_groups:
            if isinstance(group["lr"], Tensor):  # the 8-bit one's: a number would compile it again
                group["lr"].fill_(self.lr)
            else:
                group["lr"] = self.lr
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._accumulating = False
        self._num_applied += 1
        return math.hypot(*norms)

    def state_dict(self) -> dict[str, Any]:
        """Update count, and moments by parameter position, as plain tensors."""
        assert not self._accumulating, "gradients that wait for apply are not saved"
        moments = {}
        for index, parameter in enumerate(self._parameters):
            if entry := self._adam.state.get(parameter):
                moments[str(index)] = {key: pack_moment(value) for key, value in entry.items()}
        return {"num_applied": self._num_applied, "num_parameters": len(self._parameters), "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`: training goes on to the same numbers.

        Raises CheckpointError when it belongs to other parameters or another kind of optimiser.
        """
        self._check_state(state)
        entries: dict[int, dict[str, Any]] = {}
        for index, entry in state["moments"].items():
            parameter = self._parameters[int(index)]
            entries[int(index)] = {
                key: unpack_moment(value, parameter.dtype, parameter.device)
                if is_packed(value)
                else shard_like(value, parameter)
                for key, value in entry.items()
            }
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict({"state": entries, "param_groups": groups})
        self._num_applied = int(state["num_applied"])
        self._accumulating = False

    def _check_state(self, state: dict[str, Any]) -> None:
        cure = "resume with the settings that the checkpoint was made with, or start a new run"
        if set(state) != {"num_applied", "num_parameters", "moments"}:
            raise CheckpointError(f"the optimiser's state was written by another version; {cure}")
        if state["num_parameters"] != len(self._parameters):
            raise CheckpointError(
                f"the checkpoint trains {state['num_parameters']} parameters, this run {len(self._parameters)}; "
                f"{cure}"
            )
        for index, entry in state["moments"].items():
            parameter, moment = self._parameters[int(index)], entry["exp_avg"]
            shape = moment["codes"].shape if is_packed(moment) else moment.shape
            quantised = self._config.kind == "adamw_8bit" and is_quantised(parameter)
            if tuple(shape) != tuple(parameter.shape) or is_packed(moment) != quantised:
                raise CheckpointError(
                    f"moments of trained parameter {index} [{', '.join(map(str, shape))}] do not belong to one of "
                    f"[{', '.join(map(str, parameter.shape))}] under {self._config.kind}; {cure}"
                )


def _adamw(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    if config.kind == "adamw_8bit":
        return eight_bit_adamw(parameters, config.lr, config.betas, config.weight_decay)
    fused = all(p.device.type in _FUSED_DEVICES for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused
    )


def _to_float(norm: Tensor) -> float:
    """A gradient norm as a number; a sharded one is summed over its shards first."""
    full = getattr(norm, "full_tensor", None)
    return float(norm if full is None else full())


def _set_aside(parameter: Tensor) -> Tensor:
    """A copy that takes no memory of a GPU; of a sharded parameter, its rows where they are."""
    return parameter.detach().clone() if is_sharded(parameter) else parameter.detach().to("cpu", copy=True)


@torch.no_grad()
def _move_average(average: Tensor, value: Tensor, rate: float) -> None:
    average.lerp_(value.detach().to(average.dtype), rate)


def update_ema(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate online, parameters only (buffers are shared statistics).

    The target stays in float32 even where `online` is not: bfloat16 would lose the small steps.
    """
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        if old.dtype not in _MASTER_DTYPES:
            raise ChunkRLError(f"a target network in {old.dtype} loses small steps; make it float32 first")
        _move_average(old, new, rate)


class Ema:
    """Exponential moving average of parameters, in float32 whatever their dtype.

    Args:
        module_parameters: names and parameters, as `named_parameters` gives them; the trained ones suffice.
        decay: average <- decay * average + (1 - decay) * parameter, an update.
    """

    def __init__(self, module_parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ChunkRLError(f"the EMA's decay is {decay}; it must lie in [0, 1)")
        self._decay = decay
        self._parameters = dict(module_parameters)
        self._shadow = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in self._parameters.items()
        }

    def update(self) -> None:
        """Once after each update of the parameters."""
        for name, parameter in self._parameters.items():
            _move_average(self._shadow[name], parameter, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the averages inside, and exactly what they held before afterwards.

        Meanwhile a copy of the parameters lies in the CPU's memory.
        """
        originals = {name: _set_aside(parameter) for name, parameter in self._parameters.items()}
        try:
            self._fill(self._shadow)
            yield
        finally:
            self._fill(originals)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name, float32: the tensors themselves, as `nn.Module.state_dict` gives them."""
        return dict(self._shadow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError when the parameters are others."""
        wrong = sorted(set(state) ^ set(self._shadow))
        wrong += [n for n in self._shadow if n in state and state[n].shape != self._shadow[n].shape]
        if wrong:
            raise CheckpointError(
                f"the checkpoint's averages are of other parameters ({', '.join(wrong[:3])}, ...: {len(wrong)}); "
                "resume with the trained parameters that it was made with"
            )
        for name, shadow in self._shadow.items():
            shadow.copy_(state[name])
