"""Collects scripted mixed-quality episodes in parallel and writes them as a LeRobot data set."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from chunkrl.data.writer import DatasetWriter, FeatureSpec
from chunkrl.envs.metaworld import (
    ACTION_DIM,
    CAMERA,
    FPS,
    STATE_NAMES,
    MetaWorldEnv,
    State,
    check_observation,
    check_task,
    make_expert,
)
from chunkrl.envs.scripted import MixtureConfig, MixtureController
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.progress import Progress, silent


@dataclass(frozen=True)
class CollectConfig:
    """What to collect."""

    env: str = "push-v3"
    """MetaWorld task."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """How good and bad behaviour are mixed."""
    num_episodes: int = 150
    """Episodes, successful or not."""
    max_steps: int = 150
    """Time limit, steps."""
    seed: int = 0
    """Determines initial states, controllers and noise; episode i depends on the seed and i alone."""
    num_workers: int = 2
    """Simulator processes (0: in this process)."""
    state: State = "full"
    """full: all 39 entries; compact: hand, gripper, object and goal. Evaluate with the same."""
    camera_size: int = 0
    """Side of a camera's pictures, drawn in software, pixels (0: no camera). Evaluate with the same."""

    def __post_init__(self) -> None:
        check_observation(self.state, self.camera_size)
        for name, least in (("num_episodes", 1), ("max_steps", 1), ("seed", 0), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ChunkRLError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class CollectCommand(CollectConfig):
    """Scripted mixed-quality MetaWorld episodes, written as a LeRobot v3.0 data set."""

    output_dir: str = "data/push-v3"
    """The new data set's folder."""


@dataclass(frozen=True)
class CollectedEpisode:
    """One episode: columns by feature name, each [T, ...], its task text and its outcome."""

    columns: Mapping[str, np.ndarray]
    task: str
    success: bool


def features(state: State, action_dim: int, camera_size: int = 0) -> dict[str, FeatureSpec]:
    """The columns that collection writes (flags in `next.*` follow the action of their frame)."""
    names = STATE_NAMES[state]
    picture = {CAMERA: FeatureSpec("image", (camera_size, camera_size, 3))} if camera_size else {}
    return picture | {
        "observation.state": FeatureSpec("float32", (len(names),), names),
        "action": FeatureSpec("float32", (action_dim,)),
        "next.reward": FeatureSpec("float32", (1,)),
        "next.success": FeatureSpec("bool", (1,)),
        "next.done": FeatureSpec("bool", (1,)),
        "next.truncated": FeatureSpec("bool", (1,)),
        # which scripted controller acted: for diagnostics only, training never reads it
        "complementary_info.controller": FeatureSpec("int64", (1,)),
    }


_ENVS: dict[tuple[str, int, State, int], MetaWorldEnv] = {}  # one simulator a process, made once


def collect_episode(config: CollectConfig, episode: int) -> CollectedEpisode:
    """Episode number `episode` of `config`, a function of (config, episode) alone."""
    key = (config.env, config.max_steps, config.state, config.camera_size)
    if key not in _ENVS:
        _ENVS[key] = MetaWorldEnv(*key)
    env = _ENVS[key]
    rng = np.random.default_rng([config.seed, episode])
    controller = MixtureController(make_expert(config.env), config.mixture, rng)
    step = env.reset(int(rng.integers(2**31)))
    observed, actions, controllers, steps = [], [], [], []
    while not step.done:
        action, acting = controller.act(env.full_state)
        observed.append(step)
        actions.append(action)
        controllers.append(acting)
        step = env.step(action)
        steps.append(step)

    def column(values, dtype) -> np.ndarray:
        return np.asarray(values, dtype=dtype)[:, None]

    columns = {
        "observation.state": np.stack([s.state for s in observed]),
        "action": np.stack(actions),
        "next.reward": column([s.reward for s in steps], np.float32),
        "next.success": column([s.success for s in steps], bool),
        "next.done": column([s.done for s in steps], bool),
        "next.truncated": column([s.truncated for s in steps], bool),
        "complementary_info.controller": column(controllers, np.int64),
    }
    if config.camera_size:
        columns[CAMERA] = np.stack([s.images[CAMERA] for s in observed])
    return CollectedEpisode(columns, env.task, step.success)


def collect_episodes(config: CollectConfig, progress: Progress = silent) -> Iterator[CollectedEpisode]:
    """All episodes of `config` in order, made by `num_workers` processes."""
    stage = f"collect {config.env} ({config.mixture.mixture})"
    numbers = range(config.num_episodes)
    if config.num_workers == 0:
        for number in numbers:
            yield collect_episode(config, number)
            progress(stage, number + 1, config.num_episodes)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.num_workers, mp_context=context) as pool:
        futures = [pool.submit(collect_episode, config, number) for number in numbers]
        for number, future in enumerate(futures):
            yield future.result()
            progress(stage, number + 1, config.num_episodes)


def collect_dataset(
    root: str | Path, config: CollectConfig, progress: Progress = silent, overwrite: bool = False
) -> int:
    """Writes the episodes of `config` to a new LeRobot v3.0 data set at `root`; returns the successes.

    Raises DatasetError where `root` holds episodes already: the same ones twice would end in different folds.
    """
    check_task(config.env)
    num_success = 0
    with DatasetWriter(
        root,
        fps=FPS,
        features=features(config.state, ACTION_DIM, config.camera_size),
        robot_type=f"metaworld:{config.env}",
        overwrite=overwrite,
    ) as writer:
        if writer.num_episodes:
            raise DatasetError(
                f"{root} holds {writer.num_episodes} episodes already: delete it or choose another output_dir"
            )
        for episode in collect_episodes(config, progress):
            writer.add_episode(episode.columns, episode.task)
            num_success += episode.success
    return num_success


def collect(command: CollectCommand, progress: Progress) -> None:
    """Writes the data set and says what it holds."""
    num_success = collect_dataset(command.output_dir, command, progress)
    print(f"{command.output_dir}: {command.num_episodes} episodes, {num_success} successful")
