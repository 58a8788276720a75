"""Chunk-level offline RL with Q(x, A), V(x) and an advantage-weighted policy trained together.

With `document()` this is the chunk-level document's objective to the letter: L_Q with y = r + gamma^H V(x'),
L_V towards E_{A~pi}[Q - log pi], weights exp(beta (Q - V)), L = L_Q + lambda_V L_V + lambda_pi L_pi, for a
Gaussian policy. `iql()` turns on the repairs (IQL, arXiv 2110.06169, over chunks):
1. no bootstrap past a terminating action, gamma^k for the real length k, `critic_mask`;
2. twin Q with slow target networks, the minimum for V and for the advantage;
3. expectile V towards Q of the stored chunk: Q is never asked about chunks off the data;
4. standardised advantages, clipped weights;
5. any of it cross-fitted by episode (`num_folds` > 1).

With "candidates" attached to the data set, chunks [len, N, H, A] of another policy (`integration.pi_chunks`), `iql()`
asks Q about them and never teaches Q with them, for nothing is known of what they earn: V is the expectile over the
recorded chunk and the candidates (as EMaQ's maximum, arXiv 2007.11091), and the policy clones the one of them that
the held-out Q prefers, weighted by its advantage.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms import losses
from chunkrl.algorithms.base import Metrics, Networks, Phase
from chunkrl.algorithms.best_of_n import QEnsemble
from chunkrl.algorithms.cross_fit import CrossFitted, assign_folds, label_values
from chunkrl.data.collection import ChunkData
from chunkrl.errors import ChunkRLError
from chunkrl.models.value_head import ValueHead
from chunkrl.progress import Progress, silent
from chunkrl.training.checkpoint import load_trained_state, trained_state
from chunkrl.training.optim import OptimConfig, Optimizer, autocast, update_ema
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class JointConfig:
    """Settings of the joint objective; the defaults are `iql()`.

    num_updates: updates. beta: temperature of the weights. lambda_v, lambda_pi: weights of the losses.
    alpha: temperature of -log pi in V's target (document: 1; 0 drops it). expectile: tau of the expectile V
    loss on stored chunks; None takes the document's value loss with a chunk drawn from the policy.
    num_critics: Q heads, the minimum counts. target_rate: EMA rate of the target Q (1: no target network).
    respect_ends: mask the bootstrap at termination, gamma^k, critic_mask; False is the document's y.
    normalize, weight_clip, advantage_scale: of the weights. num_folds: cross-fitting, 1 off.
    """

    num_updates: int = 4000
    beta: float = 1.0
    lambda_v: float = 1.0
    lambda_pi: float = 1.0
    alpha: float = 0.0
    expectile: float | None = 0.7
    num_critics: int = 2
    target_rate: float = 0.005
    respect_ends: bool = True
    normalize: losses.Normalize = "standardize"
    advantage_scale: float = 3.0
    weight_clip: float | None = 100.0
    num_folds: int = 1


def iql(**settings: Any) -> JointConfig:
    """The robust recipe: expectile V, twin target Q, masked ends, standardised and clipped weights."""
    return JointConfig(**settings)


def document(**settings: Any) -> JointConfig:
    """The document's exact objective (alpha = 1, log pi summed over the chunk, nothing masked or clipped)."""
    exact: dict[str, Any] = {
        "alpha": 1.0,
        "expectile": None,
        "num_critics": 1,
        "target_rate": 1.0,
        "respect_ends": False,
        "normalize": "none",
        "advantage_scale": 1.0,
        "weight_clip": None,
        "num_folds": 1,
    }
    return JointConfig(**(exact | settings))


class ChunkAWR:
    """The algorithm of this module; see `JointConfig`."""

    def __init__(
        self,
        config: JointConfig,
        networks: Networks,
        optim: OptimConfig,
        dataset: ChunkData,
        seed: int,
        device: torch.device,
    ) -> None:
        self.policy = networks.policy().to(device)
        if config.alpha > 0 and not self.policy.has_log_prob:
            raise ChunkRLError(
                "the document's entropy term needs log pi, which only a Gaussian policy has: "
                "use --policy.kind gaussian, or --objective iql / cross_fitted for a flow policy"
            )
        if "candidates" in dataset.label_names and config.expectile is None:
            raise ChunkRLError(
                "candidate chunks need the expectile V of --objective iql: the document's V samples the policy"
            )
        adv.check_rewards(dataset.name, adv.step_rewards(dataset))
        self.config, self.device = config, device
        self._dataset = dataset
        self._horizon_discount = dataset.gamma**dataset.critic_horizon
        self.fold = assign_folds(dataset.frame_labels.success, config.num_folds, seed)
        dataset.attach("fold", self.fold[dataset.episode])
        self.value = CrossFitted(lambda: networks.value(ValueHead("scalar")), config.num_folds).to(device)
        self.critic = CrossFitted(lambda: networks.critic(config.num_critics), config.num_folds).to(device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False).eval()
        parameters = [*self.policy.parameters(), *self.value.parameters(), *self.critic.parameters()]
        groups = [parameters]
        if config.num_folds > 1:
            groups = [list(self.policy.parameters()), *self.value.parameter_groups()]
            groups += self.critic.parameter_groups()
        self._optimizer = Optimizer(groups, optim, config.num_updates)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, `joint`."""
        return (Phase("joint", self.config.num_updates),)

    def start_phase(self, name: str, progress: Progress = silent) -> Metrics:
        """Nothing to prepare."""
        return {}

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One joint update on a batch [B]."""
        config, batch = self.config, batch.to(self.device)
        fold = batch.labels["fold"]
        for network in (self.policy, self.value, self.critic):
            network.train()
        first: Any = self.value.networks[0]
        now = first.prepare(batch.observation)
        with autocast(self.device):
            value = self.value.each(lambda v: v.forward_prepared(now))  # type: ignore[operator]
            q = self.critic.each(lambda c: c.forward_prepared(now, batch.actions))  # type: ignore[operator]
            critic = self._critic_loss(q, batch)
            value_loss, log_prob = self._value_loss(value, now, batch)
            batch, advantage = self._policy_targets(value, now, batch, fold)
            weights = losses.advantage_weights(
                advantage, config.beta * config.advantage_scale, config.weight_clip, config.normalize
            )
            nll = self._negative_log_likelihood(batch)
            policy = losses.policy_loss(weights, nll)
            loss = losses.total_loss(critic, value_loss, policy, config.lambda_v, config.lambda_pi)
        norm = self._optimizer.step(loss)
        if config.target_rate < 1:
            update_ema(self.target, self.critic, config.target_rate)
        else:
            self.target.load_state_dict(self.critic.state_dict())
        metrics: Metrics = {
            "loss/critic": float(critic.detach()),
            "loss/value": float(value_loss.detach()),
            "loss/policy": float(policy.detach()),
            "loss/imitation": float(nll.detach().mean()),
            "value/mean": float(value.detach().mean()),
            "q/mean": float(q.detach().mean()),
            "advantage/mean": float(advantage.detach().mean()),
            "advantage/std": float(advantage.std(unbiased=False)),
            "weight/mean": float(weights.mean()),
            "weight/max": float(weights.max()),
            "weight/effective_sample_size": float(losses.effective_sample_size(weights)),
            "grad_norm/joint": norm,
        }
        if config.weight_clip is not None:
            metrics["weight/clip_fraction"] = float((weights >= config.weight_clip).float().mean())
        return metrics if log_prob is None else metrics | {"policy/log_prob": float(log_prob.mean())}

    def _critic_loss(self, q: torch.Tensor, batch: ChunkTransition) -> torch.Tensor:
        config = self.config
        first: Any = self.value.networks[0]
        then = first.prepare(batch.next_observation)
        with torch.no_grad():
            next_value = self.value.each(lambda v: v.forward_prepared(then))  # type: ignore[operator]
        if config.respect_ends:
            discount, mask = batch.discount, batch.critic_mask
        else:
            discount = torch.full_like(batch.discount, self._horizon_discount)
            mask = torch.ones_like(batch.critic_mask)
        total = q.new_zeros(())
        trains = self.value.trains_on(batch.labels["fold"])
        for k in range(len(q)):
            target = losses.bellman_target(batch.reward, discount, next_value[k])
            total = total + losses.critic_loss(q[k], target, mask & trains[k])
        return total

    def _value_loss(
        self, value: torch.Tensor, now: Any, batch: ChunkTransition
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        config, trains = self.config, self.value.trains_on(batch.labels["fold"])
        total = value.new_zeros(())
        log_prob: torch.Tensor | None = None
        chunk = batch.actions
        candidates = batch.labels.get("candidates")
        if candidates is not None:
            chunk = torch.cat([chunk[:, None], candidates], dim=1)
        if config.expectile is None:
            with torch.no_grad():
                chunk = self.policy.sample(batch.observation, 1)[:, 0]
                if config.alpha > 0:
                    whole = torch.ones_like(batch.action_mask)
                    log_prob = self.policy.log_prob(self.policy.prepare(batch.observation), chunk, whole)
        with torch.no_grad():
            target = self.target.each(lambda c: c.forward_prepared(now, chunk).amin(0))  # type: ignore[operator]
        for k in range(len(value)):
            if config.expectile is None:
                # every fold's V stays within its own data: rows it may not see are left out of its mean
                rows = trains[k].nonzero().squeeze(-1)
                entropy = None if log_prob is None else log_prob[rows]
                total = total + losses.value_loss(value[k][rows], target[k][rows], entropy, config.alpha)
            else:
                mask = trains[k] & batch.critic_mask if config.respect_ends else trains[k]
                targets = target[k] if candidates is None else target[k].T  # [B] or [N + 1, B]
                total = total + losses.expectile_loss(value[k], targets, config.expectile, mask)
        return total, log_prob

    @torch.no_grad()
    def _policy_targets(
        self,
        value: torch.Tensor,
        now: Any,
        batch: ChunkTransition,
        fold: torch.Tensor,
    ) -> tuple[ChunkTransition, torch.Tensor]:
        """The batch with the chunks that the policy clones, and their held-out advantages [B]."""
        candidates = batch.labels.get("candidates")
        baseline = self.value.held_out(value, fold)
        if candidates is None:
            q = self.target.each(lambda c: c.forward_prepared(now, batch.actions).amin(0))  # type: ignore[operator]
            return batch, self.target.held_out(q, fold) - baseline
        chunks = torch.cat([batch.actions[:, None], candidates], dim=1)
        q = self.target.each(lambda c: c.forward_prepared(now, chunks).amin(0).T)  # type: ignore[operator]
        best, chosen = self.target.held_out(q, fold).max(dim=0)
        rows = torch.arange(len(chosen), device=chosen.device)
        mask = batch.action_mask | (chosen > 0)[:, None]  # a candidate has no padding
        return replace(batch, actions=chunks[rows, chosen], action_mask=mask), best - baseline

    def _negative_log_likelihood(self, batch: ChunkTransition) -> torch.Tensor:
        if self.config.respect_ends or not self.policy.has_log_prob:
            return self.policy.imitation_loss(batch.observation, batch.actions, batch.action_mask).per_chunk
        prepared = self.policy.prepare(batch.observation)
        return -self.policy.log_prob(prepared, batch.actions, batch.action_mask)  # the document's sum

    def frame_values(self) -> tuple[np.ndarray, np.ndarray]:
        """V of every start by the network that never saw its episode and by those that did (each [len])."""
        return label_values(self.value, self._dataset, self.device)

    def q_ensemble(self) -> QEnsemble | None:
        """Q for best-of-N."""
        return QEnsemble(self.critic.eval())

    def _parts(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "critic": self.critic,
            "target": self.target,
            "optimizer": self._optimizer,
        }

    def deployed(self) -> AbstractContextManager[None]:
        """See `Algorithm.deployed`; no average is kept."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Networks, target networks, optimiser and folds."""
        parts = {key: part.state_dict() for key, part in self._parts().items()}
        own = {"policy": trained_state(self.policy), "fold": torch.from_numpy(self.fold)}
        return parts | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        load_trained_state(self.policy, state["policy"])
        for key, part in self._parts().items():
            part.load_state_dict(state[key])
        self.fold = state["fold"].numpy()
        self._dataset.attach("fold", self.fold[self._dataset.episode])
