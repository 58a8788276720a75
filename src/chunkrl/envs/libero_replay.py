"""Sub-goals of recorded LIBERO episodes: their actions again, in the simulator, and where its predicates turn true.

A replay needs the scene that the recording began with. In this order: the placement seed that `chunkrl collect`
stores; a column with the simulator's whole state (`--replay.state-key`); or the official initial state whose first
observed robot state is the recorded one. Where none fits, the episode is not replayed, and the report says so.
A replay that leaves the recorded path by more than `tolerance_m` tells nothing of the recording: it counts as failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from chunkrl.envs.libero_goals import LiberoGoals, SubgoalKind, check_kinds, onset_kinds
from chunkrl.envs.libero_tasks import NUM_INITIAL_STATES, LiberoTask, find_task, suite_tasks
from chunkrl.envs.pool import CannotServeError
from chunkrl.envs.registry import prepare
from chunkrl.envs.workers import Lost, Workers
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress

_SAME_START = 1e-3  # of robot states in metres and radians: recordings hold float32 of the same numbers
_HANG_S = 1800.0


@dataclass(frozen=True)
class ReplayConfig:
    """Replays of a data set's episodes in LIBERO, for `chunkrl label`; off without `suite`.

    suite: the suite or task of the episodes (several joined by +), whose texts say which task each is of.
    events: which events are sub-goals: goal (each condition of the task's goal), grasp, lift.
    state_key: column with the simulator's state, whose first row starts the replay (LIBERO's own `states`).
    tolerance_m: largest distance of the replayed from the recorded hand.
    skip_unmatched: label the other episodes where some cannot be replayed; these get no sub-goals.
    num_workers: simulator processes.
    """

    suite: str = ""
    events: tuple[SubgoalKind, ...] = ("goal",)
    state_key: str | None = None
    tolerance_m: float = 0.02
    skip_unmatched: bool = False
    num_workers: int = 2

    def __post_init__(self) -> None:
        check_kinds(self.events)
        if self.num_workers < 1 or not self.tolerance_m > 0:
            raise ChunkRLError(
                f"--replay.num-workers is {self.num_workers} (at least 1), --replay.tolerance-m {self.tolerance_m} "
                "(above 0)"
            )


@dataclass(frozen=True)
class Recording:
    """One recorded episode. state: float [T, S >= 8], LIBERO's eight entries first, before each action [T, 7].

    seed: of the placement, None if not known; scene: the simulator's state at the start, None if not known.
    """

    episode: int
    task: str
    state: np.ndarray
    action: np.ndarray
    seed: int | None = None
    scene: np.ndarray | None = None


@dataclass(frozen=True)
class Replay:
    """What a replay tells. start: what it began from, "" where nothing fits. onsets: kind -> actions.

    drift_m: largest and last distance of the replayed from the recorded hand; None: no replay. success: at its end.
    """

    episode: int
    start: str
    onsets: Mapping[str, tuple[int, ...]]
    drift_m: tuple[float, float] | None
    success: bool

    def failure(self, tolerance_m: float) -> str:
        """Why it tells nothing of the recording; "" where it does."""
        if self.drift_m is None:
            return "no initial state fits its first observed state"
        if self.drift_m[0] > tolerance_m:
            return f"the replay drifts by {self.drift_m[0]:.3f} m"
        return ""


def tasks_by_text(names: str) -> dict[str, tuple[LiberoTask, ...]]:
    """Text in small letters -> the tasks that have it, of the suites and tasks `names`, joined by +.

    Several tasks of libero_90 have one text, in different scenes. Raises ChunkRLError: no such suite or task.
    """
    found: dict[str, tuple[LiberoTask, ...]] = {}
    for name in names.split("+"):
        for task in (find_task(name),) if "/" in name else suite_tasks(name):
            others = found.get(plain(task.text), ())
            if task not in others:
                found[plain(task.text)] = (*others, task)
    return found


def plain(text: str) -> str:
    """A task's text without what data sets write differently: capitals and spaces."""
    return " ".join(text.lower().split())


class Replayer:
    """Replays recordings in this process (`chunkrl.envs.workers.Servant`); holds one simulator."""

    def __init__(self) -> None:
        self._env: Any = None
        self._starts: np.ndarray | None = None  # first observed states of the official initial states

    def replay(self, task: str, recording: Recording) -> Replay:
        """Raises CannotServeError where the environment cannot be made."""
        env = self._hold(task)
        name, step = self._begin(recording)
        if step is None:
            return Replay(recording.episode, "", {}, None, False)
        goals = LiberoGoals(env.domain)
        flags, distances = [goals.flags()], []
        for state, action in zip(recording.state, recording.action, strict=True):
            distances.append(float(np.linalg.norm(step.state[:3] - state[:3])))
            step = env.step(action)
            flags.append(goals.flags())
        onsets = {kind: tuple(np.flatnonzero(found).tolist()) for kind, found in onset_kinds(flags).items()}
        return Replay(recording.episode, name, onsets, (max(distances), distances[-1]), step.success)

    def _begin(self, recording: Recording) -> tuple[str, Any]:
        """(what the replay starts from, the first step); ("", None) where nothing fits."""
        if recording.seed is not None:
            return "seed", self._env.reset_to(None, recording.seed)
        if recording.scene is not None:
            return self._from_scene(np.asarray(recording.scene, dtype=np.float64), recording.state[0])
        if self._starts is None:
            official = [self._official(i).state for i in range(NUM_INITIAL_STATES)]
            self._starts = np.stack(official)
        number = match_start(recording.state[0], self._starts)
        return ("", None) if number is None else (f"official {number}", self._official(number))

    def _from_scene(self, scene: np.ndarray, seen: np.ndarray) -> tuple[str, Any]:
        """Some recordings let a stored state settle before the first frame, others store what that frame shows."""
        settled = self._env.reset_to(scene)
        plain = self._env.reset_to(scene, settle=False)
        if _distance(plain.state, seen) <= _distance(settled.state, seen):
            return "state", plain
        return "settled state", self._env.reset_to(scene)

    def _official(self, number: int) -> Any:
        from chunkrl.envs.libero_tasks import initial_states

        return self._env.reset_to(initial_states(find_task(self._env.name))[number], number)

    def _hold(self, task: str) -> Any:
        from chunkrl.envs.libero import LiberoEnv

        if self._env is None or self._env.name != task:
            self.close()
            try:
                # no time limit: the recording says when it ends
                self._env = LiberoEnv(task, max_steps=10**9, initial="sampled")
            except ChunkRLError as error:
                raise CannotServeError(str(error)) from error
        return self._env

    def close(self) -> None:
        """Frees the simulator."""
        if self._env is not None:
            self._env.close()
        self._env = self._starts = None


def _distance(state: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two robot states [S >= 8]."""
    return float(np.abs(state[:8] - other[:8]).max())


def match_start(state: np.ndarray, starts: np.ndarray) -> int | None:
    """The one row of starts [50, 8] whose robot state is that of state [S >= 8]; None: none, or more than one."""
    near = np.flatnonzero(np.abs(starts[:, :8] - state[:8]).max(axis=1) < _SAME_START)
    return int(near[0]) if len(near) == 1 else None


def replay_all(
    recordings: Mapping[int, Recording], tasks: Mapping[int, str], num_workers: int, progress: Progress
):
    """Yields the Replay of every recording, in any order. tasks: episode -> name of its task, as the keys agree.

    Raises ChunkRLError: no environment, or a simulator that is lost twice with one episode.
    """
    waiting = sorted(
        recordings, key=lambda episode: (tasks[episode], episode), reverse=True
    )  # few changes of scene
    prepare(tuple(tasks.values()))
    workers = Workers(min(num_workers, len(waiting)), partial(Replayer), _HANG_S)
    under_way: dict[int, int] = {}
    lost: set[int] = set()
    num_done = 0
    try:
        while waiting or under_way:
            for slot in range(workers.num_slots):
                if slot not in under_way and waiting:
                    under_way[slot] = waiting.pop()
                    workers.order(slot, "replay", tasks[under_way[slot]], recordings[under_way[slot]])
            for slot, answer in workers.answers():
                episode = under_way.pop(slot)
                if isinstance(answer, Lost):
                    if episode in lost:
                        raise ChunkRLError(f"the replay of episode {episode} failed twice: {answer.failure}")
                    lost.add(episode)
                    waiting.append(episode)
                    continue
                num_done += 1
                yield answer
                progress("replay", num_done, len(recordings))
    finally:
        workers.close()
