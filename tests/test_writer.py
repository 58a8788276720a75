"""The v3.0 writer: what it stores, kills at every file operation, merging, bad input, LeRobot's own
reader."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from chunkrl.data import dataset_files
from chunkrl.data.episode_stats import aggregate_statistics, column_statistics, image_statistics
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.file_segments import LEAVES, Segment, merge_range
from chunkrl.data.frames import FrameTable
from chunkrl.data.writer import DatasetWriter, VideoEncoding
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

FIXTURES = Path(__file__).parents[2] / "shared/data/lerobot"
STATE = {
    "observation.state": FeatureSpec("float32", (3,), ["x", "y", "z"]),
    "action": FeatureSpec("float32", (2,)),
    "next.success": FeatureSpec("bool", (1,)),
}
H264 = VideoEncoding(codec="libx264", crf=10, threads=1)


def _episode(seed: int, length: int, camera: str | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "next.success": np.arange(length) == length - 1,
    }
    if camera:
        # Grey levels that tell episode and frame, smooth enough for a video codec.
        levels = (40 * seed + 3 * np.arange(length)) % 256
        columns[camera] = np.broadcast_to(levels[:, None, None, None], (length, 64, 64, 3)).astype(np.uint8)
    return columns


def _features(kind: str | None) -> dict[str, FeatureSpec]:
    return STATE | ({f"observation.images.{kind}": FeatureSpec(kind, (64, 64, 3))} if kind else {})


def _read(root: Path) -> list[dict[str, Any]]:
    """Every episode by the rules that `chunkrl.data.writer` gives readers: first rows, frames by episode
    index."""
    info = json.loads((root / "meta/info.json").read_text())
    rows: list[dict[str, Any]] = []
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        rows += pq.read_table(path).to_pylist()
    rows = rows[: info["total_episodes"]]
    assert [row["episode_index"] for row in rows] == list(range(info["total_episodes"]))
    result = []
    for row in rows:
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        table = pq.read_table(root / info["data_path"].format(**place))
        table = table.filter(pc.field("episode_index") == row["episode_index"])
        assert table.num_rows == row["length"]
        columns = {name: table[name].to_pylist() for name in table.schema.names}
        assert columns["index"] == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        for key, feature in info["features"].items():
            if feature["dtype"] == "video":
                columns[key] = _video_frames(root, info, row, key)
            if feature["dtype"] == "image":
                columns[key] = [np.asarray(Image.open(pa.BufferReader(c["bytes"]))) for c in columns[key]]
        result.append(columns | {"tasks": row["tasks"]})
    assert sum(len(episode["index"]) for episode in result) == info["total_frames"]
    return result


def _video_frames(root: Path, info: dict[str, Any], row: dict[str, Any], key: str) -> list[np.ndarray]:
    place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    with av.open(str(root / info["video_path"].format(video_key=key, **place))) as container:
        frames = {
            round(float(f.time) * info["fps"]): f.to_ndarray(format="rgb24")
            for f in container.decode(video=0)
        }
    first = round(row[f"videos/{key}/from_timestamp"] * info["fps"])
    assert round(row[f"videos/{key}/to_timestamp"] * info["fps"]) - first == row["length"]
    return [frames[first + i] for i in range(row["length"])]


def _check(episodes: list[dict[str, Any]], camera: str | None = None, tolerance: int = 0) -> None:
    """Episode i was made by `_episode(i, 3 + i % 3)`."""
    for i, found in enumerate(episodes):
        for key, values in _episode(i, 3 + i % 3, camera).items():
            if key == camera:
                difference = np.abs(np.asarray(found[key], np.int64) - values)
                assert difference.max() <= tolerance
            else:
                np.testing.assert_array_equal(np.asarray(found[key]), values)


def _write(root: Path, episodes: range, kind: str | None = None, **options: Any) -> None:
    features = _features(kind)
    camera = f"observation.images.{kind}" if kind else None
    with DatasetWriter(root, fps=10, features=features, video=H264, **options) as writer:
        for i in episodes:
            assert writer.add_episode(_episode(i, 3 + i % 3, camera), f"task {i % 2}") == i


@pytest.mark.parametrize(("kind", "tolerance"), [(None, 0), ("image", 0), ("video", 3)])
def test_episodes_come_back(tmp_path, kind, tolerance):
    _write(tmp_path / "set", range(20), kind)
    camera = f"observation.images.{kind}" if kind else None
    episodes = _read(tmp_path / "set")
    assert len(episodes) == 20
    _check(episodes, camera, tolerance)
    assert [e["tasks"] for e in episodes[:3]] == [["task 0"], ["task 1"], ["task 0"]]
    assert [e["task_index"][0] for e in episodes[:3]] == [0, 1, 0]
    assert episodes[1]["timestamp"] == [np.float32(i / 10) for i in range(4)]
    # Several episodes per file, and nothing but the data set left.
    files = sorted(
        p.relative_to(tmp_path / "set").as_posix() for p in (tmp_path / "set").rglob("*.*") if p.is_file()
    )
    expected = ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"]
    expected += ["meta/info.json", "meta/stats.json", "meta/tasks.parquet", ".writer.lock"]
    if kind == "video":
        expected.append("videos/observation.images.video/chunk-000/file-000.mp4")
    assert sorted(expected) == files


def _check_own_reader(root: Path, num_episodes: int, cache: Path, kind: str | None = "video") -> None:
    """FrameTable finds exactly the first episodes that `_write` writes."""
    table = FrameTable.open(root, cache_dir=cache, progress=silent)
    assert table.num_episodes == num_episodes
    camera = f"observation.images.{kind}" if kind else None
    episodes = [_episode(i, 3 + i % 3, camera) for i in range(num_episodes)]
    np.testing.assert_array_equal(table.action, np.concatenate([e["action"] for e in episodes]))
    np.testing.assert_array_equal(table.state, np.concatenate([e["observation.state"] for e in episodes]))
    np.testing.assert_array_equal(
        table.column("next.success"), np.concatenate([e["next.success"] for e in episodes])
    )
    assert table.task_text(0) == "task 0"
    if camera:
        pictures = np.concatenate([e[camera] for e in episodes]).transpose(0, 3, 1, 2).astype(np.int64)
        rows = np.arange(table.num_frames)
        assert np.abs(table.images(camera, rows) - pictures).max() <= (3 if kind == "video" else 0)


@pytest.mark.parametrize("kind", [None, "image", "video"])
def test_the_projects_own_reader_agrees(tmp_path, kind):
    _write(tmp_path / "set", range(5), kind)
    _check_own_reader(tmp_path / "set", 5, tmp_path / "cache", kind)


def test_appending_and_overwriting(tmp_path):
    _write(tmp_path, range(4), "video")
    _write(tmp_path, range(4, 7), "video")
    episodes = _read(tmp_path)
    assert len(episodes) == 7
    _check(episodes, "observation.images.video", 3)
    assert len(list(tmp_path.glob("data/*/*"))) == 1
    whole = json.loads((tmp_path / "meta/stats.json").read_text())
    values = np.concatenate([_episode(i, 3 + i % 3)["action"] for i in range(7)]).astype(np.float64)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(whole["action"][name], getattr(values, name)(axis=0), rtol=1e-9)
    assert whole["action"]["count"] == [len(values)]
    _write(tmp_path, range(2), overwrite=True)
    assert len(_read(tmp_path)) == 2
    assert not (tmp_path / "videos").exists()


def test_files_are_full_only_to_their_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_files, "DATA_LIMIT_MB", 0.12)
    _write(tmp_path, range(30))
    sizes = [p.stat().st_size for p in tmp_path.glob("meta/episodes/*/*.parquet")]
    assert len(sizes) > 1
    assert max(sizes) <= 0.12 * 2**20
    _check(_read(tmp_path))
    table = pa.concat_tables([pq.read_table(p) for p in sorted(tmp_path.glob("data/*/*.parquet"))])
    assert table["index"].to_pylist() == list(range(table.num_rows))


@given(st.lists(st.floats(0.001, 0.6), min_size=1, max_size=300))
def test_merging_copies_each_byte_a_logarithm_of_times(sizes):
    """The schedule alone: few files remain, none above its limit, and copies stay near the bound."""
    segments: list[Segment] = []
    copied = 0.0
    for i, size in enumerate(sizes):
        segments.append(Segment(i, 1, 1, size, b""))
        first = merge_range(segments, everything=False)
        run = segments[first:]
        if len(run) > 1:
            total = sum(s.size for s in run)
            assert total <= 1
            copied += total
            segments[first:] = [Segment(run[0].index, sum(s.num_episodes for s in run), 1, total, b"")]
        assert sum(s.num_episodes for s in segments) == i + 1
    assert copied <= sum(sizes) * (2 + np.log2(1 / min(sizes)))
    equal = [Segment(i, 1, 1, 0.001, b"") for i in range(LEAVES - 1)]
    assert merge_range(equal, everything=False) >= len(equal) - 1
    assert merge_range(equal, everything=True) == 0


KILLED = """
import os, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from chunkrl.data import file_segments as segments
import test_writer as t
segments.LEAVES = 2
os.environ["SVT_LOG"] = "1"
operations = 0
limit = 0
def count(event, arguments):
    global operations
    if event in ("os.rename", "os.remove", "open") and "set" in str(arguments[0]):
        operations += 1
        if operations == limit:
            os.kill(os.getpid(), 9)
def run(point):
    global limit
    root = Path(sys.argv[1]) / f"set-{point}"
    child = os.fork()
    if child == 0:
        sys.addaudithook(count)
        limit = point
        writer = t.DatasetWriter(root, fps=10, features=t._features("video"), video=t.H264)
        for i in range(5):
            writer.add_episode(t._episode(i, 3 + i % 3, "observation.images.video"), f"task {i % 2}")
            (root.parent / f"done-{point}").write_text(str(i + 1))
        writer.close()
        (root.parent / "operations").write_text(str(operations))
        os._exit(0)
    os.waitpid(child, 0)
run(0)
total = int((Path(sys.argv[1]) / "operations").read_text())
for point in sorted(random.Random(int(sys.argv[2])).sample(range(1, total + 1), int(sys.argv[3]))):
    run(point)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_sigkill_at_any_file_operation_loses_at_most_the_current_episode(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), "0", "14", str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=300)
    points = sorted(int(path.name.removeprefix("set-")) for path in tmp_path.glob("set-*"))
    assert len(points) == 15
    partial = 0
    for point in points:
        root, done = tmp_path / f"set-{point}", tmp_path / f"done-{point}"
        finished = int(done.read_text() or 0) if done.exists() else 0
        if (root / "meta/info.json").exists():
            episodes = _read(root)
            assert finished <= len(episodes) <= finished + 1
            _check(episodes, "observation.images.video", 3)
            if episodes:
                _check_own_reader(root, len(episodes), tmp_path / "cache")
            partial += 0 < len(episodes) < 5
            _write(root, range(len(episodes), 6), "video")
        else:
            assert finished == 0
            _write(root, range(6), "video")
        # The next writer's data set is as if nothing had happened: no leftover file, row or frame.
        _check(_read(root), "observation.images.video", 3)
        files = [pq.read_table(p)["index"] for p in sorted(root.glob("data/*/*.parquet"))]
        rows = np.concatenate([column.to_numpy() for column in files])
        np.testing.assert_array_equal(
            rows, np.arange(json.loads((root / "meta/info.json").read_text())["total_frames"])
        )
        assert sum(pq.read_metadata(p).num_rows for p in root.glob("meta/episodes/*/*")) == 6
        assert not list(root.rglob("*.partial-*"))
    assert partial > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.full((3, 2), np.nan, np.float32)}, r"episode 1, 'action': NaN.*frame 0"),
        ({"action": np.zeros((3, 3), np.float32)}, r"shape \(3, 3\), expected \[T, 2\]"),
        ({"action": np.zeros((2, 2), np.float32)}, "different lengths"),
        ({"action": np.zeros((3, 2), complex)}, "complex128 does not fit float32"),
        ({"action": np.full((3, 2), 1e300)}, "too large"),
        ({"next.success": np.zeros(3)}, "float64 does not fit bool"),
        ({"extra": np.zeros(3)}, r"unknown columns \['extra'\]"),
        ({"observation.images.image": np.zeros((3, 64, 64, 3))}, "expected uint8"),
        ({"observation.images.image": np.zeros((3, 3, 64, 64), np.uint8)}, r"expected \[T, 64, 64, 3\]"),
    ],
)
def test_a_bad_episode_is_refused_and_leaves_no_trace(tmp_path, change, message):
    good = [_episode(i, 3 + i % 3, "observation.images.image") for i in range(2)]
    with DatasetWriter(tmp_path, fps=10, features=_features("image")) as writer:
        writer.add_episode(good[0], "a")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        with pytest.raises(DatasetError, match=message):
            writer.add_episode(_episode(1, 3, "observation.images.image") | change, "a")
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        writer.add_episode(good[1], "a")
    _check(_read(tmp_path), "observation.images.image")


def test_empty_episodes_and_tasks_are_refused(tmp_path):
    with DatasetWriter(tmp_path, fps=10, features=STATE) as writer:
        with pytest.raises(DatasetError, match="no frames"):
            writer.add_episode(_episode(0, 0), "a")
        with pytest.raises(DatasetError, match="2 task texts for 3 frames"):
            writer.add_episode(_episode(0, 3), ["a", "b"])
        with pytest.raises(DatasetError, match="empty"):
            writer.add_episode(_episode(0, 3), " ")
        writer.add_episode(_episode(0, 3), ["a", "b", "a"])
    episode = _read(tmp_path)[0]
    assert (episode["tasks"], episode["task_index"]) == (["a", "b"], [0, 1, 0])


def test_a_folder_in_use_or_of_another_kind_is_refused(tmp_path):
    with DatasetWriter(tmp_path / "set", fps=10, features=STATE) as writer:
        writer.add_episode(_episode(0, 3), "a")
        with pytest.raises(DatasetError, match="another writer is open"):
            DatasetWriter(tmp_path / "set", fps=10, features=STATE)
    with pytest.raises(DatasetError, match="closed"):
        writer.add_episode(_episode(0, 3), "a")
    with pytest.raises(DatasetError, match="fps is 10, not 20"):
        DatasetWriter(tmp_path / "set", fps=20, features=STATE)
    with pytest.raises(DatasetError, match=r"feature 'action' is .* not None"):
        DatasetWriter(tmp_path / "set", fps=10, features={"observation.state": STATE["observation.state"]})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match="not empty"):
            DatasetWriter(tmp_path / "other", fps=10, features=STATE, overwrite=overwrite)
    for features in ({"a/b": STATE["action"]}, {"index": STATE["action"]}, {}):
        with pytest.raises(DatasetError):
            DatasetWriter(tmp_path / "new", fps=10, features=features)


@pytest.mark.parametrize("dtype", ["float64", "int8", "uint16", "int64", "bool", "float32"])
def test_number_types_come_back(tmp_path, dtype):
    @given(st.data())
    @settings(max_examples=5)
    def check(data: st.DataObject) -> None:
        shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
        elements = {"min_value": -(2.0**20), "max_value": 2.0**20} if "float" in dtype else None
        values = data.draw(hnp.arrays(np.dtype(dtype), (4, *shape), elements=elements))
        with DatasetWriter(
            tmp_path, fps=10, features={"x": FeatureSpec(dtype, shape)}, overwrite=True
        ) as writer:
            writer.add_episode({"x": values}, "a")
        stored = np.array(_read(tmp_path)[0]["x"]).reshape(values.shape)
        np.testing.assert_array_equal(stored, values)

    check()


def test_text_columns_come_back(tmp_path):
    with DatasetWriter(tmp_path, fps=10, features={"note": FeatureSpec("string", (1,))}) as writer:
        writer.add_episode({"note": np.array(["ä", ""])}, "a")
    assert _read(tmp_path)[0]["note"] == ["ä", ""]


@given(st.recursive(st.sampled_from([True, 3, 0.5, "text"]), lambda inner: inner.map(lambda v: [v, v])))
def test_types_of_episode_rows_are_those_that_pyarrow_infers(value):
    assert dataset_files._arrow_type(value) == pa.array([value]).type
    assert dataset_files._arrow_type([]) == pa.array([[]]).type


def test_statistics_closed_form():
    s = column_statistics(np.arange(101, dtype=np.float32)[:, None])
    assert (s.min, s.max, s.mean, s.count) == (0, 100, 50, 101)
    assert s.quantiles[:, 0].tolist() == pytest.approx([1, 10, 50, 90, 99])
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    frames[:2, :, :, 0], frames[..., 1] = 255, 51
    s = image_statistics([Image.fromarray(frame) for frame in frames])
    assert s.mean.shape == (3, 1, 1)
    np.testing.assert_allclose(s.mean.ravel(), [0.5, 0.2, 0])
    np.testing.assert_allclose(s.std.ravel(), [0.5, 0, 0], atol=1e-8)
    assert s.quantiles[:, :, 0, 0].tolist() == [
        [0, 0.2, 0],
        [0, 0.2, 0],
        [0, 0.2, 0],
        [1, 0.2, 0],
        [1, 0.2, 0],
    ]
    both = aggregate_statistics(
        {"min": np.array([[0], [1]]), "max": np.array([[2], [3]]), "mean": np.array([[1.0], [2.0]])}
        | {"std": np.array([[1.0], [0.0]]), "count": np.array([[1], [3]])}
        | {f"q{q}": np.array([[0.0], [4.0]]) for q in ("01", "10", "50", "90", "99")}
    )
    assert (both.min, both.max, both.mean, both.count) == (0, 3, 1.75, 4)
    assert both.std == pytest.approx(np.sqrt(0.25 * 1 + 0.25 * 0.75**2 + 0.75 * 0.25**2))
    assert both.quantiles.ravel().tolist() == [3] * 5


def _like_fixture(info: dict[str, Any]) -> tuple[dict[str, FeatureSpec], dict[str, Any]]:
    """The features of a fixture, and an episode of four frames for them."""
    defaults = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    features = {
        key: FeatureSpec(f["dtype"], tuple(f["shape"]), f["names"])
        for key, f in info["features"].items()
        if key not in defaults
    }
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        key: (
            rng.random((4, *spec.shape)) < 0.5
            if spec.dtype == "bool"
            else rng.random((4, *spec.shape), np.float32)
        )
        for key, spec in features.items()
    }
    for key, spec in features.items():
        if spec.is_camera:
            columns[key] = np.zeros((4, *spec.shape), np.uint8)
    return features, columns


@pytest.mark.parametrize("name", ["lerobot_v30_image", "lerobot_v30_video"])
def test_files_have_the_schema_of_lerobots_own(tmp_path, name):
    source = FIXTURES / name
    if not source.is_dir():
        pytest.skip("no ../shared/data/lerobot beside the repository")
    info = json.loads((source / "meta/info.json").read_text())
    features, columns = _like_fixture(info)
    video = VideoEncoding(threads=1) if name.endswith("video") else None
    with DatasetWriter(tmp_path, fps=10, features=features, robot_type="panda", video=video) as writer:
        writer.add_episode(columns, "a")
    ours = json.loads((tmp_path / "meta/info.json").read_text())
    assert (
        ours | {"total_episodes": 6, "total_frames": 160, "total_tasks": 3, "splits": {"train": "0:6"}}
        == info
    )
    assert list(ours["features"]) == list(info["features"])
    for file in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        mine, theirs = pq.read_schema(tmp_path / file), pq.read_schema(source / file)
        assert set(mine.names) == set(theirs.names)
        assert {n: mine.field(n).type for n in mine.names} == {n: theirs.field(n).type for n in theirs.names}
    mine, theirs = (
        pq.read_schema(root / "data/chunk-000/file-000.parquet").metadata for root in (tmp_path, source)
    )
    assert json.loads(mine[b"huggingface"])["info"] == json.loads(theirs[b"huggingface"])["info"]
    stats, reference = (json.loads((root / "meta/stats.json").read_text()) for root in (tmp_path, source))
    shapes = [{k: {n: np.shape(v) for n, v in s[k].items()} for k in s} for s in (stats, reference)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["lerobot_v30_image", "lerobot_v30_video"])
def test_appending_to_lerobots_own_data_set_leaves_its_files_alone(tmp_path, name):
    source = FIXTURES / name
    if not source.is_dir():
        pytest.skip("no ../shared/data/lerobot beside the repository")
    root = tmp_path / "set"
    shutil.copytree(source / "data", root / "data")
    shutil.copytree(source / "meta", root / "meta")
    if (source / "videos").exists():
        shutil.copytree(source / "videos", root / "videos")
    before = {p: p.read_bytes() for p in root.rglob("file-*") if p.is_file()}
    old = _read(root)
    features, columns = _like_fixture(json.loads((root / "meta/info.json").read_text()))
    with DatasetWriter(root, fps=10, features=features, video=VideoEncoding(threads=1)) as writer:
        for _ in range(3):
            writer.add_episode(columns, "open the top drawer")
    assert all(p.read_bytes() == content for p, content in before.items())
    new = _read(root)
    assert len(new) == 9
    for a, b in zip(old, new, strict=False):
        np.testing.assert_equal(a, b)
    np.testing.assert_array_equal(np.array(new[8]["action"], np.float32), columns["action"])
    assert json.loads((root / "meta/info.json").read_text())["total_tasks"] == 3
    assert len(list(root.glob("data/*/*"))) == 2
    table = FrameTable.open(root, cache_dir=tmp_path / "cache")
    assert table.num_frames == 160 + 12


def test_extremes_of_bools_are_numbers_in_one_file_and_bools_in_the_next(tmp_path):
    """As LeRobot 0.6 leaves them that went on with a data set of ours."""
    _write(tmp_path, range(3))
    file = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file).replace_schema_metadata(None)
    for name in ("stats/next.success/min", "stats/next.success/max"):
        numbers = pa.array([[float(x) for x in row] for row in table[name].to_pylist()])
        table = table.set_column(table.schema.get_field_index(name), name, numbers)
    pq.write_table(table, file)
    _write(tmp_path, range(3, 6))
    _write(tmp_path, range(6, 9))
    _check(_read(tmp_path))
    found = json.loads((tmp_path / "meta/stats.json").read_text())["next.success"]
    assert (found["min"], found["max"], found["count"]) == ([0], [1], [36])
