"""Ensembles of values, and best-of-N distilled: what they add to the default, on development data and states.

    python -m benchmarks.distil_choice                          # batch 64, push, both mixtures
    python -m benchmarks.distil_choice --arms chunk_rl flow_chunk_rl --tasks pick-place-v3

Success on MetaWorld as in `benchmarks.metaworld`, with other seeds. Prints Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import tyro

from benchmarks.balance_choice import ChoiceConfig
from benchmarks.metaworld import run
from chunkrl.algorithms.config import DistilConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.demo.arms import CHUNK_RL, DISTILLED, FLOW_RL, Arm
from chunkrl.models.value_head import ValueHead

# as many updates as the arm that it is compared with, half of them before
_ALONE = replace(DISTILLED, name="distilled_alone", distil=DistilConfig(16, share=1.0))
_WEIGHTED = replace(DISTILLED, name="distilled_from_weighted", distil=DistilConfig(16, first="weighted"))
_FLOW = replace(DISTILLED, policy=FLOW_RL.policy, updates_factor=FLOW_RL.updates_factor / 2)


def _sampled(arm: Arm) -> Arm:
    return replace(arm, name=f"{arm.name}_sampled", mode="sample")


_GREEDY = (
    CHUNK_RL,
    DISTILLED,
    _ALONE,
    _WEIGHTED,
    FLOW_RL,
    replace(_FLOW, name="flow_distilled_best_of_16"),
)


def _ensemble(name: str, fit: ValueFit) -> Arm:
    return replace(CHUNK_RL, name=name, fit=fit)


ENSEMBLES = (
    _ensemble("mean_of_3", ValueFit(num_critics=3)),
    _ensemble("min_of_3", ValueFit(num_critics=3, aggregate="min")),
    _ensemble("quantile_of_3", ValueFit(num_critics=3, aggregate="quantile")),
    _ensemble("hl_gauss", ValueFit(head=ValueHead("hl_gauss"))),
    _ensemble("hl_gauss_quantile", ValueFit(head=ValueHead("hl_gauss"), aggregate="quantile")),
)
ARMS = (*(found for arm in _GREEDY for found in (arm, _sampled(arm))), *ENSEMBLES)


@dataclass(frozen=True)
class DistilChoiceConfig(ChoiceConfig):
    """What to run; settings as of `benchmarks.balance_choice`."""

    output_dir: str = "runs/distil_choice"
    """Data, runs and one JSON a job."""
    results: str = "benchmarks/results/distil_choice.json"
    """The summary."""
    tasks: tuple[str, ...] = ("push-v3",)
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)


if __name__ == "__main__":
    run(tyro.cli(DistilChoiceConfig), ARMS)
