"""Single values of a parquet file's binary columns, without reading the rest of their row group.

pyarrow reads a column chunk whole: the 10 MB of an episode's pictures for one of 100 kB. Chunks are made of pages of
about 1 MB, which can be found and decompressed alone (Apache Parquet format: parquet.thrift, Encodings.md, Thrift's
compact protocol). Read here are flat columns in data pages of version 1, plain or with a dictionary, without missing
values; where a file is made otherwise `BinaryPages.read` says so, and pyarrow reads it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chunkrl.data.parquet import open_parquet
from chunkrl.errors import DatasetError

_CODECS = ("SNAPPY", "GZIP", "ZSTD", "BROTLI")
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _DICTIONARY = (0,), (2, 8)


class _UnsupportedError(Exception):
    """Not one of the layouts that are read here, or damaged: pyarrow decides."""


@dataclass(frozen=True)
class _Page:
    """header: Thrift's fields by number. begin, end: of its compressed bytes. first_row: in the row group."""

    header: Mapping[int, Any]
    begin: int
    end: int
    first_row: int


class BinaryPages:
    """A parquet file open for reading single binary values; not for several threads at once.

    Attributes:
        parquet: the file as pyarrow reads it.
        names: of its columns.
        first_rows: int64 [G + 1], the first row of every row group, and the number of all rows.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parquet = open_parquet(file, memory_map=True)
        self.names: list[str] = self.parquet.schema_arrow.names
        metadata = self.parquet.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.first_rows = np.cumsum([0, *sizes])
        self._bytes = memoryview(pa.memory_map(str(file)).read_buffer()).cast("B")
        columns = metadata.row_group(0) if sizes else None
        paths = [columns.column(i).path_in_schema for i in range(columns.num_columns)] if columns else []
        self._position = {path: i for i, path in enumerate(paths)}
        self._pages: dict[tuple[int, int], list[_Page] | None] = {}

    def close(self) -> None:
        """Closes the file."""
        self.parquet.close()

    def read(self, group: int, path: str, rows: Sequence[int]) -> list[memoryview] | None:
        """The values of a leaf column (`camera.bytes`) at these increasing rows of a row group.

        None: the column is laid out in a way that is not read here, or is damaged; pyarrow tells which.

        Raises:
            DatasetError: a page does not have its checksum.
        """
        position = self._position.get(path)
        if position is None or self.parquet.schema.column(position).max_repetition_level:
            return None
        if (group, position) not in self._pages:
            try:
                self._pages[group, position] = self._find_pages(group, position)
            except (_UnsupportedError, IndexError):
                self._pages[group, position] = None
        pages = self._pages[group, position]
        if pages is None:
            return None
        try:
            return self._values(group, position, pages, rows)
        except DatasetError:
            raise
        except (_UnsupportedError, IndexError, pa.ArrowException, OSError, ValueError):
            return None

    def _find_pages(self, group: int, position: int) -> list[_Page]:
        """The pages of a column chunk, the dictionary first where there is one."""
        chunk = self.parquet.metadata.row_group(group).column(position)
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
        return pages

    def _values(self, group: int, position: int, pages: list[_Page], rows: Sequence[int]) -> list[memoryview]:
        codec = self.parquet.metadata.row_group(group).column(position).compression
        has_levels = self.parquet.schema.column(position).max_definition_level > 0
        starts = [page.first_row for page in pages]
        dictionary: list[memoryview] | None = None
        found: list[memoryview] = []
        number, values = -1, []
        for row in rows:
            wanted = int(np.searchsorted(starts, row, side="right")) - 1
            if wanted != number:
                number, page = wanted, pages[wanted]
                header, data = page.header[5], self._content(page, codec)
                if has_levels:
                    data = data[4 + int.from_bytes(data[:4], "little") :]
                if header.get(2) in _DICTIONARY and pages[0].first_row == -1:
                    if dictionary is None:
                        dictionary = _plain(self._content(pages[0], codec), pages[0].header[7].get(1, 0))
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
        if checksum is not None and zlib.crc32(data) != checksum % 2**32:
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
    """An unsigned variable-length integer and the place behind it."""
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
    """A struct of Thrift's compact protocol as field number -> value, and the place behind it."""
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


def _plain(data: memoryview, count: int) -> list[memoryview]:
    """PLAIN byte arrays: each its length (4 bytes) and its bytes, `count` of them to the end."""
    values, at = [], 0
    for _ in range(count):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise _UnsupportedError
        values.append(data[at + 4 : end])
        at = end
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
