"""From the networks in training to what actors act with: snapshots, and a thread that makes pushes of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.lora import adapted_modules
from chunkrl.models.pi.learner import PiLearner
from chunkrl.online.records import WeightPush
from chunkrl.online.transport import POLICY_FEATURE
from chunkrl.online.versions import VersionCounter
from chunkrl.online.weights import make_push

_LOG = logging.getLogger(__name__)


@torch.no_grad()
def acting_parameters(policy: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies on the CPU of what is trained, by the names that the saved policy has: LoRA layers as merged weights."""
    if isinstance(policy, PiLearner):
        policy = policy.policy
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
