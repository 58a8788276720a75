"""Records are checked for type and range when they are read: whatever is there, one error of ours names the file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import evaluations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import open_chunks, random_episodes, write_dataset

from chunkrl.config import from_dict, load_config, save_config
from chunkrl.data.normalize import Statistics, compute_statistics
from chunkrl.data.sidecar import load_sidecar, save_sidecar
from chunkrl.errors import ChunkRLError, DatasetError, SpoolError, TransportError
from chunkrl.evaluation.evaluation_result import (
    EpisodeOutcome,
    Evaluation,
    Video,
    read_evaluation,
    write_evaluation,
)
from chunkrl.online.learner.evaluation import FOLDER, RESULTS, read_results
from chunkrl.online.link.spool_files import identify, read_watermark
from chunkrl.online.link.streams import read_spec
from chunkrl.online.link.weights import VersionCounter
from chunkrl.report.evaluation import write_page
from chunkrl.training.algorithm import Histogram
from chunkrl.training.metrics import METRICS_FILE, Record, read_records

WRONG: tuple[Any, ...] = (None, True, "1", "text", [], [1], {}, {"a": 1}, -1, 1.5, math.nan, math.inf, 10**30)


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    whole: int
    real: float
    maybe: int | None = None
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    pairs: tuple[tuple[int, float], ...] = ()


def test_records_from_json_are_strict() -> None:
    right = {"whole": 1, "real": 2, "inner": {"numbers": [1], "names": ["x"]}, "pairs": [[1, 2]]}
    found = from_dict(Outer, right)
    assert found == Outer(1, 2.0, inner=Inner((1,), ("x",)), pairs=((1, 2.0),)) and type(found.real) is float
    assert from_dict(Outer, right | {"inner": {"names": "one"}}).inner.names == ("one",)
    for change, named in (
        ({"whole": True}, "whole is True, expected an integer"),
        ({"whole": 1.0}, "whole"),
        ({"real": "1"}, "real"),
        ({"real": False}, "real is False, expected a finite number"),
        ({"real": math.nan}, "real is nan, expected a finite number"),
        ({"real": 10**400}, "too large"),
        ({"maybe": True}, "maybe is True"),
        ({"kind": "c"}, "kind"),
        ({"inner": []}, "inner"),
        ({"inner": {"numbers": "12"}}, r"inner\.numbers is '12', expected a list"),
        ({"inner": {"numbers": [True]}}, r"inner\.numbers is True"),
        ({"inner": {"numbers": {"1": 2}}}, r"inner\.numbers .* expected a list"),
        ({"inner": {"names": 3}}, r"inner\.names is 3"),
        ({"pairs": [[1]]}, "pairs"),
        ({"pairs": [[1, 2, 3]]}, "pairs"),
        ({"more": 1}, "unknown configuration key.*more"),
    ):
        with pytest.raises(ChunkRLError, match=named):
            from_dict(Outer, right | change)


def test_a_configuration_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ChunkRLError, match="NaN or infinite"):
        save_config(Outer(1, math.inf), tmp_path / "c.json")
    assert not list(tmp_path.iterdir())
    save_config(Outer(1, 2.5), tmp_path / "c.json")
    assert load_config(Outer, tmp_path / "c.json") == Outer(1, 2.5)
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(SpoolError, match=r"c\.json holds a list .*: restore it"):
        load_config(Outer, tmp_path / "c.json", SpoolError, "restore it")


RECORD = Record(
    3, "policy", 1.5e9, {"loss/policy": 0.5, "nan": math.nan}, {"h": Histogram((1, 2), (0.0, 0.5, 1.0))}
)


def test_metrics_are_records(tmp_path: Path) -> None:
    file = tmp_path / METRICS_FILE
    right = RECORD.to_json()
    file.write_text(json.dumps(right) + "\n" + json.dumps(right)[:20])
    (found,) = read_records(file)
    assert found.update == 3 and found.histograms == RECORD.histograms and math.isnan(found.scalars["nan"])
    histograms = (
        {"counts": counts, "edges": edges}
        for counts, edges in (
            ([1], [0.0]),
            ([1], [1.0, 0.0]),
            ([-1], [0, 1]),
            ([1.5], [0, 1]),
            ([], [0.0]),
            ("1", "01"),
        )
    )
    numbers = (-1, 1.5, 10**30)
    changes: list[dict[str, Any]] = [
        *({"update": value} for value in WRONG),
        *({"phase": value} for value in WRONG if not isinstance(value, str)),
        *({"time": value} for value in WRONG if value not in numbers),
        *({"scalars": value} for value in WRONG if not isinstance(value, dict)),
        *({"scalars": {"x": value}} for value in WRONG if value is not None and value not in numbers),
        *({"histograms": value} for value in WRONG if value != {}),
        *({"histograms": {"h": value}} for value in (*WRONG, *histograms)),
    ]
    for change in changes:
        file.write_text(json.dumps(right) + "\n" + json.dumps(right | change) + "\n")
        with pytest.raises(ChunkRLError, match=rf"{METRICS_FILE}, line 2 .*resume the run"):
            read_records(file)
    missing = {key: value for key, value in right.items() if key != "time"}
    file.write_text(json.dumps(missing) + "\n")
    with pytest.raises(ChunkRLError, match="line 1 is no record"):
        read_records(file)


def test_statistics_are_vectors_of_finite_numbers(tmp_path: Path) -> None:
    statistics = compute_statistics(np.random.default_rng(0).random((9, 3), np.float32))
    file = tmp_path / "s.json"
    statistics.save(file)
    assert np.array_equal(Statistics.load(file).q01, statistics.q01)
    right = json.loads(file.read_text())
    for key in right:
        for value in (*WRONG, [1, 2], [1, 2, "3"], [[1, 2, 3]], [1, 2, 1e300], 0):
            file.write_text(json.dumps(right | {key: value}))
            if key == "count" and type(value) is int and 0 < value < 2**62:
                continue
            with pytest.raises(DatasetError, match=r"s\.json.*: delete it|s\.json.*correct it"):
                Statistics.load(file)
    for change in ({"more": 1}, {"mean": None}):
        file.write_text(json.dumps({k: v for k, v in (right | change).items() if v is not None}))
        with pytest.raises(DatasetError, match="damaged statistics"):
            Statistics.load(file)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    stored = pq.read_table(path)
    pq.write_table(change(stored), path)


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(stored: pa.Table) -> pa.Table:
        return stored.set_column(stored.schema.get_field_index(name), name, pa.array(values(len(stored))))

    return change


def header(changes: dict[str, Any] | bytes) -> Callable[[pa.Table], pa.Table]:
    def change(stored: pa.Table) -> pa.Table:
        key = b"chunkrl.sidecar"
        raw = (
            changes
            if isinstance(changes, bytes)
            else json.dumps(json.loads(stored.schema.metadata[key]) | changes)
        )
        return stored.replace_schema_metadata({key: raw})

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replaced("value", lambda n: ["x"] * n), "column 'value' holds string"),
        (replaced("value", lambda n: [[1.0]] * n), "column 'value' holds list"),
        (replaced("value", lambda n: [None] + [1.0] * (n - 1)), "column 'value' has missing values"),
        (replaced("value", lambda n: [{"a": 1}] * n), "column 'value' holds struct"),
        (
            replaced("episode_index", lambda n: [0.0] * n),
            "column 'episode_index' holds double, expected integers",
        ),
        (replaced("frame_index", lambda n: ["0"] * n), "column 'frame_index' holds string"),
        (replaced("frame_index", lambda n: [None] * n), "column 'frame_index' holds null"),
        (replaced("frame_index", lambda n: [0] * n), "exactly one row for each frame"),
        (lambda t: t.slice(1), "exactly one row for each frame"),
        (lambda t: pa.concat_tables([t] * 3), "exactly one row for each frame"),
        (lambda t: t.append_column("value", t["value"]), "is no file of labels"),
        (lambda t: t.drop_columns(["frame_index"]), "is no file of labels"),
        (lambda t: t.replace_schema_metadata(None), "is no file of labels"),
        (header(b"{"), "its header is damaged"),
        (header(b"[1]"), "its header holds a list"),
        (header(b"\xff"), "its header is damaged"),
        (header({"version": "1"}), "label format '1'"),
        (header({"fingerprint": 3}), "made for another data set"),
        (header({"metadata": [1]}), "'metadata' is no object"),
    ],
)
def test_labels_of_other_types_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], named: str
) -> None:
    table = open_chunks(write_dataset(tmp_path / "d", random_episodes(3))).table
    file = tmp_path / "l.parquet"
    labels = {
        "value": np.arange(table.num_frames, dtype=np.float32),
        "bin": np.arange(table.num_frames) % 2,
        "yes": np.arange(table.num_frames) % 3 == 0,
    }
    save_sidecar(file, table, labels, {"rule": 1})
    found = load_sidecar(file, table)
    assert found.metadata == {"rule": 1}
    assert all(np.array_equal(found.arrays[name], values) for name, values in labels.items())
    rewrite(file, change)
    with pytest.raises(DatasetError, match=rf"l\.parquet.*{named}"):
        load_sidecar(file, table)


def test_any_bit_of_a_file_of_labels(tmp_path: Path) -> None:
    """Wherever it stands, the labels are there or the file is named."""
    table = open_chunks(write_dataset(tmp_path / "d", random_episodes(1))).table
    file = tmp_path / "l.parquet"
    save_sidecar(file, table, {"value": np.arange(table.num_frames, dtype=np.float32)}, {})
    whole = file.read_bytes()
    for position in range(0, len(whole), 3):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :])
        try:
            assert all(
                len(values) == table.num_frames for values in load_sidecar(file, table).arrays.values()
            )
        except DatasetError as error:
            assert "l.parquet" in str(error)


SETTINGS = replace(
    evaluations.SETTINGS,
    policy="p",
    envs=("push", "pull"),
    num_episodes=2,
    max_steps=(5, 5),
    exec_steps=1,
    horizon=1,
    state="",
    batch_size=1,
)


def evaluation(**changes: Any) -> Evaluation:
    outcomes = (EpisodeOutcome(3, True, 4), EpisodeOutcome(4, False, 5))
    return Evaluation(
        **{
            "settings": SETTINGS,
            "episodes": dict.fromkeys(SETTINGS.envs, outcomes),
            "seconds": 1.0,
            "num_workers": 1,
        }
        | changes
    )


def test_results_of_evaluations_are_records(tmp_path: Path) -> None:
    file = write_evaluation(tmp_path, evaluation())
    assert read_evaluation(file) == evaluation()
    right = json.loads(file.read_text())

    def refused(content: Any) -> None:
        file.write_text(json.dumps(content))
        with pytest.raises(ChunkRLError, match=r"result\.json"):
            read_evaluation(file)

    for key in ("version", "settings", "tasks", "seconds", "num_workers", "videos"):
        refused({k: v for k, v in right.items() if k != key})
        for value in WRONG:
            right_ones = {"seconds": (1.5, 10**30), "num_workers": (10**30,), "videos": ([],)}
            if value is True or value not in right_ones.get(key, ()):
                refused(right | {key: value})
    for wrong in ({"seconds": 0.0}, {"seconds": -1.0}, {"num_workers": -1}):
        refused(right | wrong)
    for changes in ({"success": "yes"}, {"seed": True}, {"num_steps": -1}, {"more": 1}, {"success": False}):
        task = right["tasks"]["push"]
        episodes = [task["episodes"][0] | changes, *task["episodes"][1:]]
        refused(right | {"tasks": right["tasks"] | {"push": task | {"episodes": episodes}}})
    refused(right | {"tasks": {"push": right["tasks"]["push"]}})
    refused(right | {"tasks": right["tasks"] | {"push": right["tasks"]["push"] | {"episodes": []}}})


@pytest.mark.parametrize(
    "name", ["../secret.mp4", "/etc/hostname", "videos/a.txt", "videos/none.mp4", "videos/pipe.mp4"]
)
def test_videos_are_read_inside_the_folder_alone(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "e"
    (folder / "videos").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (folder / "videos" / "a.txt").write_bytes(b"text")
    os.mkfifo(folder / "videos" / "pipe.mp4")
    with pytest.raises(ChunkRLError, match=Path(name).name):
        write_page(folder, evaluation(videos=(Video("push", 3, True, name, True),)))


def test_small_files_of_runs_and_spools(tmp_path: Path) -> None:
    spec = {
        "fps": 10.0,
        "state_names": ["a"],
        "action_names": ["b"],
        "cameras": {"c": [4, 4]},
        "robot_type": "r",
    }
    line = {"name": "1-2", "num_steps": 1, "update": 2, "success": 0.5, "interval": [0, 1], "num_episodes": 2}
    results = tmp_path / FOLDER / RESULTS
    results.parent.mkdir()
    readers: dict[str, tuple[Path, dict[str, Any], type[ChunkRLError], Callable[[], Any]]] = {
        "version": (
            tmp_path / "v.json",
            {"version": 3},
            TransportError,
            lambda: VersionCounter(tmp_path / "v.json"),
        ),
        "watermark": (
            tmp_path / "acknowledged.json",
            {"next_sequence": 3},
            SpoolError,
            lambda: read_watermark(tmp_path),
        ),
        "identity": (
            tmp_path / "spool.json",
            {"format": 1, "spool_id": "0" * 32},
            SpoolError,
            lambda: identify(tmp_path, None),
        ),
        "stream": (tmp_path / "stream.json", spec, SpoolError, lambda: read_spec(tmp_path / "stream.json")),
        "results": (results, line, ChunkRLError, lambda: read_results(tmp_path)),
    }
    for what, (file, right, error, read) in readers.items():
        file.write_text(json.dumps(right) + "\n")
        if what != "identity":  # its id has a form of its own
            read()
        contents = [
            b"",
            b"{",
            b"[]\n",
            b"null\n",
            b"\xff\n",
            b'{"a": ' + b"[" * 9999,
            json.dumps(right).encode()[:-2],
        ]
        contents += [json.dumps(right | {key: None}).encode() + b"\n" for key in right]
        contents += [json.dumps(right | {key: True}).encode() + b"\n" for key in right]
        contents += [json.dumps(right | {key: {"x": [1]}}).encode() + b"\n" for key in right]
        for content in contents:
            if what == "results" and not content.endswith(b"\n"):
                continue  # a line that a kill cut off
            file.write_bytes(content)
            with pytest.raises(error, match=file.name):
                read()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(error, match=rf"{file.name} is a pipe"):
            read()
        file.unlink()
