"""Observations of several clients become chunks together, in one thread beside the event loop.

What waits when the thread is free is answered at once; it waits for more only for a moment, and only where other
clients could still ask. Observations of one form share a forward pass; where that fails, each is tried alone, so that
the one at fault fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chunkrl.errors import ChunkRLError, ObservationError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.config import ActionMode
from chunkrl.types import Observation

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSettings:
    """mode, num_candidates: of `ActingPolicy.act`. size: observations per batch, at most. wait_s: for others.
    together: whether observations of one form share a forward pass; else one follows the other."""

    mode: ActionMode = "mode"
    num_candidates: int = 16
    size: int = 16
    wait_s: float = 0.002
    together: bool = True


@dataclass(frozen=True)
class Answer:
    """actions: float32 [H, A]. waited_ms: until its forward pass began. infer_ms: that took. num_rows: it had."""

    actions: np.ndarray
    waited_ms: float
    infer_ms: float
    num_rows: int


@dataclass(frozen=True)
class _Request:
    """seed: determines its noise. asked_at: by `time.perf_counter`."""

    observation: Observation
    seed: int
    answer: asyncio.Future[Answer]
    asked_at: float = field(default_factory=time.perf_counter)


def noise_seed(seed: int, client: int, number: int) -> int:
    """The noise's seed of a client's observation: no noise depends on who else is there."""
    return int(np.random.SeedSequence([seed, client, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batcher:
    """Answers observations; `run` is its task.

    num_clients: how many could ask at the moment; no batch waits for more.
    """

    def __init__(self, policy: ActingPolicy, settings: BatchSettings, num_clients: Callable[[], int]) -> None:
        self._policy, self._settings, self._num_clients = policy, settings, num_clients
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def ask(self, observation: Observation, seed: int) -> Answer:
        """The chunk for one observation. A cancelled call that still waits is dropped.

        Raises:
            ObservationError, ChunkRLError: of the policy, which refuses it. Others: the policy failed.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(_Request(observation, seed, future))
        return await future

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                requests = [r for r in await self._collect() if not r.answer.done()]
                found = await loop.run_in_executor(self._worker, self._answers, requests)
                for request, answer in zip(requests, found, strict=True):
                    if request.answer.done():  # who asked is gone
                        continue
                    if isinstance(answer, Answer):
                        request.answer.set_result(answer)
                    else:
                        request.answer.set_exception(answer)
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _collect(self) -> list[_Request]:
        """What waits, and what comes in the next moment."""
        settings = self._settings
        found = [await self._waiting.get()]
        until = found[0].asked_at + settings.wait_s
        while len(found) < settings.size:
            if self._waiting.empty():
                left = until - time.perf_counter()
                if left <= 0 or len(found) >= self._num_clients():
                    break
                with contextlib.suppress(asyncio.TimeoutError):
                    found.append(await asyncio.wait_for(self._waiting.get(), left))
            else:
                found.append(self._waiting.get_nowait())
        return found

    def _answers(self, requests: Sequence[_Request]) -> list[Answer | Exception]:
        """Answers, in the worker's thread."""
        found: dict[int, Answer | Exception] = {}
        groups: dict[Any, list[tuple[int, _Request, Observation]]] = {}
        for place, request in enumerate(requests):
            try:
                taken = self._policy.takes.take(request.observation)
                if not taken.single:
                    raise ObservationError("the observation is a batch: send one at a time")
            except Exception as error:
                found[place] = error
                continue
            key = _form(taken.observation) if self._settings.together else place
            groups.setdefault(key, []).append((place, request, taken.observation))
        for rows in groups.values():
            found |= self._act(rows)
        return [found[place] for place in range(len(requests))]

    def _act(self, rows: Sequence[tuple[int, _Request, Observation]]) -> dict[int, Answer | Exception]:
        begun = time.perf_counter()
        try:
            chunks = self._chunks([row[2] for row in rows], [row[1].seed for row in rows])
        except Exception as error:
            if len(rows) == 1:
                return {rows[0][0]: error}
            _LOG.info("%d observations together failed (%s): each alone", len(rows), error)
            return {place: answer for row in rows for place, answer in self._act([row]).items()}
        infer_ms = 1000 * (time.perf_counter() - begun)
        found: dict[int, Answer | Exception] = {}
        for (place, request, _), chunk in zip(rows, chunks, strict=True):
            if np.isfinite(chunk).all():
                waited_ms = 1000 * (begun - request.asked_at)
                found[place] = Answer(chunk, waited_ms, infer_ms, len(rows))
            else:
                found[place] = ChunkRLError(
                    "the policy's actions are NaN or infinite for this observation: do not move; evaluate the "
                    "policy (chunkrl evaluate) before it acts"
                )
        return found

    def _chunks(self, observations: Sequence[Observation], seeds: Sequence[int]) -> np.ndarray:
        """float32 [B, H, A] of taken observations of one row each."""
        settings = self._settings
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.inference_mode():
            chunks: Tensor = self._policy.act(
                _joined(observations), generators, settings.mode, settings.num_candidates
            )
        return chunks.float().cpu().numpy()


def _form(observation: Observation) -> tuple[Any, ...]:
    """What observations that become one batch have in common."""
    images = tuple((name, tuple(picture.shape)) for name, picture in sorted(observation.images.items()))
    return images, None if observation.state is None else tuple(observation.state.shape)


def _joined(observations: Sequence[Observation]) -> Observation:
    """Batches of one row as one batch."""
    first = observations[0]
    if len(observations) == 1:
        return first
    return Observation(
        {name: torch.cat([o.images[name] for o in observations]) for name in first.images},
        None if first.state is None else torch.cat([o.state for o in observations]),  # type: ignore[misc]
        tuple(text for o in observations for text in o.task),
    )
