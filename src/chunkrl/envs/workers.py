"""Simulators in processes of their own: several cores, one rendering context per process, and no crash that spreads.

Library considered: gymnasium's AsyncVectorEnv (3.3 ms per step of four empty environments, a message per step where a
stretch of actions is one here; a killed worker ends all of them).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np

from chunkrl.envs.pool import CannotServeError, SlotEnvironment, SlotReport
from chunkrl.envs.protocol import Environment
from chunkrl.errors import ChunkRLError

_GRACE_S = 5.0  # for a process to end by itself


class Servant(Protocol):
    """What a process does: each order names one of its other methods and the arguments; it is made at the first."""

    def close(self) -> None:
        """Frees what it holds."""
        ...


def end_with_parent() -> None:
    """Called in a process: from here it ends when its parent is gone, however that went, whatever it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(connection: Connection, make: Callable[[], Servant]) -> None:
    """A process's life: orders in, answers out, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it closes the connection
    end_with_parent()
    servant: Servant | None = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            if servant is not None:
                servant.close()
            return
        try:
            servant = make() if servant is None else servant
            answer = getattr(servant, method)(*arguments)
        except Exception as error:  # the parent decides: an episode again, or the end
            told = str(error) if isinstance(error, ChunkRLError) else traceback.format_exc(limit=-3)
            connection.send(("fatal" if isinstance(error, CannotServeError) else "failure", told))
            continue
        connection.send(("done", answer))


@dataclass(frozen=True)
class Lost:
    """An order that a process did not live to answer, or answered with an error. failure: how."""

    failure: str


@dataclass
class _Worker:
    """A slot's process. deadline: when an order that is not answered is taken for a hang; None: nothing ordered."""

    process: BaseProcess
    connection: Connection
    deadline: float | None = None


class Workers:
    """Processes that take orders, one at a time each; they start when they are first needed.

    A process that crashes, raises, or does not answer for `hang_s` seconds is ended; its order is lost, and its slot
    gets a new process with the next one.
    """

    def __init__(self, num_slots: int, make: Callable[[], Servant], hang_s: float = 300.0) -> None:
        """
        Args:
            make: the servant; runs in the processes, and must be importable there.
            hang_s: seconds for any one order, the making of the servant included.
        """
        self.num_slots, self.num_restarts = num_slots, 0
        self._make, self._hang_s = make, hang_s
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker | None] = [None] * num_slots

    def order(self, slot: int, method: str, *arguments: Any) -> None:
        """Has the slot's servant call `method`; returns at once."""
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = self._start(slot)
        assert worker.deadline is None, f"slot {slot} has not answered yet"
        worker.deadline = time.monotonic() + self._hang_s
        try:
            worker.connection.send((method, arguments))
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

    def answers(self, block: bool = True) -> list[tuple[int, Any]]:
        """(slot, answer or `Lost`) of the orders that are done; at least one, if `block` and any is under way.

        Raises:
            ChunkRLError: a servant cannot do what it is for (CannotServeError).
        """
        busy = {w.connection: slot for slot, w in enumerate(self._workers) if w is not None and w.deadline}
        if not busy:
            return []
        while True:
            first = min(w.deadline for w in self._workers if w is not None and w.deadline is not None)
            timeout = max(0.0, first - time.monotonic()) if block else 0.0
            ready = [self._receive(busy[c]) for c in wait(list(busy), timeout) if isinstance(c, Connection)]
            ready += self._hung(set(busy.values()) - {slot for slot, _ in ready})
            if ready or not block:
                return ready

    def _receive(self, slot: int) -> tuple[int, Any]:
        worker = self._workers[slot]
        assert worker is not None and worker.deadline is not None
        silent = threading.Event()

        def kill() -> None:
            silent.set()
            worker.process.kill()

        # A process may stop in the middle of an answer that is larger than the pipe: its end ends the waiting. One
        # whose answer waited for us has time for the rest of it.
        watchdog = threading.Timer(max(_GRACE_S, worker.deadline - time.monotonic()), kill)
        watchdog.start()
        try:
            kind, answer = worker.connection.recv()
        except (EOFError, OSError):
            watchdog.cancel()
            if silent.is_set():
                return self._lost(slot, self._silence)
            worker.process.join(_GRACE_S)
            return self._lost(slot, f"its process ended with {_exit_words(worker.process.exitcode)}")
        finally:
            watchdog.cancel()
        if kind == "fatal":
            raise ChunkRLError(answer)
        if kind == "failure":
            return self._lost(slot, answer.strip())
        worker.deadline = None
        return slot, answer

    @property
    def _silence(self) -> str:
        return f"its process did not answer for {self._hang_s:g} s"

    def _hung(self, slots: set[int]) -> list[tuple[int, Any]]:
        now = time.monotonic()
        late = [
            s
            for s in sorted(slots)
            if (w := self._workers[s]) is not None and w.deadline and w.deadline <= now
        ]
        return [self._lost(slot, self._silence) for slot in late]

    def _lost(self, slot: int, failure: str) -> tuple[int, Lost]:
        worker = self._workers[slot]
        assert worker is not None
        _end(worker, grace_s=0.0)
        self._workers[slot] = None
        self.num_restarts += 1
        return slot, Lost(failure)

    def close(self) -> None:
        """Ends the processes."""
        workers = [worker for worker in self._workers if worker is not None]
        self._workers = [None] * self.num_slots
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            _end(worker, _GRACE_S if worker.deadline is None else 0.0)


class WorkerPool:
    """An `EnvPool` of processes, each with one environment."""

    def __init__(self, num_slots: int, make: Callable[[str], Environment], hang_s: float = 300.0) -> None:
        """
        Args:
            make: name -> environment; runs in the processes, and must be importable there.
            hang_s: seconds for any one order, the making of the environment included.
        """
        self.num_slots = self.num_processes = num_slots
        self._workers = Workers(num_slots, partial(SlotEnvironment, make), hang_s)

    @property
    def num_restarts(self) -> int:
        """Processes that were ended, by themselves or by us."""
        return self._workers.num_restarts

    def reset(self, slot: int, env: str, seed: int, record_every: int = 0) -> None:
        """See `EnvPool`."""
        self._workers.order(slot, "reset", env, seed, record_every)

    def execute(self, slot: int, actions: np.ndarray) -> None:
        """See `EnvPool`."""
        self._workers.order(slot, "execute", actions)

    def wait(self, block: bool = True) -> Sequence[SlotReport]:
        """The reports that are there; at least one, if `block`.

        Raises:
            ChunkRLError: an environment cannot be made (another suite, no assets, a missing extra).
        """
        return [
            SlotReport(slot, None, failure=answer.failure)
            if isinstance(answer, Lost)
            else SlotReport(slot, *answer)
            for slot, answer in self._workers.answers(block)
        ]

    def close(self) -> None:
        """Ends the processes."""
        self._workers.close()


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
