"""Trained parameters as a push and back: bfloat16 on the wire, fetched in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chunkrl.errors import ChunkRLError, RecordError, TransportError
from chunkrl.online.records import TensorData, WeightPush
from chunkrl.online.sender import UnreachableError

_LOG = logging.getLogger(__name__)


def make_push(version: int, parameters: Mapping[str, Tensor], num_steps: int = 0) -> WeightPush:
    """What actors need of `parameters` (name -> floating-point tensor): give the trained ones only.

    num_steps: as in `WeightPush`.

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
    return WeightPush.make(version, tensors, num_steps)


def push_tensors(push: WeightPush) -> dict[str, Tensor]:
    """The push as bfloat16 tensors on the CPU; whoever takes them checks that they fit (`PolicyRunner.push`).

    Raises:
        RecordError: a tensor of another type.
    """
    result = {}
    for name, tensor in push.tensors.items():
        if tensor.dtype != "bfloat16":
            raise RecordError(f"weights version {push.version}: {name} is {tensor.dtype}, expected bfloat16")
        bits = np.frombuffer(tensor.data, "<u2").astype(np.uint16).reshape(tensor.shape)
        result[name] = torch.from_numpy(bits).view(torch.bfloat16)
    return result


@dataclass(frozen=True)
class Taken:
    """Weights that act now. version: 0: none yet. num_steps, own_steps: as in `WeightPush`."""

    version: int = 0
    num_steps: int = 0
    own_steps: int | None = 0


class WeightFetcher:
    """Asks for newer weights in a thread of its own and hands them on; whatever is wrong, the old ones stay.

    fetch: newer_than -> push or None (`LearnerClient.fetch_weights`).
    take: version and tensors, all or nothing, raises ChunkRLError where they do not fit (`PolicyRunner.push`).

    Attributes:
        taken: the last ones, all at once: other threads read them meanwhile. version, num_steps, own_steps: of these.
        num_refused: pushes that were damaged or did not fit. refusal: why the last of these was refused.
        failure: what ended it for good, or None: the learner refuses this actor.
    """

    def __init__(
        self,
        fetch: Callable[[int], WeightPush | None],
        take: Callable[[int, Mapping[str, Tensor]], None],
        every_s: float = 5.0,
    ) -> None:
        self.taken = Taken()
        self.num_refused = 0
        self.refusal = ""
        self.failure: TransportError | None = None
        self._fetch, self._take, self._every_s = fetch, take, every_s
        self._seen = 0  # taken or refused: neither is fetched again
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="weight-fetcher")
        self._thread.start()

    @property
    def version(self) -> int:
        """Of `taken`."""
        return self.taken.version

    @property
    def num_steps(self) -> int:
        """Of `taken`."""
        return self.taken.num_steps

    @property
    def own_steps(self) -> int | None:
        """Of `taken`."""
        return self.taken.own_steps

    def close(self) -> None:
        """Ends the thread after the call that is running."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._once()
            except UnreachableError as error:
                _LOG.debug("no weights: %s", error)  # the sender says so already
            except TransportError as error:
                _LOG.error("no more weights: %s", error)
                self.failure = error
                return
            except ChunkRLError as error:
                self.num_refused, self.refusal = self.num_refused + 1, str(error)
                _LOG.warning("weights refused, version %d stays: %s", self.version, error)
            except Exception as error:  # no memory, ...: shown by the actor, which goes on with the old ones
                _LOG.exception("no more weights")
                self.failure = TransportError(f"taking weights failed: {error!r}")
                return
            self._closing.wait(self._every_s)

    def _once(self) -> None:
        if push := self._fetch(self._seen):
            self._seen = push.version
            self._take(push.version, push_tensors(push))
            self.taken = Taken(push.version, push.num_steps, push.own_steps)
            _LOG.info("weights version %d", push.version)
