"""Q(x, A) for best-of-N: a critic of chunks that regresses the cross-fitted advantages, and is cross-fitted itself.

Q(x, A) - V(x) ranks the chunks of one observation as Q does, and what V explains is no noise to it. The kind of
advantage is that of the labels: Monte-Carlo, TD(lambda), N-step, or one step over the chunk (`ValueFit`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from chunkrl import ranks
from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms.base import Networks
from chunkrl.algorithms.best_of_n import QEnsemble
from chunkrl.algorithms.cross_fit import CrossFitted
from chunkrl.algorithms.value_learner import microbatches
from chunkrl.models.value_head import ValueHead
from chunkrl.training.algorithm import Metrics
from chunkrl.training.config import OptimConfig
from chunkrl.training.distributed import shard
from chunkrl.training.optim import Optimizer, autocast
from chunkrl.types import ChunkTransition

LABEL = "scaled_advantage"


class AdvantageCritic:
    """The K networks and their optimiser; batches carry what they learn as the label `LABEL`.

    value_head: V's; where V is a distribution Q is one, else one real number. num_updates: of its phase.
    microbatch_size: rows whose activations are in memory at once; None: the whole batch.
    """

    def __init__(
        self,
        networks: Networks,
        value_head: ValueHead,
        num_folds: int,
        optim: OptimConfig,
        num_updates: int,
        device: torch.device,
        microbatch_size: int | None = None,
    ) -> None:
        self._device, self._microbatch_size = device, microbatch_size
        self.head = head = value_head if value_head.kind == "hl_gauss" else ValueHead("scalar")
        self.networks = shard(CrossFitted(lambda: networks.critic(1, head), num_folds).to(device))
        self._optimizer: Optimizer | None = Optimizer(self.networks.parameter_groups(), optim, num_updates)

    def targets(
        self, advantage: np.ndarray, trained: np.ndarray | None, rates: np.ndarray | None
    ) -> np.ndarray:
        """What Q learns of every start, float32 [N]: standardised advantages; for a distribution, those between the
        least (0) and the largest (1) of what is trained on.

        advantage: float [N]. trained, rates: of `data.draws`.
        """
        if self.head.kind == "scalar":
            return adv.standardize(advantage, 1.0, rates).astype(np.float32)
        return _range(advantage, trained).to_unit(advantage)

    def unit(self, advantage: np.ndarray, trained: np.ndarray | None, rates: np.ndarray | None) -> float:
        """What a difference of 1 in Q is in units of returns; arguments as of `targets`."""
        if self.head.kind == "scalar":
            return float(adv.moments(advantage, rates)[1])
        known = _range(advantage, trained)
        return known.high - known.low

    def update(self, batch: ChunkTransition) -> Metrics:
        """One update of every fold's network, batch [B] on the device.

        `loss/critic_held_out` is of the rows that a network may not train on, beside `loss/critic`; `q/mean` and
        `q/std` are of all networks' values of the batch, before the update.
        """
        assert self._optimizer is not None, "a critic that is finished learns no more"
        self.networks.train()
        first: Any = self.networks.networks[0]
        trains = self.networks.trains_on(batch.labels["fold"])
        mask, unseen = trains & batch.critic_mask, ~trains & batch.critic_mask
        # of the whole batch, as in `ValueLearner.update`
        counts = ranks.sum_over_ranks(mask.sum(dim=1)).clamp(min=1) / ranks.world_size()
        total = held_out = q_sum = q_square = 0.0
        for rows in microbatches(len(batch.actions), self._microbatch_size):
            part = batch.rows(rows)
            prepared = first.prepare(part.observation)
            for k, network in enumerate(self.networks.networks):
                with autocast(self._device):
                    outputs = network.outputs(prepared, part.actions)[0]  # type: ignore[operator]
                losses = self.head.loss(outputs, part.labels[LABEL])
                loss = (losses * mask[k, rows]).sum() / counts[k]
                self._optimizer.backward(loss)
                total += float(loss.detach())
                held_out += float((losses.detach() * unseen[k, rows]).sum())
                q = self.head.value(outputs.detach()).double()
                q_sum, q_square = q_sum + float(q.sum()), q_square + float(q.square().sum())
        norm, num_folds = self._optimizer.apply(), self.networks.num_folds
        q_mean, q_square = (
            ranks.mean_over_ranks(x / (num_folds * len(batch.actions))) for x in (q_sum, q_square)
        )
        metrics: Metrics = {
            "loss/critic": ranks.mean_over_ranks(total / num_folds),
            "q/mean": q_mean,
            "q/std": math.sqrt(max(0.0, q_square - q_mean**2)),
            "grad_norm/critic": norm,
        }
        num_unseen = int(ranks.sum_over_ranks(unseen.sum()))
        if num_unseen:
            mean = ranks.mean_over_ranks(held_out) * ranks.world_size() / num_unseen
            metrics["loss/critic_held_out"] = mean
        return metrics

    def finish(self) -> None:
        """Drops the optimiser, and lets the networks wait on the CPU: the policy's training does not pay for them."""
        self._optimizer = None
        if ranks.world_size() == 1:  # what is divided over GPUs stays there
            self.networks.cpu()

    @contextmanager
    def at_work(self) -> Iterator[CrossFitted]:
        """The networks, which inside are on the device, finished or not."""
        waits = self._optimizer is None and ranks.world_size() == 1
        yield self.networks.to(self._device) if waits else self.networks
        if waits:
            self.networks.cpu()

    def ensemble(self) -> QEnsemble:
        """Q for best-of-N, where it is: on the CPU once it is finished."""
        return QEnsemble(self.networks.eval())

    def state_dict(self) -> dict[str, Any]:
        """Networks, and until they are finished their optimiser."""
        state: dict[str, Any] = {"networks": self.networks.state_dict()}
        return state if self._optimizer is None else state | {"optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.networks.load_state_dict(state["networks"])
        if "optimizer" not in state:
            self.finish()
        elif self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])


def _range(advantage: np.ndarray, trained: np.ndarray | None) -> adv.ReturnRange:
    """Between the least and the largest advantage of what is trained on."""
    known = advantage if trained is None else advantage[trained]
    low, high = float(known.min()), float(known.max())
    return adv.ReturnRange(low, high if high > low else low + 1.0)
