"""Chunk-level offline RL with Q(x, A), V(x) and an advantage-weighted policy trained together.

With `document()` this is the chunk-level document's objective to the letter: L_Q with y = r + gamma^H V(x'),
L_V towards E_{A~pi}[Q - log pi], weights exp(beta (Q - V)), L = L_Q + lambda_V L_V + lambda_pi L_pi, for a
Gaussian policy. `iql()` turns on the repairs (IQL, arXiv 2110.06169, over chunks):
1. no bootstrap past a terminating action, gamma^k for the real length k, `critic_mask`;
2. twin Q with slow target networks, the minimum for V and for the advantage;
3. expectile V towards Q of the stored chunk: Q is never asked about chunks off the data;
4. standardised advantages, clipped weights, balanced over strata of time (`balance`);
5. any of it cross-fitted by episode (`num_folds` > 1).

With "candidates" attached to the data set, chunks [len, N, H, A] of another policy (`integration.pi_chunks`), `iql()`
asks Q about them and never teaches Q with them, for nothing is known of what they earn: V is the expectile over the
recorded chunk and the candidates (as EMaQ's maximum, arXiv 2007.11091), and the policy clones the one of them that
the held-out Q prefers, weighted by its advantage.

On a pi policy the loss is the weighted flow-matching loss and V takes no entropy term. One pass of the policy's
vision tower over an observation serves the policy and, detached, V, Q and its target (`with_vision`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms import losses
from chunkrl.algorithms.balance import RunningBalance, make_strata
from chunkrl.algorithms.base import Histogram, Metrics, Networks, Phase, only_finite
from chunkrl.algorithms.best_of_n import QEnsemble, least_q
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.algorithms.cross_fit import CrossFitted, assign_folds, label_values
from chunkrl.algorithms.value_labels import (
    ValueLabels,
    label_metrics,
    monte_carlo_returns,
    warn_of_success_alone,
)
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import draw_rates, trained_starts
from chunkrl.data.label_rules import TimeOut
from chunkrl.data.large_arrays import keep
from chunkrl.errors import ChunkRLError
from chunkrl.models.policy import ImitationLoss
from chunkrl.models.value_head import ValueHead
from chunkrl.progress import Progress, silent
from chunkrl.training.checkpoint import load_trained_state, trained_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.optim import Ema, Optimizer, autocast, update_ema
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
    ema_decay: of the policy's average, which is deployed; 0: none.
    relabel_interval: updates between two looks at all data's values (0: one at the end).
    time_out: what a time limit means for the returns that values are compared with; V and Q bootstrap there.
    balance: how the weights are shared out over the data, by strata of time (values move while it trains).
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
    ema_decay: float = 0.0
    relabel_interval: int = 0
    time_out: TimeOut = "failure"
    balance: BalanceConfig = BalanceConfig()

    def __post_init__(self) -> None:
        unread = [name for name in ("value_bins", "success_mix") if self._sets(name)]
        if unread:
            raise ChunkRLError(
                f"balance.{' and balance.'.join(unread)}: not for --objective iql, whose values move while it "
                "trains: leave it out, or use --objective cross_fitted"
            )

    def _sets(self, name: str) -> bool:
        return getattr(self.balance, name) != getattr(BalanceConfig(), name)


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
        "balance": BalanceConfig("none"),
    }
    return JointConfig(**(exact | settings))


class ChunkAWR:
    """The algorithm of this module; see `JointConfig`.

    value_optim: of V and Q; None: as the policy's.
    """

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
        if config.alpha > 0 and not self.policy.has_log_prob:
            raise ChunkRLError(
                "the document's entropy term needs log pi, which only a Gaussian policy has: "
                "use --policy.kind gaussian, or --objective iql / cross_fitted for a flow policy"
            )
        if "candidates" in dataset.label_names and config.expectile is None:
            raise ChunkRLError(
                "candidate chunks need the expectile V of --objective iql: the document's V samples the policy"
            )
        self._step_reward = adv.step_rewards(dataset)
        adv.check_rewards(dataset.name, self._step_reward)
        warn_of_success_alone(dataset)
        returns = monte_carlo_returns(dataset, self._step_reward)
        if config.respect_ends:  # a time-out's V is bootstrapped, whatever its returns are taken for
            adv.check_failures(dataset, self._step_reward, returns, "bootstrap")
        self._returns = keep(dataset.cache_dir, returns[dataset.starts])
        self.config, self.device = config, device
        self._dataset, self._trained = dataset, trained_starts(dataset)
        self._horizon_discount = dataset.gamma**dataset.critic_horizon
        self.fold = assign_folds(dataset.frame_labels.success, config.num_folds, seed)
        dataset.attach("fold", self.fold[dataset.episode])
        self._balance = self._make_balance()
        head, num_critics = ValueHead("scalar"), config.num_critics  # their targets have no bounds
        self.value = CrossFitted(lambda: networks.value(head), config.num_folds).to(device)
        self.critic = CrossFitted(lambda: networks.critic(num_critics, head), config.num_folds).to(device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False).eval()
        self._optimizers = self._make_optimizers(optim, value_optim)
        trained = [(name, p) for name, p in self.policy.named_parameters() if p.requires_grad]
        self._ema = Ema(trained, config.ema_decay) if config.ema_decay > 0 else None
        self.labels: dict[str, np.ndarray] = {}
        self._num_updates, self._labelled_at = 0, -1

    def _make_balance(self) -> RunningBalance | None:
        """What is due in the data's strata of time, as the label `stratum`; None where weights are not balanced."""
        config, data = self.config, self._dataset
        if config.balance.kind == "none":
            return None
        rates = draw_rates(data, self._trained)
        strata = make_strata(data, None, self._step_reward, rates, None, config.balance)
        data.attach("stratum", strata.index)
        return RunningBalance.of(strata, rates, self.device)

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
        return metrics | {"q/held_out": Histogram.of(q)}

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
            chunks = _with_candidates(batch)
            target = None if config.expectile is None else self._target_q(now, chunks)
            value_loss, more = self._value_loss(value, target, now, batch)
            batch, advantage = self._policy_targets(value, target, chunks, now, batch)
            weights = losses.advantage_weights(
                advantage, config.beta * config.advantage_scale, config.weight_clip, config.normalize
            )
            clip_fraction = float((weights >= (config.weight_clip or math.inf)).float().mean())
            if self._balance is not None:
                weights = self._balance.apply(weights, batch.labels["stratum"])
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
            "value/mean": float(value.detach().mean()),
            "value/std": float(value.detach().std(unbiased=False)),
            "q/mean": float(q.detach().mean()),
            "q/std": float(q.detach().std(unbiased=False)),
            "q_target/mean": float(q_target.mean()),
            "q_target/std": float(q_target.std(unbiased=False)),
            "advantage/mean": float(advantage.detach().mean()),
            "advantage/std": float(advantage.std(unbiased=False)),
            "weight/mean": float(weights.mean()),
            "weight/max": float(weights.max()),
            "weight/effective_sample_size": float(losses.effective_sample_size(weights)),
            "grad_norm/joint": norm,
            "lr/policy": lr,
        }
        metrics |= {key: total / count for key, (total, count) in lost.parts.items() if count}
        if config.weight_clip is not None:
            metrics["weight/clip_fraction"] = clip_fraction
        return metrics | more

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
        targets = losses.bellman_target(batch.reward, discount, next_value)
        for k in range(len(q)):
            total = total + losses.critic_loss(q[k], targets[k], mask & trains[k])
        return total, targets

    def _value_loss(
        self, value: torch.Tensor, target: torch.Tensor | None, now: Any, batch: ChunkTransition
    ) -> tuple[torch.Tensor, Metrics]:
        """The folds' sum of losses; target: Q of what V is the expectile of, [K, B] or [K, N, B], or None."""
        trains = self.value.trains_on(batch.labels["fold"])
        if target is None:
            return self._sampled_value_loss(value, trains, now, batch)
        expectile = self.config.expectile
        assert expectile is not None
        usable = batch.critic_mask if self.config.respect_ends else torch.ones_like(batch.critic_mask)
        total = value.new_zeros(())
        for k in range(len(value)):
            total = total + losses.expectile_loss(value[k], target[k], expectile, trains[k] & usable)
        unseen = ~trains & usable
        if not unseen.any():
            return total, {}
        held_out = [
            losses.expectile_loss(value[k], target[k], expectile, unseen[k]) for k in range(len(value))
        ]
        return total, {"loss/value_held_out": float(sum(held_out).detach())}  # type: ignore[union-attr]

    def _sampled_value_loss(
        self, value: torch.Tensor, trains: torch.Tensor, now: Any, batch: ChunkTransition
    ) -> tuple[torch.Tensor, Metrics]:
        """The document's: towards Q - log pi of a chunk drawn from the policy."""
        config, log_prob = self.config, None
        with torch.no_grad():
            chunk = self.policy.sample(batch.observation, 1)[:, 0]
            if config.alpha > 0:
                whole = torch.ones_like(batch.action_mask)
                log_prob = self.policy.log_prob(self.policy.prepare(batch.observation), chunk, whole)
        target, total = self._target_q(now, chunk), value.new_zeros(())
        for k in range(len(value)):
            # every fold's V stays within its own data: rows it may not see are left out of its mean
            rows = trains[k].nonzero().squeeze(-1)
            entropy = None if log_prob is None else log_prob[rows]
            total = total + losses.value_loss(value[k][rows], target[k][rows], entropy, config.alpha)
        return total, {} if log_prob is None else {"policy/log_prob": float(log_prob.mean())}

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

    def _imitation_loss(self, batch: ChunkTransition) -> ImitationLoss:
        if self.config.respect_ends or not self.policy.has_log_prob:
            return self.policy.imitation_loss(batch.observation, batch.actions, batch.action_mask)
        prepared = self.policy.prepare(batch.observation)
        # the document's sum
        return ImitationLoss(-self.policy.log_prob(prepared, batch.actions, batch.action_mask))

    def q_ensemble(self) -> QEnsemble | None:
        """Q for best-of-N."""
        return QEnsemble(self.critic.eval())

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "value": self.value,
            "critic": self.critic,
            "target": self.target,
        }
        parts |= {f"optimizer_{number}": optimizer for number, optimizer in enumerate(self._optimizers)}
        if self._balance is not None:
            parts["balance"] = self._balance
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


def _with_candidates(batch: ChunkTransition) -> torch.Tensor:
    """The recorded chunks [B, H, A], with the other policy's behind them where there are some: [B, N + 1, H, A]."""
    candidates = batch.labels.get("candidates")
    return batch.actions if candidates is None else torch.cat([batch.actions[:, None], candidates], dim=1)
