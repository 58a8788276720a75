"""Damage to parquet files that parquet itself does not notice: columns, rows, values, footers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .damage import KINDS, kind, pick

Done = tuple[Path, str] | None


def _write(table: pa.Table, path: Path) -> None:
    """With checksums where the file had them cannot be told, so without, as LeRobot writes."""
    pq.write_table(table, path)


def _on_table(name: str, change: Callable[[pa.Table, random.Random], tuple[pa.Table, str] | None]) -> None:
    def apply(root: Path, rng: random.Random) -> Done:
        path = pick(root, rng, ".parquet")
        if path is None:
            return None
        for _ in range(8):  # a kind may suit few of the columns
            done = change(pq.read_table(path), rng)
            if done is not None:
                _write(done[0], path)
                return path, done[1]
        return None

    KINDS[f"parquet/{name}"] = apply


def _set(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def _any(table: pa.Table, rng: random.Random) -> str:
    return rng.choice(table.schema.names)


def _column_gone(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    name = _any(table, rng)
    return table.drop_columns([name]), f"'{name}' is gone"


def _column_renamed(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    name = _any(table, rng)
    return table.rename_columns(
        [n + "_" if n == name else n for n in table.schema.names]
    ), f"'{name}' renamed"


def _column_added(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    values = rng.choice([None, "text", 1.5, [1, 2], {"a": 1}])
    return table.append_column("added", pa.array([values] * len(table))), f"a column of {values!r} added"


def _column_twice(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    name = _any(table, rng)
    return table.append_column(name, table[name]), f"'{name}' twice"


def _columns_in_another_order(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    names = list(table.schema.names)
    rng.shuffle(names)
    return table.select(names), "columns in another order"


def _values_of_another(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    first, second = _any(table, rng), _any(table, rng)
    return _set(table, first, table[second]), f"'{first}' has the values of '{second}'"


def _another_dtype(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str] | None:
    name = _any(table, rng)
    target = rng.choice(
        [pa.float64(), pa.float32(), pa.float16(), pa.int64(), pa.int32(), pa.int8(), pa.string(), pa.bool_()]
    )
    if table.schema.field(name).type == target:
        return None
    try:
        return _set(table, name, table[name].cast(target)), f"'{name}' as {target}"
    except (pa.ArrowException, TypeError):
        return None


def _nulls(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str] | None:
    if not len(table):
        return None
    name, row = _any(table, rng), rng.randrange(len(table))
    values = table[name].to_pylist()
    values = [None] * len(values) if rng.random() < 0.3 else [*values[:row], None, *values[row + 1 :]]
    return _set(table, name, pa.array(values, table.schema.field(name).type)), f"'{name}' has a null"


def _rows(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str]:
    """Some gone, some twice, in another order."""
    order = list(range(len(table)))
    what = rng.choice(["the last gone", "one gone", "one twice", "two swapped", "reversed", "none left"])
    place = rng.randrange(max(1, len(order)))
    if what == "the last gone":
        order = order[:-1]
    elif what == "one gone":
        order = order[:place] + order[place + 1 :]
    elif what == "one twice":
        order.insert(place, place)
    elif what == "two swapped" and len(order) > 1:
        place = max(1, place)
        order[place - 1], order[place] = order[place], order[place - 1]
    elif what == "reversed":
        order.reverse()
    else:
        order = []
    return table.take(pa.array(order, pa.int64())), f"rows: {what}"


def _list_lengths(table: pa.Table, rng: random.Random) -> tuple[pa.Table, str] | None:
    name = _any(table, rng)
    values = table[name].to_pylist()
    if not values or not isinstance(values[0], list) or not values[0]:
        return None
    row = rng.randrange(len(values))
    values[row] = values[row][:-1] if rng.random() < 0.5 else [*values[row], values[row][-1]]
    inner = table.schema.field(name).type.value_type
    return _set(table, name, pa.array(values, pa.list_(inner))), f"'{name}' has a row of another length"


def _numbers(table: pa.Table, rng: random.Random) -> tuple[str, np.ndarray, pa.DataType] | None:
    """A numeric column as an array [n, D] of its own."""
    name = _any(table, rng)
    kind_of = table.schema.field(name).type
    inner = kind_of
    while pa.types.is_list(inner) or pa.types.is_fixed_size_list(inner):
        inner = inner.value_type
    if not (pa.types.is_floating(inner) or pa.types.is_integer(inner)) or not len(table):
        return None
    values = np.array(table[name].to_pylist(), inner.to_pandas_dtype())
    return name, values.reshape(len(values), -1).copy(), kind_of


def _with_value(
    table: pa.Table, rng: random.Random, other: Callable[[np.ndarray], float | int]
) -> tuple[pa.Table, str] | None:
    found = _numbers(table, rng)
    if found is None or found[1].size == 0:
        return None
    name, values, kind_of = found
    row, entry = rng.randrange(values.shape[0]), rng.randrange(values.shape[1])
    try:
        values[row, entry] = other(values[:, entry])
    except (OverflowError, ValueError):
        return None
    nested = pa.types.is_list(kind_of) or pa.types.is_fixed_size_list(kind_of)
    listed = values.tolist() if nested else values[:, 0].tolist()
    return _set(table, name, pa.array(listed, kind_of)), f"'{name}' [{row}, {entry}] is {values[row, entry]}"


def _out_of_range(column: np.ndarray, rng: random.Random) -> float | int:
    if column.dtype.kind == "f":
        return rng.choice(
            [3e38, -3e38, 1e12, float("nan"), float("inf"), 10 * float(np.abs(column).max()) + 10]
        )
    return rng.choice([-1, 10**6, int(np.iinfo(column.dtype).max), int(column.max()) + 1])


def _in_range(column: np.ndarray, rng: random.Random) -> float | int:
    """Between the smallest and the largest: no statistics speak against it."""
    return rng.choice(column.tolist()) if rng.random() < 0.5 else (column.min() + column.max()) / 2


for _name, _change in {
    "a column gone": _column_gone,
    "a column renamed": _column_renamed,
    "a column added": _column_added,
    "a column twice": _column_twice,
    "columns in another order": _columns_in_another_order,
    "the values of another column": _values_of_another,
    "another dtype": _another_dtype,
    "missing values": _nulls,
    "other rows": _rows,
    "lists of other lengths": _list_lengths,
    "a value out of range": lambda table, rng: _with_value(table, rng, lambda c: _out_of_range(c, rng)),
    "another value in range": lambda table, rng: _with_value(table, rng, lambda c: _in_range(c, rng)),
}.items():
    _on_table(_name, _change)


@kind("parquet/written otherwise")
def _written_otherwise(root: Path, rng: random.Random) -> Done:
    """The same table: right."""
    path = pick(root, rng, ".parquet")
    if path is None:
        return None
    table = pq.read_table(path)
    what = rng.choice(
        ["zstd", "gzip", "no compression", "row groups of 3", "no dictionary", "data pages v2", "brotli"]
    )
    more = {
        "zstd": {"compression": "zstd"},
        "gzip": {"compression": "gzip"},
        "brotli": {"compression": "brotli"},
        "no compression": {"compression": "none"},
        "row groups of 3": {"row_group_size": 3},
        "no dictionary": {"use_dictionary": False},
        "data pages v2": {"data_page_version": "2.0"},
    }[what]
    pq.write_table(table, path, **more)
    return path, what


@kind("parquet/no schema metadata")
def _no_metadata(root: Path, rng: random.Random) -> Done:
    path = pick(root, rng, ".parquet")
    if path is None:
        return None
    _write(pq.read_table(path).replace_schema_metadata(None), path)
    return path, "without schema metadata"


@kind("parquet/a footer of more rows")
def _more_rows(root: Path, rng: random.Random) -> Done:
    """The footer names the same row groups again and again."""
    path = pick(root, rng, ".parquet")
    if path is None:
        return None
    data = path.read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = pq.read_metadata(path)
    times = rng.choice([2, 100, 3000])
    whole = pq.read_metadata(path)
    for _ in range(times - 1):
        whole.append_row_groups(footer)
    beside = path.with_name(".footer")
    whole.write_metadata_file(str(beside))
    path.write_bytes(data[: -8 - length] + beside.read_bytes()[4:])
    beside.unlink()
    return path, f"its footer counts {times} times its rows"


@kind("parquet/other schema metadata")
def _other_metadata(root: Path, rng: random.Random) -> Done:
    """Of what the writer noted in the schema: another type, missing keys, no JSON."""
    path = pick(root, rng, ".parquet")
    if path is None:
        return None
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata or {})
    if not metadata:
        return None
    key = rng.choice(sorted(metadata))
    try:
        value = json.loads(metadata[key])
    except ValueError:
        value = {}
    choices = [b"[]", b"null", b"{}", b"7", b"not JSON", b"\xff\xfe", b"{" * 2000]
    if isinstance(value, dict) and value:
        name = rng.choice(sorted(value))
        less = {k: v for k, v in value.items() if k != name}
        others = [less, *(value | {name: other} for other in (None, 7, "text", [], {"a": 1}, -1))]
        choices += [json.dumps(other).encode() for other in others] * 2
    metadata[key] = rng.choice(choices)
    _write(table.replace_schema_metadata(metadata), path)
    return path, f"{key.decode()} is {metadata[key][:60]!r}"
