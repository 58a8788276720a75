"""The arms of comparisons: how each trains and acts, under the name that results have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.algorithms.config import BalanceConfig, DistilConfig
from chunkrl.algorithms.registry import METHODS
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.data.chunks import ChunkDataset
from chunkrl.models.config import ActionMode, PolicyConfig
from chunkrl.run.config import Objective


@dataclass(frozen=True)
class Arm:
    """One policy of a comparison. Arms that differ in `mode` alone share one training (`training`).

    updates_factor: of the job's policy updates; flow policies need more than Gaussian ones.
    sample_weights: (data set, folder of its values, seed) -> the weight of every frame, float32 [N], that
        behaviour_cloning clones with.
    """

    name: str
    objective: Objective
    mode: ActionMode = "mode"
    policy: PolicyConfig = PolicyConfig()
    num_folds: int = 5
    updates_factor: float = 1.0
    fit: ValueFit = ValueFit()
    balance: BalanceConfig = BalanceConfig()
    distil: DistilConfig = DistilConfig()
    sample_weights: Callable[[ChunkDataset, Path, int], np.ndarray] | None = None

    @property
    def training(self) -> tuple[Any, ...]:
        """Arms with equal keys share one training run."""
        settings = (self.fit, self.balance, self.distil, self.sample_weights)
        return (self.objective, self.policy, self.num_folds, self.updates_factor, *settings)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Arms with equal keys share one value phase; None: it needs none, or has one of its own."""
        if not METHODS[self.objective].reads_setting("values") and self.sample_weights is None:
            return None
        meaning = (self.fit.lam, self.fit.n_step, self.fit.target, self.fit.time_out)
        networks = (self.fit.hidden_dim, self.fit.num_layers, self.fit.dropout, self.fit.noise, self.fit.head)
        ensemble = (self.fit.num_critics, self.fit.aggregate, self.fit.quantile)
        # left out where there is none: values that lie in the folders of earlier runs keep their keys
        return (self.num_folds, *meaning, *networks, *(() if ensemble[:2] == (1, "mean") else ensemble))


BC = Arm("behaviour_cloning", "behaviour_cloning")
SUCCESS_BC = Arm("success_cloning", "success_cloning")
CHUNK_RL = Arm("chunk_rl", "cross_fitted")
SHUFFLED = Arm("shuffled_advantages", "shuffled_advantages")
# the defaults of before: starts of failures drawn, with next to no weight; with theirs; and then with a scale of 3
APART = replace(CHUNK_RL, name="failures_apart", balance=BalanceConfig(failures="apart"))
TOGETHER = replace(CHUNK_RL, name="failures_together", balance=BalanceConfig(failures="together"))
SCALE_3 = replace(TOGETHER, name="scale_3", fit=ValueFit(advantage_scale=3.0))
UNBALANCED = replace(SCALE_3, name="unbalanced", balance=BalanceConfig("none"))  # the default before balance
NOT_CROSS_FITTED = Arm("not_cross_fitted", "cross_fitted", num_folds=1)
IQL = Arm("iql", "iql", num_folds=1)
DOCUMENT = Arm("document_objective", "document")
_FLOW = PolicyConfig(kind="flow")
FLOW_BC = Arm("flow_behaviour_cloning", "behaviour_cloning", policy=_FLOW, updates_factor=1.5)
FLOW_BC_SAMPLED = replace(FLOW_BC, name="flow_behaviour_cloning_sampled", mode="sample")
BEST_OF_16 = replace(FLOW_BC, name="best_of_16_by_q", mode="best_of_n")
FLOW_RL = replace(FLOW_BC, name="flow_chunk_rl", objective="cross_fitted")
# as many updates as chunk_rl, half of them of cloning, half on the best of 16
DISTILLED = replace(APART, name="distilled_best_of_16", updates_factor=0.5, distil=DistilConfig(16))
DEMO_ARMS = (BC, SUCCESS_BC, CHUNK_RL, BEST_OF_16)
ALL_ARMS = (
    *DEMO_ARMS,
    FLOW_BC,
    FLOW_BC_SAMPLED,
    FLOW_RL,
    DISTILLED,
    APART,
    TOGETHER,
    SCALE_3,
    UNBALANCED,
    SHUFFLED,
    NOT_CROSS_FITTED,
    IQL,
    DOCUMENT,
)
