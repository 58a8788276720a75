"""Progress of LeRobot's reward models: as a reward, and in place of values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import episode, open_chunks, random_episodes, settings, write_dataset
from lerobot_folder import edit_parquet

from chunkrl import ChunkLevelOfflineRL
from chunkrl.cli import main
from chunkrl.config import load_config
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.data.progress_files import FILES
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.run.config import TrainConfig

LENGTHS = (4, 3, 5)
PROGRESS = np.array([0.0, 0.25, 0.5, 0.75, 0.25, 0.125, 0.5, 0.0, 0.5, 0.75, 0.5, 1.0], np.float32)
RULE = LabelRule(step_reward="progress")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three episodes: a success, a failure, and a success two frames before its recording ends."""
    rng = np.random.default_rng(0)
    early = np.zeros(5, bool)
    early[2] = True
    episodes = [
        episode(4, True, rng),
        episode(3, False, rng),
        episode(5, True, rng, **{"next.success": early}),
    ]
    return write_dataset(tmp_path / "data", episodes)


def write(
    path: Path, progress: np.ndarray = PROGRESS, lengths: tuple[int, ...] = LENGTHS, **changes: Any
) -> Path:
    """A file as SARM's command writes it, whose rows are in no order."""
    columns = {
        "index": np.arange(sum(lengths)),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "progress_sparse": progress,
    } | changes
    order = np.random.default_rng(1).permutation(len(progress))
    table = pa.table({name: pa.array(values[order]) for name, values in columns.items()})
    pq.write_table(table.replace_schema_metadata({"reward_model_path": "someones/sarm"}), path)
    return path


def rewards(root: Path, rule: LabelRule) -> list[float]:
    return label_frames(open_chunks(root).table, rule).reward.tolist()


@pytest.mark.parametrize("name", FILES)
def test_a_reward_is_the_change_of_progress(root: Path, name: str) -> None:
    write(root / name)
    # to the next frame; at a success to 1; nothing at a failure's end and after a success
    expected = [0.25, 0.25, 0.25, 0.25, -0.125, 0.375, 0.0, 0.5, 0.25, 0.25, 0.0, 0.0]
    assert rewards(root, RULE) == expected
    (root / name).rename(root / "other.parquet")
    for path in ("other.parquet", str(root / "other.parquet")):
        assert rewards(root, LabelRule(step_reward="progress", progress=path)) == expected


def test_the_dense_column_is_read_where_it_is_alone(root: Path) -> None:
    write(root / FILES[0], progress_dense=PROGRESS[::-1].copy())
    both = rewards(root, RULE)
    table = pq.read_table(root / FILES[0]).drop_columns(["progress_sparse"])
    pq.write_table(table, root / FILES[0])
    assert rewards(root, RULE) != both


def test_labels_keep_it(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "p.parquet")
    main(["label", str(root), "--step-reward", "progress", "--progress", str(file)])
    expected = rewards(root, LabelRule(step_reward="progress", progress=str(file)))
    file.unlink()
    assert rewards(root, LabelRule()) == expected  # of the file beside the data


def test_training_by_progress(root: Path, tmp_path: Path) -> None:
    write(root / FILES[1])
    run = settings(root, tmp_path / "run", reward="sum", labels=RULE, num_folds=2, gamma=1.0)
    ChunkLevelOfflineRL(**run).train()
    returns = pq.read_table(tmp_path / "run" / "values.parquet")["return"].to_numpy()
    assert returns[0] == 1.0 - PROGRESS[0] and returns[4] == PROGRESS[6] - PROGRESS[4]
    assert load_config(TrainConfig, tmp_path / "run" / "config.json").labels.progress == ""


def test_progress_in_place_of_values(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "p.parquet")
    run = settings(root, tmp_path / "run", values=str(file), gamma=1.0, reward="sum")
    ChunkLevelOfflineRL(**run).train()
    stored = pq.read_table(tmp_path / "run" / "values.parquet")
    value, advantage = stored["value"].to_numpy(), stored["advantage"].to_numpy()
    np.testing.assert_allclose(value, PROGRESS)  # returns lie between 0 and 1
    data, lam = open_chunks(root).frame_labels, TrainConfig().fit.lam
    # the failure: TD(lambda) of its three frames, with nothing behind the last
    deltas = [value[5] - value[4], value[6] - value[5], -value[6]]
    expected = [deltas[0] + lam * (deltas[1] + lam * deltas[2]), deltas[1] + lam * deltas[2], deltas[2]]
    np.testing.assert_allclose(advantage[4:7], expected, atol=1e-6)
    assert (advantage[data.after_success] == 0).all()
    told = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert (
        "rank_correlation_seen" in told and "rank_correlation_held_out" not in told
    )  # nobody held anything out
    main(["report", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("progress", "lengths", "message"),
    [
        (
            np.append(PROGRESS[:-1], np.float32("nan")),
            LENGTHS,
            "progress is nan at .*episode 2, frame 4.*run it again",
        ),
        (PROGRESS + np.float32(0.5), LENGTHS, r"it lies in \[0, 1\]"),
        (-PROGRESS, LENGTHS, r"it lies in \[0, 1\]"),
        (PROGRESS[:7], (4, 3), "7 rows.*exactly one row for each frame"),
        (PROGRESS, (4, 3, 3, 2), "10 of them of frames of"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    root: Path, progress: np.ndarray, lengths: tuple[int, ...], message: str
) -> None:
    write(root / FILES[0], progress, lengths)
    with pytest.raises(DatasetError, match=message):
        rewards(root, RULE)
    with pytest.raises(DatasetError, match=message):
        ChunkLevelOfflineRL(**settings(root, root.parent / "run", values=str(root / FILES[0]))).train()


def test_what_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has none of sarm_progress.parquet.*--progress FILE"):
        rewards(root, RULE)
    with pytest.raises(DatasetError, match=r"none\.parquet is no file"):
        rewards(root, LabelRule(step_reward="progress", progress="none.parquet"))
    with pytest.raises(DatasetError, match="goes with --step-reward progress"):
        LabelRule(progress="p.parquet")
    for name in FILES[:2]:
        write(root / name)
    with pytest.raises(
        DatasetError, match=r"sarm_progress.parquet, robometer_progress.parquet: say with --progress"
    ):
        rewards(root, RULE)
    (root / FILES[2]).write_bytes(b"no parquet")
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        rewards(root, LabelRule(step_reward="progress", progress=FILES[2]))
    write(root / "named.parquet")
    table = pq.read_table(root / "named.parquet").drop_columns(["progress_sparse"])
    pq.write_table(table, root / "named.parquet")
    with pytest.raises(
        DatasetError, match="no column 'progress_sparse'; it has index, episode_index, frame_index"
    ):
        rewards(root, LabelRule(step_reward="progress", progress="named.parquet"))
    with pytest.raises(ChunkRLError, match="add --reward sum"):
        ChunkLevelOfflineRL(**settings(root, tmp_path / "run", labels=RULE)).train()
    more = write_dataset(tmp_path / "more", random_episodes(4))
    both = settings(
        root, tmp_path / "run", values=str(root / FILES[0]), additional_offline_dataset_paths=(str(more),)
    )
    with pytest.raises(ChunkRLError, match="is of one data set, and there are 2"):
        ChunkLevelOfflineRL(**both).train()
    with pytest.raises(ChunkRLError, match="leave --train-q"):
        ChunkLevelOfflineRL(
            **settings(root, tmp_path / "run", values=str(root / FILES[0]), train_q=True)
        ).train()


def test_episodes_that_were_set_aside_may_stand_in_the_file(root: Path) -> None:
    file = write(root / FILES[0])
    whole = rewards(root, RULE)
    (data,) = (root / "data").rglob("*.parquet")
    action = np.stack(pq.read_table(data)["action"].to_numpy(zero_copy_only=False))
    action[5] = np.nan
    edit_parquet(data, action=action.tolist())
    left = open_chunks(root, frames=FrameSettings(skip_bad_episodes=True))
    assert left.table.episode_ids.tolist() == [0, 2] and file.is_file()
    assert label_frames(left.table, RULE).reward.tolist() == whole[:4] + whole[7:]
