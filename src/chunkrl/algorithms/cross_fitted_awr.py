"""Advantage-weighted chunk policies from cross-fitted values: the default, because it measures best.

Method: advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177) over action chunks, in two phases.
Phase `value` trains V on outcomes; then every start is labelled once; phase `policy` clones, weighted.
(`critic` lies between, if wanted.)
It differs from AWR:
1. V is cross-fitted: an episode's values come from a network that never saw it (`cross_fit`);
2. V is a sigmoid between the data's lowest and highest return, trained by cross-entropy on the Monte-Carlo
   return, with dropout and input noise: it cannot diverge, and memorises less;
3. the advantage is a TD(lambda) return minus V, standardised over the data to deviation `advantage_scale`;
4. a chunk is one decision: one weight for H actions.
Behaviour cloning is this algorithm with `weighting="uniform"`; cloning of the successes adds
`data="successes"`; the shuffled control permutes the advantages. For best-of-N at action
time a critic A(x, A) regresses the cross-fitted advantages on observation and chunk, and is cross-fitted
itself: Q(x, A) - V(x) ranks chunks as Q does, and what V explains is no noise to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms import losses
from chunkrl.algorithms.base import Metrics, Phase
from chunkrl.algorithms.best_of_n import QEnsemble
from chunkrl.algorithms.cross_fit import CrossFitted, assign_folds, label_values
from chunkrl.data.collection import ChunkData
from chunkrl.data.returns import TimeOut, lambda_returns
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.statistics import spearman
from chunkrl.models.encoders import NetworkConfig
from chunkrl.models.factory import NetworkFactory
from chunkrl.models.policy import PolicyConfig
from chunkrl.training.optim import OptimConfig, Optimizer, autocast
from chunkrl.types import ChunkTransition

Weighting = Literal["advantage", "uniform", "shuffled"]


@dataclass(frozen=True)
class ValueFit:
    """How values are fitted and become weights.

    lam: lambda of the TD(lambda) return. advantage_scale: deviation of the standardised advantage.
    weight_clip: largest weight. time_out: what a time limit means (`chunkrl.data.returns`).
    hidden_dim, num_layers, dropout, noise: V's and Q's own size and regularisation; the noise is added to the
    normalised state while training.
    """

    lam: float = 0.98
    advantage_scale: float = 3.0
    weight_clip: float = 100.0
    time_out: TimeOut = "failure"
    hidden_dim: int = 128
    num_layers: int = 2
    dropout: float = 0.5
    noise: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise ChunkRLError(f"lam is {self.lam}; it must lie in [0, 1]")
        if self.weight_clip <= 0 or self.advantage_scale <= 0 or self.noise < 0 or not 0 <= self.dropout < 1:
            raise ChunkRLError(
                "weight_clip and advantage_scale must be positive, noise >= 0, dropout in [0, 1)"
            )


@dataclass(frozen=True)
class CrossFittedConfig:
    """Settings of the algorithm.

    beta: temperature of the weights exp(beta A). num_folds: K, 1 turns cross-fitting off.
    value_updates, policy_updates: updates of the two phases.
    weighting: `advantage`, `uniform` (cloning) or `shuffled` (control). data: starts the policy clones.
    train_q: also train Q(x, A) for best-of-N.
    """

    policy_updates: int
    value_updates: int
    beta: float = 1.0
    num_folds: int = 5
    weighting: Weighting = "advantage"
    data: Literal["all", "successes"] = "all"
    train_q: bool = False
    fit: ValueFit = ValueFit()

    @property
    def uses_values(self) -> bool:
        """Whether there is a value phase."""
        return self.weighting != "uniform" or self.train_q


class CrossFittedAWR:
    """The algorithm of this module; see `CrossFittedConfig`."""

    def __init__(
        self,
        config: CrossFittedConfig,
        factory: NetworkFactory,
        policy_config: PolicyConfig,
        optim: OptimConfig,
        dataset: ChunkData,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.device, self.seed = config, device, seed
        self._dataset = dataset
        self.policy = factory.policy(policy_config).to(device)
        self._policy_optimizer = Optimizer([self.policy.parameters()], optim)
        self.value: CrossFitted | None = None
        self.critic: CrossFitted | None = None
        self.fold = np.zeros(dataset.num_episodes, dtype=np.int64)
        if config.uses_values:
            fit = config.fit
            head = NetworkConfig(hidden_dim=fit.hidden_dim, num_layers=fit.num_layers, dropout=fit.dropout)
            self.fold = assign_folds(dataset.frame_labels.success, config.num_folds, seed)
            self.value = CrossFitted(lambda: factory.value(head), config.num_folds).to(device)
            self._value_optimizer = Optimizer(self.value.parameter_groups(), optim)
            if config.train_q:
                self.critic = CrossFitted(lambda: factory.critic(1, head), config.num_folds).to(device)
                self._critic_optimizer = Optimizer(self.critic.parameter_groups(), optim)
        self.labels: dict[str, np.ndarray] = {}
        self._successes = np.flatnonzero(dataset.success)
        if config.data == "successes" and len(self._successes) == 0:
            raise ChunkRLError(
                f"{dataset.name} has no successful episode to clone: say with "
                "--success which are, or use --objective behaviour_cloning"
            )
        self._prepare_targets(dataset)

    def _prepare_targets(self, dataset: ChunkData) -> None:
        labels = dataset.frame_labels
        self._step_reward = adv.step_rewards(dataset)
        zero = np.zeros(len(self._step_reward), dtype=np.float32)
        returns = lambda_returns(zero, self._step_reward, dataset.segments, dataset.gamma, 1.0)
        self.range = adv.return_range(returns)
        # V learns from outcomes that are known: with `bootstrap`, unfinished recordings have none
        known = np.ones(len(returns), dtype=bool)
        if self.config.fit.time_out == "bootstrap":
            known = dataset.segments.terminated
        known &= ~labels.after_success
        if self.config.uses_values:
            adv.check_outcomes(dataset.name, returns, known[dataset.starts])
        self._returns, self._known = returns, known[dataset.starts]
        dataset.attach("outcome", self.range.to_unit(returns)[dataset.starts])
        dataset.attach("outcome_known", self._known)
        dataset.attach("fold", self.fold[dataset.episode])

    def phases(self) -> tuple[Phase, ...]:
        """`value` (if anything needs values), `critic` (with `train_q`), then `policy`."""
        config = self.config
        subset = self._successes if config.data == "successes" else None
        policy = Phase("policy", config.policy_updates, subset=subset, next_observation=False)
        if not config.uses_values:
            return (policy,)
        value = Phase("value", config.value_updates, next_observation=False)
        if not config.train_q:
            return (value, policy)
        return (value, Phase("critic", config.value_updates, next_observation=False), policy)

    def start_phase(self, name: str) -> Metrics:
        """After `value`: labels every start with its held-out value, advantage and weight."""
        if name == "value" or self.labels:
            return {}
        metrics: Metrics = {}
        if self.value is None:
            self.labels["weight"] = np.ones(len(self._dataset), dtype=np.float32)
        else:
            metrics = self._label()
        self._attach()
        return metrics

    def _attach(self) -> None:
        for key, values in self.labels.items():
            self._dataset.attach(key, values)

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One update of phase `name`; batch [B]."""
        batch = batch.to(self.device)
        update = {"value": self._update_value, "critic": self._update_critic, "policy": self._update_policy}
        return update[name](batch)

    def _update_value(self, batch: ChunkTransition) -> Metrics:
        assert self.value is not None
        self.value.train()
        first: Any = self.value.networks[0]
        prepared = self._noisy(first.encoder.prepare(batch.observation))
        mask = self.value.trains_on(batch.labels["fold"]) & batch.labels["outcome_known"]
        with autocast(self.device):
            logits = self.value.each(lambda v: v.forward_prepared(prepared))  # type: ignore[operator]
            # a sum over folds: each network gets its own full gradient
            loss = losses.outcome_loss(logits.float(), batch.labels["outcome"], mask) * len(logits)
        norm = self._value_optimizer.step(loss)
        return {"loss/value": float(loss.detach()) / len(logits), "grad_norm/value": norm}

    def _noisy(self, prepared: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "state" not in prepared or self.config.fit.noise == 0:
            return prepared
        state = prepared["state"]
        return prepared | {"state": state + self.config.fit.noise * torch.randn_like(state)}

    def _update_policy(self, batch: ChunkTransition) -> Metrics:
        self.policy.train()
        prepared = self.policy.encoder.prepare(batch.observation)
        weights = batch.labels["weight"]
        with autocast(self.device):
            nll = self.policy.negative_log_likelihood(prepared, batch.actions, batch.action_mask)
            loss = losses.policy_loss(weights, nll)
        norm = self._policy_optimizer.step(loss)
        return {
            "loss/policy": float(loss.detach()),
            "loss/imitation": float(nll.detach().mean()),
            "grad_norm/policy": norm,
        }

    def _update_critic(self, batch: ChunkTransition) -> Metrics:
        assert self.critic is not None
        self.critic.train()
        first: Any = self.critic.networks[0]
        prepared = self._noisy(first.prepare(batch.observation))
        mask = self.critic.trains_on(batch.labels["fold"]) & batch.critic_mask
        with autocast(self.device):
            q = self.critic.each(lambda c: c.forward_prepared(prepared, batch.actions)[0])  # type: ignore[operator]
            error = (q.float() - batch.labels["scaled_advantage"]).square()
            loss = losses.weighted_mean(error, mask) * len(q)
        norm = self._critic_optimizer.step(loss)
        return {"loss/critic": float(loss.detach()) / len(q), "grad_norm/critic": norm}

    def frame_values(self) -> tuple[np.ndarray, np.ndarray]:
        """V of every start, as returns: by the network that never saw its episode, and by those that did
        (each float [len])."""
        assert self.value is not None
        held_out, seen = label_values(self.value, self._dataset, self.device, torch.sigmoid)
        return self.range.from_unit(held_out), self.range.from_unit(seen)

    def _label(self) -> Metrics:
        dataset = self._dataset
        if len(dataset) != dataset.num_frames:
            raise ValueError("cross-fitted labels need every frame of the data set as a start")
        config, fit = self.config, self.config.fit
        value, seen = self.frame_values()
        target = lambda_returns(
            value, self._step_reward, dataset.segments, dataset.gamma, fit.lam, fit.time_out
        )
        advantage = target - value
        standardized = adv.standardize(advantage, fit.advantage_scale)
        used = (
            adv.shuffle_between(standardized, self.seed) if config.weighting == "shuffled" else standardized
        )
        weight = np.ones_like(used)
        if config.weighting != "uniform":
            weight = losses.advantage_weights(torch.from_numpy(used), config.beta, fit.weight_clip).numpy()
            weight = weight / weight.mean()
        self.labels = {
            "value": value,
            "value_seen": seen,
            "return": self._returns,
            "advantage": advantage,
            "scaled_advantage": adv.standardize(advantage, 1.0).astype(np.float32),
            "weight": weight.astype(np.float32),
        }
        known = self._known
        return {
            "value/rank_correlation_held_out": spearman(value[known], self._returns[known]),
            "value/rank_correlation_seen": spearman(seen[known], self._returns[known]),
            "weight/effective_sample_size": float(losses.effective_sample_size(torch.from_numpy(weight))),
            "weight/clip_fraction": float(np.mean(np.exp(config.beta * used) >= fit.weight_clip)),
            "advantage/positive_fraction": float(np.mean(advantage > 0)),
        }

    def q_ensemble(self) -> QEnsemble | None:
        """Q for best-of-N, where it was trained."""
        return None if self.critic is None else QEnsemble(self.critic.eval())

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"policy": self.policy, "policy_optimizer": self._policy_optimizer}
        if self.value is not None:
            parts |= {"value": self.value, "value_optimizer": self._value_optimizer}
        if self.critic is not None:
            parts |= {"critic": self.critic, "critic_optimizer": self._critic_optimizer}
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, folds and labels."""
        labels = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in self.labels.items()}
        parts = {key: part.state_dict() for key, part in self._parts().items()}
        return parts | {"labels": labels, "fold": torch.from_numpy(self.fold)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the labels are attached to the data set again."""
        for key, part in self._parts().items():
            part.load_state_dict(state[key])
        self.labels = {key: tensor.numpy() for key, tensor in state.get("labels", {}).items()}
        self.fold = state["fold"].numpy()
        self._dataset.attach("fold", self.fold[self._dataset.episode])
        self._attach()
