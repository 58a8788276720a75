"""Executes a policy's chunks action by action; the next chunk is made in a thread while the current one runs.

Which observation a chunk belongs to. With prefetch_steps p > 0 the next chunk is asked for when p actions are left,
from what is seen then, x_s. Its actions speak of the steps from s on, of which the first p are executed by the
chunk before it: so it is executed from its action p. Where it comes late, position is held; a robot at rest is
where the chunk expects it, so held steps skip none of its actions.

What that means for Q(x, A), which speaks of a chunk executed whole from where it was asked for: what follows x_s is
p actions of the earlier chunk and then A[p : p + n]. Records hold executed actions, so that what is learned from
them is right for any p; a choice among candidates by Q(x_s, A) judges p actions that are not executed, and
H - p - n that may not be. With p = 0 and n = H chunks are executed as Q speaks of them.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.online.policy_runner import ChunkSource, PolicyChunk

WhenDry = Literal["hold", "wait"]


@dataclass(frozen=True)
class ExecutionConfig:
    """How chunks are executed."""

    n_action_steps: int = 10
    """n, actions executed of each chunk."""
    prefetch_steps: int = 0
    """p, actions left when the next chunk is asked for. 0: after the last one."""
    when_dry: WhenDry = "hold"
    """What to do where the next chunk is not ready. hold: hold position, a robot's clock goes on; wait: wait for
    it, for simulators, whose time stops meanwhile."""

    def __post_init__(self) -> None:
        if self.n_action_steps < 1:
            raise ChunkRLError(f"n_action_steps is {self.n_action_steps}; a chunk is executed for at least 1")
        if not 0 <= self.prefetch_steps <= self.n_action_steps:
            raise ChunkRLError(
                f"prefetch_steps is {self.prefetch_steps}; it must be 0 to n_action_steps ({self.n_action_steps})"
            )
        if self.when_dry not in get_args(WhenDry):
            raise ChunkRLError(f"when_dry is {self.when_dry!r}; it must be one of {get_args(WhenDry)}")


@dataclass(frozen=True)
class ProposedAction:
    """action: float32 [A], the policy's, unchecked. version: of the weights that made its chunk. chunk: number of
    the chunk since the executor was made. offset: the action's place in it."""

    action: np.ndarray
    version: int
    chunk: int
    offset: int


@dataclass(frozen=True)
class ExecutorStatistics:
    """num_chunks: taken into use. num_dry: steps for which no action was ready. inference_s: median and maximum
    time that a chunk took to make, seconds (0 before the first), of the last 1000."""

    num_chunks: int
    num_dry: int
    median_inference_s: float
    max_inference_s: float


@dataclass(frozen=True)
class _Request:
    """lead: actions of the chunk before that are executed first."""

    future: Future[PolicyChunk]
    lead: int


class ChunkExecutor:
    """A queue of the policy's next actions. One thread calls it; it makes chunks in another one."""

    def __init__(self, source: ChunkSource, config: ExecutionConfig) -> None:
        """Raises ChunkRLError where the policy's chunks are shorter than what is executed and prefetched."""
        needed = config.n_action_steps + config.prefetch_steps
        if needed > source.action_horizon:
            raise ChunkRLError(
                f"n_action_steps {config.n_action_steps} + prefetch_steps {config.prefetch_steps} is more than the "
                f"policy's chunk of {source.action_horizon} actions: lower one of them"
            )
        self._source, self._config = source, config
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="chunk")
        self._queue: deque[ProposedAction] = deque()
        self._request: _Request | None = None
        self._seeds = np.random.default_rng(0)
        self._num_chunks = self._num_dry = 0
        self._inference_s: deque[float] = deque(maxlen=1000)

    @property
    def queue_length(self) -> int:
        """Actions that are ready."""
        return len(self._queue)

    @property
    def version(self) -> int:
        """Of the weights that act now."""
        return self._source.version

    def begin_episode(self, step: EnvStep, seed: int) -> None:
        """Makes the first chunk, from `step`, and waits for it: the episode's clock does not run yet.

        `seed` determines the noise of the episode's chunks, one seed a request, so that it does not matter whether
        one that was dropped had been made.
        """
        self.interrupt()
        self._seeds = np.random.default_rng(seed)
        self._source.begin_episode()
        self._ask(step, lead=0)
        self._take(wait=True)

    def next_action(self, step: EnvStep) -> ProposedAction | None:
        """The action for this control step, on which `step` is seen; None: nothing is ready, hold position.

        Raises what the policy raised while it made the chunk.
        """
        if not self._queue:
            if self._request is None:
                self._ask(step, lead=0)
            self._take(wait=self._config.when_dry == "wait")
        if not self._queue:
            self._num_dry += 1
            return None
        if self._request is None and len(self._queue) <= self._config.prefetch_steps:
            self._ask(step, lead=len(self._queue))
        return self._queue.popleft()

    def interrupt(self) -> None:
        """Somebody else acts: what is queued or being made was meant for another course and is dropped."""
        self._queue.clear()
        if self._request is not None:
            self._request.future.cancel()
            self._request = None

    def close(self) -> None:
        """Ends the thread, after the chunk that it is making."""
        self.interrupt()
        self._worker.shutdown(wait=True)

    def statistics(self) -> ExecutorStatistics:
        """Since the executor was made."""
        times = np.asarray(self._inference_s) if self._inference_s else np.zeros(1)
        return ExecutorStatistics(
            self._num_chunks, self._num_dry, float(np.median(times)), float(times.max())
        )

    def _ask(self, step: EnvStep, lead: int) -> None:
        self._request = _Request(
            self._worker.submit(self._make, step, int(self._seeds.integers(2**63))), lead
        )

    def _make(self, step: EnvStep, seed: int) -> PolicyChunk:
        """In the thread."""
        began = time.perf_counter()
        chunk = self._source.act(step, seed)
        self._inference_s.append(time.perf_counter() - began)
        return chunk

    def _take(self, wait: bool) -> None:
        """Queues the chunk that was asked for, if it is ready."""
        request = self._request
        if request is None or not (wait or request.future.done()):
            return
        self._request = None
        chunk = request.future.result()
        expected = (self._source.action_horizon, self._source.action_dim)
        if chunk.actions.shape != expected:
            raise ChunkRLError(f"the policy made a chunk of shape {chunk.actions.shape}, expected {expected}")
        for offset in range(request.lead, request.lead + self._config.n_action_steps):
            self._queue.append(ProposedAction(chunk.actions[offset], chunk.version, self._num_chunks, offset))
        self._num_chunks += 1
