"""Single values of a parquet file's binary columns, without reading the rest of their row group.

Library considered: pyarrow, which reads whole column chunks: 65 ms for one image of a row group of 100, against
1.1 here.

pyarrow reads a column chunk whole: the 10 MB of an episode's images for one of 100 kB. Chunks are made of pages of
about 1 MB, which can be found and decompressed alone (Apache Parquet format: parquet.thrift, Encodings.md, Thrift's
compact protocol). Read here are flat columns in data pages of version 1, plain or with a dictionary, without missing
values; where a file is made otherwise `BinaryPages.read` says so, and pyarrow reads it.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Any

import deflate
import numpy as np
import pyarrow as pa

from chunkrl.data.parquet import open_parquet
from chunkrl.errors import DatasetError

_CODECS = ("SNAPPY", "GZIP", "ZSTD", "BROTLI")
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _DICTIONARY = (0,), (2, 8)
_LENGTH = struct.Struct("<I")


class _UnsupportedError(Exception):
    """The file has none of the layouts that are read here, or is damaged: pyarrow decides."""


@dataclass(frozen=True)
class _Page:
    """header: Thrift's fields by number. begin, end: of its compressed bytes. first_row: in the row group."""

    header: Mapping[int, Any]
    begin: int
    end: int
    first_row: int


@dataclass(frozen=True)
class _Chunk:
    """A column of a row group: its pages, the dictionary first where there is one, and how they are packed.

    present: the definition level of a value that is there; 0: none is missing, and no levels are stored.
    """

    pages: Sequence[_Page]
    codec: str
    present: int


_first_row = attrgetter("first_row")


class BinaryPages:
    """A parquet file mapped into memory for reading single binary values, by several threads at once.

    It stays mapped, without an open file, for as long as it or a value is used.

    Attributes:
        names: of the file's columns.
        first_rows: the first row of every row group, and the number of all rows.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with pa.memory_map(str(file)) as opened:
            content = opened.read_buffer()
        self._bytes = memoryview(content).cast("B")
        self._parquet = open_parquet(pa.BufferReader(content))
        self._whole = Lock()  # of pyarrow's reader
        self.names: list[str] = self._parquet.schema_arrow.names
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.first_rows: list[int] = np.cumsum([0, *sizes]).tolist()
        columns = metadata.row_group(0) if sizes else None
        paths = [columns.column(i).path_in_schema for i in range(columns.num_columns)] if columns else []
        self._position = {path: i for i, path in enumerate(paths)}
        self._chunks: dict[tuple[int, int], _Chunk | None] = {}

    def read_group(self, group: int, column: str) -> pa.Array:
        """All rows of a column (`camera`) of a row group."""
        with self._whole:
            table = self._parquet.read_row_group(group, columns=[column], use_threads=False)
        return table.column(column).combine_chunks()

    def read(self, group: int, path: str, rows: Sequence[int]) -> list[memoryview] | None:
        """The values of a leaf column (`camera.bytes`) at these increasing rows of a row group.

        None: the column is laid out in a way that is not read here, or is damaged; pyarrow tells which.

        Raises:
            DatasetError: a page does not have its checksum.
        """
        position = self._position.get(path)
        if position is None:
            return None
        if (group, position) not in self._chunks:
            try:
                self._chunks[group, position] = self._find_chunk(group, position)
            except (_UnsupportedError, IndexError):
                self._chunks[group, position] = None
        chunk = self._chunks[group, position]
        try:
            return None if chunk is None else self._values(chunk, rows)
        except DatasetError:
            raise
        except (_UnsupportedError, IndexError, struct.error, pa.ArrowException, OSError, ValueError):
            return None

    def _find_chunk(self, group: int, position: int) -> _Chunk:
        column = self._parquet.schema.column(position)
        if column.max_repetition_level:
            raise _UnsupportedError
        chunk = self._parquet.metadata.row_group(group).column(position)
        at = chunk.dictionary_page_offset or chunk.data_page_offset
        end, row = at + chunk.total_compressed_size, 0
        pages = []
        while row < chunk.num_values:
            header, begin = _struct(self._bytes, at, end)
            at = begin + header.get(3, 0)
            is_data = header.get(1) == _DATA_PAGE
            if at > end or begin >= at or not (is_data or (header.get(1) == _DICTIONARY_PAGE and not pages)):
                raise _UnsupportedError
            pages.append(_Page(header, begin, at, row if is_data else -1))
            row += header.get(5, {}).get(1, 0) if is_data else 0
        return _Chunk(pages, chunk.compression, column.max_definition_level)

    def _values(self, chunk: _Chunk, rows: Sequence[int]) -> list[memoryview]:
        pages = chunk.pages
        dictionary: list[memoryview] | None = None
        found: list[memoryview] = []
        number, values = -1, []
        for row in rows:
            wanted = bisect_right(pages, row, key=_first_row) - 1
            if wanted != number:
                number, page = wanted, pages[wanted]
                header, data = page.header[5], self._content(page, chunk.codec)
                if chunk.present:
                    data = _behind_levels(data, chunk.present, header[1])
                if header.get(2) in _DICTIONARY and pages[0].first_row == -1:
                    if dictionary is None:
                        dictionary = _plain(
                            self._content(pages[0], chunk.codec), pages[0].header[7].get(1, 0)
                        )
                    values = [dictionary[index] for index in _hybrid(data[1:], data[0], header[1])]
                elif header.get(2) in _PLAIN:
                    values = _plain(data, header[1])
                else:
                    raise _UnsupportedError
            found.append(values[row - pages[number].first_row])
        return found

    def _content(self, page: _Page, codec: str) -> memoryview:
        """A page's decompressed bytes."""
        data = self._bytes[page.begin : page.end]
        checksum = page.header.get(4)
        if checksum is not None and deflate.crc32(data) != checksum % 2**32:
            raise DatasetError(
                f"{self.file} is damaged (a page has another checksum): fetch or write it again"
            )
        if codec == "UNCOMPRESSED":
            return data
        if codec not in _CODECS:
            raise _UnsupportedError
        size = page.header.get(2, 0)
        buffer = pa.Codec(codec.lower()).decompress(pa.py_buffer(data), decompressed_size=size)
        return memoryview(buffer).cast("B")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned variable-length integer and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise _UnsupportedError


def _struct(data: memoryview, at: int, end: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol as field number -> value, and the place after it."""
    fields: dict[int, Any] = {}
    number = 0
    while at < end:
        byte = data[at]
        at += 1
        if byte == 0:
            return fields, at
        kind = byte & 15
        if byte >> 4 == 0:
            raw, at = _varint(data, at)
            number = (raw >> 1) ^ -(raw & 1)
        else:
            number += byte >> 4
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            raw, at = _varint(data, at)
            fields[number] = (raw >> 1) ^ -(raw & 1)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind == 12:
            fields[number], at = _struct(data, at, end)
        else:
            raise _UnsupportedError
    raise _UnsupportedError


def _behind_levels(data: memoryview, present: int, count: int) -> memoryview:
    """A page without its `count` definition levels, which must all say that there is a value."""
    end = 4 + int.from_bytes(data[:4], "little")
    levels = _hybrid(data[4:end], present.bit_length(), count)
    # a page that lacks some holds fewer values, and those after the first gap would be others
    if len(levels) < count or set(levels) != {present}:
        raise _UnsupportedError
    return data[end:]


def _plain(data: memoryview, count: int) -> list[memoryview]:
    """PLAIN byte arrays: each its length (4 bytes) and its bytes, `count` of them to the end."""
    values, at = [], 0
    for _ in range(count):
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(data, at)[0]
        values.append(data[begin:at])
    if at != len(data):
        raise _UnsupportedError
    return values


def _hybrid(data: memoryview, width: int, count: int) -> list[int]:
    """Numbers of `width` bits in runs and bit-packed groups of 8 (Parquet's RLE/bit-packing hybrid)."""
    values: list[int] = []
    at = 0
    while len(values) < count:
        header, at = _varint(data, at)
        if header & 1:
            size = (header >> 1) * width
            if at + size > len(data) or not width:
                raise _UnsupportedError
            bits = np.unpackbits(np.frombuffer(data[at : at + size], np.uint8), bitorder="little")
            values += (bits.reshape(-1, width) @ (1 << np.arange(width))).tolist()
        else:
            size = (width + 7) // 8
            values += [int.from_bytes(data[at : at + size], "little")] * min(header >> 1, count)
            if header >> 1 == 0:
                raise _UnsupportedError
        at += size
    return values[:count]
