"""Jobs of a comparison in processes of their own, with their progress in one place."""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from tqdm import tqdm

from chunkrl.demo.experiment import Job, JobResult, run_job
from chunkrl.envs.workers import end_with_parent

Name = TypeVar("Name")
Found = TypeVar("Found")


def run_jobs(jobs: Sequence[Job], num_workers: int, on_result: Callable[[JobResult], None]) -> None:
    """Runs jobs in `num_workers` processes, with a bar and an ETA for each running job and for all.

    on_result: called in this process as each job ends.
    """
    events: Any = multiprocessing.get_context("spawn").Queue()
    board = _Board(jobs, events)
    named = ((job.task, (job, number)) for number, job in enumerate(jobs))
    try:
        for _, result in in_processes(_run_reporting, named, num_workers, _start_worker, (events,)):
            on_result(result)
    finally:
        board.close()


def in_processes(
    work: Callable[..., Found],
    jobs: Iterable[tuple[Name, tuple[Any, ...]]],
    num_workers: int,
    start: Callable[..., None] = end_with_parent,
    start_with: tuple[Any, ...] = (),
) -> Iterator[tuple[Name, Found]]:
    """What `work` returns of each job's arguments, in the order in which they end, from `num_workers` processes.

    jobs: name, arguments. A job that fails is told at once, and its exception is raised when those that the processes
    have taken up have ended: they take hours, and keep what they find. The rest do not begin.
    start: called once in every process, with `start_with`.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=start, initargs=start_with) as pool:
        futures = {pool.submit(work, *arguments): name for name, arguments in jobs}
        try:
            for future in as_completed(futures):
                if failed := future.exception():
                    told = f"{futures[future]} failed ({type(failed).__name__}: {failed}): those taken up end first"
                    print(told, file=sys.stderr, flush=True)
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_EVENTS: list[Any] = []  # a worker's way to the board


def _start_worker(events: Any) -> None:
    """Keeps the way to the board, and ends with the parent: else a worker of a killed run trains on, unseen."""
    _EVENTS[:] = [events]
    end_with_parent()


def _run_reporting(job: Job, number: int) -> JobResult:
    last = -1.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        step = done / total
        if done == total or step < last or step - last >= 0.02:
            last = 0.0 if done == total else step
            _EVENTS[0].put((number, stage, done, total))

    result = run_job(job, report)
    _EVENTS[0].put((number, "done", 1, 1))
    return result


class _Board:
    """Shows the jobs' progress: one bar over all stages of all jobs, the running stages beside it."""

    def __init__(self, jobs: Sequence[Job], events: Any) -> None:
        self._events, self._stop = events, threading.Event()
        self._jobs = jobs
        self._totals = [_num_stages(job) for job in jobs]
        self._done = [0.0] * len(jobs)
        self._finished_stages = [0] * len(jobs)
        interactive = sys.stderr.isatty()
        self._interval = 0.5 if interactive else 20.0  # seconds between drawings; a log wants few lines
        self._drawn = 0.0
        self._bar = tqdm(
            total=float(sum(self._totals)),
            desc="all",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left {postfix}",
            ncols=None if interactive else 120,
            miniters=float("inf"),  # drawn by _draw alone
        )
        self._running: dict[int, str] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                number, stage, done, total = self._events.get(timeout=0.3)
            except queue.Empty:
                continue
            except (EOFError, OSError):
                return
            self._show(number, stage, done, total)

    def _show(self, number: int, stage: str, done: int, total: int) -> None:
        if stage == "done":
            self._done[number] = self._totals[number]
            self._running.pop(number, None)
        else:
            self._running[number] = f"{self._jobs[number].task} {stage}"
            if done == total:
                self._finished_stages[number] += 1
            part = 0.0 if done == total else done / total
            self._done[number] = min(self._finished_stages[number] + part, self._totals[number])
        self._bar.n = sum(self._done)
        self._draw()

    def _draw(self, now: bool = False) -> None:
        if now or time.monotonic() - self._drawn >= self._interval:
            self._drawn = time.monotonic()
            self._bar.set_postfix_str(" | ".join(self._running.values())[:100], refresh=False)
            self._bar.refresh()

    def close(self) -> None:
        """Draws the last state."""
        self._stop.set()
        self._thread.join(timeout=2)
        self._draw(now=True)
        self._bar.close()


def _num_stages(job: Job) -> int:
    """Stages that `run_job` reports: collecting, each training's phases, each arm's evaluation."""
    phases = len({arm.values for arm in job.arms} - {None}) if job.share_values else 0
    for training in {arm.training: arm for arm in job.arms}.values():
        distils = training.distil.num_candidates > 0
        with_q = distils or any(
            arm.training == training.training and arm.mode == "best_of_n" for arm in job.arms
        )
        with_values = with_q or (training.values is not None and not job.share_values)
        phases += 1 + with_values + with_q + distils
    return 1 + phases + len(job.arms)
