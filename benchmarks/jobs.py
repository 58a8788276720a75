"""A benchmark's jobs in processes of their own, some at once."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from chunkrl.envs.workers import end_with_parent

Job = TypeVar("Job")
Found = TypeVar("Found")


def run_jobs(
    work: Callable[..., Found], jobs: Iterable[tuple[Job, tuple[Any, ...]]], num_workers: int
) -> Iterator[tuple[Job, Found]]:
    """What `work` returns of each job's arguments, in the order in which they end.

    jobs: name, arguments. A job that fails is told at once, and its exception is raised when those that the processes
    have taken up have ended: they take hours, and keep what they find. The rest do not begin.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_parent) as pool:
        futures = {pool.submit(work, *arguments): job for job, arguments in jobs}
        try:
            for future in as_completed(futures):
                if failed := future.exception():
                    told = f"{futures[future]} failed ({type(failed).__name__}: {failed}): those taken up end first"
                    print(told, file=sys.stderr, flush=True)
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
