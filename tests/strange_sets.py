"""What the tests of strange data sets share: edits of small ones, and what inspect and train say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import settings

from chunkrl.data.chunk_settings import ColumnMapping, FrameSettings
from chunkrl.data.formats import RECOGNISE
from chunkrl.data.frames import FrameTable
from chunkrl.data.inspect import DatasetReport, make_report
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError
from chunkrl.progress import silent
from chunkrl.run.command import train
from chunkrl.run.config import TrainConfig

FRONT = "observation.images.front"
ALL_SUCCEED = LabelRule(success="all", step_reward="success", subgoal="success")


def data_files(root: Path) -> list[Path]:
    """The parquet files with frames, in order."""
    return sorted(root.glob("data/*/*.parquet"))


def edit_info(root: Path, **features: Any) -> None:
    """Entries of features in info.json: a record replaces one, a dict under `update` of an entry changes it."""
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    for name, record in features.items():
        info["features"][name] = record
    file.write_text(json.dumps(info))


def set_column(root: Path, name: str, values: pa.Array | list[Any], **record: Any) -> None:
    """A column over all rows, in place of one of that name or new, and its entry in info.json where one is given."""
    column: pa.Array = values if isinstance(values, pa.Array) else pa.array(values)
    begin = 0
    for file in data_files(root):
        table = pq.read_table(file)
        part = column.slice(begin, len(table))
        begin += len(table)
        if name in table.schema.names:
            table = table.drop_columns([name])
        pq.write_table(table.append_column(name, part), file, write_page_checksum=True)
    assert begin == len(column), "a value for every row"
    if record:
        edit_info(root, **{name: {"names": None, **record}})


def edit_episodes(root: Path, **columns: list[Any]) -> None:
    """Columns of meta/episodes (v3.0, one file)."""
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, pa.array(values))
    pq.write_table(table, file)


def inspected(root: Path, **changes: Any) -> DatasetReport:
    """What `chunkrl inspect` finds."""
    return make_report(InspectCommand(str(root), **{"horizon": 2, "labels": ALL_SUCCEED, **changes}), silent)


def problems(root: Path, **changes: Any) -> str:
    """The messages of all problems that inspect lists, or the one error that ends it."""
    try:
        return "\n".join(problem.message for problem in inspected(root, **changes).problems)
    except ChunkRLError as error:
        return str(error)


def opened(root: Path, mapping: ColumnMapping = RECOGNISE, cache: bool = True) -> FrameTable:
    return FrameTable.open(root, mapping, progress=silent, settings=FrameSettings(cache=cache))


def decoded(root: Path, cache: bool = True) -> FrameTable:
    """The data set, every image of it decoded."""
    table = opened(root, cache=cache)
    for camera in table.description.cameras:
        table.images(camera, np.arange(table.num_frames))
    return table


def says(text: str, *words: str) -> None:
    """Asserts that a message has all of the words."""
    for word in words:
        assert word in text, text


def refused_everywhere(root: Path, *words: str) -> None:
    """Asserts that inspect lists, and reading with and without a cache refuses, in these words."""
    says(problems(root), *words)
    for cache in (True, False):
        with pytest.raises(ChunkRLError) as caught:
            decoded(root, cache)
        says(str(caught.value), *words)


def trained(root: Path, output: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """What a training of one update prints."""
    own: dict[str, Any] = {"num_updates": 1, "objective": "behaviour_cloning", "cameras": ()}
    capsys.readouterr()
    train(TrainConfig(**settings(root, output, **{"action_horizon": 2, **own, **changes})), silent)
    return capsys.readouterr().out
