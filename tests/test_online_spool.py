"""The spool: nothing that was appended is lost, nothing is there twice, whatever is killed, torn or full."""

import contextlib
import errno
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from online_records import episode_id, full_disk
from online_spool_writer import payload
from waiting import until

from chunkrl.errors import SpoolError
from chunkrl.online.link import spool_files as sf
from chunkrl.online.link.spool import Spool

MANY = 2**30


def fill(spool: Spool, count: int) -> None:
    for _ in range(count):
        spool.append(payload(spool.next_sequence))


def check(spool: Spool, first: int | None = None) -> None:
    """Every entry from `first` (default: the watermark) reads as it was written."""
    first = spool.acknowledged if first is None else first
    assert spool.read(first, MANY) == [payload(i) for i in range(first, spool.next_sequence)]


def segments(root: Path) -> list[int]:
    return [int(path.stem) for path in sorted(root.glob("*.segment"))]


def test_entries_come_back_after_reopening(tmp_path):
    with Spool(tmp_path, segment_bytes=4000) as spool:
        assert [spool.append(payload(i)) for i in range(10)] == list(range(10))
        check(spool, 0)
        identity = spool.spool_id
    with Spool(tmp_path, segment_bytes=4000) as spool:
        assert spool.spool_id == identity and spool.next_sequence == 10 and spool.acknowledged == 0
        fill(spool, 5)
        check(spool, 0)
        assert spool.read(15, MANY) == [] and spool.read(12, MANY, end=13) == [payload(12)]
        assert spool.read(3, 1) == [payload(3)]  # at least one
        size = len(payload(3)) + len(payload(4))
        assert len(spool.read(3, size)) == 2 and len(spool.read(3, size - 1)) == 1


@given(st.lists(st.tuples(st.sampled_from(["append", "acknowledge", "reopen", "read"]), st.integers(0, 40))))
@settings(max_examples=25)
def test_any_order_of_operations_keeps_every_entry_beyond_the_watermark(operations):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        spool, written, acknowledged = Spool(root, segment_bytes=3000, sync_interval_s=9), 0, 0
        for name, number in operations:
            if name == "append":
                fill(spool, number % 4)
                written += number % 4
            elif name == "acknowledge":
                spool.acknowledge(min(number, written))
                acknowledged = max(acknowledged, min(number, written))
            elif name == "reopen":
                spool.close()
                spool = Spool(root, segment_bytes=3000, sync_interval_s=9)
            else:
                first = acknowledged + number % (written - acknowledged + 1)
                assert spool.read(first, MANY) == [payload(i) for i in range(first, written)]
            assert (spool.next_sequence, spool.acknowledged) == (written, acknowledged)
            check(spool)
        spool.close()


def test_files_go_only_when_all_of_them_is_acknowledged_and_a_later_one_exists(tmp_path):
    with Spool(tmp_path, segment_bytes=1) as spool:  # a file an entry
        fill(spool, 4)
        assert segments(tmp_path) == [0, 1, 2, 3]
        spool.acknowledge(2)
        assert segments(tmp_path) == [2, 3]
        spool.acknowledge(4)
        assert segments(tmp_path) == [3]  # the newest stays
        with pytest.raises(SpoolError, match="entry 1 is not here"):
            spool.read(1, MANY)
    with Spool(tmp_path) as spool:
        assert spool.next_sequence == 4 and spool.acknowledged == 4


def test_a_torn_tail_is_cut_off_at_every_byte(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with Spool(tmp_path / "whole") as spool:
        fill(spool, 3)
        spool.append(b"last")
    source = tmp_path / "whole" / f"{0:020d}.segment"
    data = source.read_bytes()
    frame = len(sf.encode_frame(3, b"last"))
    for cut in range(1, frame + 1):
        root = tmp_path / f"cut{cut}"
        root.mkdir()
        (root / source.name).write_bytes(data[:-cut])
        (root / "spool.json").write_text((tmp_path / "whole/spool.json").read_text())
        caplog.clear()
        with Spool(root) as spool:
            assert spool.next_sequence == 3
            assert ("torn by a crash" in caplog.text) == (cut < frame)
            assert spool.append(payload(3)) == 3
            check(spool, 0)
    # killed while a new file's first bytes were written
    for length in range(len(sf.MAGIC) + 1):
        source.with_name(f"{4:020d}.segment").write_bytes(sf.MAGIC[:length])
        with Spool(tmp_path / "whole") as spool:
            assert spool.next_sequence == 4 and spool.read(3, MANY) == [b"last"]


def test_damage_that_is_no_torn_tail_is_an_error(tmp_path):
    with Spool(tmp_path, segment_bytes=300) as spool:
        fill(spool, 6)
        assert len(segments(tmp_path)) > 1
        old, new = (tmp_path / f"{i:020d}.segment" for i in (segments(tmp_path)[0], segments(tmp_path)[-1]))
    data = bytearray(old.read_bytes())
    data[-1] ^= 1
    old.write_bytes(data)
    with Spool(tmp_path) as spool, pytest.raises(SpoolError, match=r"entry \d at byte \d+ is damaged"):
        spool.read(0, MANY)
    with Spool(tmp_path / "b") as spool:
        fill(spool, 6)
    only = tmp_path / "b" / f"{0:020d}.segment"
    data = bytearray(only.read_bytes())
    data[len(sf.MAGIC) + 2 * 16 + 3] ^= 1  # in the payload of entry 1
    only.write_bytes(data)
    with pytest.raises(SpoolError, match=r"entry 1 at byte .* whole entries follow"):
        Spool(tmp_path / "b")
    new.write_bytes(b"something else")
    with pytest.raises(SpoolError, match="no spool segment of this version"):
        Spool(tmp_path)


def test_the_watermark_never_lets_a_number_be_used_twice(tmp_path):
    with Spool(tmp_path) as spool:
        fill(spool, 5)
        spool.acknowledge(5)
    path = tmp_path / f"{0:020d}.segment"
    path.write_bytes(path.read_bytes()[:100])  # a disk that lost what it had confirmed
    with Spool(tmp_path) as spool:
        assert spool.next_sequence == 5 and segments(tmp_path) == [5]
        with pytest.raises(SpoolError, match="6 entries acknowledged, but only 5 written"):
            spool.acknowledge(6)


def test_one_process_at_a_time(tmp_path):
    with Spool(tmp_path), pytest.raises(SpoolError, match="another process has this spool open"):
        Spool(tmp_path)
    Spool(tmp_path).close()
    with pytest.raises(SpoolError, match="the spool is closed"):
        spool = Spool(tmp_path)
        spool.close()
        spool.append(b"")


def test_identity(tmp_path):
    Spool(tmp_path / "a", spool_id=episode_id(1)).close()
    Spool(tmp_path / "a", spool_id=episode_id(1)).close()
    with pytest.raises(SpoolError, match="use another folder"):
        Spool(tmp_path / "a", spool_id=episode_id(2))
    (tmp_path / "a/spool.json").write_text(json.dumps({"format": 1, "spool_id": "x"}))
    with pytest.raises(SpoolError, match="spool_id 'x'"):
        Spool(tmp_path / "a")
    (tmp_path / "a/spool.json").unlink()
    with pytest.raises(SpoolError, match="is missing: restore it"):
        Spool(tmp_path / "a")
    (tmp_path / "a/acknowledged.json").write_text("[]")
    (tmp_path / "a/spool.json").write_text(json.dumps({"format": 1, "spool_id": episode_id(1)}))
    with pytest.raises(SpoolError, match=r"acknowledged.json holds a list .*: restore it"):
        Spool(tmp_path / "a")


@pytest.mark.parametrize("segment_bytes", [2**20, 1])
def test_a_full_disk_refuses_the_entry_and_keeps_the_rest(tmp_path, monkeypatch, segment_bytes):
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 7:
            return write(descriptor, bytes(data[:7]))  # a part still fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Spool(tmp_path, segment_bytes=segment_bytes) as spool:
        fill(spool, 3)
        monkeypatch.setattr(os, "write", full)
        for _ in range(2):
            with pytest.raises(SpoolError, match="No space left on device; free some space"):
                spool.append(payload(3))
        check(spool, 0)
        monkeypatch.undo()
        fill(spool, 2)
        check(spool, 0)
    with Spool(tmp_path) as spool:
        assert spool.next_sequence == 5
        check(spool, 0)


def test_a_file_that_the_kernel_lets_grow_no_more(tmp_path):
    with Spool(tmp_path) as spool:
        fill(spool, 10)
        size = (tmp_path / f"{0:020d}.segment").stat().st_size
        for room in (0, 1, 15, 16, 17, 500):
            with full_disk(size + room), pytest.raises(SpoolError, match="free some space"):
                spool.append(bytes(1000))
            assert (tmp_path / f"{0:020d}.segment").stat().st_size == size
        fill(spool, 10)
        check(spool, 0)
    with Spool(tmp_path) as spool:
        assert spool.next_sequence == 20


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="use a writable folder"):
        Spool(tmp_path / "file" / "spool")
    with Spool(tmp_path / "a") as spool, pytest.raises(SpoolError, match="use smaller images"):
        spool.append(bytes(sf.MAX_PAYLOAD_BYTES + 1))


def test_sync_interval_says_what_is_durable(tmp_path):
    with Spool(tmp_path / "each") as spool:
        fill(spool, 2)
        assert spool.durable_sequence == 2
    with Spool(tmp_path / "later", sync_interval_s=1000) as spool:
        fill(spool, 3)
        assert spool.durable_sequence == 0
        spool.sync()
        assert spool.durable_sequence == 3
        fill(spool, 1)
        spool.acknowledge(4)
        assert spool.durable_sequence == 4


class SlowDisk:
    """`os.fdatasync` that waits until `done` is set; `begun` says that one waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.done = threading.Event(), threading.Event()
        sync = os.fdatasync

        def slow(descriptor: int) -> None:
            self.begun.set()
            assert self.done.wait(60)
            sync(descriptor)

        monkeypatch.setattr(os, "fdatasync", slow)


def test_a_slow_disk_does_not_hold_up_who_appends(tmp_path, monkeypatch):
    with Spool(tmp_path, sync_interval_s=0.01) as spool:
        disk = SlowDisk(monkeypatch)
        fill(spool, 1)
        assert disk.begun.wait(60)  # the spool's own thread waits for the disk
        fill(spool, 5)
        check(spool, 0)
        assert (spool.next_sequence, spool.durable_sequence) == (6, 0)
        disk.done.set()
        spool.sync()
        assert spool.durable_sequence == 6
    with Spool(tmp_path, sync_interval_s=1000) as spool:
        fill(spool, 1)
        for wait in (spool.sync, lambda: spool.acknowledge(9)):
            disk.begun.clear()
            disk.done.clear()
            before = spool.next_sequence
            waiting = threading.Thread(target=wait)
            waiting.start()
            assert disk.begun.wait(60)
            fill(spool, 2)
            disk.done.set()
            waiting.join()
            assert spool.durable_sequence == before  # what came during the sync waits for the next one
        assert spool.acknowledged == 9


def test_a_slow_read_does_not_hold_up_who_appends(tmp_path, monkeypatch):
    begun, done, next_payload = threading.Event(), threading.Event(), sf.SegmentReader.next

    def slow(self):
        begun.set()
        assert done.wait(60)
        return next_payload(self)

    with Spool(tmp_path, sync_interval_s=1000, segment_bytes=500) as spool:
        fill(spool, 4)
        monkeypatch.setattr(sf.SegmentReader, "next", slow)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.extend(spool.read(0, 2**20)))
        reader.start()
        assert begun.wait(60)
        fill(spool, 4)
        spool.sync()
        acknowledging = threading.Thread(target=spool.acknowledge, args=(8,))  # files go when they are read
        acknowledging.start()
        fill(spool, 1)
        done.set()
        reader.join()
        acknowledging.join()
        assert found == [payload(i) for i in range(4)]  # what was there when it began
        assert spool.acknowledged == 8
        check(spool, 8)


def test_a_read_does_not_see_what_a_full_disk_took_back(tmp_path, monkeypatch):
    """A part of a frame that was read ahead would hide the entry that came to lie there."""
    with Spool(tmp_path, sync_interval_s=1000) as spool:
        fill(spool, 2)
        write_all = sf.write_all

        def torn(descriptor: int, frame: bytes) -> None:
            write_all(descriptor, frame[:20])
            assert spool.read(0, 2**20) == [payload(0), payload(1)]
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(sf, "write_all", torn)
        with pytest.raises(SpoolError, match="No space left"):
            spool.append(b"x" * 100)
        monkeypatch.setattr(sf, "write_all", write_all)
        fill(spool, 2)
        check(spool, 2)  # from where the last read ended


def test_what_is_appended_is_synced_without_a_further_call(tmp_path):
    with Spool(tmp_path, sync_interval_s=0.01) as spool:
        fill(spool, 3)
        until(lambda: spool.durable_sequence == 3)


def test_with_an_interval_a_sync_begins_the_next_file(tmp_path):
    with Spool(tmp_path, sync_interval_s=1000, segment_bytes=2000) as spool:
        fill(spool, 4)
        assert segments(tmp_path) == [0]
        spool.sync()
        assert segments(tmp_path) == [0]  # still short
        for _ in range(20):
            fill(spool, 1)
            spool.sync()
        files = segments(tmp_path)
        assert len(files) > 3 and spool.durable_sequence == 24
        check(spool, 0)
        fill(spool, 30)  # no sync comes: it makes room for itself
        assert len(segments(tmp_path)) > len(files)
        assert max(path.stat().st_size for path in tmp_path.glob("*.segment")) < 2 * 2000 + 2 * len(
            payload(54)
        )
        spool.acknowledge(54)
        assert not (tmp_path / ".spare").exists()
    with Spool(tmp_path) as spool:
        assert spool.next_sequence == 54
        check(spool)


def test_a_sync_that_fails_is_told_until_one_succeeds(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Spool(tmp_path, sync_interval_s=0.01) as spool:
        monkeypatch.setattr(os, "fdatasync", full)
        fill(spool, 1)
        with pytest.raises(SpoolError, match="No space left on device; free some space"):
            spool.sync()
        with pytest.raises(SpoolError, match="No space left on device; free some space"):
            until(lambda: fill(spool, 1))
        count = spool.next_sequence
        assert spool.durable_sequence == 0
        monkeypatch.undo()
        until(lambda: spool.durable_sequence == count)

        def one_more() -> bool:
            with contextlib.suppress(SpoolError):  # until the thread has noted its success
                fill(spool, 1)
            return spool.next_sequence > count

        until(one_more)
        assert spool.next_sequence == count + 1
        check(spool, 0)


def test_reading_while_another_thread_appends(tmp_path):
    with Spool(tmp_path, segment_bytes=20_000, sync_interval_s=9) as spool:
        writer = threading.Thread(target=fill, args=(spool, 300))
        writer.start()
        seen = 0

        def read_all() -> bool:
            nonlocal seen
            for entry in spool.read(seen, 50_000):
                assert entry == payload(seen)
                seen += 1
            spool.acknowledge(seen)
            return seen == 300

        until(read_all, pause_s=0.0)
        writer.join()


def kill_writer(root: Path, interval: str, seed: int, rounds: int) -> None:
    """SIGKILLs a writer `rounds` times; after each everything that it reported is there, once."""
    rng = random.Random(seed)
    reported = -1
    for _ in range(rounds):
        script = Path(__file__).with_name("online_spool_writer.py")
        command = [sys.executable, str(script), str(root), interval]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in itertools.islice(process.stdout, rng.randrange(1, 400)):
                assert int(line) == reported + 1  # goes on where the last one was killed, nothing twice
                reported += 1
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read()
        reported += rest.count("\n")
        with Spool(root, segment_bytes=100_000) as spool:
            assert spool.next_sequence in (reported + 1, reported + 2)  # one was appended, not reported
            reported = spool.next_sequence - 1
            check(spool)
            waiting = spool.next_sequence - spool.acknowledged
            assert waiting <= 81 + rounds  # each kill may come just before a watermark


def test_a_killed_writer_loses_nothing(tmp_path):
    kill_writer(tmp_path, "9", 0, 5)


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["0", "0.01"])
def test_a_writer_killed_20_times_loses_nothing(tmp_path, interval):
    kill_writer(tmp_path, interval, 1, 20)
