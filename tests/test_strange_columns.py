"""Columns of strangers' data sets: unknown types, missing values, several for one role, other number types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folder import LeRobotFolder, Version, edit_json, write_lerobot_folder
from strange_sets import (
    ALL_SUCCEED,
    FRONT,
    data_files,
    edit_episodes,
    edit_info,
    inspected,
    opened,
    problems,
    says,
    set_column,
    trained,
)

from chunkrl.cli import main
from chunkrl.config import from_dict
from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.formats import describe
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.run.policy_io import load_policy

VERSIONS: tuple[Version, ...] = ("v2.0", "v2.1", "v3.0")
N = 12
_MESSAGE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("timestamp", pa.float64())]))


def check_values(folder: LeRobotFolder) -> None:
    table = opened(folder.root)
    np.testing.assert_array_equal(table.action, folder.columns["action"])
    np.testing.assert_array_equal(table.state, folder.columns["observation.state"])


@pytest.mark.parametrize("codebase", ["v3.0", "v3.1"])
def test_language_columns_are_left_out_and_named(
    tmp_path: Path, codebase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set")
    said = [{"role": "assistant", "content": "reach", "timestamp": 0.0}]
    for name in ("language_persistent", "language_events"):
        values = pa.array([said if row % 3 == 0 else [] for row in range(N)], _MESSAGE)
        set_column(folder.root, name, values, dtype="language", shape=[1])
    edit_json(folder.root / "meta/info.json", codebase_version=codebase)
    check_values(folder)
    report = inspected(folder.root)
    assert (report.version, report.problems) == (codebase, ())
    says(" ".join(report.notes), "language_persistent", "language_events", "left out", "dtype 'language'")
    says(trained(folder.root, tmp_path / "run", capsys, labels=ALL_SUCCEED), "language_events", "left out")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("values", "record", "said"),
    [
        (
            pa.array([None] * 5 + [1.0] * 7, pa.float32()),
            {"dtype": "float32", "shape": [1]},
            "missing values",
        ),
        (pa.array([[1.0, None]] * N), {"dtype": "float64", "shape": [2]}, "missing values"),
        (pa.array([None, *[[1.0, 2.0]] * 11]), {"dtype": "float64", "shape": [2]}, "missing values"),
        (pa.nulls(N), {"dtype": "float32", "shape": [1]}, "missing values"),
        (pa.array([{"a": 1}] * N), {"dtype": "dict", "shape": [1]}, "dtype 'dict'"),
        (pa.array(["a"] * N), {"dtype": "float32", "shape": [1]}, "holds string"),
        (pa.array([[1.0]] * 11 + [[1.0, 2.0]]), {"dtype": "float64", "shape": [1]}, "shape [1]"),
        (pa.array([1.5] * N), {"dtype": "int64", "shape": [1]}, "holds 1.5"),
        (pa.array([1.0] * N), {"dtype": "float64", "shape": 3}, "shape 3"),
        (pa.array([1.0] * N), {"dtype": "float64", "shape": [-1]}, "shape [-1]"),
        (pa.array([1.0] * N), {"shape": [1]}, "no 'dtype'"),
        (None, {"dtype": "float32", "shape": [1]}, "0 columns"),
    ],
)
def test_columns_that_nobody_uses_stop_nobody(
    tmp_path: Path, version: Version, values: pa.Array | None, record: dict[str, Any], said: str
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", version)
    if values is None:
        edit_info(folder.root, **{"observation.force": record})
    else:
        set_column(folder.root, "observation.force", values, **record)
    check_values(folder)
    report = inspected(folder.root)
    assert report.problems == ()
    says(" ".join(report.notes), "observation.force", "left out", said)
    with pytest.raises(DatasetError, match=r"observation\.force"):
        opened(folder.root).column("observation.force")


def test_wide_columns_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set")
    depth = np.arange(N * 20 * 30, dtype=np.uint16).reshape(N, 20, 30)
    set_column(folder.root, "observation.depth", pa.array(depth.tolist()), dtype="uint16", shape=[20, 30])
    table = opened(folder.root)
    made = {path.name for path in table.cache_dir.iterdir()}
    assert not any("depth" in name for name in made)
    np.testing.assert_array_equal(table.column("observation.depth"), depth, strict=True)
    np.testing.assert_array_equal(opened(folder.root).column("observation.depth"), depth)


def test_whole_numbers_that_became_floats(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", camera="video", lengths=(5, 3, 4))
    file = folder.root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    whole = [name for name in table.schema.names if pa.types.is_integer(table.schema.field(name).type)]
    edit_episodes(folder.root, **{name: [float(v) for v in table[name].to_pylist()] for name in whole})
    assert len(whole) > 6
    edit_json(folder.root / "meta/info.json", total_episodes=3.0, total_frames=12.0)
    set_column(folder.root, "task_index", [float(v) for v in folder.columns["task_index"]])
    set_column(folder.root, "next.done", [int(v) for v in folder.columns["next.done"]])
    check_values(folder)
    table = opened(folder.root)
    np.testing.assert_array_equal(table.column("next.done"), folder.columns["next.done"], strict=True)
    np.testing.assert_array_equal(
        table.images(FRONT, np.arange(N)), folder.images[FRONT].transpose(0, 3, 1, 2)
    )
    assert inspected(folder.root).problems == ()


def test_whole_numbers_that_became_floats_in_lines(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    for name in ("episodes", "tasks"):
        file = folder.root / f"meta/{name}.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        floats = [{k: float(v) if isinstance(v, int) else v for k, v in line.items()} for line in lines]
        file.write_text("\n".join(map(json.dumps, floats)))
    edit_json(folder.root / "meta/info.json", chunks_size=1000.0)
    check_values(folder)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_where_every_episode_has_a_fault_all_are_listed(
    tmp_path: Path, version: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", version, lengths=(5, 3, 4), episodes_per_file=9)
    if version == "v3.0":
        edit_episodes(folder.root, length=[5.5, 3.5, 4.5])
    else:
        file = folder.root / "meta/episodes.jsonl"
        file.write_text(file.read_text().replace('"length": ', '"length": 0.5'))
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(folder.root)])
    text = capsys.readouterr().out
    assert stop.value.code == 1 and "record some" not in text
    says(text, "3 (3 with problems)", *(f"episode {index}: 'length' is" for index in range(3)))
    with pytest.raises(DatasetError, match="episode 0"):
        opened(folder.root)


SPLIT = {
    "states.joint": (slice(0, 2), "observation.state"),
    "states.gripper": (slice(2, 3), "observation.state"),
    "actions.gripper": (slice(1, 2), "action"),
    "actions.joint": (slice(0, 1), "action"),
}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> LeRobotFolder:
    """States and actions in two columns each, one of whole numbers; success at the end of every episode."""
    folder = write_lerobot_folder(tmp_path_factory.mktemp("split") / "set", lengths=(6, 5, 7, 6), seed=3)
    for name, (part, source) in SPLIT.items():
        values = folder.columns[source][:, part]
        if name == "states.gripper":
            values = np.rint(10 * values).astype(np.int64)
        record = {"dtype": values.dtype.name, "shape": [values.shape[1]]}
        set_column(folder.root, name, pa.array(values.tolist()), **record)
    for file in data_files(folder.root):
        pq.write_table(pq.read_table(file).drop_columns(["action", "observation.state"]), file)
    info = json.loads((folder.root / "meta/info.json").read_text())
    for name in ("action", "observation.state"):
        del info["features"][name]
    info["features"]["actions.joint"]["names"] = ["elbow"]
    (folder.root / "meta/info.json").write_text(json.dumps(info))
    return folder


MAPPING = ColumnMapping(
    state_key=("states.joint", "states.gripper"), action_key=("actions.joint", "actions.gripper")
)


def joined(folder: LeRobotFolder) -> tuple[np.ndarray, np.ndarray]:
    state = folder.columns["observation.state"].copy()
    state[:, 2] = np.rint(10 * state[:, 2])
    return state, folder.columns["action"]


def test_the_message_lists_what_is_there_with_the_flags(split: LeRobotFolder) -> None:
    with pytest.raises(DatasetError) as caught:
        describe(split.root)
    says(str(caught.value), "--action-key", "--state-key", "several", "actions.joint [1]", "states.joint [2]")
    for keys, words in (
        (("actions.joint", "nothing"), ("no column 'nothing'", "--action-key")),
        (("actions.joint", "next.done", "actions.joint"), ("--action-key", "twice")),
    ):
        with pytest.raises(DatasetError) as caught:
            describe(split.root, ColumnMapping(action_key=keys))
        says(str(caught.value), *words)


def test_several_columns_are_joined_in_order(split: LeRobotFolder) -> None:
    table = opened(split.root, MAPPING)
    state, action = joined(split)
    np.testing.assert_array_equal(table.state, state, strict=True)
    np.testing.assert_array_equal(table.action, action, strict=True)
    swapped = opened(split.root, ColumnMapping(action_key=("actions.gripper", "actions.joint")))
    np.testing.assert_array_equal(swapped.action, action[:, ::-1])
    assert swapped.state is None
    assert table.description.action_names == ("elbow", "actions.gripper[0]")
    assert table.description.state_names is None
    statistics = table.statistics(table.description.state_keys)
    np.testing.assert_allclose(statistics.mean, state.mean(axis=0), rtol=1e-5)
    reordered = table.statistics(table.description.state_keys[::-1])
    np.testing.assert_allclose(reordered.mean, state.mean(axis=0)[[2, 0, 1]], rtol=1e-5)
    report = inspected(split.root, mapping=MAPPING)
    assert (report.state, report.action) == (
        ("states.joint + states.gripper", 3),
        ("actions.joint + actions.gripper", 2),
    )
    assert report.problems == ()


def test_a_policy_of_several_columns(
    split: LeRobotFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--state-key", *(MAPPING.state_key or ()), "--action-key", *(MAPPING.action_key or ())]
    small = [
        "--action-horizon",
        "2",
        "--action-dim",
        "2",
        "--batch-size",
        "8",
        "--num-updates",
        "1",
        "--num-folds",
        "2",
    ]
    small += ["--value-updates", "1", "--device", "cpu", "--network.hidden-dim", "8", "--fit.hidden-dim", "8"]
    main(["train", "--dataset-dir", str(split.root), "--output-dir", str(tmp_path / "run"), *flags, *small])
    saved = json.loads((tmp_path / "run/config.json").read_text())["mapping"]
    assert saved["action_key"] == ["actions.joint", "actions.gripper"]
    policy = load_policy(tmp_path / "run/policy")
    assert isinstance(policy, ChunkPolicy)
    assert (policy.spec.observation.state_dim, policy.spec.shape.action_dim) == (3, 2)
    # The labels' file and the exported data set are read with the same flags.
    main(["label", str(split.root), *flags, "--success", "all", "--export", str(tmp_path / "new")])
    new = opened(tmp_path / "new", MAPPING)
    np.testing.assert_array_equal(new.state, joined(split)[0])
    np.testing.assert_array_equal(new.action, joined(split)[1])


def test_one_name_in_a_configuration_of_before_is_one_column() -> None:
    assert from_dict(ColumnMapping, {"action_key": "actions"}) == ColumnMapping(action_key=("actions",))
    assert from_dict(ColumnMapping, {"action_key": ["a", "b"]}) == ColumnMapping(action_key=("a", "b"))
    assert ColumnMapping(state_key="pose").state_key == ("pose",)  # type: ignore[arg-type]


def test_networks_that_see_nothing_name_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", camera="image")
    info = json.loads((folder.root / "meta/info.json").read_text())
    renamed = {"observation.state": "joint_position", "observation.images.front": "exterior_image_1_left"}
    renamed["observation.images.wrist"] = "wrist_image_left"
    info["features"] = {renamed.get(name, name): record for name, record in info["features"].items()}
    (folder.root / "meta/info.json").write_text(json.dumps(info))
    for file in data_files(folder.root):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([renamed.get(name, name) for name in table.schema.names]), file)
    said = " ".join(inspected(folder.root).notes)
    says(
        said, "exterior_image_1_left", "wrist_image_left", "--image-keys", "joint_position [3]", "--state-key"
    )
    with pytest.raises(ChunkRLError) as caught:
        trained(folder.root, tmp_path / "run", capsys, labels=ALL_SUCCEED, use_task=False)
    says(
        str(caught.value),
        "see nothing",
        "--image-keys",
        "wrist_image_left",
        "--state-key",
        "joint_position [3]",
    )
    mapping = ColumnMapping(("joint_position",), None, ("wrist_image_left",))
    table = opened(folder.root, mapping)
    np.testing.assert_array_equal(table.state, folder.columns["observation.state"])
    wrist = table.images("wrist_image_left", np.arange(N))
    np.testing.assert_array_equal(wrist, folder.images["observation.images.wrist"].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [2, "2", [2.5], [0], None])
def test_an_action_without_a_shape_is_refused(tmp_path: Path, shape: Any) -> None:
    root = write_lerobot_folder(tmp_path / "set").root
    edit_info(root, action={"dtype": "float32", "shape": shape})
    says(problems(root), "info.json", "'action'", "shape", "--action-key")


def test_kinds_of_lists_and_numbers(tmp_path: Path) -> None:
    """Large lists, lists of fixed size, dictionaries, other widths; booleans and whole numbers as actions."""
    folder = write_lerobot_folder(tmp_path / "set", lengths=(5, 7), episodes_per_file=9)
    state, action = folder.columns["observation.state"], folder.columns["action"]
    root = folder.root
    set_column(root, "observation.state", pa.array(state.tolist(), pa.large_list(pa.float64())))
    set_column(root, "action", pa.FixedSizeListArray.from_arrays(pa.array(action.ravel()), 2))
    set_column(root, "task_index", pa.array(folder.columns["task_index"]).dictionary_encode())
    (file,) = data_files(root)
    pq.write_table(pq.read_table(file), file, compression="zstd", data_page_version="2.0", row_group_size=5)
    check_values(folder)
    for values, dtype in ((action > 0, "bool"), (np.rint(9 * action).astype(np.int64), "int64")):
        set_column(root, "action", pa.array(values.tolist()), dtype=dtype, shape=[2])
        np.testing.assert_array_equal(opened(root).action, values.astype(np.float32), strict=True)
    set_column(root, "action", pa.array(action[:, 0]), dtype="float32", shape=[1])
    np.testing.assert_array_equal(opened(root).action, action[:, :1], strict=True)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set")
    values = folder.columns["action"].astype(np.float64)
    values[6, 1] = 1e300
    set_column(folder.root, "action", pa.array(values.tolist()), dtype="float64", shape=[2])
    says(problems(folder.root), "episode 1, frame 1", "'action'", "infinite")
    with pytest.raises(DatasetError, match="episode 1, frame 1"):
        opened(folder.root)


def test_names_may_be_null_and_statistics_may_lack_columns(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", camera="video")
    edit_info(folder.root, **{FRONT: {"dtype": "video", "shape": [16, 16, 3], "names": None}})
    (folder.root / "meta/stats.json").write_text('{"action": {"mean": [0, 0], "std": [1, 1]}}')
    check_values(folder)
    assert inspected(folder.root).problems == ()


def test_task_indices_may_have_gaps_and_any_order(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set")
    set_column(folder.root, "task_index", [7 * int(index) for index in folder.columns["task_index"]])
    tasks = pa.table({"task_index": [7, 0], "task": ["close the drawer", "open the drawer"]})
    pq.write_table(tasks, folder.root / "meta/tasks.parquet")
    table = opened(folder.root)
    assert [table.task_text(row) for row in range(N)] == folder.task_texts
