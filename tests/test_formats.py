"""describe(): every version's metadata, the recognition of columns, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from lerobot_folder import NAMING, Version, edit_json, edit_parquet, write_lerobot_folder

from chunkrl.data import formats
from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.formats import RECOGNISE, Feature, describe, image_size
from chunkrl.errors import DatasetError

VERSIONS: tuple[Version, ...] = ("v2.0", "v2.1", "v3.0")
SHARED = Path(__file__).parents[2] / "shared" / "data" / "lerobot"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("naming", NAMING)
def test_describes_every_version_and_naming(tmp_path: Path, version: Version, naming: str):
    folder = write_lerobot_folder(tmp_path / "set", version, naming=naming, camera="image", lengths=(5, 3, 4))
    description = describe(folder.root)
    state, action, cameras, _ = NAMING[naming]
    assert (description.state_keys, description.action_keys, description.cameras) == (
        (state,),
        (action,),
        cameras,
    )
    assert (description.version, description.fps, description.robot_type) == (version, 10.0, "panda")
    assert [episode.index for episode in description.episodes] == [0, 1, 2]
    assert [episode.length for episode in description.episodes] == [5, 3, 4]
    assert [episode.start for episode in description.episodes] == [0, 5, 8]
    assert description.num_frames == 12
    assert description.tasks == {0: "open the drawer", 1: "close the drawer"}
    assert [episode.tasks for episode in description.episodes] == [
        ("open the drawer",),
        ("close the drawer",),
        ("open the drawer",),
    ]
    assert description.features[state] == Feature(state, "float32", (3,), None)
    assert all(episode.data_file.is_file() for episode in description.episodes)
    files = {episode.data_file for episode in description.episodes}
    assert len(files) == (2 if version == "v3.0" else 3)


def test_places_episodes_in_shared_videos(tmp_path: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v3.0", camera="video", lengths=(5, 3, 4))
    spans = [episode.videos["observation.images.front"] for episode in describe(folder.root).episodes]
    assert [(span.from_timestamp, span.to_timestamp) for span in spans] == [
        (0.0, 0.5),
        (0.5, 0.8),
        (0.0, 0.4),
    ]
    assert [span.file.name for span in spans] == ["file-000.mp4", "file-000.mp4", "file-001.mp4"]
    whole = write_lerobot_folder(tmp_path / "old", "v2.1", camera="video")
    span = describe(whole.root).episodes[1].videos["observation.images.wrist"]
    assert (span.from_timestamp, span.to_timestamp) == (0.0, None)
    assert span.file.name == "episode_000001.mp4"


def test_mapping_overrides_recognition(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set", camera="image").root
    mapping = ColumnMapping(
        state_key=("action",), action_key=("observation.state",), image_keys=("observation.images.wrist",)
    )
    description = describe(str(root), mapping)
    assert (description.state_keys, description.action_keys) == (("action",), ("observation.state",))
    assert description.cameras == ("observation.images.wrist",)
    assert describe(root, ColumnMapping(image_keys=())).cameras == ()
    # One cache serves every mapping.
    assert description.fingerprint == describe(root).fingerprint


def test_a_set_without_state_is_described(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set").root
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["observation.state"]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert describe(root).state_keys == ()


def test_episode_indices_may_have_gaps(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set", "v2.1", lengths=(5, 3, 4)).root
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text("\n".join([lines[2], lines[0]]))
    edit_json(root / "meta/info.json", total_episodes=2, total_frames=9)
    episodes = describe(root).episodes
    assert [(episode.index, episode.start, episode.length) for episode in episodes] == [(0, 0, 5), (2, 5, 4)]


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((48, 64, 3), ("height", "width", "channel"), (48, 64)),
        ((3, 48, 64), ("channels", "height", "width"), (48, 64)),
        ((3, 48, 64), None, (48, 64)),
        ((3, 64, 3), ("height", "width", "channels"), (3, 64)),
        ((3, 64, 3), ("channels", "height", "width"), (64, 3)),
        ((48, 64, 1), None, None),
        ((48, 64), None, None),
    ],
)
def test_image_size(shape: tuple[int, ...], names: tuple[str, ...] | None, expected: tuple[int, int] | None):
    assert image_size(Feature("image", "image", shape, names)) == expected


def refuses(
    root: Path | str, *words: str, mapping: ColumnMapping = RECOGNISE, revision: str | None = None
) -> None:
    """Asserts that describe() raises a DatasetError which says all of the words."""
    with pytest.raises(DatasetError) as caught:
        describe(root, mapping, revision)
    for word in words:
        assert word in str(caught.value)


def test_refuses_what_is_no_data_set(tmp_path: Path):
    refuses(tmp_path / "absent", "absent", "no such folder")
    refuses("", "no data set is named")
    refuses("a" * 5000, "is no name of a folder")
    refuses(str(tmp_path / "absent"), "no such folder")
    refuses(tmp_path, str(tmp_path), "no meta/info.json")
    (tmp_path / "file").write_text("")
    refuses(tmp_path / "file", "is a file")
    root = write_lerobot_folder(tmp_path / "set").root
    refuses(root, "revision", "main", revision="main")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebase_version": "v1.6"}, ("v1.6", "v2.0, v2.1, v3.0")),
        ({"codebase_version": None}, ("None",)),
        ({"fps": 0}, ("fps", "0")),
        ({"fps": "10"}, ("fps", "'10'")),
        ({"features": None}, ("features",)),
        ({"features": {"action": {"dtype": "float32", "shape": [2]}}}, ("timestamp",)),
        ({"features": {"action": {"dtype": "float31", "shape": [2]}}}, ("float31", "action")),
        ({"features": {"action": {"dtype": "float32", "shape": 2}}}, ("shape", "action")),
        ({"data_path": None}, ("data_path",)),
        ({"data_path": "data/{episode_name}.parquet"}, ("data_path", "episode_name")),
        ({"data_path": "../{chunk_index}.parquet"}, ("data_path", "leaves")),
        ({"total_frames": 13}, ("13", "12")),
        ({"total_episodes": 4}, ("4 episodes", "3")),
        ({"total_frames": None}, ("total_frames",)),
    ],
)
def test_refuses_bad_info(tmp_path: Path, changes: dict[str, object], words: tuple[str, ...]):
    root = write_lerobot_folder(tmp_path / "set").root
    edit_json(root / "meta/info.json", **changes)
    refuses(root, "info.json", *words)


def test_refuses_missing_and_unsuitable_columns(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set", camera="image").root
    for mapping in (
        ColumnMapping(state_key=("pose",)),
        ColumnMapping(action_key=("pose",)),
        ColumnMapping(image_keys=("pose",)),
    ):
        refuses(root, "no c", "'pose'", "observation.images.wrist", mapping=mapping)
    refuses(root, "numeric vector", mapping=ColumnMapping(action_key=("observation.images.front",)))
    refuses(root, "no camera", mapping=ColumnMapping(image_keys=("action",)))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["actions"] = info["features"]["action"]
    (root / "meta/info.json").write_text(json.dumps(info))
    refuses(root, "action and actions", "--action-key")
    assert describe(root, ColumnMapping(action_key=("actions",))).action_keys == ("actions",)
    for name in ("action", "actions"):
        del info["features"][name]
    (root / "meta/info.json").write_text(json.dumps(info))
    refuses(root, "no action column", "observation.state")


@pytest.mark.parametrize("version", VERSIONS)
def test_refuses_missing_files(tmp_path: Path, version: Version):
    folder = write_lerobot_folder(tmp_path / "set", version, camera="video")
    for file in [path for path in folder.root.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        file.unlink()
        refuses(folder.root, "meta/episodes" if "meta/episodes/" in str(file) else file.name)
        file.write_bytes(content)
    describe(folder.root)


def test_names_the_episode_of_a_missing_file(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video").root
    video = root / "videos/chunk-000/observation.images.wrist/episode_000001.mp4"
    video.unlink()
    refuses(root, str(video), "episode 1", "observation.images.wrist")
    # A camera that is not used may lack its videos.
    describe(root, ColumnMapping(image_keys=("observation.images.front",)))
    (root / "data/chunk-000/episode_000002.parquet").unlink()
    refuses(root, "episode_000002.parquet", "episode 2", mapping=ColumnMapping(image_keys=()))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"episode_index": 1, "tasks": [], "length": 3', ("line 2", "JSON")),
        ('{"episode_index": 1, "tasks": []}', ("line 2", "episode 1", "length")),
        ('{"episode_index": 1, "tasks": [], "length": -3}', ("episode 1", "length", "-3")),
        ('{"episode_index": 1, "tasks": [], "length": 0}', ("episode 1", "no frames")),
        ('{"episode_index": 0, "tasks": [], "length": 3}', ("episode 0", "twice")),
        ('{"episode_index": 1, "length": 3}', ("episode 1", "tasks")),
        ('{"episode_index": 1.5, "tasks": [], "length": 3}', ("episode_index", "1.5")),
        ("[1]", ("line 2", "object")),
        ("", ("3 episodes", "2")),
    ],
)
def test_refuses_bad_episodes(tmp_path: Path, line: str, words: tuple[str, ...]):
    file = write_lerobot_folder(tmp_path / "set", "v2.1").root / "meta/episodes.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, lines[2]]))
    refuses(tmp_path / "set", *words)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("length", [5, 2, 4], ("episode 1", "length")),
        ("dataset_to_index", [5, 9, 12], ("episode 1", "length")),
        ("data/chunk_index", None, ("data/chunk_index",)),
        ("episode_index", [0, 0, 2], ("episode 0", "twice")),
        ("tasks", ["a", "b", "c"], ("tasks", "list")),
        ("videos/observation.images.front/to_timestamp", [0.5, 0.5, 0.4], ("episode 1", "0.5 to 0.5")),
        ("videos/observation.images.front/from_timestamp", [0.0, float("nan"), 0.0], ("episode 1", "nan")),
    ],
)
def test_refuses_bad_v3_episodes(tmp_path: Path, column: str, value: list[object], words: tuple[str, ...]):
    root = write_lerobot_folder(tmp_path / "set", camera="video").root
    edit_parquet(root / "meta/episodes/chunk-000/file-000.parquet", **{column: value})
    refuses(root, *words)


def test_refuses_bad_tasks(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set").root
    edit_parquet(root / "meta/tasks.parquet", task_index=[1, 1])
    refuses(root, "tasks.parquet", "index 1", "twice")
    edit_parquet(root / "meta/tasks.parquet", task_index=[0, 1], __index_level_0__=None)
    refuses(root, "tasks.parquet", "no text")
    table = pa.table({"task_index": [0, 1], "task": ["a", "b"]})
    pq.write_table(table.append_column("task", table["task"]), root / "meta/tasks.parquet")
    refuses(root, "tasks.parquet", "several columns 'task'")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/lerobot, data that LeRobot wrote")
def test_reads_what_lerobot_wrote():
    found = {path.name: describe(path) for path in SHARED.iterdir() if path.is_dir()}
    assert {name: (d.version, d.num_frames, len(d.episodes), d.state_keys) for name, d in found.items()} == {
        "chunk_v20_image": ("v2.0", 168, 6, ("state",)),
        "lerobot_v21_video": ("v2.1", 195, 6, ("observation.state",)),
        "lerobot_v30_image": ("v3.0", 160, 6, ("observation.state",)),
        "lerobot_v30_video": ("v3.0", 160, 6, ("observation.state",)),
        "openpi_v21_image": ("v2.1", 130, 6, ("state",)),
    }
    for name, description in found.items():
        truth = json.loads((SHARED / name / "TRUTH.json").read_text())
        episodes = description.episodes
        assert [e.length for e in episodes] == [item["length"] for item in truth]
        assert [e.tasks for e in episodes] == [(item["task"],) for item in truth]


def test_takes_a_repository_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_lerobot_folder(tmp_path / "set").root
    asked: list[tuple[object, ...]] = []

    def download(repo_id: str, repo_type: str, revision: str | None) -> str:
        asked.append((repo_id, repo_type, revision))
        return str(root)

    monkeypatch.setattr(formats, "snapshot_download", download)
    assert describe("someone/a-set_1.0", revision="v1").num_frames == 12
    assert asked == [("someone/a-set_1.0", "dataset", "v1")]

    def refuse(repo_id: str, repo_type: str, revision: str | None) -> str:
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(formats, "snapshot_download", refuse)
    refuses("someone/set", "someone/set", "no such folder", "(no network)", "revision")
    # A path is never taken for a repository.
    refuses(Path("someone/set"), "no such folder")
    refuses("a/b/c", "no such folder")


def test_rows_behind_the_last_episode_are_leftovers_of_a_killed_writer(tmp_path: Path):
    root = write_lerobot_folder(tmp_path / "set", "v3.0", lengths=(5, 3, 4)).root
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    later = root / "meta/episodes/chunk-000/file-001.parquet"
    before = describe(root).episodes
    pq.write_table(pa.concat_tables([rows.slice(1, 1), rows.slice(0, 2)]), later)  # copies
    assert describe(root).episodes == before
    # An episode whose info.json is not written yet.
    edit_json(root / "meta/info.json", total_episodes=2, total_frames=8)
    assert describe(root).episodes == before[:2]
    # Totals that hide an episode of the middle are no leftover.
    pq.write_table(rows.take([0, 2, 1]), root / "meta/episodes/chunk-000/file-000.parquet")
    edit_json(root / "meta/info.json", total_episodes=2, total_frames=9)
    with pytest.raises(DatasetError, match=r"episode 1 stands after the 2 episodes"):
        describe(root)
