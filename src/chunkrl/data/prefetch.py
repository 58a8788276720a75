"""Batches loaded alongside training, a few ahead, by one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """`load(number)` for consecutive numbers, in order, each computed before it is asked for.

    One thread loads, so `load` may keep a state of its own. It must depend on the number alone, draw nothing from
    torch's generator, and read nothing that the caller changes meanwhile.

    Args:
        numbers: those to load, in order.
        ahead: how many are loaded, or loading, while the caller works on one.
    """

    def __init__(self, load: Callable[[int], T], numbers: range, ahead: int = 2) -> None:
        self._load = load
        self._numbers: Iterator[int] = iter(numbers)
        self._waiting: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        for _ in range(ahead):
            self._start_next()

    def _start_next(self) -> None:
        for number in self._numbers:
            self._waiting.append(self._pool.submit(self._load, number))
            return

    def next(self) -> T:
        """The next one; raises what `load` raised for it. Raises IndexError when all have been given."""
        future = self._waiting.popleft()
        self._start_next()
        return future.result()

    def close(self) -> None:
        """Drops what was not asked for; returns when the thread has ended."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
