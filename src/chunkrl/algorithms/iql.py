"""Chunk-level IQL (objective iql): Implicit Q-Learning (arXiv 2110.06169), a chunk one action.

V is an expectile of Q over the data's chunks, so that Q is never asked about chunks off the data; the policy clones
chunks with weights exp(beta (Q - V)). What differs from the paper:
1. a transition covers a chunk: gamma^k for its real length k, no bootstrap past a terminating action, `critic_mask`;
2. twin Q with slow target networks, the minimum for V and for the advantage (the paper's, over whole chunks);
3. the advantage is standardised over a batch, weights are clipped and balanced over strata of time (`balance`);
4. any of it may be cross-fitted by episode (`num_folds` > 1).

With "candidates" attached to the data set, chunks [len, N, H, A] of another policy (`integration.pi_chunks`), Q is
asked about them and never taught with them, for nothing is known of what they earn: V is the expectile over the
recorded chunk and the candidates (as EMaQ's maximum, arXiv 2007.11091), and the policy clones the one of them that
the held-out Q prefers, weighted by its advantage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chunkrl.algorithms import losses
from chunkrl.algorithms.balance import RunningBalance, Strata, make_strata
from chunkrl.algorithms.base import MethodInputs
from chunkrl.algorithms.config import BalanceConfig, IQLSettings
from chunkrl.algorithms.joint import JointConfig, JointMethod, shared_settings
from chunkrl.algorithms.weight_spread import balance_cure
from chunkrl.algorithms.weights import StartWeights, WeightRule, to_weights
from chunkrl.data.draws import draw_rates
from chunkrl.errors import ChunkRLError
from chunkrl.training.algorithm import Metrics
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class IQLConfig(JointConfig):
    """expectile: tau of V's loss. advantage_scale, weight_clip: of the weights. balance: how they are shared out over
    the data, by strata of time (values move while it trains)."""

    num_critics: int = IQLSettings.num_critics
    target_rate: float = IQLSettings.target_rate
    expectile: float = IQLSettings.expectile
    advantage_scale: float = IQLSettings.advantage_scale
    weight_clip: float = IQLSettings.weight_clip
    balance: BalanceConfig = BalanceConfig()

    def __post_init__(self) -> None:
        default = BalanceConfig()
        unread = [n for n in ("value_bins", "success_mix") if getattr(self.balance, n) != getattr(default, n)]
        if unread:
            raise ChunkRLError(
                f"balance.{' and balance.'.join(unread)}: not for --objective iql, whose values move while it "
                "trains: leave it out, or use --objective cross_fitted"
            )


class ChunkIQL(JointMethod):
    """The method of this module; see `IQLConfig`."""

    config: IQLConfig

    def _prepare(self) -> None:
        """What is due in the data's strata of time, as the label `stratum`."""
        config, data = self.config, self._dataset
        self._balance: RunningBalance | None = None
        self._strata: Strata | None = None
        if config.balance.kind == "none":
            return
        rates = draw_rates(data, self._trained)
        self._strata = make_strata(data, None, self._step_reward, rates, None, config.balance)
        data.attach("stratum", self._strata.index)
        self._balance = RunningBalance.of(self._strata, rates, self.device)

    def _chunks(self, batch: ChunkTransition) -> torch.Tensor:
        """The recorded chunks, with the other policy's after them where there are some: [B, N + 1, H, A]."""
        candidates = batch.labels.get("candidates")
        if candidates is None:
            return batch.actions
        return torch.cat([batch.actions[:, None], candidates], dim=1)

    def _value_loss(
        self, value: torch.Tensor, target: torch.Tensor | None, now: Any, batch: ChunkTransition
    ) -> tuple[torch.Tensor, Metrics]:
        """The folds' sum of losses; target: Q of what V is the expectile of, [K, B] or [K, N, B]."""
        assert target is not None
        trains = self.value.trains_on(batch.labels["fold"])
        expectile, usable = self.config.expectile, batch.critic_mask
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

    def _weights(self, advantage: torch.Tensor, batch: ChunkTransition) -> tuple[torch.Tensor, Metrics]:
        config = self.config
        weights = losses.advantage_weights(
            advantage, config.beta * config.advantage_scale, config.weight_clip, "standardize"
        )
        clipped = float((weights >= config.weight_clip).float().mean())
        if self._balance is not None:
            weights = self._balance.apply(weights, batch.labels["stratum"])
        return weights, {"weight/clip_fraction": clipped}

    def _start_weights(self, advantage: np.ndarray, rates: np.ndarray | None) -> StartWeights:
        config = self.config
        rule = WeightRule(config.beta, config.advantage_scale, config.weight_clip)
        weight, metrics = to_weights(advantage, rule, rates, strata=self._strata)
        return StartWeights.of(weight, metrics, self._dataset, rates, self._strata)

    @property
    def _cure(self) -> str:
        return balance_cure(self.config.balance, mixes=False)

    def _parts(self) -> dict[str, Any]:
        parts = super()._parts()
        return parts if self._balance is None else parts | {"balance": self._balance}


def build(inputs: MethodInputs) -> ChunkIQL:
    """The method of `inputs`."""
    settings, own = inputs.settings, inputs.settings.iql
    config = IQLConfig(
        **shared_settings(inputs),
        num_folds=settings.num_folds,
        balance=settings.balance,
        num_critics=own.num_critics,
        target_rate=own.target_rate,
        expectile=own.expectile,
        advantage_scale=own.advantage_scale,
        weight_clip=own.weight_clip,
    )
    value_optim = None if settings.value_lr is None else inputs.value_optim
    return ChunkIQL(config, *inputs.networks_and_data(), value_optim)
