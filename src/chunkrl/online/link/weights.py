"""Weights from the learner to its actors: versions, pushes, and who makes them.

Versions of the weights, for ever.

Trained parameters as a push and back: bfloat16 on the wire, fetched in the background.

From the networks in training to what actors act with: snapshots, and a thread that makes pushes of them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chunkrl.errors import ChunkRLError, RecordError, TransportError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.lora import adapted_modules
from chunkrl.models.policy import PolicyModel
from chunkrl.online.link.records import TensorData, WeightPush
from chunkrl.online.link.sender import UnreachableError
from chunkrl.online.link.transport import POLICY_FEATURE


class VersionCounter:
    """Versions that rise over all restarts of a learner, so that a version names one set of weights for ever.

    path: a small file in the run's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._last = 0
        if self._path.exists():
            last = read_json(self._path, dict, TransportError, "restore it").get("version")
            if type(last) is not int or not 0 <= last < 2**62:
                raise TransportError(f"{self._path}: version {last!r} is no number from 0: restore it")
            self._last = last

    def next(self) -> int:
        """A version that no push had before; on the disk before it is returned."""
        write_text(self._path, json.dumps({"version": self._last + 1}))
        self._last += 1
        return self._last


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
        """The version of `taken`."""
        return self.taken.version

    @property
    def num_steps(self) -> int:
        """The number of steps of `taken`."""
        return self.taken.num_steps

    @property
    def own_steps(self) -> int | None:
        """The actor's own steps of `taken`."""
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
            except Exception as error:  # no memory, ...: shown by the actor, which keeps the old ones
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


@torch.no_grad()
def acting_parameters(policy: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies on the CPU of what is trained, by the names that the saved policy has: LoRA layers as merged weights."""
    if isinstance(policy, PolicyModel):
        policy = policy.acting
    trained: dict[str, Tensor] = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    for name, layer in adapted_modules(policy).items():
        for part in ("lora_A", "lora_B"):
            trained.pop(f"{name}.{part}", None)
        trained[f"{name}.weight"] = layer.merged(torch.float32).weight
    return {name: p.detach().to("cpu", dtype, copy=True) for name, p in trained.items()}


def policy_features(policy: ActingPolicy) -> tuple[str, ...]:
    """What an actor says in its greeting of the policy that it acts with: what no push carries. () where its folder
    holds that."""
    identity = policy.identity()
    return (POLICY_FEATURE + identity,) if identity else ()


class WeightPublisher:
    """Makes pushes in a thread of its own; where it is slower than training, older snapshots are left out.

    offer: takes the push, and each actor's own steps among those that it accounts for (`SpoolReceiver.offer`).

    Attributes:
        version, num_steps: of the last push that was offered (0: none).
        failure: what ended the thread, None while it works.
    """

    def __init__(
        self, versions: VersionCounter, offer: Callable[[WeightPush, Mapping[str, int]], None]
    ) -> None:
        self.version = self.num_steps = 0
        self.failure: Exception | None = None
        self._versions, self._offer = versions, offer
        self._waiting: tuple[Mapping[str, Tensor], int, Mapping[str, int]] | None = None
        self._at_work = False
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="weight-publisher")
        self._thread.start()

    def publish(self, parameters: Mapping[str, Tensor], num_steps: int, own_steps: Mapping[str, int]) -> None:
        """Takes a snapshot that nobody changes; num_steps: as in `WeightPush`; own_steps: each actor's. Raises what
        went wrong before."""
        with self._condition:
            if self.failure is not None:
                raise self.failure
            self._waiting = parameters, num_steps, own_steps
            self._condition.notify_all()

    def flush(self) -> None:
        """Returns when all that was published is on offer, or raises what went wrong."""
        with self._condition:
            self._condition.wait_for(
                lambda: self.failure is not None or (self._waiting is None and not self._at_work)
            )
            if self.failure is not None:
                raise self.failure

    def close(self) -> None:
        """Offers what waits and ends the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._waiting is None and not self._closing:
                    self._condition.wait()
                if self._waiting is None:
                    return
                (parameters, num_steps, own_steps), self._waiting = self._waiting, None
                self._at_work = True
            try:
                push = make_push(self._versions.next(), parameters, num_steps)
                self._offer(push, own_steps)
                self.version, self.num_steps = push.version, num_steps
            except Exception as error:  # raised where the next snapshot is handed over
                _LOG.error("no more weights for actors: %s", error)
                self.failure = error
                return
            finally:
                with self._condition:
                    self._at_work = False
                    self._condition.notify_all()


def snapshot(algorithm: Any, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """What would be deployed now: the policy's average where the algorithm keeps one."""
    with algorithm.deployed():
        return acting_parameters(algorithm.policy, dtype)
