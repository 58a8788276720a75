"""Files of a whole data set, of which some episodes are left out: those are passed over, and a wrong file is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import episode, open_chunks, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.sample_weights import read_sample_weights
from chunkrl.data.sidecar import load_sidecar, save_sidecar
from chunkrl.errors import DatasetError
from chunkrl.label.by_hand import HandLabels, hand_file
from chunkrl.label.marks import Edit
from chunkrl.progress import silent

LENGTH, NUM = 6, 10
ROWS = {"episode_index": np.repeat(np.arange(NUM), LENGTH), "frame_index": np.tile(np.arange(LENGTH), NUM)}
HALF = FrameSettings(held_out=0.5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return write_dataset(tmp_path / "data", [episode(LENGTH, i % 2 == 0, rng) for i in range(NUM)])


def _write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def _without_two(root: Path) -> None:
    """Labels by hand that exclude an episode, and say nothing of another."""
    table = FrameTable.open(root, progress=silent, settings=FrameSettings(cache=False))
    labels = HandLabels(table, hand_file(root, None), blank=True)
    for position in range(NUM):
        if position != 4:
            labels.edit(position, 0, Edit("success" if position % 2 == 0 else "failure"))
    labels.edit(6, 1, Edit("exclude"))
    labels.close()


def test_sub_goals_of_a_file(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    lines = [f"{number},{number % LENGTH}" for number in range(NUM)]
    file.write_text("\n".join(["episode_index,frame_index", *lines]))
    rule = LabelRule(subgoal="csv", subgoal_csv=str(file))
    chunks = open_chunks(root, labels=rule, frames=HALF)
    assert 0 < chunks.table.num_episodes < NUM
    expected = [i * LENGTH + int(e) % LENGTH for i, e in enumerate(chunks.table.episode_ids)]
    assert np.flatnonzero(chunks.frame_labels.subgoal).tolist() == expected
    file.write_text(file.read_text() + f"\n{NUM},0\n")
    with pytest.raises(DatasetError, match=rf"s.csv, line {NUM + 2}: .* has no episode {NUM}"):
        open_chunks(root, labels=rule, frames=HALF)


@pytest.mark.parametrize("by_hand", [False, True])
def test_weights_and_progress(root: Path, tmp_path: Path, by_hand: bool) -> None:
    if by_hand:
        _without_two(root)
    frames = FrameSettings() if by_hand else HALF
    number = np.arange(NUM * LENGTH) / 100
    weights = _write(tmp_path / "w.parquet", **ROWS, weight=number + 1)
    chunks = open_chunks(root, frames=frames)
    table = chunks.table
    assert table.num_episodes == (8 if by_hand else NUM // 2)
    rows = (table.episode_ids[:, None] * LENGTH + np.arange(LENGTH)).ravel()
    np.testing.assert_allclose(read_sample_weights(weights, chunks), number[rows] + 1)
    progress = _write(tmp_path / "p.parquet", **ROWS, progress_sparse=ROWS["frame_index"] / LENGTH)
    if not by_hand:  # files of labels have rewards of their own
        rule = LabelRule(step_reward="progress", progress=str(progress))
        reward = open_chunks(root, labels=rule, frames=frames).frame_labels.reward
        np.testing.assert_allclose(reward.reshape(-1, LENGTH)[:, 0], 1 / LENGTH, rtol=1e-6)
    run = settings(root, tmp_path / "run", values=str(progress), frames=frames)
    assert ChunkLevelOfflineRL(**run).dataset.num_frames == len(rows)


def test_rows_by_index_alone_count_all_episodes(root: Path, tmp_path: Path) -> None:
    whole = _write(tmp_path / "w.parquet", index=np.arange(NUM * LENGTH), weight=np.ones(NUM * LENGTH))
    read_sample_weights(whole, open_chunks(root))
    with pytest.raises(DatasetError, match=r"by index alone.* 5 of .*data are left out: write episode_index"):
        read_sample_weights(whole, open_chunks(root, frames=HALF))


def test_values_of_a_part_say_so(root: Path, tmp_path: Path) -> None:
    part, whole = open_chunks(root, frames=HALF).table, open_chunks(root).table
    for of, asked in ((part, whole), (whole, part)):
        save_sidecar(tmp_path / "v.parquet", of, {"value": np.zeros(of.num_frames, np.float32)}, {})
        load_sidecar(tmp_path / "v.parquet", of)
        message = f"not of these {asked.num_episodes} episodes of it: some were left out"
        with pytest.raises(DatasetError, match=message):
            load_sidecar(tmp_path / "v.parquet", asked)
