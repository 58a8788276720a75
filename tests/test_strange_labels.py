"""Labels of strangers' data sets: outcomes repeated at every frame, interventions, names in another order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import episode, open_chunks, write_dataset
from strange_sets import edit_info, inspected, opened, problems, says, trained

from chunkrl.data.collection import ChunkCollection
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.errors import ChunkRLError, DatasetError

LENGTHS = (6, 5, 7, 6, 1)
ENDS = [5, 10, 17, 23, 24]
SUCCESS = (True, False, True, False, True)


def labelled(root: Path, column: str, per_episode: Sequence[Sequence[Any]], dtype: str = "bool") -> Path:
    """Episodes of LENGTHS with a column of these values, and no other that says who succeeded."""
    rng = np.random.default_rng(0)
    episodes = []
    for length, values in zip(LENGTHS, per_episode, strict=True):
        columns = episode(length, False, rng)
        del columns["next.success"]
        episodes.append(columns | {column: np.array(values, dtype)})
    return write_dataset(root, episodes)


def at_end(length: int, value: Any, other: Any = 0) -> list[Any]:
    return [other] * (length - 1) + [value]


@pytest.mark.parametrize(
    ("column", "dtype", "values", "flags"),
    [
        ("next.success", "bool", (0, 1), "--success episode_flag (success"),
        ("next.success", "int64", (0, 1), "--success episode_flag (success"),
        ("next.success", "float32", (0, 1), "--success episode_flag (success"),
        ("next.reward", "float32", (0, 1), "--success-key next.reward --step-reward success"),
        ("next.reward", "float32", (-1, 0), "--success-key next.reward --step-reward success"),
        ("reward", "int64", (0, 1), "--success-key reward --step-reward success"),
    ],
)
def test_an_outcome_at_every_frame_is_said_with_the_cure(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    column: str,
    dtype: str,
    values: tuple[int, int],
    flags: str,
) -> None:
    repeated = [[values[success]] * length for length, success in zip(LENGTHS, SUCCESS, strict=True)]
    root = labelled(tmp_path / "set", column, repeated, dtype)
    words = (f"'{column}'", "all 2 successful episodes", "first frame", flags)
    says(problems(root, labels=LabelRule()), *words)
    with pytest.raises(DatasetError) as caught:
        trained(root, tmp_path / "run", capsys)
    says(str(caught.value), *words)
    rule = LabelRule(success="episode_flag", success_key=column, step_reward="success")
    labels = label_frames(opened(root), rule)
    assert labels.success.tolist() == list(SUCCESS)
    assert np.flatnonzero(labels.terminated).tolist() == [5, 17, 24]
    assert np.flatnonzero(labels.subgoal).tolist() == np.flatnonzero(labels.reward).tolist() == [5, 17, 24]
    assert inspected(root, labels=rule).problems == ()


def test_some_successes_at_the_first_frame_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = [[1] * 6, [0] * 5, at_end(7, 1), [0] * 6, [1]]
    root = labelled(tmp_path / "set", "next.success", mixed)
    report = inspected(root, labels=LabelRule())
    assert report.problems == () and report.rewards is not None
    says(" ".join(report.notes), "1 of 3 successful episodes", "(0)", "--success episode_flag")
    says(trained(root, tmp_path / "run", capsys), "1 of 3 successful episodes", "first frame")


@pytest.mark.parametrize(
    "values",
    [
        [at_end(length, int(success)) for length, success in zip(LENGTHS, SUCCESS, strict=True)],
        [[0, 0, 1, 1, 1, 1], [0] * 5, at_end(7, 1), [0] * 6, [0]],
        [[0] * 6, [0] * 5, [0] * 7, [0] * 6, [1]],
    ],
)
def test_successes_at_their_frame_need_no_word(tmp_path: Path, values: list[list[int]]) -> None:
    report = inspected(labelled(tmp_path / "set", "next.success", values), labels=LabelRule())
    assert (report.problems, report.notes) == ((), ())


def test_a_column_with_outcomes_is_named_where_nothing_says_who_succeeded(tmp_path: Path) -> None:
    repeated = [[success] * length for length, success in zip(LENGTHS, SUCCESS, strict=True)]
    root = labelled(tmp_path / "set", "is_episode_successful", repeated)
    says(problems(root, labels=LabelRule()), "--success episode_flag --success-key", "is_episode_successful")
    rule = LabelRule(success="episode_flag", success_key="is_episode_successful")
    assert label_frames(opened(root), rule).success.tolist() == list(SUCCESS)


@pytest.mark.parametrize(
    ("column", "dtype", "values", "words"),
    [
        ("next.success", "float32", (0, 0.5), ("episode 0, frame 5", "0.5", "not a flag")),
        ("next.reward", "float32", (0, 10), ("episode 0, frame 5", "10.0", "reward of success")),
        ("next.done", "bool", (0, 1), ("does not say which episodes succeeded", "--success all")),
    ],
)
def test_columns_that_do_not_say_success_are_refused(
    tmp_path: Path, column: str, dtype: str, values: tuple[float, float], words: tuple[str, ...]
) -> None:
    flags = [
        at_end(length, values[success], values[0]) for length, success in zip(LENGTHS, SUCCESS, strict=True)
    ]
    root = labelled(tmp_path / "set", column, flags, dtype)
    says(problems(root, labels=LabelRule()), *words)


def with_flags(root: Path, **columns: Any) -> Path:
    """Two episodes of 4 frames, the first successful, with these columns of 8 values."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(2):
        part = {name: np.array(values)[4 * number :][:4] for name, values in columns.items()}
        episodes.append(episode(4, number == 0, rng, **part))
    return write_dataset(root, episodes)


@pytest.mark.parametrize(
    "name",
    ["intervention", "is_intervention", "complementary_info.is_intervention", "observation.Intervention"],
)
@pytest.mark.parametrize("dtype", ["bool", "int64", "float32"])
def test_interventions_are_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, dtype: str
) -> None:
    flags = np.array([0, 0, 1, 1, 0, 0, 0, 1], dtype)
    root = with_flags(tmp_path / "set", **{name: flags})
    assert label_frames(opened(root)).human.tolist() == flags.astype(bool).tolist()
    said = f"37.5% of the frames are a human's (by '{name}'"
    says(" ".join(inspected(root, labels=LabelRule()).notes), said, "--human-key none")
    if dtype == "bool":
        says(trained(root, tmp_path / "run", capsys), said)
    labels = label_frames(opened(root), LabelRule(human_key="none"))
    assert not labels.human.any() and labels.rule.human_key == "none"


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("teleop_active", [False, True] * 4, ("teleop_active", "is a flag", "--human-key")),
        ("expert_action_mask", [0, 1] * 4, ("expert_action_mask", "--human-key")),
        ("intervention", [0, 1, 2, 3] * 2, ("intervention", "is no flag", "is 2", "--human-key")),
    ],
)
def test_what_looks_like_interventions_is_said(
    tmp_path: Path, column: str, values: list[Any], words: tuple[str, ...]
) -> None:
    root = with_flags(tmp_path / "set", **{column: values})
    report = inspected(root, labels=LabelRule())
    assert report.problems == ()
    says(" ".join(report.notes), *words)
    assert not label_frames(opened(root)).human.any()


def test_two_columns_of_interventions_are_asked_about(tmp_path: Path) -> None:
    root = with_flags(tmp_path / "set", intervention=[True] * 8, is_intervention=[False] * 8)
    says(problems(root, labels=LabelRule()), "intervention and is_intervention", "--human-key")
    assert label_frames(opened(root), LabelRule(human_key="intervention")).human.all()


def named(root: Path, seed: int, action: Any, state: Any) -> Any:
    rng = np.random.default_rng(seed)
    write_dataset(root, [episode(4, True, rng), episode(5, False, rng)])
    edit_info(
        root,
        action={"dtype": "float32", "shape": [2], "names": action},
        **{"observation.state": {"dtype": "float32", "shape": [3], "names": state}},
    )
    return open_chunks(root)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ((["x", "gripper"], None), (["gripper", "x"], None), ("actions are gripper, x", "x, gripper")),
        ((None, ["a", "b", "c"]), (None, ["a", "c", "b"]), ("states are a, c, b", "a, b, c")),
        (({"motors": ["x", "y"]}, None), ({"motors": ["y", "x"]}, None), ("actions",)),
        (({"x": 0, "y": 1}, None), ({"x": 1, "y": 0}, None), ("actions are y, x",)),
        ((["X", "gripper "], None), (["gripper", "x"], None), ("actions",)),
        ((["x", "y"], None), (["y", "z"], None), ("'y' stands at another place",)),
    ],
)
def test_names_in_another_order_are_refused(
    tmp_path: Path, first: tuple[Any, Any], second: tuple[Any, Any], words: tuple[str, ...]
) -> None:
    a, b = named(tmp_path / "a", 0, *first), named(tmp_path / "b", 1, *second)
    unnamed = named(tmp_path / "c", 2, None, None)
    for datasets in ([a, b], [unnamed, a, b]):
        with pytest.raises(ChunkRLError) as caught:
            ChunkCollection(datasets)
        says(str(caught.value), str(tmp_path / "b"), str(tmp_path / "a"), *words)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["x", "y"], ["x", "y"]),
        (["x", "y"], None),
        (["x", "y"], ["motor_0", "motor_1"]),
        (["joint", "joint"], ["joint", "joint"]),
        ({"x": 1, "y": 0}, ["y", "x"]),
        (["one name for two"], ["x", "y"]),
    ],
)
def test_names_that_agree_or_say_nothing_are_taken(tmp_path: Path, first: Any, second: Any) -> None:
    a, b = named(tmp_path / "a", 0, first, None), named(tmp_path / "b", 1, second, None)
    assert len(ChunkCollection([a, b])) == 18
