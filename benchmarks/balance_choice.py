"""How the default weights were chosen: candidates on development data sets and states that no result is reported on.

    python -m benchmarks.balance_choice                                    # batch 64, where few rows carry a batch
    python -m benchmarks.balance_choice --batch-size 256 --output-dir runs/balance_choice_256

Success on MetaWorld as in `benchmarks.metaworld`, with other seeds, and with the scale of weights that was the
default then. Prints Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import tyro

from benchmarks.metaworld import BenchmarkConfig, run
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.demo.arms import SCALE_3, SHUFFLED, SUCCESS_BC, UNBALANCED, Arm


def _balanced(name: str, fit: ValueFit = SCALE_3.fit, **settings: object) -> Arm:
    return replace(SCALE_3, name=name, fit=fit, balance=replace(SCALE_3.balance, **settings))  # type: ignore[arg-type]


CANDIDATES = (
    _balanced("balanced_past_half", replace(SCALE_3.fit, past_advantage=0.5)),
    _balanced("balanced_time_alone", value_bins=1),
    _balanced("balanced_16_times", time_bins=16),
    _balanced("balanced_mixed_half", success_mix=0.5),
    _balanced("balanced_lambda_1", replace(SCALE_3.fit, lam=1.0)),
)
ARMS = (SUCCESS_BC, UNBALANCED, SCALE_3, *CANDIDATES, replace(SHUFFLED, fit=SCALE_3.fit))


@dataclass(frozen=True)
class ChoiceConfig(BenchmarkConfig):
    """What to run; settings as of `benchmarks.metaworld`."""

    output_dir: str = "runs/balance_choice"
    """Data, runs and one JSON a job."""
    results: str = "benchmarks/results/balance_choice.json"
    """The summary."""
    seeds: tuple[int, ...] = (0, 1)
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)
    batch_size: int = 64
    data_seed: int = 777
    eval_seed: int = 4242


if __name__ == "__main__":
    run(tyro.cli(ChoiceConfig), ARMS)
