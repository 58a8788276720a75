"""Weights from a file: exactly one number per frame, and the loss is the weighted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import episode, open_chunks, random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.sample_weights import read_sample_weights
from chunkrl.errors import ChunkRLError, DatasetError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "d", random_episodes(4, lengths=(6, 7)))


def _write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def test_a_clone_with_q_has_its_weights_too(root: Path, tmp_path: Path) -> None:
    file = _write(tmp_path / "w.parquet", index=np.arange(24), weight=np.arange(24.0))
    runs = [
        ChunkLevelOfflineRL(
            **settings(
                root,
                tmp_path / f"run{train_q}",
                objective="behaviour_cloning",
                sample_weights=str(file),
                train_q=train_q,
            )
        )
        for train_q in (False, True)
    ]
    weights = []
    for run in runs:
        run.train()
        weights.append(run.algorithm.labels["weight"])
    np.testing.assert_array_equal(*weights)
    assert np.ptp(weights[0]) > 0


def test_rows_may_be_named_in_two_ways_and_any_order(root: Path, tmp_path: Path) -> None:
    data = open_chunks(root)
    order = np.random.default_rng(0).permutation(24)
    weight = np.arange(24.0)
    by_frame = _write(
        tmp_path / "a.parquet", episode_index=order // 6, frame_index=order % 6, weight=weight[order]
    )
    by_index = _write(tmp_path / "b.parquet", index=order, weight=weight[order])
    for path in (by_frame, by_index):
        assert read_sample_weights(path, data).tolist() == weight.tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"index": np.arange(23), "weight": np.ones(23)}, "23 rows.*exactly one row for each frame"),
        ({"index": np.arange(24) + 1, "weight": np.ones(24)}, "23 of them of frames"),
        ({"index": np.zeros(24, int), "weight": np.ones(24)}, "exactly one row"),
        (
            {"index": np.arange(24) + 0.5, "weight": np.ones(24)},
            "'index' is 0.5 in row 0; it must be a whole",
        ),
        ({"index": np.arange(24), "weight": np.full(24, np.nan)}, "nan in row 0"),
        ({"index": np.arange(24), "weight": np.full(24, -1.0)}, "not negative"),
        ({"index": np.arange(24), "weight": np.zeros(24)}, "every 'weight' is 0"),
        ({"index": np.arange(24), "weight": ["1"] * 24}, "it must be numbers"),
        ({"index": np.arange(24), "value": np.ones(24)}, "no column 'weight'; it has index, value"),
        ({"frame": np.arange(24), "weight": np.ones(24)}, "neither by episode_index"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    root: Path, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_sample_weights(_write(tmp_path / "w.parquet", **columns), open_chunks(root))


def test_missing_and_damaged_files_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is no file"):
        read_sample_weights(tmp_path / "none.parquet", open_chunks(root))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        read_sample_weights(tmp_path / "bad.parquet", open_chunks(root))


def _settings(root: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        **{"dataset_dir": str(root), "action_horizon": 3, "action_dim": 2, "batch_size": 8, "num_updates": 3},
        **{"device": "cpu", "log_interval": 1, "output_dir": str(tmp_path / "run")},
    }


def test_the_loss_is_weighted(root: Path, tmp_path: Path) -> None:
    """Weights of the successes alone are cloning of the successes, which draws no others: its labels say so."""
    success = np.asarray(open_chunks(root).success, float)
    path = _write(tmp_path / "w.parquet", index=np.arange(24), weight=success * 7)
    run = ChunkLevelOfflineRL(
        **_settings(root, tmp_path), objective="behaviour_cloning", sample_weights=(str(path),)
    )
    run.train()
    np.testing.assert_allclose(run.algorithm.labels["weight"], success / success.mean(), rtol=1e-6)
    assert run.trainer is not None
    assert run.trainer.history["weight/on_successes"][-1][1] == pytest.approx(1.0)
    assert run.trainer.history["weight/effective_sample_size"][-1][1] == pytest.approx(0.5)


def test_weights_behind_successes_alone_are_refused(tmp_path: Path) -> None:
    """Frames that were recorded after a success are not trained on, so their weights cannot be all there are."""
    rng = np.random.default_rng(0)
    flags = np.arange(6) == 3
    root = write_dataset(tmp_path / "d", [episode(6, True, rng, **{"next.success": flags}) for _ in range(4)])
    weight = np.tile(np.arange(6) > 3, 4).astype(float)
    path = _write(tmp_path / "w.parquet", index=np.arange(24), weight=weight)
    run = ChunkLevelOfflineRL(
        **_settings(root, tmp_path), objective="behaviour_cloning", sample_weights=(str(path),)
    )
    with pytest.raises(ChunkRLError, match=r"weight 0 \(those recorded after a success"):
        run.train()


def test_objectives_with_weights_of_their_own_refuse_them(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ChunkRLError,
        match=r"does not read --sample-weights: .* use --objective behaviour_cloning",
    ):
        ChunkLevelOfflineRL(**_settings(root, tmp_path), sample_weights=("w.parquet",))
    with pytest.raises(ChunkRLError, match="2 files for 1 data sets"):
        ChunkLevelOfflineRL(
            **_settings(root, tmp_path), objective="behaviour_cloning", sample_weights=("a", "b")
        )
