"""A batch in parts learns what the whole batch does; Adam hides a wrong scale, gradient norms do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chunk_data import random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.value_config import ValueFit


@pytest.mark.parametrize("objective", ["cross_fitted", "behaviour_cloning"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9])  # 3 and 5 leave a smaller part; 8 is the batch
def test_gradients_of_parts_add_up_to_the_batchs(tmp_path: Path, objective: str, size: int) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(6))
    found = []
    for microbatch_size in (None, size):
        run = ChunkLevelOfflineRL(
            **settings(
                data,
                tmp_path / "run",
                {"fit": ValueFit(dropout=0.0, noise=0.0)},
                objective=objective,
                train_q=objective == "cross_fitted",
                microbatch_size=microbatch_size,
            )
        )
        metrics = {}
        for phase in run.algorithm.phases():
            run.algorithm.start_phase(phase.name)
            batch = run.dataset.batch(np.arange(8), next_observation=phase.next_observation)
            metrics |= run.algorithm.update(phase.name, batch)
        found.append(
            {name: value for name, value in metrics.items() if name.startswith(("grad_norm", "loss"))}
        )
    phases = {"cross_fitted": {"value", "critic", "policy"}, "behaviour_cloning": {"policy"}}[objective]
    assert {f"grad_norm/{phase}" for phase in phases} <= set(found[0])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
