"""What FrameTable refuses: bad values, lengths that disagree, damaged images and videos."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folder import Version, edit_parquet, write_lerobot_folder, write_video
from PIL import Image

from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.formats import RECOGNISE
from chunkrl.data.frames import FrameTable
from chunkrl.data.labels import label_frames
from chunkrl.errors import DatasetError
from chunkrl.progress import silent

VERSIONS: tuple[Version, ...] = ("v2.0", "v2.1", "v3.0")
FRONT = "observation.images.front"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder that FrameTable.open uses by default."""
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(root: Path, mapping: ColumnMapping = RECOGNISE) -> FrameTable:
    return FrameTable.open(root, mapping, progress=silent)


def refuses(root: Path, *words: str, mapping: ColumnMapping = RECOGNISE, decode: bool = False) -> None:
    """Asserts that opening (and decoding) raises a DatasetError which says all of the words."""
    with pytest.raises(DatasetError) as caught:
        table = opened(root, mapping)
        assert decode, "opened without an error"
        for camera in table.description.cameras:
            table.images(camera, np.array([0]))
    for word in words:
        assert word in str(caught.value)


def _with(values: list[float] | list[int] | list[list[float]], position: int, value: object) -> list[object]:
    return [*values[:position], value, *values[position + 1 :]]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("action", _with([[0.0, 0.0]] * 3, 2, [0.0, np.nan]), ("episode 1", "frame 2", "action", "NaN")),
        (
            "observation.state",
            _with([[0.0] * 3] * 3, 0, [np.inf, 0.0, 0.0]),
            ("episode 1", "frame 0", "state"),
        ),
        ("timestamp", [0.0, 0.1, 0.1], ("episode 1", "frame 2", "increase")),
        ("timestamp", [0.0, np.nan, 0.1], ("episode 1", "frame 1", "increase")),
        ("timestamp", [0.0, 0.2, 0.4], ("episode 1", "0.2 s", "10 per second")),
        ("task_index", [1, 7, 1], ("episode 1", "frame 1", "task_index 7", "known: 0, 1")),
        ("task_index", [0, 0, 0], ("episode 1", "open the drawer", "close the drawer")),
        ("episode_index", [1, 2, 2], ("episode 1", "frame 1", "episode 2")),
        ("frame_index", [0, 2, 3], ("episode 1", "frame 1", "frame_index is 2")),
        ("action", [[0.0] * 3] * 3, ("action", "shape [2]")),
        ("action", [[0.0, 0.0], [0.0], [0.0, 0.0, 0.0]], ("action", "shape [2]")),
        ("action", [0.0, 0.0, 0.0], ("action", "shape [2]")),
        ("action", [[0.0, 0.0], [0.0, None], [0.0, 0.0]], ("action", "missing values")),
        ("action", [[0.0, 0.0], None, [0.0, 0.0]], ("action", "missing values")),
        ("action", [["a", "b"]] * 3, ("action", "string", "float32")),
    ],
)
@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_refuses_bad_values(
    tmp_path: Path, cached: Path, version: Version, column: str, value: object, words: tuple[str, ...]
):
    root = write_lerobot_folder(tmp_path / "set", version).root
    file = root / "data/chunk-000/episode_000001.parquet"
    edit_parquet(file, **{column: value})
    refuses(root, file.name, *words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["0", "1", "0"], ("string", "float32")),
        ([0.0, None, 1.0], ("missing values",)),
        ([[0.0, 1.0]] * 3, ("shape [1]",)),
        (None, ("0 columns",)),
    ],
)
def test_a_bad_column_stops_only_those_who_use_it(
    tmp_path: Path, cached: Path, value: object, words: tuple[str, ...]
):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    edit_parquet(folder.root / "data/chunk-000/episode_000001.parquet", **{"next.reward": value})
    table = opened(folder.root)
    np.testing.assert_array_equal(table.action, folder.columns["action"])
    np.testing.assert_array_equal(table.column("next.done"), folder.columns["next.done"])
    assert set(table.column_faults) == {"next.reward"}
    for use in (lambda: table.column("next.reward"), lambda: label_frames(table)):
        with pytest.raises(DatasetError) as caught:
            use()
        for word in ("episode_000001.parquet", "next.reward", *words):
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "given"),
    [
        ("next.reward", [True, False, True], [1.0, 0.0, 1.0]),
        ("next.reward", [1, 0, 16777216], [1.0, 0.0, 16777216.0]),
        ("next.reward", [1, 0, 16777217], None),
        ("next.done", [1, 0, 1], [True, False, True]),
        ("next.done", [1.0, 0.0, 1.0], [True, False, True]),
        ("next.done", [1, 0, 2], None),
        ("frame_index", [0.0, 1.0, 2.0], [0, 1, 2]),
        ("task_index", [1.0, 1.0, 1.0], [1, 1, 1]),
        ("index", [5.0, 6.0, 7.5], None),
        ("index", [5.0, float("nan"), 7.0], None),
        ("index", [2**64 - 1, 6, 7], None),
    ],
)
def test_numbers_of_another_type_are_read_where_nothing_is_lost(
    tmp_path: Path, cached: Path, column: str, value: list[object], given: list[object] | None
):
    folder = write_lerobot_folder(tmp_path / "set", "v2.1")
    file = folder.root / "data/chunk-000/episode_000001.parquet"
    kind = pa.uint64() if value[0] == 2**64 - 1 else None
    edit_parquet(file, **{column: pa.array(value, kind)})
    table = opened(folder.root)
    if given is None:
        with pytest.raises(DatasetError, match=rf"{column}.*{folder.columns[column].dtype}"):
            table.column(column)
        return
    assert table.column(column)[5:8].tolist() == given
    assert table.column(column).dtype == folder.columns[column].dtype


def test_refuses_bad_values_in_shared_files(tmp_path: Path, cached: Path):
    root = write_lerobot_folder(tmp_path / "set", "v3.0").root
    file = root / "data/chunk-000/file-000.parquet"
    actions = np.zeros((8, 2), np.float32)
    actions[6, 1] = np.nan
    edit_parquet(file, action=actions.tolist())
    refuses(root, file.name, "episode 1", "frame 1", "NaN")
    # The action need not be that column: the cache holds the rest.
    opened(root, ColumnMapping(action_key=("next.reward",), state_key=("observation.state",)))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("change", [-1, 1])
def test_refuses_lengths_that_disagree(tmp_path: Path, cached: Path, version: Version, change: int):
    root = write_lerobot_folder(tmp_path / "set", version, lengths=(5, 3, 4)).root
    file = root / (
        "data/chunk-000/file-000.parquet" if version == "v3.0" else "data/chunk-000/episode_000001.parquet"
    )
    table = pq.read_table(file)
    table = table.slice(0, table.num_rows - 1) if change < 0 else pa.concat_tables([table, table.slice(0, 1)])
    pq.write_table(table, file)
    refuses(root, file.name, f"{table.num_rows} rows")


def test_says_which_episode_of_a_shared_file_is_short(tmp_path: Path, cached: Path):
    root = write_lerobot_folder(tmp_path / "set", "v3.0", lengths=(5, 3, 4)).root
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table.slice(0, 3), table.slice(5)]), file)
    refuses(root, file.name, "episode 0", "frame 3", "episode 1")


def test_refuses_unknown_names(tmp_path: Path, cached: Path):
    table = opened(write_lerobot_folder(tmp_path / "set", camera="image").root)
    assert not table.has_column("reward")
    with pytest.raises(DatasetError, match=r"no numeric column 'reward'.*next\.reward"):
        table.column("reward")
    with pytest.raises(DatasetError, match=r"no camera 'top'.*front"):
        table.images("top", np.array([0]))


def _png_struct(pictures: list[bytes | None]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": "x.png"} for data in pictures], type=kind)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-30], ("damaged",)),
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], ("damaged",)),
        (lambda data: b"", ("damaged",)),
        (lambda data: None, ("embed",)),
        (lambda data: images_of((8, 16, 3)), ("8 x 16 RGB", "16 x 16 RGB")),
        (lambda data: images_of((16, 16, 4)), ("16 x 16 RGBA",)),
        (lambda data: images_of((16, 16)), ("16 x 16 L",)),
    ],
)
def test_refuses_bad_pictures(tmp_path: Path, cached: Path, damage, words: tuple[str, ...]):
    root = write_lerobot_folder(tmp_path / "set", "v2.1", camera="image").root
    file = root / "data/chunk-000/episode_000001.parquet"
    data = [record["bytes"] for record in pq.read_table(file)[FRONT].to_pylist()]
    edit_parquet(file, **{FRONT: _png_struct([data[0], damage(data[1]), data[2]])})
    refuses(root, file.name, "episode 1", "frame 1", FRONT, *words, decode=True)
    edit_parquet(file, **{FRONT: data})
    refuses(root, file.name, FRONT, "struct<bytes, path>", decode=True)


def images_of(shape: tuple[int, ...]) -> bytes:
    """A PNG file of black pixels."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("pictures", "fps", "words"),
    [
        ((2, 16, 16), 10, ("no frame at 0.2000 s",)),
        ((4, 16, 16), 10, ("0.3000 s", "after the episode's end")),
        ((3, 16, 16), 6, ("6 frames per second", "says 10")),
        ((3, 16, 16), 20, ("ends at 0.15 s", "last frame is at 0.2 s", "20 frames per second")),
        ((3, 16, 12), 10, ("16 x 12", "16 x 16")),
    ],
)
def test_refuses_videos_that_disagree(
    tmp_path: Path, cached: Path, pictures: tuple[int, int, int], fps: int, words: tuple[str, ...]
):
    root = write_lerobot_folder(tmp_path / "set", "v2.1", camera="video").root
    file = root / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    write_video(file, np.zeros((*pictures, 3), np.uint8), fps)
    refuses(root, str(file), "episode 1", FRONT, *words, decode=True)


def test_refuses_an_episode_that_ends_before_its_last_frame(tmp_path: Path, cached: Path):
    root = write_lerobot_folder(tmp_path / "set", "v3.0", camera="video", lengths=(5, 3, 4)).root
    # Without the check, the first frame of the next episode would be taken for the last of this one.
    name = f"videos/{FRONT}/to_timestamp"
    edit_parquet(root / "meta/episodes/chunk-000/file-000.parquet", **{name: [0.4, 0.8, 0.4]})
    refuses(root, "file-000.mp4", "episode 0", FRONT, "has 5 frames, which last 0.5 s", decode=True)


def test_shared_video_needs_all_its_episodes(tmp_path: Path, cached: Path):
    folder = write_lerobot_folder(tmp_path / "set", "v3.0", camera="video", lengths=(5, 3, 4))
    file = folder.root / f"videos/{FRONT}/chunk-000/file-000.mp4"
    write_video(file, folder.images[FRONT][:7], 10)
    refuses(folder.root, "file-000.mp4", "7 frames", "episodes 0 to 1 have 8", decode=True)
