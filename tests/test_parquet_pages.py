"""Single images out of parquet pages are those that pyarrow reads, whatever the file's layout."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.data.parquet_pages import BinaryPages
from chunkrl.errors import DatasetError

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(file: Path, values: Sequence[bytes | None], **options) -> None:
    rows = [{"bytes": value, "path": f"frame-{i}.png"} for i, value in enumerate(values)]
    pq.write_table(pa.table({"camera": pa.array(rows, KIND), "n": range(len(rows))}), file, **options)


@given(
    seed=st.integers(0, 2**31),
    compression=st.sampled_from(["none", "snappy", "gzip", "zstd", "brotli"]),
    use_dictionary=st.booleans(),
    page_size=st.sampled_from([100, 1000, 100_000]),
    dictionary_size=st.sampled_from([300, 5000, 1_000_000]),
    distinct=st.integers(1, 300),
    group_rows=st.integers(20, 300),
)
@settings(max_examples=60)
def test_every_layout_gives_what_pyarrow_reads(
    tmp_path_factory, seed, compression, use_dictionary, page_size, dictionary_size, distinct, group_rows
):
    rng = np.random.default_rng(seed)
    known = [rng.bytes(int(rng.integers(0, 60))) for _ in range(distinct)]
    values = [known[i] for i in rng.integers(distinct, size=200)]
    file = tmp_path_factory.mktemp("pages") / "file.parquet"
    write(
        file,
        values,
        compression=compression,
        use_dictionary=use_dictionary,
        data_page_size=page_size,
        dictionary_pagesize_limit=dictionary_size,
        write_batch_size=8,
        row_group_size=group_rows,
    )
    pages = BinaryPages(file)
    for group, start in enumerate(range(0, 200, group_rows)):
        size = min(group_rows, 200 - start)
        rows = np.unique(rng.integers(size, size=5))
        # None would mean that these layouts fall back to the slow way
        assert pages.read(group, "camera.bytes", rows.tolist()) == [values[start + i] for i in rows]


def test_other_layouts_are_left_to_pyarrow(tmp_path):
    values: list[bytes | None] = [bytes([i]) * 50 for i in range(40)]
    write(tmp_path / "v2.parquet", values, data_page_version="2.0")
    write(tmp_path / "lz4.parquet", values, compression="lz4", use_dictionary=False)
    write(tmp_path / "missing.parquet", [None, *values[1:]], use_dictionary=False)
    for name in ("v2", "lz4", "missing"):
        assert BinaryPages(tmp_path / f"{name}.parquet").read(0, "camera.bytes", [0, 3]) is None
    assert BinaryPages(tmp_path / "v2.parquet").read(0, "camera.nothing", [0]) is None


@given(
    st.lists(st.sampled_from([None, *range(9)]), min_size=1, max_size=60), st.booleans(), st.integers(1, 20)
)
def test_where_values_are_missing_the_others_stay_in_their_rows(tmp_path_factory, numbers, dictionary, batch):
    """Pages hold only what is there, and a dictionary's indices are padded: a gap would move all after it."""
    values = [None if number is None else bytes([number]) * 9 for number in numbers]
    file = tmp_path_factory.mktemp("pages") / "file.parquet"
    write(file, values, use_dictionary=dictionary, write_batch_size=batch, data_page_size=30)
    rows = list(range(len(values)))
    found = BinaryPages(file).read(0, "camera.bytes", rows)
    assert (found is None) == (None in values) and (found is None or found == values)


def test_a_page_with_another_checksum_is_refused(tmp_path):
    file = tmp_path / "file.parquet"
    values = [bytes([i]) * 50 for i in range(40)]
    write(file, values, write_page_checksum=True, use_dictionary=False, compression="none")
    assert BinaryPages(file).read(0, "camera.bytes", [7]) == [values[7]]
    content = bytearray(file.read_bytes())
    content[content.index(values[7]) + 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="checksum"):
        BinaryPages(file).read(0, "camera.bytes", [7])


def test_noise_in_the_pages_gives_values_or_none(tmp_path):
    """Damage of pages without checksums is found by the images' own; here it must only not crash."""
    file = tmp_path / "file.parquet"
    write(file, [bytes([i % 7]) * 30 for i in range(100)], dictionary_pagesize_limit=100, write_batch_size=8)
    content, rng = file.read_bytes(), np.random.default_rng(0)
    end = len(content) - int.from_bytes(content[-8:-4], "little") - 8
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(4, end, size=3):
            damaged[place] = int(rng.integers(256))
        file.write_bytes(damaged)
        found = BinaryPages(file).read(0, "camera.bytes", [0, 50, 99])
        assert found is None or all(isinstance(value, memoryview) for value in found)


def test_several_threads_read_one_file(tmp_path):
    file = tmp_path / "file.parquet"
    values = [bytes([i]) * (50 + i) for i in range(200)]
    write(file, values, row_group_size=50, data_page_size=300, write_batch_size=4, use_dictionary=False)
    pages = BinaryPages(file)

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for group in rng.permutation(4).tolist() * 5:
            rows = np.unique(rng.integers(50, size=5)).tolist()
            expected = [values[50 * group + row] for row in rows]
            assert pages.read(group, "camera.bytes", rows) == expected
            whole = pages.read_group(group, "camera").field("bytes")
            assert [whole[row].as_py() for row in rows] == expected

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(16)))
