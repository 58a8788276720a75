"""Q(x, A), V(x) and the policy trained together on every batch: what `iql` and `document` have in common.

L = L_Q + lambda_V L_V + lambda_pi L_pi (chunk-level offline RL, "Core Formulations"), the policy's part weighted by
exp(beta (Q - V)). All of it may be cross-fitted by episode (`num_folds` > 1). A method says what Q bootstraps
from, what V learns, and how the weights and the policy's loss are made.

On a pi policy the loss is the weighted flow-matching loss. One pass of the policy's vision tower over an observation
serves the policy and, detached, V, Q and its target (`with_vision`).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms import losses
from chunkrl.algorithms.base import MethodInputs, Networks
from chunkrl.algorithms.best_of_n import QEnsemble, least_q
from chunkrl.algorithms.cross_fit import CrossFitted, assign_folds, label_values
from chunkrl.algorithms.value_labels import (
    ValueLabels,
    known_outcomes,
    label_metrics,
    monte_carlo_returns,
    warn_of_success_alone,
)
from chunkrl.algorithms.weight_spread import StarvedOnce
from chunkrl.algorithms.weights import StartWeights
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import draw_rates, trained_starts
from chunkrl.data.label_rules import TimeOut
from chunkrl.data.large_arrays import keep
from chunkrl.errors import ChunkRLError
from chunkrl.models.policy import ImitationLoss
from chunkrl.models.value_head import ValueHead
from chunkrl.progress import Progress, silent
from chunkrl.training.algorithm import Histogram, Metrics, Phase, only_finite
from chunkrl.training.checkpoint import load_trained_state, trained_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.optim import Ema, Optimizer, autocast, update_ema
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class JointConfig:
    """Settings that both methods have.

    num_updates: updates. beta: temperature of the weights. lambda_v, lambda_pi: weights of the losses.
    num_critics: Q heads, the minimum counts. target_rate: EMA rate of the target Q (1: no target network).
    num_folds: cross-fitting, 1 off. ema_decay: of the policy's average, which is deployed; 0: none.
    relabel_interval: updates between two looks at all data's values (0: one at the end).
    time_out: what a time limit means for the returns that values are compared with; V and Q bootstrap there.
    """

    num_updates: int = 4000
    beta: float = 1.0
    lambda_v: float = 1.0
    lambda_pi: float = 1.0
    num_critics: int = 1
    target_rate: float = 1.0
    num_folds: int = 1
    ema_decay: float = 0.0
    relabel_interval: int = 0
    time_out: TimeOut = "failure"


class JointMethod(ABC):
    """See the module. value_optim: of V and Q; None: as the policy's."""

    bootstraps_past_ends = False
    """Whether returns know of no end: then failing is no escape from the costs of steps."""

    def __init__(
        self,
        config: JointConfig,
        networks: Networks,
        optim: OptimConfig,
        dataset: ChunkData,
        seed: int,
        device: torch.device,
        value_optim: OptimConfig | None = None,
    ) -> None:
        self.policy = networks.policy().to(device)
        self.config: Any = config  # of the method's own class
        self._check(dataset)
        self._step_reward = adv.step_rewards(dataset)
        adv.check_outcomes(
            dataset.name, self._step_reward, known_outcomes(dataset, config.time_out)[dataset.starts]
        )
        warn_of_success_alone(dataset)
        returns = monte_carlo_returns(dataset, self._step_reward)
        if (
            not self.bootstraps_past_ends
        ):  # a time-out's V is bootstrapped, whatever its returns are taken for
            adv.check_failures(dataset, self._step_reward, returns, "bootstrap")
        self._returns = keep(dataset.cache_dir, returns[dataset.starts])
        self.device = device
        self._dataset, self._trained = dataset, trained_starts(dataset)
        self.fold = assign_folds(dataset.frame_labels.success, config.num_folds, seed)
        dataset.attach("fold", self.fold[dataset.episode])
        self._prepare()
        head, num_critics = ValueHead("scalar"), config.num_critics  # their targets have no bounds
        self.value = CrossFitted(lambda: networks.value(head), config.num_folds).to(device)
        self.critic = CrossFitted(lambda: networks.critic(num_critics, head), config.num_folds).to(device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False).eval()
        self._optimizers = self._make_optimizers(optim, value_optim)
        trained = [(name, p) for name, p in self.policy.named_parameters() if p.requires_grad]
        self._ema = Ema(trained, config.ema_decay) if config.ema_decay > 0 else None
        self.labels: dict[str, np.ndarray] = {}
        self._num_updates, self._labelled_at = 0, -1
        self._starved = StarvedOnce()

    # What a method says.

    def _check(self, dataset: ChunkData) -> None:  # noqa: B027  # optional
        """Raises ChunkRLError for policies or data that the method does not take."""

    def _prepare(self) -> None:  # noqa: B027  # optional
        """Before networks are built: what the method attaches to the data."""

    def _ends(self, batch: ChunkTransition) -> tuple[torch.Tensor, torch.Tensor]:
        """Discount float [B] of what V says after the transition, and which rows Q learns from, bool [B]."""
        return batch.discount, batch.critic_mask

    def _chunks(self, batch: ChunkTransition) -> torch.Tensor:
        """The chunks [B, H, A], or N each [B, N, H, A], whose Q decides what the policy clones."""
        return batch.actions

    @abstractmethod
    def _value_loss(
        self, value: torch.Tensor, target: torch.Tensor | None, now: Any, batch: ChunkTransition
    ) -> tuple[torch.Tensor, Metrics]:
        """The folds' sum of losses of V [K, B]; target: of `_value_target`."""

    def _value_target(self, now: Any, chunks: torch.Tensor) -> torch.Tensor | None:
        """The target networks' Q of `chunks` where V learns from it, None where it does not."""
        return self._target_q(now, chunks)

    @abstractmethod
    def _weights(self, advantage: torch.Tensor, batch: ChunkTransition) -> tuple[torch.Tensor, Metrics]:
        """Weights [B] from advantages [B]."""

    def _imitation_loss(self, batch: ChunkTransition) -> ImitationLoss:
        return self.policy.imitation_loss(batch.observation, batch.actions, batch.action_mask)

    # What they share.

    def _make_optimizers(self, optim: OptimConfig, value_optim: OptimConfig | None) -> list[Optimizer]:
        """One of the policy and one of V and Q, each network clipped by its own norm; or, as the document has it, one
        of all with one norm."""
        policy, num_updates = list(self.policy.parameters()), self.config.num_updates
        critics = [*self.value.parameter_groups(), *self.critic.parameter_groups()]
        if self.config.num_folds == 1 and value_optim is None:
            return [Optimizer([[*policy, *(p for group in critics for p in group)]], optim, num_updates)]
        return [
            Optimizer([policy], optim, num_updates),
            Optimizer(critics, value_optim or optim, num_updates),
        ]

    def phases(self) -> tuple[Phase, ...]:
        """`joint`, and `values`, which trains nothing: it labels the data with what V and Q have become."""
        joint = Phase("joint", self.config.num_updates, self._trained)
        return (joint, Phase("values", 0, self._trained, next_observation=False))

    def start_phase(self, name: str, progress: Progress = silent) -> Metrics:
        """Before `values`: labels every start and says what V is worth (once, also where a run resumes there)."""
        if name != "values" or self._labelled_at == self._num_updates:
            return {}
        return self._label(progress)

    def _label(self, progress: Progress) -> Metrics:
        """Value, return and advantage Q - V of every start, the held-out ones; nothing trains on these labels."""

        def score(prepared: Any, batch: ChunkTransition) -> torch.Tensor:
            value = self.value.each(lambda v: v.forward_prepared(prepared))  # type: ignore[operator]
            return torch.stack([value, self._target_q(prepared, batch.actions)], dim=1)

        held_out, seen = label_values(self.value, self._dataset, self.device, progress, score)
        value, advantage = held_out[0], held_out[1] - held_out[0]
        if self._trained is not None:
            advantage[np.setdiff1d(np.arange(len(advantage)), self._trained)] = 0.0
        labels = ValueLabels(value, seen[0], self._returns, advantage)
        self.labels = {
            "value": value,
            "value_seen": seen[0],
            "return": self._returns,
            "advantage": advantage,
        }
        self._labelled_at = self._num_updates
        metrics = label_metrics(labels, self._dataset, self.config.time_out, self.config.num_folds > 1)
        q = held_out[1] if self._trained is None else held_out[1][self._trained]
        return metrics | {"q/held_out": Histogram.of(q)} | self._label_weights(advantage)

    def _label_weights(self, advantage: np.ndarray) -> Metrics:
        """The weights that these advantages, float [len], give over all the data, as the label `weight`, and where
        they lie; nothing where Q chooses what is cloned, since they are then no recorded chunk's."""
        if "candidates" in self._dataset.labels_at(np.zeros(1, np.int64)):
            return {}
        rates = draw_rates(self._dataset, self._trained)
        found = self._start_weights(advantage, rates)
        self.labels["weight"] = found.weight
        if found.strata is not None:
            self.labels["stratum"] = found.strata.index
        self._starved.say(found.spread, self._cure)
        return dict(found.metrics)

    @abstractmethod
    def _start_weights(self, advantage: np.ndarray, rates: np.ndarray | None) -> StartWeights:
        """What `_weights` makes of batches, of all starts at once. rates: of `draws.draw_rates`."""

    @property
    @abstractmethod
    def _cure(self) -> str:
        """What helps where the weights starve a part (`starved_warnings`)."""

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One joint update on a batch [B].

        `loss/value_held_out` is of the rows that a network may not train on, beside `loss/value`.
        """
        config, batch = self.config, batch.to(self.device)
        metrics: Metrics = {}
        if config.relabel_interval and self._num_updates % config.relabel_interval == 0 < self._num_updates:
            metrics |= only_finite(self._label(silent))
        self._num_updates += 1
        for network in (self.policy, self.value, self.critic):
            network.train()
        with autocast(self.device):
            batch = replace(batch, observation=self.policy.with_vision(batch.observation))
        first: Any = self.value.networks[0]
        now = first.prepare(batch.observation)
        with autocast(self.device):
            value = self.value.each(lambda v: v.forward_prepared(now))  # type: ignore[operator]
            q = self.critic.each(lambda c: c.forward_prepared(now, batch.actions))  # type: ignore[operator]
            critic, q_target = self._critic_loss(q, batch)
            chunks = self._chunks(batch)
            target = self._value_target(now, chunks)
            value_loss, more = self._value_loss(value, target, now, batch)
            batch, advantage = self._policy_targets(value, target, chunks, now, batch)
            weights, of_weights = self._weights(advantage, batch)
            lost = self._imitation_loss(batch)
            policy = losses.policy_loss(weights, lost.per_chunk)
        lr = self._optimizers[0].lr
        norm = self._step(critic, value_loss, policy)
        self._update_averages()
        metrics |= {
            "loss/critic": float(critic.detach()),
            "loss/value": float(value_loss.detach()),
            "loss/policy": float(policy.detach()),
            "loss/imitation": float(lost.per_chunk.detach().mean()),
            "weight/mean": float(weights.mean()),
            "weight/max": float(weights.max()),
            "weight/effective_sample_size": float(losses.effective_sample_size(weights)),
            "grad_norm/joint": norm,
            "lr/policy": lr,
        }
        spread = {"value": value, "q": q, "q_target": q_target, "advantage": advantage}
        for key, found in spread.items():
            metrics[f"{key}/mean"] = float(found.detach().mean())
            metrics[f"{key}/std"] = float(found.detach().std(unbiased=False))
        metrics |= {key: total / count for key, (total, count) in lost.parts.items() if count}
        return metrics | of_weights | more

    def _step(self, critic: torch.Tensor, value: torch.Tensor, policy: torch.Tensor) -> float:
        """One update down the total loss; returns the norm of all gradients."""
        config = self.config
        total = [losses.total_loss(critic, value, policy, config.lambda_v, config.lambda_pi)]
        if (
            len(self._optimizers) > 1
        ):  # the policy's gradients come from its loss alone, and V's and Q's from theirs
            total = [config.lambda_pi * policy, critic + config.lambda_v * value]
        for optimizer, loss in zip(self._optimizers, total, strict=True):
            optimizer.backward(loss)
        return math.hypot(*(optimizer.apply() for optimizer in self._optimizers))

    def _update_averages(self) -> None:
        if self.config.target_rate < 1:
            update_ema(self.target, self.critic, self.config.target_rate)
        else:
            self.target.load_state_dict(self.critic.state_dict())
        if self._ema is not None:
            self._ema.update()

    @torch.no_grad()
    def _target_q(self, now: Any, chunks: torch.Tensor) -> torch.Tensor:
        """The target networks' least Q of chunks [B, H, A]: [K, B]; of N each [B, N, H, A]: [K, N, B]."""
        q = least_q(self.target, now, chunks)
        return q if chunks.dim() == 3 else q.transpose(1, 2)

    def _critic_loss(self, q: torch.Tensor, batch: ChunkTransition) -> tuple[torch.Tensor, torch.Tensor]:
        """The folds' sum of losses, and their targets [K, B]."""
        first: Any = self.value.networks[0]
        then = first.prepare(batch.next_observation)
        with torch.no_grad():
            next_value = self.value.each(lambda v: v.forward_prepared(then))  # type: ignore[operator]
        discount, mask = self._ends(batch)
        total = q.new_zeros(())
        trains = self.value.trains_on(batch.labels["fold"])
        targets = losses.bellman_target(batch.reward, discount, next_value)
        for k in range(len(q)):
            total = total + losses.critic_loss(q[k], targets[k], mask & trains[k])
        return total, targets

    @torch.no_grad()
    def _policy_targets(
        self,
        value: torch.Tensor,
        target: torch.Tensor | None,
        chunks: torch.Tensor,
        now: Any,
        batch: ChunkTransition,
    ) -> tuple[ChunkTransition, torch.Tensor]:
        """The batch with the chunks that the policy clones, and their held-out advantages [B]."""
        fold = batch.labels["fold"]
        q = self.target.held_out(self._target_q(now, chunks) if target is None else target, fold)
        baseline = self.value.held_out(value, fold)
        if chunks.dim() == 3:
            return batch, q - baseline
        best, chosen = q.max(dim=0)
        rows = torch.arange(len(chosen), device=chosen.device)
        mask = batch.action_mask | (chosen > 0)[:, None]  # a candidate has no padding
        return replace(batch, actions=chunks[rows, chosen], action_mask=mask), best - baseline

    def q_ensemble(self) -> QEnsemble | None:
        """Q for best-of-N."""
        return QEnsemble(self.critic.eval())

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"value": self.value, "critic": self.critic, "target": self.target}
        parts |= {f"optimizer_{number}": optimizer for number, optimizer in enumerate(self._optimizers)}
        return parts if self._ema is None else parts | {"ema": self._ema}

    def grow(self, data: ChunkData) -> Metrics:
        """See `Algorithm.grow`: refused."""
        raise ChunkRLError(
            "iql and document learn from data that stay: use --objective cross_fitted where they grow"
        )

    def take_networks(self, state: dict[str, Any]) -> None:
        """See `Algorithm.take_networks`: refused."""
        raise ChunkRLError(
            "iql and document begin with fresh networks: leave --init out, or --resume the run itself"
        )

    def deployed(self) -> AbstractContextManager[None]:
        """See `Algorithm.deployed`."""
        return nullcontext() if self._ema is None else self._ema.applied()

    def held_out_rank_correlation(self) -> float | None:
        """None is known while the networks learn."""
        return None

    def trained_networks(self) -> Mapping[str, nn.Module]:
        """See `Algorithm.trained_networks`."""
        return {"policy": self.policy, "V": self.value, "Q": self.critic, "average of Q": self.target}

    def rehearse(self, num_starts: int) -> float:
        """Nothing: weights are made batch by batch, of the networks as they stand."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """Networks, target networks, optimiser, average, folds and labels."""
        parts = {key: part.state_dict() for key, part in self._parts().items()}
        own = {
            "policy": trained_state(self.policy),
            "fold": torch.from_numpy(self.fold),
            "num_updates": self._num_updates,
            "labelled_at": self._labelled_at,
            "labels": {name: torch.from_numpy(values) for name, values in self.labels.items()},
        }
        return parts | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        load_trained_state(self.policy, state["policy"])
        for key, part in self._parts().items():
            part.load_state_dict(state[key])
        self._num_updates, self._labelled_at = state["num_updates"], state["labelled_at"]
        self.labels = {name: tensor.numpy() for name, tensor in state["labels"].items()}
        self.fold = state["fold"].numpy()
        self._dataset.attach("fold", self.fold[self._dataset.episode])


def shared_settings(inputs: MethodInputs) -> dict[str, Any]:
    """The settings of `JointConfig` that both methods read from the run's."""
    settings = inputs.settings
    return {
        "num_updates": inputs.num_updates,
        "beta": settings.beta,
        "lambda_v": settings.lambda_v,
        "lambda_pi": settings.lambda_pi,
        "ema_decay": settings.ema_decay,
        "relabel_interval": settings.relabel_interval,
        "time_out": settings.fit.time_out,
    }
