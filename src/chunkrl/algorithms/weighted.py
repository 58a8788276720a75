"""Advantage-weighted chunks: the default method (objectives cross_fitted and shuffled_advantages).

Advantage-weighted regression (AWR, Peng et al. 2019, arXiv 1910.00177): the policy clones the data's chunks with
weights exp(beta A). For a policy of flow matching the loss is the weighted flow loss, and nothing asks for log pi: V
takes no entropy term. What differs from the paper, beside what `cross_fitted` lists:
1. the advantage is a TD(lambda) return minus V, standardised to deviation `fit.advantage_scale`;
2. the weights are balanced over strata of time and value (`balance`);
3. a human's chunks have the weight of the highest advantage (`human_chunks`);
4. phase `distil`, if wanted: best-of-N chunks of the trained policy, by the held-out Q, become data (`distil`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chunkrl.algorithms.balance import StrataLabels, with_past_advantage
from chunkrl.algorithms.base import MethodInputs
from chunkrl.algorithms.config import BalanceConfig, DistilConfig, HumanRule
from chunkrl.algorithms.cross_fitted import CrossFittedConfig, CrossFittedMethod, shared_settings
from chunkrl.algorithms.distil import best_chunks, distil_metrics, mixture, with_best_chunks
from chunkrl.algorithms.human_chunks import forced_metrics
from chunkrl.algorithms.value_labels import ValueLabels
from chunkrl.algorithms.weight_spread import balance_cure
from chunkrl.algorithms.weights import WeightRule, weigh_starts
from chunkrl.data.draws import draw_rates, starts_by_weight, starts_that_weigh
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress, silent
from chunkrl.training.algorithm import Metrics, Phase
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class WeightedConfig(CrossFittedConfig):
    """beta: temperature of the weights exp(beta A). human: what becomes of chunks that a human made. balance: how the
    weights are shared out over the data. distil: best of N chunks of the trained policy, distilled into it."""

    beta: float = 1.0
    human: HumanRule = "high"
    balance: BalanceConfig = BalanceConfig()
    distil: DistilConfig = DistilConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit.draw == "weight" and self.relabel_interval:
            raise ChunkRLError(
                "--fit.draw weight is of weights that stay: use uniform with --relabel-interval"
            )
        if self.distil.num_candidates and (self.shuffled or self.value_updates_per_update):
            raise ChunkRLError(
                "--distil.num-candidates weights the chunks that a finished Q prefers: use it with --objective "
                "cross_fitted, and without --value-updates-per-update"
            )

    @property
    def needs_q(self) -> bool:
        """Whether anything needs Q."""
        return self.train_q or self.distil.num_candidates > 0

    @property
    def distil_updates(self) -> int:
        """Updates of the phase `distil`."""
        return self.distil.num_updates(self.policy_updates)

    @property
    def total_policy_updates(self) -> int:
        """Updates of the policy in all phases."""
        return self.policy_updates + self.distil_updates


class AdvantageWeighted(CrossFittedMethod):
    """The method of this module; see `WeightedConfig`."""

    config: WeightedConfig

    def __init__(self, config: WeightedConfig, *args: Any, **kwargs: Any) -> None:
        self._strata = StrataLabels(config.balance)
        super().__init__(config, *args, **kwargs)

    def _policy_phases(self) -> tuple[Phase, ...]:
        config, phases = self.config, super()._policy_phases()
        if not config.distil_updates:
            return phases
        distil = Phase("distil", config.distil_updates, self._subset, next_observation=False)
        return (*phases, distil) if config.policy_updates else (distil,)

    def start_phase(self, name: str, progress: Progress = silent) -> Metrics:
        """Does as `CrossFittedMethod` does; before `distil` every start is labelled with the chunk that Q prefers."""
        metrics = super().start_phase(name, progress)
        if name == "distil" and "best_chunk" not in self.labels:
            metrics |= self._distil(progress)
            self._attach()
        return metrics

    def _attach(self) -> None:
        super()._attach()
        config, data = self.config, self._dataset
        if not self.labels:
            return
        if config.distil.clones_first and "best_chunk" not in self.labels:
            # the policy whose chunks are distilled clones the data: `labels` keep the weights for what comes then
            data.attach("weight", np.ones(len(data), np.float32))
        elif config.fit.draw == "weight":
            self._subset, left = starts_by_weight(data, self._trained, self.labels["weight"], self.seed)
            data.attach("weight", left)
        elif not config.relabel_interval:  # or else values learn from the same rows, and weights change
            self._subset, left = starts_that_weigh(data, self._trained, self.labels["weight"])
            data.attach("weight", left)

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One update of phase `name`; batch [B]."""
        return super().update(name, with_best_chunks(batch) if name == "distil" else batch)

    def _use(self, labels: ValueLabels, rates: np.ndarray | None) -> Metrics:
        """Weights."""
        config, data = self.config, self._dataset
        metrics: Metrics = {}
        past = config.fit.past_advantage
        advantage = self._control(with_past_advantage(labels.advantage, data, labels.value, past))
        forced = self._forced_by_human()
        if forced is not None:
            drawn = forced if rates is None else forced & (rates > 0)
            metrics |= forced_metrics(drawn, advantage, rates)
        self.labels["weight"], more = self._weights(advantage, labels.value, rates, forced)
        return metrics | more

    def _weights(
        self, advantage: np.ndarray, value: np.ndarray, rates: np.ndarray | None, forced: np.ndarray | None
    ) -> tuple[np.ndarray, Metrics]:
        """Weights float32 [len] from advantages and held-out V float [len]; rates and forced as of `to_weights`."""
        config, fit = self.config, self.config.fit
        rule = WeightRule(config.beta, fit.advantage_scale, fit.weight_clip, config.balance.success_mix)
        found = weigh_starts(advantage, value, self._dataset, rates, forced, rule, self._strata)
        if found.strata is not None:
            self.labels["stratum"] = found.strata.index
        self._starved.say(found.spread, balance_cure(config.balance))
        return found.weight, dict(found.metrics)

    def _distil(self, progress: Progress) -> Metrics:
        """Labels every start with the policy's chunk that Q prefers, and how likely it stands in place of the
        recorded one; the weight becomes that of the mixture of both."""
        assert self.critic is not None
        data, config, labels = self._dataset, self.config, self.labels
        with self.critic.at_work() as critics, self.deployed():
            asked = config.distil.num_candidates, self.seed, self.device
            best = best_chunks(self.policy, critics, data, self._trained, *asked, progress)
        rates = draw_rates(data, self._trained)
        unit = self.critic.unit(labels["advantage"], self._trained, rates)
        forced = self._forced_by_human()
        won = best.q > best.q_recorded
        if forced is not None:
            won &= ~forced
        gain, mean_gain = (unit * (q - best.q_recorded) for q in (best.q, best.q_mean))
        advantage = labels["advantage"] + np.where(won, gain, 0.0)
        advantage = with_past_advantage(advantage, data, labels["value"], config.fit.past_advantage)
        weight, metrics = self._weights(advantage, labels["value"], rates, forced)
        self.labels |= mixture(weight, labels["weight"], won, config.distil.share) | {
            "best_chunk": best.chunk
        }
        return metrics | distil_metrics(won, gain, mean_gain, rates)


def build(inputs: MethodInputs) -> AdvantageWeighted:
    """The method of `inputs`."""
    settings = inputs.settings
    config = WeightedConfig(
        **shared_settings(inputs),
        beta=settings.beta,
        human=settings.human_chunks,
        balance=settings.balance,
        distil=settings.distil,
    )
    return AdvantageWeighted(config, *inputs.networks_and_data(), *inputs.values())
