"""How values are fitted, and become advantages and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from chunkrl.data.label_rules import TimeOut
from chunkrl.errors import ChunkRLError
from chunkrl.models.value_head import ValueHead

if TYPE_CHECKING:
    from torch import Tensor

FoldOrder = Literal["together", "one_by_one"]
ValueTarget = Literal["monte_carlo", "bootstrap"]
Aggregate = Literal["mean", "min", "quantile"]
Draw = Literal["uniform", "weight"]


@dataclass(frozen=True)
class ValueFit:
    """How values are fitted and become advantages and weights."""

    lam: float = 0.98
    """Lambda of the TD(lambda) return that the advantage compares with V."""
    advantage_scale: float = 2.0
    """Deviation of the standardised advantage that weights are made of."""
    weight_clip: float = 100.0
    """Largest weight."""
    draw: Draw = "uniform"
    """Which starts the policy learns from. uniform: all that weigh anything, alike, their loss weighted; weight: in
    proportion to their weight, their loss not. The same objective."""
    time_out: TimeOut = "failure"
    """What a time limit means: a failure, or bootstrap from the last stored frame."""
    hidden_dim: int = 128
    """Width of values and critics beside small policies."""
    num_layers: int = 2
    """Their layers."""
    dropout: float = 0.5
    """Their dropout."""
    noise: float = 0.3
    """Noise on their normalised state, while training."""
    target: ValueTarget = "monte_carlo"
    """What V learns from: monte_carlo, the return of the episode; bootstrap, the rewards of the steps that a
    transition covers (--critic-horizon) and V after them, from a moving average of V."""
    target_rate: float = 0.005
    """Rate by which that average moves per update."""
    head: ValueHead = field(default_factory=ValueHead)
    """How V reads its network's outputs."""
    fold_order: FoldOrder = "together"
    """together: every update trains all folds' networks; one_by_one: each in a pass of its own over the batches, with
    the memory of one."""
    return_range: tuple[float, float] | None = None
    """Lowest and highest return that V can say; default: those of the data that a run begins with, or with --init
    those of its values."""
    past_advantage: float = 0.0
    """c: weights and labels are made of A + c (V(x) - V(x_0)), x_0 where the episode began. V(x) - V(x_0) is what the
    advantages before x sum to: how much likelier than the data's the improved policy is to come here."""
    num_critics: int = 1
    """M, value networks per fold, which differ in their initial weights and noise."""
    aggregate: Aggregate = "mean"
    """What V is of the M: their mean, their min (the worst), or a quantile of them; with hl_gauss, of the
    distribution that they predict together."""
    quantile: float = 0.25
    """Which quantile, in (0, 1)."""
    n_step: int | None = None
    """N of the advantage as the sum of N rewards and V after them, minus V (pi*0.6); default: TD(lambda)."""

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise ChunkRLError(f"lam is {self.lam}; it must lie in [0, 1]")
        if not (0 < self.weight_clip <= 1e30 and 0 < self.advantage_scale < math.inf):
            raise ChunkRLError("weight_clip lies in (0, 1e30], and advantage_scale is positive and finite")
        if not (0 <= self.noise < math.inf and 0 <= self.dropout < 1):
            raise ChunkRLError("noise is finite and not negative, and dropout lies in [0, 1)")
        if self.target not in get_args(ValueTarget) or not 0 < self.target_rate <= 1:
            raise ChunkRLError("fit.target is monte_carlo or bootstrap, and fit.target_rate lies in (0, 1]")
        if self.head.kind == "scalar":
            raise ChunkRLError(
                "fit.head.kind: use sigmoid or hl_gauss, which keep V within the data's returns"
            )
        if self.draw not in get_args(Draw):
            raise ChunkRLError(f"fit.draw is {self.draw!r}; use uniform or weight")
        if self.fold_order not in get_args(FoldOrder):
            raise ChunkRLError(f"fit.fold_order is {self.fold_order!r}; use together or one_by_one")
        if (
            self.return_range is not None
            and not -math.inf < self.return_range[0] < self.return_range[1] < math.inf
        ):
            raise ChunkRLError(
                f"fit.return_range is {self.return_range}; give two finite numbers, low and high"
            )
        self._check_ensemble()
        if not 0 <= self.past_advantage < math.inf:
            raise ChunkRLError(f"fit.past_advantage is {self.past_advantage}; it is finite and not negative")
        if self.n_step is not None and self.n_step < 1:
            raise ChunkRLError(f"fit.n_step is {self.n_step}; an advantage covers at least 1 step")

    def _check_ensemble(self) -> None:
        if self.aggregate not in get_args(Aggregate) or self.num_critics < 1 or not 0 < self.quantile < 1:
            raise ChunkRLError(
                f"fit.aggregate is {self.aggregate!r}, fit.num_critics {self.num_critics} and fit.quantile "
                f"{self.quantile}: use mean, min or quantile, at least 1, and a number in (0, 1)"
            )
        if self.aggregate != "mean" and self.num_critics == 1 and not self.of_distribution:
            raise ChunkRLError(
                f"fit.aggregate {self.aggregate} is of several numbers, and fit.num_critics 1 gives one: use "
                "--fit.num-critics 3, or quantile with --fit.head.kind hl_gauss, which predicts a distribution"
            )

    @property
    def of_distribution(self) -> bool:
        """Whether V is a quantile of predicted distributions."""
        return self.aggregate == "quantile" and self.head.kind == "hl_gauss"

    def combine(self, found: Tensor) -> Tensor:
        """V float32 [..., B] of what M networks say: found, their values [..., M, B], or where it is a quantile
        `of_distribution` their outputs [..., M, B, O], whose distributions are averaged."""
        if self.of_distribution:
            return self.head.quantile(found.float().softmax(-1).mean(-3), self.quantile)
        if self.aggregate == "min":
            return found.amin(-2)
        return found.mean(-2) if self.aggregate == "mean" else found.quantile(self.quantile, dim=-2)
