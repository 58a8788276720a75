"""Variants tried in processes of their own: one that hangs or dies is counted, and the others go on."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

MEMORY_BYTES = (
    6 * 2**30
)  # of address space beyond what the libraries took: a bomb is an error, not the machine's end
FILE_BYTES = 2**30
PREPARATION_S = 300.0  # before a job's first note


@dataclass(frozen=True)
class Answer:
    """Of one job. died: how the process ended where it gave no value. note: the last that the job told of itself."""

    job: Any
    value: Any = None
    died: str = ""
    note: Any = None
    seconds: float = 0.0


Function = Callable[[Any, Path, Callable[[Any], None]], Any]


def _server(module: str) -> ForkServerContext:
    """Forks from a process that has imported `module`, which takes seconds, and done nothing since.

    A fork of a process whose other threads hold locks, as one of pytest after other tests, ends in a segmentation
    fault or a deadlock now and then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with mock.patch.dict(
        os.environ, PYTHONPATH=os.pathsep.join(sys.path)
    ):  # Python 3.11 does not tell it of them
        forkserver.ensure_running()
    return context


class _Worker:
    def __init__(self, function: Function, scratch: Path) -> None:
        self.function = function
        context = _server(function.__module__)
        self.connection, theirs = context.Pipe()
        self.scratch = scratch
        self.faults = scratch.with_name(f"{scratch.name}-faults.txt")
        self.process = context.Process(
            target=_serve, args=(function, theirs, scratch, self.faults), daemon=True
        )
        self.process.start()
        theirs.close()
        self.job: Any = None
        self.note: Any = None
        self.since = 0.0

    def begin(self, job: Any) -> None:
        self.job, self.note, self.since = job, None, time.monotonic()
        self.connection.send(job)

    def answer(self, value: Any, died: str = "") -> Answer:
        """Of its job."""
        return Answer(self.job, value, died, self.note, time.monotonic() - self.since)

    def death(self) -> str:
        """How it ended, and where if by a fault."""
        self.process.join()
        where = self.faults.read_text(errors="replace") if self.faults.exists() else ""
        return f"ended with {self.process.exitcode}" + (f"\n{where}" if where else "")

    def again(self) -> _Worker:
        """A fresh one in its place."""
        self.end()
        return _Worker(self.function, self.scratch)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _serve(function: Function, connection: Connection, scratch: Path, faults: Path) -> None:
    parent = os.getppid()
    faults.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.enable(faults.open("w"))
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        while True:
            while not connection.poll(10):
                if os.getppid() != parent:
                    return
            try:
                job = connection.recv()
            except EOFError:
                return
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            try:
                value = function(job, scratch, lambda told: connection.send(("note", told)))
                connection.send(("value", value))
            except Exception:
                connection.send(("died", traceback.format_exc()))


def run_jobs(
    function: Function,
    jobs: Iterable[Any],
    num_workers: int,
    limit_s: float,
    scratch: Path,
) -> Iterator[Answer]:
    """`function(job, folder, note)` of every job, in processes of their own, in the order they end.

    folder: of its own, empty. note: takes what the answer should say even where the job does not end.

    limit_s: a job that takes longer, from its last note on, is ended, and the process with it.
    """
    waiting = iter(jobs)
    workers: list[_Worker] = []

    def start(place: int) -> bool:
        job = next(waiting, None)
        if job is None:
            return False
        if place == len(workers):
            workers.append(_Worker(function, scratch / str(place)))
        workers[place].begin(job)
        return True

    try:
        busy = {place for place in range(num_workers) if start(place)}
        while busy:
            by_connection = {workers[place].connection: place for place in busy}
            ready: list[Any] = wait(list(by_connection), timeout=0.2)
            for connection in ready:
                place = by_connection[connection]
                worker = workers[place]
                try:
                    sort, value = connection.recv()
                except EOFError:
                    sort, value = "died", worker.death()
                    workers[place] = worker.again()
                if sort == "note":
                    worker.note, worker.since = value, time.monotonic()
                    continue
                yield worker.answer(value) if sort == "value" else worker.answer(None, value)
                if not start(place):
                    busy.discard(place)
            for place in sorted(busy):
                worker = workers[place]
                if time.monotonic() - worker.since > (limit_s if worker.note else PREPARATION_S):
                    yield worker.answer(None, "hang")
                    workers[place] = worker.again()
                    if not start(place):
                        busy.discard(place)
    finally:
        for worker in workers:
            worker.end()
