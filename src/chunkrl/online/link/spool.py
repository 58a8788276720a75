"""A durable log on the local disk: the actor writes here first and sends after; the learner receives into one.

Library considered: SQLite (0.034 ms an entry of 20 kB with a write-ahead log, against 0.016 here; what damage costs
is not said by entry there).

Guarantees:
- What `append` returned for is there after the process is killed at any moment. After a power cut it is there
  up to `durable_sequence`: every entry with `sync_interval_s = 0`, else all but the last interval's and those that
  came while the disk was waited for (who sends calls `sync` first).
- With an interval, `append` does not wait for the disk: a thread of the spool's and the callers of `sync`, `read` and
  `acknowledge` do, and the log goes on meanwhile. Only where they cannot keep up (see `_ROOM`) does `append` wait.
- Entries have the numbers 0, 1, 2, ... over all restarts, and a number is never used twice.
- A frame torn by a crash is cut off on reopening, with a warning; damage elsewhere is a SpoolError, never
  skipped.
- An entry's file is deleted only when the watermark (`acknowledge`), which is on the disk by then, has passed
  all of it and a later file exists.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from chunkrl.errors import DatasetError, SpoolError, SpoolWriteError
from chunkrl.files.atomic import remove_temporaries
from chunkrl.online.link import spool_files as sf
from chunkrl.online.link.spool_files import Periodic, identify, read_watermark, write_watermark

_LOG = logging.getLogger(__name__)
_LOCK = ".lock"
_SPARE = ".spare"
_ROOM = 2
"""A file may become so many times `segment_bytes` long until a moment comes when all of it is on the disk."""
_TRIES = 10
"""Syncs in a row that look for such a moment."""


class Spool:
    """An append-only log of byte strings in a folder, open in one process; safe to use from several threads.

    root: the folder, created if absent.
    sync_interval_s: 0: `append` waits for the disk each time; else a thread syncs this often (inf: only `sync` does).
    segment_bytes: size at which a new file begins.
    spool_id: identity of a new folder (default: a random one); an existing folder must have the same.

    Attributes:
        spool_id: UUID of this folder.

    Raises:
        SpoolError: another process has it open, it is damaged, or the folder cannot be written.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        sync_interval_s: float = 0.0,
        segment_bytes: int = 64 * 2**20,
        spool_id: str | None = None,
    ) -> None:
        if not sync_interval_s >= 0 or segment_bytes < 1:
            raise SpoolError(
                f"sync_interval_s {sync_interval_s}, segment_bytes {segment_bytes}: at least 0 and 1"
            )
        self.root = Path(root)
        self._interval = sync_interval_s
        self._segment_bytes = segment_bytes
        self._mutex = threading.RLock()
        # held by who waits for the disk; taken in this order, and before the mutex
        self._syncing, self._reading = threading.Lock(), threading.Lock()
        self._periodic: Periodic | None = None
        self._descriptor = -1
        self._segments: list[int] = []  # first numbers of the files, ascending; the last one is written to
        self._end = 0  # bytes of the newest file
        self._named = True  # the newest file's name is on the disk
        self._next = self._acknowledged = self._durable = 0
        self._reader = sf.EntryReader(self.root)
        self._lock = filelock.FileLock(self.root / _LOCK, thread_local=False)
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise SpoolError(
                    f"{self.root}: another process has this spool open; end it, or use another folder"
                ) from error
        try:
            with self._writing():
                remove_temporaries(self.root)
                self.spool_id = identify(self.root, spool_id)
                self._recover()
            if 0 < sync_interval_s < float("inf"):
                self._periodic = Periodic(self.sync, sync_interval_s, "spool-sync")
        except BaseException:
            self.close()
            raise

    @property
    def next_sequence(self) -> int:
        """The number that the next entry gets."""
        return self._next

    @property
    def acknowledged(self) -> int:
        """The watermark: all entries below it are done with."""
        return self._acknowledged

    @property
    def num_waiting(self) -> int:
        """Entries above the watermark."""
        return self._next - self._acknowledged

    @property
    def durable_sequence(self) -> int:
        """All entries below this number survive a power cut."""
        return self._durable

    def append(self, payload: bytes) -> int:
        """Add an entry and return its number.

        Raises:
            SpoolError: the disk is full or read-only, the last sync failed, or the entry is too large; the spool is
                as before, and a later call may succeed.
        """
        if len(payload) > sf.MAX_PAYLOAD_BYTES:
            raise SpoolError(
                f"an entry of {len(payload)} bytes, more than {sf.MAX_PAYLOAD_BYTES}: use smaller images"
            )
        with self._mutex, self._writing():
            self._check_open()
            if self._periodic and (failure := self._periodic.failure):
                raise SpoolWriteError(str(failure)) from failure
            room = _ROOM if self._periodic else 1
            if self._end >= room * self._segment_bytes and self._next > self._segments[-1]:
                self._sync()
                self._begin_segment(self._next)
            frame = sf.encode_frame(self._next, payload)
            try:
                sf.write_all(self._descriptor, frame)
                if self._interval == 0:
                    os.fdatasync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._end)  # a part of the frame, and no other, lies there
                raise
            self._end += len(frame)
            self._next += 1
            if self._interval == 0:
                self._durable = self._next
            return self._next - 1

    def sync(self) -> None:
        """Wait until everything appended so far would survive a power cut; others append meanwhile.

        Raises:
            SpoolError: the disk is full, ...; what was durable before is.
        """
        with self._syncing, self._writing():
            self._sync_aside()
            if self._periodic:
                self._begin_segment_aside()

    def read(self, first: int, max_bytes: int, end: int | None = None) -> list[bytes]:
        """Consecutive entries from number `first`: below `end` (default: all), together at most `max_bytes` but
        at least one if there is one."""
        with self._reading, self._writing():
            with self._mutex:  # who appends waits for no more than this
                self._check_open()
                segments, written = list(self._segments), self._next
            if not segments[0] <= first <= written:
                raise SpoolError(
                    f"{self.root}: entry {first} is not here ({segments[0]} to {written - 1} are): it was "
                    "acknowledged and deleted, or never written"
                )
            last = written if end is None else min(end, written)
            return self._reader.read(segments, first, last, max_bytes)

    def acknowledge(self, next_sequence: int) -> None:
        """Raise the watermark: no entry below `next_sequence` is needed any more. A lower one changes nothing."""
        with self._syncing, self._writing():
            self._check_open()
            if next_sequence > self._next:
                raise SpoolError(
                    f"{self.root}: {next_sequence} entries acknowledged, but only {self._next} written: the folder "
                    "was restored from an older copy; use a new folder and a new actor id"
                )
            if next_sequence <= self._acknowledged:
                return
            if next_sequence > self._durable:
                self._sync_aside()  # the watermark never passes what is on the disk
            write_watermark(self.root, next_sequence)
            with self._reading:
                with self._mutex:
                    self._acknowledged = next_sequence
                    done = self._take_done()
                for first in done:
                    self._reader.delete(first)

    def close(self) -> None:
        """Sync, close and let other processes in; further calls do nothing."""
        if self._periodic:
            self._periodic.close()
        with self._syncing, self._reading, self._mutex:
            self._reader.close()
            try:
                if self._descriptor >= 0:
                    with self._writing():
                        self._sync()
            finally:
                if self._descriptor >= 0:
                    os.close(self._descriptor)
                self._descriptor = -1
                self._lock.release()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._descriptor < 0:
            raise SpoolError(f"{self.root}: the spool is closed; open a new one")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except DatasetError as error:  # of `write_text`
            raise SpoolWriteError(str(error)) from error
        except OSError as error:
            raise SpoolWriteError(
                f"spool {self.root}: {error.strerror or error}; free some space or use a writable folder, what was "
                "written before is kept"
            ) from error

    def _recover(self) -> None:
        watermark = read_watermark(self.root)
        self._segments = sf.list_segments(self.root)
        if self._segments:
            newest = sf.segment_path(self.root, self._segments[-1])
            self._next, self._end, torn = sf.recover_tail(newest, self._segments[-1])
            if torn:
                _LOG.warning("%s: %d bytes of an entry torn by a crash cut off", newest, torn)
            self._descriptor = os.open(newest, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(self._descriptor, self._end)
            if self._end == 0:
                sf.write_all(self._descriptor, sf.MAGIC)
                self._end = len(sf.MAGIC)
        self._acknowledged = max(watermark, self._segments[0] if self._segments else 0)
        if not self._segments or self._next < self._acknowledged:
            # A disk that lost what it had confirmed: the receiver has it; its numbers must not be used again.
            self._next = self._acknowledged
            self._begin_segment(self._next)
        os.fsync(self._descriptor)
        _sync_folder(self.root)
        self._durable = self._next
        for first in self._take_done():
            self._reader.delete(first)

    def _begin_segment(self, first: int) -> None:
        """Continue in a new file; where that fails the old one stays the newest."""
        path = sf.segment_path(self.root, first)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            sf.write_all(descriptor, sf.MAGIC)
            os.fsync(descriptor)
            _sync_folder(self.root)  # the new name too must survive a power cut
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._use_segment(descriptor, first)

    def _use_segment(self, descriptor: int, first: int) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._end = descriptor, len(sf.MAGIC)
        self._segments.append(first)

    def _sync(self) -> None:
        """Is called with the mutex held: nothing is appended until the disk is done."""
        if self._durable < self._next:
            os.fdatasync(self._descriptor)
            self._sync_name()
            self._durable = self._next

    def _sync_aside(self) -> None:
        """Without the mutex, on a descriptor of its own: the newest file may be closed for a newer one meanwhile."""
        with self._mutex:
            self._check_open()
            target = self._next
            if self._durable >= target:
                return
            descriptor = os.dup(self._descriptor)
        try:
            os.fdatasync(descriptor)
            self._sync_name()
        finally:
            os.close(descriptor)
        with self._mutex:
            self._durable = max(self._durable, target)

    def _sync_name(self) -> None:
        if not self._named:
            _sync_folder(self.root)
            self._named = True

    def _begin_segment_aside(self) -> None:
        """Continue in a new file, where the old one is long enough and nothing of it waits for the disk: else a power
        cut could keep the new file and take the old one's end."""
        if self._end < self._segment_bytes:
            return
        spare = self.root / _SPARE
        descriptor = os.open(spare, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            sf.write_all(descriptor, sf.MAGIC)
            os.fsync(descriptor)
            for _ in range(_TRIES):
                self._sync_aside()
                with self._mutex:
                    first = self._next
                    if first > self._durable or first == self._segments[-1]:
                        continue
                    spare.rename(sf.segment_path(self.root, first))
                    self._named = False
                    self._use_segment(descriptor, first)
                    descriptor = -1
                return
        finally:
            if descriptor >= 0:
                os.close(descriptor)
                spare.unlink(missing_ok=True)

    def _take_done(self) -> list[int]:
        """Takes the files that nobody needs out of the list; returns their first numbers."""
        done: list[int] = []
        while len(self._segments) > 1 and self._segments[1] <= self._acknowledged:
            done.append(self._segments.pop(0))
        return done


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
