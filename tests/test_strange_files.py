"""Files of strangers' data sets: misplaced rows, other layouts, templates, pipes, footers and lengths that lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folder import LeRobotFolder, Version, edit_json, edit_parquet, write_lerobot_folder
from strange_sets import FRONT, data_files, edit_episodes, inspected, opened, problems, says
from waiting import at_most

from chunkrl.data import episode_rows
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.formats import describe
from chunkrl.data.frames import FrameTable
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.progress import silent


def refused(root: Path, *words: str) -> None:
    """Asserts that inspect and opening say so, at once."""
    with at_most(20.0):
        says(problems(root), *words)
        with pytest.raises(ChunkRLError) as caught:
            opened(root)
        says(str(caught.value), *words)


def test_an_episode_that_was_deleted_from_the_metadata_alone(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", lengths=(5, 3, 4, 6), episodes_per_file=9)
    file = folder.root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).take([0, 2, 3]), file)
    edit_json(folder.root / "meta/info.json", total_episodes=3, total_frames=15)
    words = (
        "rows of episode 1, which the metadata does not list, stand between those of episode 0 and episode 2",
    )
    refused(folder.root, "file-000.parquet", *words)
    assert [problem.episodes for problem in inspected(folder.root).problems] == [(2, 3)]
    table = FrameTable.open(folder.root, progress=silent, settings=FrameSettings(skip_bad_episodes=True))
    np.testing.assert_array_equal(table.action, folder.columns["action"][:5])


def test_a_wrong_file_index_is_named(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", lengths=(5, 3, 4, 6), episodes_per_file=2)
    edit_episodes(folder.root, **{"data/file_index": [0, 0, 0, 1]})
    refused(folder.root, "file-000.parquet", "no row of episode 2 stands here", "data/file_index")
    says(
        problems(folder.root),
        "file-001.parquet",
        "rows of episode 2 stand here",
        "puts into file-000.parquet",
    )
    assert {index for problem in inspected(folder.root).problems for index in problem.episodes} == {2, 3}
    edit_episodes(folder.root, **{"data/file_index": [0, 1, 0, 1]})
    refused(folder.root, "episode 2", "apart from the file's others", "data/file_index")


def test_swapped_files_are_named(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", lengths=(4, 4, 4))
    first, second, _ = data_files(folder.root)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    refused(folder.root, "episode_000000.parquet", "rows of episode 1", "puts into episode_000001.parquet")


def test_a_length_that_disagrees_is_named(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", lengths=(5, 3, 4), episodes_per_file=9)
    edit_episodes(folder.root, length=[5, 4, 4], dataset_to_index=[5, 9, 13], dataset_from_index=[0, 5, 9])
    edit_json(folder.root / "meta/info.json", total_frames=13)
    refused(folder.root, "episode 1", "3 rows of episode 1 stand here, the metadata says 4")


@pytest.mark.parametrize(("files", "label"), [("v2.1", "v3.0"), ("v3.0", "v2.1"), ("v2.0", "v3.1")])
def test_a_version_that_the_files_do_not_have(tmp_path: Path, files: Version, label: str) -> None:
    root = write_lerobot_folder(tmp_path / "set", files).root
    edit_json(root / "meta/info.json", codebase_version=label)
    refused(root, "info.json", f"codebase_version is {label}", f"laid out as of {files[:2]}")


TEMPLATES = [
    "data/{episode_chunk:200000000d}.parquet",
    "data/{chunk_index:100d}.parquet",
    "data/{chunk_index!r}.parquet",
    "data/{chunk_index.__class__.__mro__}.parquet",
    "data/{chunk_index.real}.parquet",
    "data/{chunk_index[0]}.parquet",
    "data/{chunk_index:{file_index}}.parquet",
    "data/{chunk_index:>30}.parquet",
    "data/{chunk_index:,}.parquet",
    "data/{chunk_index:.3f}.parquet",
    "data/{0}.parquet",
    "data/{}.parquet",
    "data/{chunk_index",
    "data/{video_key:99999999}.parquet",
    "{chunk_index}/../../x.parquet",
    "/etc/{chunk_index}",
    "data/\0{chunk_index}",
    f"data/{'a' * 256}",
    "a/" * 3000 + "{chunk_index}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_have_known_fields_and_short_integers(tmp_path: Path, template: str) -> None:
    root = write_lerobot_folder(tmp_path / "set").root
    edit_json(root / "meta/info.json", data_path=template)
    refused(root, "info.json", "'data_path'", "correct it")
    root = write_lerobot_folder(tmp_path / "videos", camera="video").root
    edit_json(root / "meta/info.json", video_path=template)
    refused(root, "info.json", "'video_path'", "correct it")


@pytest.mark.parametrize(
    "field", ["{episode_index:200000000d}", "{episode_chunk.bit_length}", "{chunk_index}"]
)
def test_templates_of_one_file_an_episode(tmp_path: Path, field: str) -> None:
    root = write_lerobot_folder(tmp_path / "set", "v2.1").root
    edit_json(root / "meta/info.json", data_path=f"data/{field}.parquet")
    refused(root, "info.json", "'data_path'", "correct it")


@pytest.mark.parametrize("form", ["", ":d", ":03d", ":3", ":06"])
def test_short_integer_formats_are_taken(tmp_path: Path, form: str) -> None:
    folder = write_lerobot_folder(tmp_path / "set", lengths=(5, 3), episodes_per_file=9)
    (file,) = data_files(folder.root)
    name = f"data/{{chunk_index{form}}}_{{file_index{form}}}.parquet"
    file.rename(folder.root / name.format(chunk_index=0, file_index=0))
    edit_json(folder.root / "meta/info.json", data_path=name)
    np.testing.assert_array_equal(opened(folder.root).action, folder.columns["action"])


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_what_is_no_file_is_refused(tmp_path: Path, version: Version, kind: str) -> None:
    folder = write_lerobot_folder(tmp_path / "set", version, camera="video", lengths=(4, 3), size=(8, 8))
    for file in sorted(path for path in folder.root.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("/dev/zero")
        refused(folder.root, file.name, {"pipe": "a pipe (FIFO)"}.get(kind, f"a {kind}"), "not a file")
        file.rmdir() if kind == "folder" else file.unlink()
        file.write_bytes(content)
    assert problems(folder.root) == ""


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_footer_with_far_too_many_rows_is_refused_before_reading(
    tmp_path: Path, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_lerobot_folder(tmp_path / "set", version, lengths=(5, 3), episodes_per_file=9)
    table = pq.read_table(data_files(folder.root)[0])
    pq.write_table(pa.concat_tables([table, *[table.slice(0, 1)] * 2000]), data_files(folder.root)[0])

    def never(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(episode_rows, "row_batches", never)
    with pytest.raises(DatasetError) as caught:
        FrameTable.open(folder.root, progress=silent)
    says(str(caught.value), "its footer counts", "the data set has 8 frames in all")


@pytest.mark.parametrize("length", [10**7, 10**12, 2**61])
def test_lengths_that_no_file_can_hold_are_refused(tmp_path: Path, length: int) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1", lengths=(5, 3))
    file = folder.root / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["length"] = length
    file.write_text("\n".join(map(json.dumps, lines)))
    edit_json(folder.root / "meta/info.json", total_frames=5 + length)
    refused(folder.root, "episode_000001.parquet", f"{length} frames")
    table = FrameTable.open(folder.root, progress=silent, settings=FrameSettings(skip_bad_episodes=True))
    assert table.episode_ids.tolist() == [0]


@pytest.mark.parametrize("name", ["timestamp", "frame_index", "episode_index", "task_index"])
@pytest.mark.parametrize(
    "record", [None, {"dtype": "string", "shape": [1]}, {"dtype": "int64", "shape": [2]}]
)
def test_required_columns_are_numbers(tmp_path: Path, name: str, record: dict[str, Any] | None) -> None:
    root = write_lerobot_folder(tmp_path / "set").root
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = record
    if record is None:
        del info["features"][name]
    (root / "meta/info.json").write_text(json.dumps(info))
    refused(root, "info.json", f"column '{name}'")


def test_a_state_of_absurd_length_is_refused(tmp_path: Path) -> None:
    root = write_lerobot_folder(tmp_path / "set").root
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.state"]["shape"] = [10**9]
    (root / "meta/info.json").write_text(json.dumps(info))
    refused(root, "observation.state", "65536 values")


def test_an_index_column_of_a_larger_data_set_is_right(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    for file in data_files(folder.root):
        edit_parquet(file, index=pq.read_table(file)["index"].to_numpy() + 5000)
    np.testing.assert_array_equal(opened(folder.root).action, folder.columns["action"])
    assert problems(folder.root) == ""


def test_episodes_of_one_frame(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", camera="video", lengths=(1, 5, 1, 1, 4), size=(8, 8))
    table = opened(folder.root)
    np.testing.assert_array_equal(
        table.images(FRONT, np.arange(12)), folder.images[FRONT].transpose(0, 3, 1, 2)
    )
    assert problems(folder.root) == ""


def test_tasks_whose_texts_are_lost_are_refused(tmp_path: Path) -> None:
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    (folder.root / "meta/tasks.jsonl").write_text("")
    refused(folder.root, "episode 0", "task_index 0 is unknown", "meta/tasks")


@pytest.fixture
def folder(tmp_path: Path) -> LeRobotFolder:
    return write_lerobot_folder(tmp_path / "set", "v2.1", lengths=(5, 3, 4))


def test_nothing_left_says_what_was_wrong(folder: LeRobotFolder) -> None:
    for file in data_files(folder.root):
        file.unlink()
    with pytest.raises(DatasetError) as caught:
        FrameTable.open(folder.root, progress=silent, settings=FrameSettings(skip_bad_episodes=True))
    says(str(caught.value), "no episode without a problem", "episode_000000.parquet is missing", "3 problems")


def test_a_data_set_without_episodes_says_so(folder: LeRobotFolder) -> None:
    (folder.root / "meta/episodes.jsonl").write_text("")
    edit_json(folder.root / "meta/info.json", total_episodes=0, total_frames=0)
    with pytest.raises(DatasetError, match="no episodes: record some"):
        describe(folder.root)
