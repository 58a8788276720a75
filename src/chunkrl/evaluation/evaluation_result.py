"""What `chunkrl evaluate` found, as records and as the JSON that `chunkrl compare` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.config import record_of
from chunkrl.envs.libero_tasks import InitialStates
from chunkrl.envs.offscreen import Rendering
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.speed import Episodes, Speed, measured_speed, speed_json
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.models.config import ActionMode
from chunkrl.statistics import Interval, wilson_interval

RESULT_FILE = "result.json"
_VERSION = 1
_CURE = "evaluate again (chunkrl evaluate)"
_UNKNOWN = {"assets": "", "opengl": "", "device": "", "guidance_from": None}
"""What settings that were noted later are in results of before."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that the outcome of an evaluation depends on.

    policy: the folder as given, for people; fingerprint: of its contents. envs: the tasks, in order.
    num_episodes: a task. seed: determines initial states and noise. max_steps: each task's time limit.
    exec_steps: actions executed of each chunk of `horizon`. mode, num_candidates: how chunks are chosen.
    condition, guidance, guidance_from, flow_steps: what a pi policy was asked for, the third None at guidance 1,
    which leads away from nothing, and in results of before it was recorded.
    state, camera_size, rendering: what was observed.
    rename: (environment's name, policy's name) of cameras. batch_size: observations per policy call.
    assets: fingerprint of LIBERO's meshes and textures; "" where the simulator's package brings them along.
    opengl: what drew the images that the policy saw; "" where it saw none, or none that OpenGL draws.
    device: where the policy ran, cpu or cuda. These three are "" in results of before they were recorded.
    initial: where LIBERO's episodes begin, official or sampled; other simulators have the first alone.
    """

    policy: str
    fingerprint: str
    envs: tuple[str, ...]
    num_episodes: int
    seed: int
    max_steps: tuple[int, ...]
    exec_steps: int
    horizon: int
    mode: ActionMode
    num_candidates: int
    condition: str | None
    guidance: float | None
    flow_steps: int | None
    state: str
    camera_size: int
    rendering: Rendering
    rename: tuple[tuple[str, str], ...]
    batch_size: int
    assets: str = ""
    opengl: str = ""
    device: str = ""
    initial: InitialStates = "official"
    guidance_from: str | None = None

    def differences(self, other: EvaluationSettings) -> tuple[str, ...]:
        """Names of the settings in which another evaluation differs; the folder's name alone is no difference, nor
        is what one of them does not know (it was made before that was noted)."""
        mine, others = asdict(self), asdict(other)
        unknown = [name for name, absent in _UNKNOWN.items() if absent in (mine[name], others[name])]
        ignored = {"policy", *unknown}
        return tuple(name for name in mine if name not in ignored and mine[name] != others[name])


def told_condition(settings: EvaluationSettings) -> str:
    """What a pi policy was asked for, for people; "" for nothing."""
    if not settings.condition:
        return ""
    away = {None: "", "": ", away from none"}.get(
        settings.guidance_from, f", away from {settings.guidance_from!r}"
    )
    return f"{settings.condition!r} at guidance {settings.guidance:g}{away}"


def told_mode(settings: EvaluationSettings) -> str:
    """How chunks were chosen, for people."""
    if settings.num_candidates:
        return f"{settings.mode} of {settings.num_candidates}"
    takes_steps = settings.flow_steps is not None
    return "mode (the flow from zero noise)" if takes_steps and settings.mode == "mode" else settings.mode


@dataclass(frozen=True)
class EpisodeOutcome:
    """One episode. seed: its initial state; num_steps: environment steps; num_restarts: simulators lost."""

    seed: int
    success: bool
    num_steps: int
    num_restarts: int = 0


@dataclass(frozen=True)
class Video:
    """A recorded episode: `file` in the evaluation's folder. as_evaluated: it ended as the one that was counted."""

    env: str
    seed: int
    success: bool
    file: str
    as_evaluated: bool

    @property
    def episode(self) -> tuple[str, int]:
        """(env, seed)."""
        return self.env, self.seed


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    episodes: by environment, in the order of the initial states. seconds: of all sessions that worked on it;
    num_workers: simulator processes of the last one, 0 where all were in the policy's. videos: failures first.
    fps: control steps per second; None in results of before that was noted.
    """

    settings: EvaluationSettings
    episodes: Mapping[str, tuple[EpisodeOutcome, ...]]
    seconds: float
    num_workers: int
    videos: tuple[Video, ...] = field(default=())
    fps: float | None = None

    def success(self, env: str) -> np.ndarray:
        """bool [n] over the initial states of `env`."""
        return np.array([episode.success for episode in self.episodes[env]])

    def num_steps(self, env: str) -> np.ndarray:
        """int [n] environment steps of the same episodes; of a successful one, those to its success."""
        return np.array([episode.num_steps for episode in self.episodes[env]], dtype=np.int64)

    def seeds(self, env: str) -> tuple[int, ...]:
        """The initial states of `env`."""
        return tuple(episode.seed for episode in self.episodes[env])

    @property
    def num_restarts(self) -> int:
        """Simulators that were lost and started again."""
        return sum(e.num_restarts for episodes in self.episodes.values() for e in episodes)


@dataclass(frozen=True)
class Rate:
    """A success rate, and how fast success comes. interval: 95 %."""

    num_success: int
    num_episodes: int
    rate: float
    interval: Interval
    speed: Speed


def rate_of(success: np.ndarray, num_steps: np.ndarray, fps: float | None = None) -> Rate:
    """The success rate of episodes: bool [n], and int [n] their environment steps (of a successful one, those to its
    success), `fps` of them a second; with the Wilson interval, and a bootstrap over the episodes for the speed."""
    num_success = int(success.sum())
    interval = wilson_interval(num_success, len(success))
    speed = measured_speed([Episodes(success, num_steps)], fps)
    return Rate(num_success, len(success), float(success.mean()), interval, speed)


def rate_json(rate: Rate) -> dict[str, Any]:
    """The rate as results files hold it; rates are fractions."""
    return {
        "success": rate.rate,
        "interval": [rate.interval.low, rate.interval.high],
        "num_success": rate.num_success,
        "num_episodes": rate.num_episodes,
        **speed_json(rate.speed),
    }


def task_rate(evaluation: Evaluation, env: str) -> Rate:
    """The success rate of one task, with its Wilson interval."""
    return _rate(evaluation, [env])


def suite_rate(evaluation: Evaluation) -> Rate:
    """The success rate of all tasks together: the mean over equally many episodes of each.

    The Wilson interval takes episodes as draws from the mixture of tasks. With the tasks fixed, as in a suite,
    it is the wider side: strata take no variance from between them.
    """
    return _rate(evaluation, evaluation.settings.envs)


def _rate(evaluation: Evaluation, envs: Sequence[str]) -> Rate:
    return rate_of(
        np.concatenate([evaluation.success(env) for env in envs]),
        np.concatenate([evaluation.num_steps(env) for env in envs]),
        evaluation.fps,
    )


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """What `result.json` holds; rates are fractions."""
    return {
        "version": _VERSION,
        **rate_json(suite_rate(evaluation)),
        "exec_steps": evaluation.settings.exec_steps,
        "fps": evaluation.fps,
        "settings": asdict(evaluation.settings),
        "tasks": {
            env: {**rate_json(task_rate(evaluation, env)), "episodes": [asdict(e) for e in episodes]}
            for env, episodes in evaluation.episodes.items()
        },
        "seconds": evaluation.seconds,
        "num_workers": evaluation.num_workers,
        "num_restarts": evaluation.num_restarts,
        "videos": [asdict(video) for video in evaluation.videos],
    }


def write_evaluation(folder: Path, evaluation: Evaluation) -> Path:
    """Writes `result.json`, whole or not at all."""
    path = folder / RESULT_FILE
    write_text(path, json.dumps(to_json(evaluation), indent=2, allow_nan=False) + "\n")
    return path


@dataclass(frozen=True)
class _Task:
    """A task in what `to_json` writes; the rates follow from the episodes."""

    episodes: tuple[EpisodeOutcome, ...]
    success: float
    interval: tuple[float, float]
    num_success: int
    num_episodes: int


@dataclass(frozen=True)
class _Stored:
    """What `to_json` makes and reading needs."""

    settings: EvaluationSettings
    tasks: dict[str, _Task]
    seconds: float
    num_workers: int
    videos: tuple[Video, ...]
    fps: float | None = None


def _read_of(cls: type, values: Any) -> Any:
    """What of `values` is read; the rest follows from it, and is for people."""
    known = {f.name for f in fields(cls)}
    return {k: v for k, v in values.items() if k in known} if isinstance(values, dict) else values


def _check_stored(stored: _Stored, file: Path) -> None:
    tasks, settings = stored.tasks, stored.settings
    if stored.seconds <= 0 or stored.num_workers < 0:
        raise ChunkRLError(
            f"{file}: 'seconds' is {stored.seconds:g} and 'num_workers' {stored.num_workers}, expected no negative "
            f"numbers, and a time above 0: {_CURE}"
        )
    if stored.fps is not None and stored.fps <= 0:
        raise ChunkRLError(f"{file}: 'fps' is {stored.fps:g}, expected a number above 0: {_CURE}")
    if not tasks or sorted(tasks) != sorted(settings.envs):
        raise ChunkRLError(
            f"{file} has results of {list(tasks)}, its settings name {list(settings.envs)}: {_CURE}"
        )
    for env, task in tasks.items():
        counted = (sum(e.success for e in task.episodes), len(task.episodes))
        if counted != (task.num_success, task.num_episodes) or not task.episodes:
            raise ChunkRLError(
                f"{file}: {env} has {counted[0]} successes of {counted[1]} episodes, but says {task.num_success} of "
                f"{task.num_episodes}: {_CURE}"
            )
        if any(min(e.seed, e.num_steps, e.num_restarts) < 0 for e in task.episodes):
            raise ChunkRLError(f"{file}: an episode of {env} has a negative count: {_CURE}")


def read_evaluation(path: str | Path) -> Evaluation:
    """Reads `result.json`, or the folder that holds it.

    Raises:
        ChunkRLError: no such file (the evaluation is not finished), or not one of `chunkrl evaluate`.
    """
    path = Path(path)
    file = path / RESULT_FILE if path.is_dir() else path
    if not file.is_file():
        raise ChunkRLError(
            f"{file} does not exist: give the --output-dir of an evaluation that has finished (run chunkrl evaluate "
            "again to resume one that was stopped)"
        )
    content = read_json(file, dict, ChunkRLError, _CURE)
    if "version" not in content:
        raise ChunkRLError(f"{file} is not a result of chunkrl evaluate: give its --output-dir")
    if content["version"] != _VERSION or content["version"] is True:
        raise ChunkRLError(
            f"{file} has version {content['version']!r}, this chunkrl reads {_VERSION}: {_CURE}"
        )
    tasks = content.get("tasks")
    if isinstance(tasks, dict):
        content["tasks"] = {env: _read_of(_Task, task) for env, task in tasks.items()}
    stored = record_of(_Stored, _read_of(_Stored, content), str(file), ChunkRLError, _CURE)
    _check_stored(stored, file)
    episodes = {env: task.episodes for env, task in stored.tasks.items()}
    return Evaluation(
        stored.settings, episodes, stored.seconds, stored.num_workers, stored.videos, stored.fps
    )
