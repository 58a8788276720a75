"""What actors sent, as the learner's disk has it: one spool for each actor, with the numbers of the actor's own.

An item is stored once by (actor id, number): a number below the spool's next one is there already and is
dropped, a later one is refused. What is acknowledged to the actor is on the disk here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import filelock

from chunkrl.config import record_of
from chunkrl.errors import DatasetError, RecordError, SpoolError, TransportError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.online.link.records import Hello, StepRecord, StreamSpec
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.wire import Batch, decode_item

STREAM_FILE = "stream.json"
"""In a spool's folder: what its records look like."""


class ReceivedStreams:
    """The spools of all actors under `root`; open in one process, used from several threads.

    root: the folder. max_actors: how many different actors there may ever be.

    Raises:
        SpoolError: another process has it open, or it is damaged.
    """

    def __init__(self, root: str | Path, *, max_actors: int = 64, segment_bytes: int = 64 * 2**20) -> None:
        self.root = Path(root)
        self._max_actors = max_actors
        self._segment_bytes = segment_bytes
        self._mutex = threading.Lock()
        self._spools: dict[str, Spool] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._fits: Callable[[str, StreamSpec], None] | None = None
        self._lock = filelock.FileLock(self.root / ".lock", thread_local=False)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise SpoolError(f"{self.root}: another learner has this folder open; end it") from error
        except OSError as error:
            raise SpoolError(f"{self.root}: {error.strerror}; use a writable folder") from error
        try:
            self._spec = read_spec(self.root / STREAM_FILE)
            for path in sorted(self.root.glob("*/spool.json")):
                self._open(path.parent.name, None)
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> StreamSpec | None:
        """What steps look like: fixed by the first actor that ever came; None before."""
        return self._spec

    def require(self, fits: Callable[[str, StreamSpec], None]) -> None:
        """From now on only actors are let in whose steps the learner can use.

        fits: called with whose they are and what they look like; raises DatasetError, with the cure, where the
            learner cannot use them.

        Raises:
            SpoolError: those that came before do not.
        """
        with self._mutex:
            if self._spec is not None:
                try:
                    fits(f"what {self.root / STREAM_FILE} describes", self._spec)
                except DatasetError as error:
                    raise SpoolError(
                        f"{error}; the episodes that are here cannot be trained on with these settings: begin a "
                        "learner in a new folder"
                    ) from error
            self._fits = fits

    @property
    def actors(self) -> tuple[str, ...]:
        """All actors that ever came, sorted."""
        with self._mutex:
            return tuple(sorted(self._spools))

    def spool(self, actor_id: str) -> Spool:
        """An actor's spool, to read from and to acknowledge."""
        with self._mutex:
            return self._spools[actor_id]

    def greet(self, hello: Hello) -> int:
        """Lets an actor in and returns the first number that is not stored.

        Raises:
            TransportError: its spool is not the one that came under this name before, its steps are none that the
                learner can use (`require`) or look different from the other actors', or there are too many actors.
        """
        with self._mutex:
            self._check_spec(hello)
            spool = self._spools.get(hello.actor_id)
            if spool is None:
                if len(self._spools) >= self._max_actors:
                    raise TransportError(
                        f"actor {hello.actor_id}: there are {self._max_actors} actors already; raise max_actors"
                    )
                spool = self._open(hello.actor_id, hello.spool_id)
            if spool.spool_id != hello.spool_id:
                raise TransportError(
                    f"actor {hello.actor_id}: its spool is {hello.spool_id}, but {spool.spool_id} was received under "
                    "that name: another actor has the name, or the spool folder is new; choose another --actor-id, "
                    "with an --output-dir (or --spool) of its own"
                )
            return spool.next_sequence

    def append(self, batch: Batch) -> int:
        """Stores what of `batch` is new and returns the first number that is not stored.

        Raises:
            RecordError: an item is damaged, is another actor's or does not fit, or numbers are missing before it.
            TransportError: the actor was not greeted.
            SpoolError: the disk is full; nothing that was acknowledged is lost.
        """
        with self._mutex:
            spool, lock = self._spools.get(batch.actor_id), self._locks.get(batch.actor_id)
        if spool is None or lock is None or spool.spool_id != batch.spool_id:
            raise TransportError(f"actor {batch.actor_id}: greet before sending")
        with lock:  # two connections of one actor: a cut one may still be read
            if batch.first_sequence > spool.next_sequence:
                raise RecordError(
                    f"actor {batch.actor_id}: number {batch.first_sequence} came, but {spool.next_sequence} is next: "
                    "greet again and send from there"
                )
            fresh = batch.items[spool.next_sequence - batch.first_sequence :]
            for payload in fresh:
                self._check_item(batch.actor_id, payload)
            for payload in fresh:
                spool.append(payload)
            spool.sync()
            return spool.next_sequence

    def close(self) -> None:
        """Closes all spools."""
        with self._mutex:
            for spool in self._spools.values():
                spool.close()
            self._spools.clear()
            self._lock.release()

    def _open(self, actor_id: str, spool_id: str | None) -> Spool:
        spool = Spool(
            self.root / actor_id,
            sync_interval_s=float("inf"),  # once per batch
            segment_bytes=self._segment_bytes,
            spool_id=spool_id,
        )
        self._spools[actor_id], self._locks[actor_id] = spool, threading.Lock()
        return spool

    def _check_spec(self, hello: Hello) -> None:
        if self._spec is None:
            self._check_fits(hello)  # before it is stored: it would keep an actor out that fits
            try:
                write_text(self.root / STREAM_FILE, json.dumps(asdict(hello.spec), indent=2))
            except DatasetError as error:
                raise SpoolError(str(error)) from error
            self._spec = hello.spec
        ours, theirs = asdict(self._spec), asdict(hello.spec)
        for name, value in ours.items():
            if theirs[name] != value:
                raise TransportError(
                    f"actor {hello.actor_id}: {name} {theirs[name]}, but this learner's data has {value}: use the "
                    "same robot settings, or another learner"
                )

    def _check_fits(self, hello: Hello) -> None:
        if self._fits is None:
            return
        try:
            self._fits(f"actor {hello.actor_id}", hello.spec)
        except DatasetError as error:
            raise TransportError(str(error)) from error

    def _check_item(self, actor_id: str, payload: bytes) -> None:
        item = decode_item(payload)
        if item.actor_id != actor_id:
            raise RecordError(f"actor {actor_id} sent an item of actor {item.actor_id}")
        if isinstance(item, StepRecord) and self._spec:
            self._spec.check(item)


def read_spec(path: Path) -> StreamSpec | None:
    """What a JSON file says of an actor's steps; None where there is none. Raises SpoolError where it is damaged."""
    if not path.exists():
        return None
    found = read_json(path, dict, SpoolError, "restore it")
    found.pop("actor_id", None)
    return record_of(StreamSpec, found, str(path), SpoolError, "restore it")


def read_actor_stream(path: Path) -> tuple[str, StreamSpec]:
    """The name and the steps of the actor whose spool `path` (`STREAM_FILE`) lies in.

    Raises SpoolError where it does not say them.
    """
    spec = read_spec(path)
    cure = "delete it if the spool is this actor's"
    actor_id = read_json(path, dict, SpoolError, cure).get("actor_id")
    if spec is None or not isinstance(actor_id, str):
        raise SpoolError(f"{path} names no actor: {cure}")
    return actor_id, spec
