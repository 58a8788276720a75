"""Values out of all proportion: against the data's own range, and against the statistics that it brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import random_episodes, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_folder import LeRobotFolder, write_lerobot_folder
from strange_sets import ALL_SUCCEED, edit_episodes, inspected, says, set_column, trained

from chunkrl.data.frames import FrameTable
from chunkrl.data.outliers import outliers, robust_range
from chunkrl.progress import silent

LENGTHS = (30, 20, 25)


@pytest.fixture
def folder(tmp_path: Path) -> LeRobotFolder:
    return write_lerobot_folder(tmp_path / "set", lengths=LENGTHS)


def with_value(folder: LeRobotFolder, column: str, row: int, dim: int, value: float) -> np.ndarray:
    values = folder.columns[column].copy()
    values[row, dim] = value
    set_column(folder.root, column, pa.array(values.tolist(), pa.list_(pa.float32())))
    return values


@pytest.mark.parametrize("value", [3e38, -1e6, 2e3])
@pytest.mark.parametrize(("column", "role"), [("action", "action"), ("observation.state", "state")])
def test_one_value_out_of_all_proportion_is_named(
    folder: LeRobotFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    column: str,
    role: str,
    value: float,
) -> None:
    with_value(folder, column, 42, 1, value)
    words = ("episode 1, frame 12", f"{role}'s dimension 1", f"{value:.6g}", "out of all proportion")
    report = inspected(folder.root)
    assert [problem.episodes for problem in report.problems] == [(1,)]
    says(report.problems[0].message, *words)
    says(trained(folder.root, tmp_path / "run", capsys, labels=ALL_SUCCEED), *words)


@pytest.mark.parametrize(
    "column",
    [
        np.zeros(75),
        np.full(75, 0.25),
        np.where(np.arange(75) % 25 == 7, 1.0, 0.0),  # a gripper that closes three times
        np.where(np.arange(75) < 40, 0.0, 1e9),
        1.569 + 3e-4 * np.sin(np.arange(75)),
        np.arange(75) * 1e5,
        np.concatenate([np.full(74, 1.569), [2.5]]),
    ],
)
def test_still_rare_and_wide_dimensions_are_in_proportion(folder: LeRobotFolder, column: np.ndarray) -> None:
    values = folder.columns["action"].copy()
    values[:, 1] = column
    set_column(folder.root, "action", pa.array(values.tolist(), pa.list_(pa.float32())))
    assert inspected(folder.root).problems == ()


@settings(max_examples=100)
@given(st.integers(3, 400), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_the_range_holds_what_a_normal_distribution_gives(
    n: int, seed: int, scale: float, shift: float
) -> None:
    values = shift + scale * np.random.default_rng(seed).normal(size=(n, 3))
    low, high = robust_range(values)
    if n >= 20:
        assert (values >= low).all() and (values <= high).all()
        factor = 1e4 * max(1.0, abs(shift) / scale)
        assert (low > shift - factor * scale).all() and (high < shift + factor * scale).all()


def test_of_a_few_frames_none_is_out_of_proportion(tmp_path: Path) -> None:
    """A learner's newest shard may hold four, of which the middle nine tenths are two."""
    (few,) = random_episodes(1, lengths=(4, 5))
    few["action"][:] = np.array([[-1.1], [-0.249], [-0.248], [1.5]], np.float32)
    assert outliers(FrameTable.open(write_dataset(tmp_path, [few]), progress=silent)) == []


def write_statistics(folder: LeRobotFolder, where: str, columns: dict[str, np.ndarray]) -> str:
    """Minimum and maximum of the columns in one of the three files; its name."""

    def sides(values: np.ndarray) -> dict[str, Any]:
        return {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}

    ends = np.cumsum(LENGTHS)
    parts = [slice(int(end) - length, int(end)) for end, length in zip(ends, LENGTHS, strict=True)]
    meta = folder.root / "meta"
    if where == "stats.json":
        (meta / where).write_text(json.dumps({name: sides(values) for name, values in columns.items()}))
    elif where == "episodes_stats.jsonl":
        records = [
            {"episode_index": i, "stats": {name: sides(values[part]) for name, values in columns.items()}}
            for i, part in enumerate(parts)
        ]
        (meta / where).write_text("\n".join(map(json.dumps, records)))
    else:
        file = meta / "episodes/chunk-000/file-000.parquet"
        table = pq.read_table(file).drop_columns(["stats/action/min"])
        for name, values in columns.items():
            for side in ("min", "max"):
                table = table.append_column(
                    f"stats/{name}/{side}", pa.array([sides(values[p])[side] for p in parts])
                )
        pq.write_table(table, file)
        return file.name
    return where


@pytest.mark.parametrize("where", ["stats.json", "episodes_stats.jsonl", "episodes"])
def test_values_outside_the_recorded_statistics_are_named(folder: LeRobotFolder, where: str) -> None:
    columns = {name: folder.columns[name] for name in ("action", "observation.state")}
    file = write_statistics(folder, where, columns)
    assert inspected(folder.root).problems == ()
    high = columns["action"][:, 0].max()
    with_value(folder, "action", 55, 0, high + 0.5)
    report = inspected(folder.root)
    assert [problem.episodes for problem in report.problems] == [(2,)]
    words = (file, "1 values of 'action'", "episode 2, frame 5, dimension 0", f"{high + 0.5:.6g}")
    says(report.problems[0].message, *words)


def test_an_episodes_own_range_is_narrower(folder: LeRobotFolder) -> None:
    low = folder.columns["action"][:30, 0].min() - 0.01
    assert low > folder.columns["action"][:, 0].min(), "another episode goes further"
    write_statistics(folder, "episodes_stats.jsonl", {"action": folder.columns["action"]})
    with_value(folder, "action", 3, 0, low)
    assert [problem.episodes for problem in inspected(folder.root).problems] == [(0,)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"action": {"min": [0], "max": [1]}}', ("stats.json", "'action'", "2 numbers")),
        ('{"action": {"min": ["a", "b"], "max": [1, 1]}}', ("stats.json", "2 numbers")),
        ('{"action": ', ("stats.json", "JSON")),
        ("[]", ("stats.json",)),
    ],
)
def test_statistics_that_say_nothing_are_named(
    folder: LeRobotFolder, text: str, words: tuple[str, ...]
) -> None:
    (folder.root / "meta/stats.json").write_text(text)
    says("\n".join(problem.message for problem in inspected(folder.root).problems), *words)


def test_what_this_project_writes_is_in_proportion(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", random_episodes(5))
    assert inspected(root).problems == ()
    edit_episodes(root, **{"stats/action/max": [[0.0, 0.0]] * 5})
    says(
        "\n".join(problem.message for problem in inspected(root).problems), "'action'", "minimum and maximum"
    )
