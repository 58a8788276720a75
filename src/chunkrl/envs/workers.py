"""Simulators in processes of their own: several cores, one rendering context a process, and no crash that spreads."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from chunkrl.envs.pool import SlotEnvironment, SlotReport
from chunkrl.envs.protocol import Environment
from chunkrl.errors import ChunkRLError

_GRACE_S = 5.0  # for a process to end by itself


def _work(connection: Connection, make: Callable[[str], Environment]) -> None:
    """A process's life: orders in, reports out, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it closes the connection
    slot = SlotEnvironment(make)
    while True:
        try:
            kind, arguments = connection.recv()
        except EOFError:
            slot.close()
            return
        stage = "make"
        try:
            if kind == "reset":
                slot.hold(arguments[0])
                stage = "run"
                answer = slot.reset(*arguments)
            else:
                stage = "run"
                answer = slot.execute(*arguments)
        except Exception as error:  # the parent decides: an episode anew, or the end
            told = str(error) if isinstance(error, ChunkRLError) else traceback.format_exc(limit=-3)
            # what cannot be made is the user's to cure, and will not go away by itself
            fatal = stage == "make" and isinstance(error, ChunkRLError)
            connection.send(("fatal" if fatal else "failure", told))
            continue
        connection.send(("done", answer))


@dataclass
class _Worker:
    """A slot's process. deadline: when an order that is not answered is taken for a hang; None: nothing ordered."""

    process: BaseProcess
    connection: Connection
    deadline: float | None = None


class WorkerPool:
    """An `EnvPool` of processes, each with one environment; they start when they are first needed.

    A process that crashes, raises, or does not answer for `hang_s` seconds is ended; its slot reports a failure, and
    gets a new process with its next order.
    """

    def __init__(self, num_slots: int, make: Callable[[str], Environment], hang_s: float = 300.0) -> None:
        """
        Args:
            make: name -> environment; runs in the processes, and must be importable there.
            hang_s: seconds for any one order, the making of the environment included.
        """
        self.num_slots, self.num_restarts = num_slots, 0
        self._make, self._hang_s = make, hang_s
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker | None] = [None] * num_slots

    def reset(self, slot: int, env: str, seed: int, record_every: int = 0) -> None:
        """See `EnvPool`."""
        self._order(slot, "reset", (env, seed, record_every))

    def execute(self, slot: int, actions: np.ndarray) -> None:
        """See `EnvPool`."""
        self._order(slot, "execute", (actions,))

    def _order(self, slot: int, kind: str, arguments: tuple[Any, ...]) -> None:
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = self._start(slot)
        assert worker.deadline is None, f"slot {slot} has not answered yet"
        worker.deadline = time.monotonic() + self._hang_s
        try:
            worker.connection.send((kind, arguments))
        except OSError:  # it has just died: `wait` finds its end and says how
            return

    def _start(self, slot: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._make), name=f"simulator {slot}", daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def wait(self, block: bool = True) -> Sequence[SlotReport]:
        """The reports that are there; at least one, if `block`.

        Raises:
            ChunkRLError: an environment cannot be made (another suite, no assets, a missing extra).
        """
        busy = {w.connection: slot for slot, w in enumerate(self._workers) if w is not None and w.deadline}
        if not busy:
            return []
        while True:
            first = min(w.deadline for w in self._workers if w is not None and w.deadline is not None)
            timeout = max(0.0, first - time.monotonic()) if block else 0.0
            ready = [self._receive(busy[c]) for c in wait(list(busy), timeout) if isinstance(c, Connection)]
            ready += self._hung(set(busy.values()) - {report.slot for report in ready})
            if ready or not block:
                return ready

    def _receive(self, slot: int) -> SlotReport:
        worker = self._workers[slot]
        assert worker is not None
        try:
            kind, answer = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(_GRACE_S)
            return self._lost(slot, f"its process ended with {_exit_words(worker.process.exitcode)}")
        if kind == "fatal":
            raise ChunkRLError(answer)
        if kind == "failure":
            return self._lost(slot, answer.strip())
        worker.deadline = None
        step, num_steps, task, frames = answer
        return SlotReport(slot, step, num_steps, task, frames)

    def _hung(self, slots: set[int]) -> list[SlotReport]:
        now = time.monotonic()
        late = [
            s
            for s in sorted(slots)
            if (w := self._workers[s]) is not None and w.deadline and w.deadline <= now
        ]
        return [self._lost(slot, f"its process did not answer for {self._hang_s:g} s") for slot in late]

    def _lost(self, slot: int, failure: str) -> SlotReport:
        worker = self._workers[slot]
        assert worker is not None
        _end(worker, grace_s=0.0)
        self._workers[slot] = None
        self.num_restarts += 1
        return SlotReport(slot, None, failure=failure)

    def close(self) -> None:
        """Ends the processes."""
        workers = [worker for worker in self._workers if worker is not None]
        self._workers = [None] * self.num_slots
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            _end(worker, _GRACE_S if worker.deadline is None else 0.0)


def _end(worker: _Worker, grace_s: float) -> None:
    worker.connection.close()
    if grace_s:
        worker.process.join(grace_s)
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
    worker.process.close()


def _exit_words(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit status {exit_code}"
