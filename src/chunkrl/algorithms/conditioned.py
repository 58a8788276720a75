"""The advantage as text in the prompt (objectives advantage_conditioned and shuffled_conditioning).

RECAP (pi*0.6, arXiv 2511.14759) and the advantage-conditioned pi0.5 document: the bin of a chunk's advantage stands
in the prompt that the policy is trained with, and inference asks for the highest (`conditioning`). What differs,
beside what `cross_fitted` lists:
1. bins are cut within strata of time and value (`advantage_bins`, `balance`), and no chunk of a failed episode gets
   the highest label;
2. chunks with the highest label have a share of the rows (`conditioning.positive_share`);
3. a human's chunks, and those of chosen data sets, are forced high.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from chunkrl.algorithms.advantage_bins import label_bins
from chunkrl.algorithms.balance import StrataLabels, with_past_advantage
from chunkrl.algorithms.base import MethodInputs
from chunkrl.algorithms.conditioning import trained_texts
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig, HumanRule
from chunkrl.algorithms.cross_fitted import CrossFittedConfig, CrossFittedMethod, shared_settings
from chunkrl.algorithms.policy_step import Sums
from chunkrl.algorithms.value_labels import ValueLabels
from chunkrl.data.draws import share_weights, starts_by_share
from chunkrl.errors import ChunkRLError
from chunkrl.models.condition import condition_text
from chunkrl.training.algorithm import Metrics
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class ConditionedConfig(CrossFittedConfig):
    """conditioning: the labels in the prompt. human: what becomes of a human's chunks. balance: the strata."""

    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    human: HumanRule = "high"
    balance: BalanceConfig = BalanceConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit.draw == "weight":
            raise ChunkRLError(
                "--fit.draw weight is of weights that stay: use uniform with advantage_conditioned"
            )
        if self.conditioning.edges == "strata" and self.balance.kind != "strata":
            raise ChunkRLError(
                "--conditioning.edges strata labels within the strata of --balance.kind strata: leave --balance.kind "
                "out, or use --conditioning.edges quantiles"
            )

    @property
    def places(self) -> BalanceConfig:
        """The strata as places, whoever was there: what is high is chosen in each of them, and
        `conditioning.success` decides of failures."""
        return self.balance if self.balance.kind == "none" else replace(self.balance, failures="together")


class AdvantageConditioned(CrossFittedMethod):
    """The method of this module; see `ConditionedConfig`."""

    config: ConditionedConfig

    def __init__(self, config: ConditionedConfig, *args: Any, **kwargs: Any) -> None:
        self._strata = StrataLabels(config.places)
        super().__init__(config, *args, **kwargs)

    def _attach(self) -> None:
        """Gives positives their share of what is drawn, too; of the loss, where labels change while it trains."""
        super()._attach()
        conditioning, data = self.config.conditioning, self._dataset
        if not self.labels or conditioning.positive_share is None:
            return
        high = self.labels["advantage_bin"] == conditioning.highest
        if self.config.relabel_interval:
            data.attach("weight", share_weights(data, self._trained, high, conditioning.positive_share))
        else:
            self._subset = starts_by_share(data, self._trained, high, conditioning.positive_share, self.seed)

    def _update_policy(self, batch: ChunkTransition) -> Metrics:
        condition = trained_texts(batch.labels["advantage_bin"].cpu(), self.config.conditioning)
        return self.step.update(batch, condition, self._loss_by_bin)

    def _loss_by_bin(self, part: ChunkTransition, loss: torch.Tensor) -> Sums:
        num_bins = self.config.conditioning.num_bins
        bins = part.labels["advantage_bin"]
        for label in range(num_bins):
            chosen = loss[bins == label]
            name = condition_text(label, num_bins).split()[-1]
            yield f"flow_loss/advantage_{name}", float(chosen.sum()), len(chosen)

    def _use(self, labels: ValueLabels, rates: np.ndarray | None) -> Metrics:
        """Bins."""
        config, data = self.config, self._dataset
        past = config.fit.past_advantage
        advantage = with_past_advantage(labels.advantage, data, labels.value, past)
        forced = self._forced_by_human()
        strata = None
        if config.conditioning.edges == "strata":
            strata = self._strata.of(data, labels.value, rates, None)
            assert strata is not None, "checked by ConditionedConfig"
            self.labels["stratum"] = strata.index
        bins, metrics = label_bins(
            data, advantage, labels.returns, config.conditioning, rates, forced, strata, self._control
        )
        self.labels |= bins
        return {**metrics}


def build(inputs: MethodInputs) -> AdvantageConditioned:
    """The method of `inputs`."""
    settings = inputs.settings
    config = ConditionedConfig(
        **shared_settings(inputs),
        conditioning=settings.conditioning,
        human=settings.human_chunks,
        balance=settings.balance,
    )
    return AdvantageConditioned(config, *inputs.networks_and_data(), *inputs.values())
