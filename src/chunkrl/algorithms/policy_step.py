"""An update of the policy: weighted imitation of a batch of chunks, in microbatches, with a moving average.

L_pi = E[w * (-log pi(A|x))] for a Gaussian policy, with the flow-matching loss in its place for others
(`losses.policy_loss`). All methods that clone chunks with weights or conditions share it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from chunkrl import ranks
from chunkrl.algorithms import losses
from chunkrl.algorithms.value_learner import microbatches
from chunkrl.models.policy import PolicyModel
from chunkrl.training.algorithm import Metrics
from chunkrl.training.checkpoint import load_trained_state, trained_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.optim import Ema, Optimizer, autocast
from chunkrl.types import ChunkTransition

Sums = Iterator[tuple[str, float, int]]
"""(metric, its sum over rows, how many rows)."""


class PolicyStep:
    """The policy's optimiser and moving average.

    num_updates: over which the learning rate runs; 0: nothing is trained. ema_decay: 0: no average.
    microbatch_size: rows whose activations are in memory at once; None: the whole batch.
    """

    def __init__(
        self,
        policy: PolicyModel,
        optim: OptimConfig,
        num_updates: int,
        ema_decay: float,
        microbatch_size: int | None,
        device: torch.device,
    ) -> None:
        self.policy, self._device, self._microbatch_size = policy, device, microbatch_size
        self._optimizer = Optimizer([policy.parameters()], optim, num_updates) if num_updates > 0 else None
        trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
        self._ema = Ema(trained, ema_decay) if ema_decay > 0 else None

    def update(
        self,
        batch: ChunkTransition,
        condition: Sequence[str] | None = None,
        more: Callable[[ChunkTransition, torch.Tensor], Sums] | None = None,
    ) -> Metrics:
        """One update on a batch [B] with the label `weight` [B], and `loss_steps` bool [B, H] where it has them.

        condition: text in the prompt of each row; None: none. more: further metrics of rows and their losses [b].
        """
        assert self._optimizer is not None, "there are no policy updates"
        self.policy.train()
        size = len(batch.actions)
        sums: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for rows in microbatches(size, self._microbatch_size):
            part = batch.rows(rows)
            mask = part.action_mask
            if "loss_steps" in part.labels:
                mask = mask & part.labels["loss_steps"]
            with autocast(self._device):
                asked = None if condition is None else condition[rows]
                lost = self.policy.imitation_loss(part.observation, part.actions, mask, asked)
                loss = losses.policy_loss(part.labels["weight"], lost.per_chunk)
            self._optimizer.backward(loss * (len(part.actions) / size))
            _add(sums, "loss/policy", float(loss.detach()) * len(part.actions), len(part.actions))
            _add(sums, "loss/imitation", float(lost.per_chunk.detach().sum()), len(part.actions))
            for entry in () if more is None else more(part, lost.per_chunk.detach()):
                _add(sums, *entry)
            for key, (total, count) in lost.parts.items():
                _add(sums, key, total, count)
        lr = self._optimizer.lr
        norm = self._optimizer.apply()
        if self._ema is not None:
            self._ema.update()
        means: Metrics = {
            key: total / count for key, (total, count) in ranks.sum_counts(sums).items() if count
        }
        return means | {"grad_norm/policy": norm, "lr/policy": lr}

    def deployed(self) -> AbstractContextManager[None]:
        """See `Algorithm.deployed`."""
        return nullcontext() if self._ema is None else self._ema.applied()

    def state_dict(self) -> dict[str, Any]:
        """`policy`, and `policy_optimizer` and `ema` where there are any."""
        return {"policy": trained_state(self.policy)} | {
            key: part.state_dict() for key, part in self._parts().items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; further keys are left alone."""
        load_trained_state(self.policy, state["policy"])
        for key, part in self._parts().items():
            part.load_state_dict(state[key])

    def take_networks(self, state: dict[str, Any]) -> None:
        """See `Algorithm.take_networks`."""
        load_trained_state(self.policy, state["policy"])
        if self._optimizer is not None and "policy_optimizer" in state:
            self._optimizer.load_state_dict(state["policy_optimizer"] | {"num_applied": 0})
        if self._ema is not None:  # of a run that kept none, the average begins with its policy
            own = {name: p.detach().float() for name, p in self.policy.named_parameters() if p.requires_grad}
            self._ema.load_state_dict(state.get("ema", own))

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if self._optimizer is not None:
            parts["policy_optimizer"] = self._optimizer
        if self._ema is not None:
            parts["ema"] = self._ema
        return parts


def _add(sums: dict[str, tuple[float, int]], key: str, total: float, count: int) -> None:
    before, number = sums[key]
    sums[key] = (before + total, number + count)
