"""The columns of a LeRobot v3.0 data file: what a feature is, what it accepts, how it lies in parquet."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.errors import DatasetError

PNG_LEVEL = 1  # LeRobot's level: three times faster than 6, files about a tenth larger.


@dataclass(frozen=True)
class RawFeature:
    """A column that is copied as it is, without statistics.

    record: its entry in `meta/info.json`. kind: its type in the data file; None for a video.
    """

    record: Mapping[str, Any]
    kind: pa.DataType | None

    def to_json(self) -> dict[str, Any]:
        """The feature's entry in `meta/info.json`."""
        return dict(self.record)


def default_features() -> dict[str, FeatureSpec]:
    """The columns that every v3.0 data set has; the writer fills them."""
    integers = ("frame_index", "episode_index", "index", "task_index")
    return {"timestamp": FeatureSpec("float32", (1,))} | {
        name: FeatureSpec("int64", (1,)) for name in integers
    }


def check_features(features: Iterable[str]) -> None:
    """Raise DatasetError where a feature's name is not allowed."""
    if not features:
        raise DatasetError("a data set needs at least one feature")
    for key in features:
        if not key or "/" in key:
            raise DatasetError(f"feature name '{key}': LeRobot allows no '/' and no empty name; use '.'")
        if key in default_features():
            raise DatasetError(f"feature '{key}' is written by the writer itself: leave it out")


def check_columns(
    features: Mapping[str, FeatureSpec], columns: Mapping[str, Any], episode: int
) -> tuple[dict[str, np.ndarray], int]:
    """The columns [T, *shape] in their declared types, and T.

    Raises:
        DatasetError: a key missing or unknown, unequal lengths, a wrong shape or type, NaN or inf, no frames.
    """
    where = f"episode {episode}"
    missing, unknown = sorted(set(features) - set(columns)), sorted(set(columns) - set(features))
    if missing or unknown:
        raise DatasetError(
            f"{where}: missing columns {missing}, unknown columns {unknown}; the features say which"
        )
    arrays = {key: _check_column(spec, columns[key], f"{where}, '{key}'") for key, spec in features.items()}
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DatasetError(f"{where}: columns of different lengths {lengths}; give each one row per frame")
    num_frames = next(iter(lengths.values()))
    if num_frames == 0:
        raise DatasetError(f"{where} has no frames: leave it out")
    return arrays, num_frames


def raw_columns(
    raw: Mapping[str, RawFeature], columns: Mapping[str, Any], num_frames: int, episode: int
) -> list[pa.Array]:
    """The raw columns that stand in the data file, each [T], in its order.

    Raises:
        DatasetError: one is missing, or has another length.
    """
    found = []
    for key, spec in raw.items():
        values = columns.get(key)
        if spec.kind is None:
            continue
        if values is None or len(values) != num_frames:
            raise DatasetError(f"episode {episode}: '{key}' has not {num_frames} rows; give one per frame")
        found.append(values.cast(spec.kind))
    return found


def _check_column(spec: FeatureSpec, values: Any, where: str) -> np.ndarray:
    """One column in its declared type, [T, *shape]; no value changes but by rounding of floats."""
    array = np.asarray(values)
    if array.ndim == 1 and spec.shape == (1,):
        array = array[:, None]
    if array.shape[1:] != spec.shape or array.ndim == 0:
        raise DatasetError(f"{where}: shape {array.shape}, expected [T, {', '.join(map(str, spec.shape))}]")
    if spec.is_camera:
        if array.dtype != np.uint8:
            raise DatasetError(f"{where}: {array.dtype}, expected uint8 images in 0..255")
        return array
    if spec.dtype == "string":
        if array.dtype.kind not in "UO" or not all(isinstance(text, str) for text in array.flat):
            raise DatasetError(f"{where}: {array.dtype}, expected text")
        return array.astype(object)
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise DatasetError(f"{where}: {array.dtype} does not fit {spec.dtype}; convert it first")
    with np.errstate(over="ignore"):
        result = array.astype(spec.dtype)
    if result.dtype.kind == "f" and not np.isfinite(result).all():
        frame = int(np.argwhere(~np.isfinite(result))[0, 0])
        raise DatasetError(f"{where}: NaN, inf or a number too large for {spec.dtype} at frame {frame}")
    if result.dtype.kind in "iu" and not np.array_equal(result, array):
        raise DatasetError(f"{where}: a number does not fit {spec.dtype}")
    return result


def frame_tasks(task: str | Sequence[str], num_frames: int, episode: int) -> list[str]:
    """One task text per frame.

    Raises:
        DatasetError: an empty text, or not one text per frame.
    """
    texts = [task] * num_frames if isinstance(task, str) else [str(text) for text in task]
    if len(texts) != num_frames:
        raise DatasetError(
            f"episode {episode}: {len(texts)} task texts for {num_frames} frames; give one, or one per frame"
        )
    if not all(text.strip() for text in texts):
        raise DatasetError(f"episode {episode}: a task text is empty; name the task")
    return texts


class Frames(Sequence[Image.Image]):
    """uint8 RGB [T, height, width, 3] as images, each made when it is asked for: a long episode's need not fit into
    memory."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: Any) -> Any:
        return Image.fromarray(self._pictures[index])


def encode_images(frames: Sequence[Image.Image]) -> list[bytes]:
    """PNG bytes of RGB frames, on as many threads as there are processors (zlib releases the GIL)."""

    def encode(index: int) -> bytes:
        buffer = io.BytesIO()
        frames[index].save(buffer, format="PNG", compress_level=PNG_LEVEL)
        return buffer.getvalue()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(encode, range(len(frames))))


def _arrow_type(spec: FeatureSpec) -> pa.DataType:
    if spec.dtype == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    result = pa.string() if spec.dtype == "string" else pa.from_numpy_dtype(np.dtype(spec.dtype))
    if spec.shape == (1,):
        return result
    if len(spec.shape) == 1:
        return pa.list_(pa.field("element", result), spec.shape[0])
    for _ in spec.shape:  # `datasets` stores its Array2D to Array5D as nested lists of free length.
        result = pa.list_(pa.field("element", result))
    return result


def _huggingface_type(spec: FeatureSpec) -> dict[str, Any]:
    """What `datasets` needs to give the column back in its own feature type."""
    if spec.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": spec.dtype, "_type": "Value"}
    if spec.shape == (1,):
        return value
    if len(spec.shape) == 1:
        return {"feature": value, "length": spec.shape[0], "_type": "List"}
    return {"shape": list(spec.shape), "dtype": spec.dtype, "_type": f"Array{len(spec.shape)}D"}


def table_schema(features: Mapping[str, FeatureSpec], raw: Mapping[str, RawFeature]) -> pa.Schema:
    """Arrow schema of a data file (cameras of dtype "video" are not in it), with `datasets`' metadata, which says
    nothing of raw columns, the last ones."""
    stored = {key: spec for key, spec in features.items() if spec.dtype != "video"}
    metadata = {"info": {"features": {key: _huggingface_type(spec) for key, spec in stored.items()}}}
    fields = [pa.field(key, _arrow_type(spec)) for key, spec in stored.items()]
    fields += [pa.field(key, spec.kind) for key, spec in raw.items() if spec.kind is not None]
    return pa.schema(fields, metadata={"huggingface": json.dumps(metadata)})


def to_arrow(spec: FeatureSpec, values: np.ndarray) -> pa.Array:
    """A column [T, *shape] of numbers or text as the data file stores it."""
    target = _arrow_type(spec)
    if spec.shape == (1,):
        return pa.array(values[:, 0], target)
    if len(spec.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=target)
    return pa.array(values.tolist(), target)


def images_to_arrow(png: Sequence[bytes]) -> pa.Array:
    """PNG bytes as the data file stores them (`datasets` Image: bytes and a name)."""
    rows = [{"bytes": data, "path": f"frame-{i:06d}.png"} for i, data in enumerate(png)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """`meta/tasks.parquet`: task_index, indexed by the text as pandas (LeRobot's reader) writes an index."""
    text = {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    header = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
    metadata = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [header | {"metadata": {"encoding": "UTF-8"}}],
        "columns": [number | {"metadata": None}, text | {"metadata": None}],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema(
        [pa.field("task_index", pa.int64()), pa.field("__index_level_0__", pa.string())],
        metadata={"pandas": json.dumps(metadata)},
    )
    return pa.table(
        [pa.array(range(len(tasks)), pa.int64()), pa.array(list(tasks), pa.string())], schema=schema
    )


def read_tasks(path: Path) -> dict[str, int]:
    """Task text -> task_index of a `meta/tasks.parquet`, in the order of the indices.

    Raises:
        DatasetError: the file is missing, or its indices are not 0, 1, 2, ...
    """
    if not path.exists():
        raise DatasetError(f"{path} is missing: restore it")
    table = pq.read_table(path)
    names = [name for name in table.schema.names if name != "task_index"]
    if len(names) != 1 or "task_index" not in table.schema.names:
        raise DatasetError(f"{path}: columns {table.schema.names}, expected task_index and the text")
    pairs = sorted(zip(table["task_index"].to_pylist(), table[names[0]].to_pylist(), strict=True))
    if [index for index, _ in pairs] != list(range(len(pairs))):
        raise DatasetError(f"{path}: task indices {[index for index, _ in pairs]}, expected 0, 1, 2, ...")
    return {text: index for index, text in pairs}
