"""How advantages become weights, labels in the prompt, and chunks to learn: the settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from chunkrl.errors import ChunkRLError

BalanceKind = Literal["strata", "none"]
Share = Literal["auto", "success", "returns"]
WithoutSuccess = Literal["clone", "leave_out"]
Failures = Literal["left_out", "apart", "together"]


@dataclass(frozen=True)
class BalanceConfig:
    """How the weights of chunks are shared out over the data."""

    kind: BalanceKind = "strata"
    """strata: each stratum of time and held-out value gets the share of the weight that the improved policy spends
    there; none: weights are what the advantages make them."""
    time_bins: int = 8
    """Strata by step within the episode, of equally many starts."""
    value_bins: int = 4
    """Strata of each of those by held-out value, of equally many starts (iql, whose values move, uses time alone)."""
    min_starts: int = 64
    """Mean number of starts at a time and value at least, failures counted: small data have fewer bins of value,
    then of time."""
    floor: float = 0.001
    """Share of its starts that a stratum gets beside its successes; failures that are left out get none, so that it
    then tells strata apart only where success is graded."""
    share: Share = "auto"
    """What the improved policy's share follows. success: episodes that succeed; returns: the episode's return, from
    the task's lowest (0) to its highest (1); auto: success, and returns in a task where no episode succeeds."""
    without_success: WithoutSuccess = "clone"
    """A task with neither success nor returns that tell better from worse: clone, all alike, as much of it as of
    other tasks; or leave_out."""
    failures: Failures = "left_out"
    """Starts that add nothing to what their stratum is due, those of failed episodes. left_out: they weigh nothing,
    and a batch has none of them (where values learn from the same batches, it has); apart: they get the floor alone.
    With both the advantage decides among the others; together: it decides among all."""
    success_mix: float = 0.0
    """Part of the weight that is that of plain cloning of the successes, in [0, 1]."""

    def __post_init__(self) -> None:
        kinds = {"kind": BalanceKind, "share": Share, "without_success": WithoutSuccess, "failures": Failures}
        for name, allowed in kinds.items():
            if getattr(self, name) not in get_args(allowed):
                raise ChunkRLError(
                    f"balance.{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(allowed))}"
                )
        if min(self.time_bins, self.value_bins, self.min_starts) < 1:
            raise ChunkRLError("balance.time_bins, balance.value_bins and balance.min_starts are at least 1")
        if not 0 <= self.success_mix <= 1 or not 0 <= self.floor <= 1:
            raise ChunkRLError("balance.success_mix and balance.floor lie in [0, 1]")
        unread = [f.name for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        if self.kind == "none" and unread:
            raise ChunkRLError(
                f"balance.{', balance.'.join(unread)}: of balanced weights, and --balance.kind none balances none: "
                "use --balance.kind strata, or leave them out"
            )


BinEdges = Literal["strata", "quantiles", "fixed"]
SuccessRule = Literal["mask", "force", "free"]
Pools = Literal["together", "datasets"]
Negatives = Literal["labelled", "unconditional"]
GuidanceFrom = Literal["lowest", "unlabelled"]
BIN_QUANTILES = {2: (0.65,), 3: (0.35, 0.65), 5: (0.2, 0.4, 0.6, 0.8)}
_PART = 0.7
_FIXED = {2: (0.0,), 3: (-0.5, 0.5), 5: (-0.6, -0.2, 0.2, 0.6)}


@dataclass(frozen=True)
class ConditioningConfig:
    """How advantages become labels in the prompt."""

    num_bins: int = 2
    """2 (negative, positive), 3 (with neutral) or 5 (the document's 0 to 4)."""
    edges: BinEdges = "strata"
    """strata: in each stratum of time and held-out value (`--balance.*`) as many chunks get the highest label as lie
    in successful episodes there, times `highest_part`, and the others equal shares of the rest; quantiles: of each
    task's advantages; fixed: on the advantage divided by the range of returns, in [-1, 1]."""
    cuts: tuple[float, ...] = ()
    """Quantiles in (0, 1), or fixed edges, between the bins; default: the top 35 % are positive; 5 equal shares; the
    document's -.6 -.2 .2 .6 where edges are fixed. Strata have none."""
    highest_part: float | None = None
    """Strata: the part of that number of chunks, in (0, 1]; default: 0.7."""
    success: SuccessRule = "mask"
    """mask: no chunk of a failed episode gets the highest label; force: all chunks of successful episodes do; free:
    the advantage alone decides."""
    pools: Pools = "together"
    """Where edges are taken, of what no rule forces high: over all data sets together, or in each data set apart; a
    learner's replay is one."""
    force_high: tuple[int, ...] = ()
    """Data sets (0: --dataset-dir, 1: the first additional one, ...) whose chunks are all labelled high."""
    positive_share: float | None = 0.8
    """Share of a batch's rows with the highest label, in each data set that has others too; None: as they come."""
    negatives: Negatives = "labelled"
    """labelled: chunks below the highest label are trained with theirs; unconditional: without any."""
    dropout: float = 0.1
    """Share of chunks trained without the advantage: the policy that is asked for nothing."""
    guidance: float = 1.0
    """Scale of classifier-free guidance, saved as the policy's default."""
    guidance_from: GuidanceFrom = "lowest"
    """What guidance leads away from: the lowest label (where chunks are trained with it), or the policy without a
    label, as published; saved with the policy."""

    def __post_init__(self) -> None:
        if self.num_bins not in BIN_QUANTILES:
            raise ChunkRLError(f"conditioning.num_bins is {self.num_bins}; use 2, 3 or 5")
        kinds = {
            "edges": BinEdges,
            "success": SuccessRule,
            "pools": Pools,
            "negatives": Negatives,
            "guidance_from": GuidanceFrom,
        }
        for name, allowed in kinds.items():
            if getattr(self, name) not in get_args(allowed):
                raise ChunkRLError(
                    f"conditioning.{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(allowed))}"
                )
        if not 0 <= self.dropout < 1:
            raise ChunkRLError(f"conditioning.dropout is {self.dropout}; it must lie in [0, 1)")
        unlabelled = self.guidance_from == "unlabelled"
        if self.guidance != 1 and self.dropout == 0 and self.negatives == "labelled" and unlabelled:
            raise ChunkRLError(
                "guidance compares with the policy without the label, which conditioning.dropout 0 never trains: "
                "set it to about 0.1, or conditioning.guidance_from to lowest"
            )
        if self.positive_share is not None and not 0 < self.positive_share < 1:
            raise ChunkRLError(
                f"conditioning.positive_share is {self.positive_share}; it lies between 0 and 1, both excluded: "
                "--objective success_cloning trains on good chunks alone"
            )
        self._check_edges()

    def _check_edges(self) -> None:
        if self.highest_part is not None and not 0 < self.highest_part <= 1:
            raise ChunkRLError(f"conditioning.highest_part is {self.highest_part}; it must lie in (0, 1]")
        if self.edges == "strata":
            if self.cuts:
                raise ChunkRLError(
                    "conditioning.cuts are of quantiles or fixed edges: with strata give conditioning.highest_part, "
                    "or say --conditioning.edges"
                )
            return
        if self.highest_part is not None:
            raise ChunkRLError(
                f"conditioning.highest_part is of --conditioning.edges strata; with {self.edges} give "
                "conditioning.cuts"
            )
        cuts = self.boundaries
        low, high = (0.0, 1.0) if self.edges == "quantiles" else (-math.inf, math.inf)
        increasing = all(a < b for a, b in zip((low, *cuts), (*cuts, high), strict=True))
        if len(cuts) != self.num_bins - 1 or not increasing:
            raise ChunkRLError(
                f"conditioning.cuts is {cuts}; {self.num_bins} bins need {self.num_bins - 1} increasing numbers"
                + (" between 0 and 1" if self.edges == "quantiles" else "")
            )

    @property
    def boundaries(self) -> tuple[float, ...]:
        """The cuts, or their defaults (of quantiles or fixed edges)."""
        if self.cuts:
            return self.cuts
        return (BIN_QUANTILES if self.edges == "quantiles" else _FIXED)[self.num_bins]

    @property
    def part(self) -> float:
        """`highest_part`, or its default."""
        return _PART if self.highest_part is None else self.highest_part

    @property
    def highest(self) -> int:
        """The label that inference asks for."""
        return self.num_bins - 1


First = Literal["cloned", "weighted"]


@dataclass(frozen=True)
class DistilConfig:
    """Best of N chunks of the policy, distilled into it."""

    num_candidates: int = 0
    """N: after its training the policy draws N chunks at every start, and is trained on the one that the held-out Q
    prefers of them and the recorded one (0: off; objective cross_fitted)."""
    updates: int | None = None
    """Updates on them; default: as many as before."""
    first: First = "cloned"
    """What the policy clones before: all chunks alike (near them Q knows most), or by their weights."""
    share: float = 0.5
    """Part of the loss that is of these chunks; the rest is of the recorded ones, as before."""

    def __post_init__(self) -> None:
        if (
            self.num_candidates < 0
            or not 0 < self.share <= 1
            or (self.updates is not None and self.updates < 1)
        ):
            raise ChunkRLError(
                f"distil.num_candidates is {self.num_candidates}, distil.updates {self.updates} and distil.share "
                f"{self.share}: they are not negative, at least 1, and in (0, 1]"
            )
        if self.first not in get_args(First):
            raise ChunkRLError(f"distil.first is {self.first!r}; use cloned or weighted")
        kind = type(self)
        given = self.updates is not None or (self.first, self.share) != (kind.first, kind.share)
        if not self.num_candidates and given:
            raise ChunkRLError(
                "distil.updates, distil.first and distil.share are of a policy that learns the best of N chunks: "
                "give --distil.num-candidates, for example 16"
            )

    @property
    def clones_first(self) -> bool:
        """Whether the weights wait for distillation."""
        return self.num_candidates > 0 and self.first == "cloned"

    def num_updates(self, policy_updates: int) -> int:
        """The number of updates of the phase. Raises ChunkRLError where nothing says how many."""
        if not self.num_candidates:
            return 0
        if self.updates is None and policy_updates == 0:
            raise ChunkRLError(
                "without updates before it (--num-updates 0) distillation needs --distil.updates"
            )
        return self.updates or policy_updates


@dataclass(frozen=True)
class IQLSettings:
    """Settings of objective iql alone."""

    expectile: float = 0.7
    """tau: V is this expectile of Q over the recorded chunks, in (0, 1)."""
    num_critics: int = 2
    """Q heads; the least of them counts."""
    target_rate: float = 0.005
    """Rate by which the target Q moves per update (1: no target network)."""
    advantage_scale: float = 3.0
    """Deviation of the standardised advantage that weights are made of."""
    weight_clip: float = 100.0
    """Largest weight."""

    def __post_init__(self) -> None:
        if not 0 < self.expectile < 1 or not 0 < self.target_rate <= 1 or self.num_critics < 1:
            raise ChunkRLError(
                f"iql.expectile {self.expectile} lies in (0, 1), iql.target_rate {self.target_rate} in (0, 1], and "
                f"iql.num_critics {self.num_critics} is at least 1"
            )
        if not (0 < self.weight_clip <= 1e30 and 0 < self.advantage_scale < math.inf):
            raise ChunkRLError(
                "iql.weight_clip lies in (0, 1e30], and iql.advantage_scale is positive and finite"
            )


HumanRule = Literal["high", "high_and_mask", "critic"]
