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
from chunkrl.algorithms.distil import DistilConfig
from chunkrl.experiment import CHUNK_RL, DISTILLED, FLOW_RL, Arm

# as many updates as the arm that it is compared with, half of them before
_ALONE = replace(DISTILLED, name="distilled_alone", distil=DistilConfig(16, share=1.0))
_FLOW = replace(DISTILLED, policy=FLOW_RL.policy, updates_factor=FLOW_RL.updates_factor / 2)


def _sampled(arm: Arm) -> Arm:
    return replace(arm, name=f"{arm.name}_sampled", mode="sample")


_GREEDY = (
    CHUNK_RL,
    DISTILLED,
    _ALONE,
    FLOW_RL,
    replace(_FLOW, name="flow_distilled_best_of_16"),
)
ARMS = tuple(found for arm in _GREEDY for found in (arm, _sampled(arm)))


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
