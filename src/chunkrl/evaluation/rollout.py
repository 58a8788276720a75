"""Runs a policy from fixed initial states: the same states for every policy, results independent of batching."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from chunkrl.envs.pool import EnvPool, LocalPool, SlotReport
from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress, silent
from chunkrl.types import Observation

# (observations of B episodes, B generators) -> chunks [B, H, A]
Actor = Callable[[Observation, Sequence[torch.Generator]], Tensor]
MAX_ATTEMPTS = 3  # an episode whose simulator is lost so often is not bad luck


@dataclass(frozen=True)
class Episode:
    """One episode to run. env: the environment's name; seed: what its `reset` takes; noise_seed: of the policy."""

    env: str
    seed: int
    noise_seed: int


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended. num_steps: environment steps. num_restarts: simulators lost on the way.

    frames: uint8 [T, height, width, 3] where it was recorded, else None.
    """

    success: bool
    num_steps: int
    num_restarts: int = 0
    frames: np.ndarray | None = None


@dataclass(frozen=True)
class RolloutConfig:
    """How chunks are made and executed.

    exec_steps: actions executed of each chunk before the next one is asked for.
    batch_size: observations per policy call. Fewer are filled up: a matrix product may round otherwise with other
        numbers of rows, and results would depend on which simulators happen to be ready.
    """

    exec_steps: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.exec_steps < 1:
            raise ChunkRLError(
                f"exec_steps is {self.exec_steps}; at least 1 action of each chunk must be executed"
            )
        if self.batch_size < 1:
            raise ChunkRLError(f"batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class Rollouts:
    """Outcome of n episodes in the order of their seeds.

    success: bool [n]; num_steps: int [n], environment steps; seeds: the initial states;
    exec_steps: actions executed of each chunk before the next one.
    """

    success: np.ndarray
    num_steps: np.ndarray
    seeds: tuple[int, ...]
    exec_steps: int


def initial_seeds(seed: int, num_episodes: int) -> tuple[int, ...]:
    """`num_episodes` environment seeds that `seed` determines; different seeds share none in practice."""
    return tuple(int(s) for s in np.random.default_rng([seed, 0xE7A1]).integers(2**31, size=num_episodes))


def batch_observation(
    steps: Sequence[EnvStep], tasks: Sequence[str], cameras: Mapping[str, str] | None = None
) -> Observation:
    """The observations of several environments as one batch; `tasks` are their texts.

    cameras: the observation's name of a camera -> the environment's; None: all, by the environment's names.
    """
    if cameras is None:
        cameras = {name: name for name in steps[0].images}
    images = {
        name: torch.from_numpy(np.stack([s.images[theirs].transpose(2, 0, 1) for s in steps]))
        for name, theirs in cameras.items()
    }
    state = torch.from_numpy(np.stack([s.state for s in steps]).astype(np.float32))
    return Observation(images=images, state=state, task=tuple(tasks))


def evaluate(
    actor: Actor,
    envs: Sequence[Environment],
    seeds: Sequence[int],
    exec_steps: int,
    progress: Progress = silent,
    stage: str = "evaluate",
) -> Rollouts:
    """One episode from each seed, in this process. `envs` are several instances of one task; they run in step, so
    that the policy sees batches. Each episode draws its noise from a generator of its own."""
    if not envs or not seeds:
        raise ChunkRLError("evaluation needs at least one environment and one episode")
    pool = LocalPool(len(envs), lambda slot, name: envs[slot])
    episodes = [Episode(envs[0].name, seed, seed) for seed in seeds]
    results: dict[int, EpisodeResult] = {}

    def finished(number: int, result: EpisodeResult) -> None:
        results[number] = result
        progress(stage, len(results), len(seeds))

    run_episodes(actor, pool, episodes, RolloutConfig(exec_steps, len(envs)), finished)
    ordered = [results[number] for number in range(len(seeds))]
    return Rollouts(
        np.array([r.success for r in ordered]),
        np.array([r.num_steps for r in ordered], dtype=np.int64),
        tuple(seeds),
        exec_steps,
    )


@dataclass
class _Running:
    """An episode under way in a slot: which one, what is seen, its noise."""

    number: int
    generator: torch.Generator
    step: EnvStep | None = None
    task: str = ""
    num_steps: int = 0
    frames: list[np.ndarray] = field(default_factory=list)


def run_episodes(
    actor: Actor,
    pool: EnvPool,
    episodes: Sequence[Episode],
    execution: RolloutConfig,
    finished: Callable[[int, EpisodeResult], None],
    record_every: int = 0,
) -> None:
    """Runs `episodes` in the slots of `pool`; `finished(number, result)` is called as each ends, in any order.

    While the policy makes chunks for the slots that are ready, the others simulate: a call waits for half of the
    slots (or `batch_size`, whichever is less), so that neither side stands still. A simulator that is lost costs its
    episode alone: it begins again, with the same noise, and so with the same result.

    record_every: images are drawn of every n-th step, if n > 0.

    Raises:
        ChunkRLError: exec_steps is longer than the policy's chunk, an action is NaN or infinite, or an episode lost
            its simulator `MAX_ATTEMPTS` times.
    """
    _Runner(actor, pool, episodes, execution, finished, record_every).run()


class _Runner:
    """The state of `run_episodes`."""

    def __init__(
        self,
        actor: Actor,
        pool: EnvPool,
        episodes: Sequence[Episode],
        execution: RolloutConfig,
        finished: Callable[[int, EpisodeResult], None],
        record_every: int,
    ) -> None:
        self._actor, self._pool, self._episodes = actor, pool, episodes
        self._execution, self._finished, self._record_every = execution, finished, record_every
        self._waiting = deque(range(len(episodes)))
        self._running: dict[int, _Running] = {}  # by slot
        self._ready: list[int] = []  # slots whose policy's turn it is
        self._restarts = [0] * len(episodes)

    def run(self) -> None:
        """All episodes."""
        for slot in range(self._pool.num_slots):
            self._start(slot)
        while self._running:
            if self._num_busy:
                self._take(self._pool.wait(block=False))
            while self._num_busy and len(self._ready) < self._enough:
                self._take(self._pool.wait())
            self._act()

    @property
    def _num_busy(self) -> int:
        """Slots that simulate."""
        return len(self._running) - len(self._ready)

    @property
    def _enough(self) -> int:
        """Ready slots that make a policy call worth while: with half of them the other half simulates meanwhile."""
        return min(self._execution.batch_size, (len(self._running) + 1) // 2)

    def _start(self, slot: int) -> None:
        """The next episode, if there is one."""
        if self._waiting:
            self._begin(slot, self._waiting.popleft())

    def _begin(self, slot: int, number: int) -> None:
        episode = self._episodes[number]
        self._running[slot] = _Running(number, torch.Generator().manual_seed(episode.noise_seed))
        self._pool.reset(slot, episode.env, episode.seed, self._record_every)

    def _take(self, reports: Sequence[SlotReport]) -> None:
        for report in reports:
            running = self._running[report.slot]
            if report.step is None:
                self._redo(report, running.number)
                continue
            running.step, running.task = report.step, report.task
            running.num_steps += report.num_steps
            running.frames.extend(report.frames)
            if report.step.done:
                del self._running[report.slot]
                frames = np.stack(running.frames) if running.frames else None
                number, restarts = running.number, self._restarts[running.number]
                self._finished(
                    number, EpisodeResult(report.step.success, running.num_steps, restarts, frames)
                )
                self._start(report.slot)
            else:
                self._ready.append(report.slot)

    def _redo(self, report: SlotReport, number: int) -> None:
        self._restarts[number] += 1
        if self._restarts[number] == MAX_ATTEMPTS:
            episode = self._episodes[number]
            raise ChunkRLError(
                f"{episode.env} from initial state {episode.seed}: the simulator was lost {MAX_ATTEMPTS} "
                f"times, last: {report.failure}"
            )
        self._begin(report.slot, number)

    def _act(self) -> None:
        """One policy call for slots that are ready; their stretches of actions go out."""
        slots, self._ready = (
            self._ready[: self._execution.batch_size],
            self._ready[self._execution.batch_size :],
        )
        if not slots:
            return
        chosen = [self._running[slot] for slot in slots]
        for running in chosen:
            self._check_state(running)
        num_filled = self._execution.batch_size - len(slots)
        rows = chosen + [chosen[0]] * num_filled
        generators = [r.generator for r in chosen] + [torch.Generator() for _ in range(num_filled)]
        steps = [r.step for r in rows if r.step is not None]
        with torch.no_grad():
            chunks = self._actor(batch_observation(steps, [r.task for r in rows]), generators).cpu().numpy()
        exec_steps = self._execution.exec_steps
        if exec_steps > chunks.shape[1]:
            raise ChunkRLError(f"exec_steps {exec_steps} is longer than the policy's chunk {chunks.shape[1]}")
        for slot, running, chunk in zip(slots, chosen, chunks, strict=False):
            self._check_finite(running, chunk)
            self._pool.execute(slot, chunk[:exec_steps])

    def _check_state(self, running: _Running) -> None:
        """Here, where the episode is known; the policy refuses such states too."""
        assert running.step is not None
        if not np.isfinite(running.step.state).all():
            raise ChunkRLError(
                f"{self._told(running)}the state that the policy is given holds NaN or infinity: the simulation "
                "diverged"
            )

    def _check_finite(self, running: _Running, chunk: np.ndarray) -> None:
        """Here, as a simulator that refuses such actions would be taken for lost."""
        if not np.isfinite(chunk).all():
            raise ChunkRLError(
                f"{self._told(running)}the policy gives actions that are NaN or infinite: its weights or statistics "
                "are damaged, or its training diverged: evaluate an earlier or another policy"
            )

    def _told(self, running: _Running) -> str:
        episode = self._episodes[running.number]
        return f"{episode.env} from initial state {episode.seed}, after {running.num_steps} steps: "
