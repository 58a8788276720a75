"""Trained parameters as a push and back: bfloat16 on the wire, all or nothing where they are applied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from chunkrl.errors import RecordError
from chunkrl.online.records import TensorData, WeightPush


def make_push(version: int, parameters: Mapping[str, Tensor]) -> WeightPush:
    """What actors need of `parameters` (name -> floating-point tensor): give the trained ones only.

    Raises:
        RecordError: a tensor is not of floats, or holds NaN or inf: such weights reach no robot.
    """
    tensors = {}
    for name, tensor in parameters.items():
        if not tensor.is_floating_point():
            raise RecordError(f"parameter {name} is of type {tensor.dtype}: only floats are trained")
        values = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if not torch.isfinite(values).all():
            raise RecordError(f"parameter {name} holds NaN or inf: version {version} is not pushed")
        data = values.view(torch.uint16).numpy().astype("<u2").tobytes()
        tensors[name] = TensorData("bfloat16", tuple(values.shape), data)
    return WeightPush.make(version, tensors)


def apply_push(push: WeightPush, parameters: Mapping[str, Tensor]) -> None:
    """Copies the push into `parameters` in place, in their own types; all of them, or none.

    Raises:
        RecordError: other names, shapes or types than `parameters`, NaN or inf; nothing was changed.
    """
    missing, unknown = (
        sorted(parameters.keys() - push.tensors.keys()),
        sorted(push.tensors.keys() - parameters.keys()),
    )
    where = f"weights version {push.version}"
    if missing or unknown:
        raise RecordError(
            f"{where}: lacks {missing[:3]} and has {unknown[:3]} that this policy does not train: give actor and "
            "learner the same checkpoint and training settings; the old weights stay"
        )
    fresh = {}
    for name, tensor in push.tensors.items():
        if tensor.dtype != "bfloat16" or tensor.shape != tuple(parameters[name].shape):
            raise RecordError(
                f"{where}: {name} is {tensor.dtype} {list(tensor.shape)}, this policy's is bfloat16 "
                f"{list(parameters[name].shape)}: give actor and learner the same checkpoint; the old weights stay"
            )
        bits = np.frombuffer(tensor.data, "<u2").astype(np.uint16).reshape(tensor.shape)
        fresh[name] = torch.from_numpy(bits).view(torch.bfloat16)
        if not torch.isfinite(fresh[name]).all():
            raise RecordError(f"{where}: {name} holds NaN or inf; the old weights stay")
    with torch.no_grad():
        for name, values in fresh.items():
            parameters[name].copy_(values)
