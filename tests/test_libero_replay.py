"""From what a replay begins, and what it finds there (mark `libero`; skipped without the package or its assets)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from test_libero import pytestmark  # noqa: F401  # mark and reasons to skip

from chunkrl.envs.libero import LiberoEnv
from chunkrl.envs.libero_replay import Recording, Replayer
from chunkrl.envs.libero_tasks import find_task, initial_states
from chunkrl.envs.protocol import EnvStep

TASK = "libero_spatial/0"  # nothing lies in or on a fixture, which no recording holds
ACTIONS = np.random.default_rng(1).uniform(-1, 1, (8, 7))


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    """Where episodes are recorded."""
    made = LiberoEnv(TASK, initial="sampled")
    yield made
    made.close()


@pytest.fixture(scope="module")
def replayer() -> Iterator[Replayer]:
    """Has a simulator of its own."""
    made = Replayer()
    yield made
    made.close()


def record(env: LiberoEnv, step: EnvStep) -> Recording:
    """ACTIONS from `step` on."""
    states = []
    for action in ACTIONS:
        states.append(step.state)
        step = env.step(action)
    return Recording(0, env.task, np.stack(states), ACTIONS)


def scene(env: LiberoEnv) -> np.ndarray:
    """The simulator's state, as LIBERO's column `states` has it."""
    return env.domain.sim.get_state().flatten()


def test_a_placement_seed_comes_first_and_repeats_the_episode(env: LiberoEnv, replayer: Replayer) -> None:
    recording = replace(record(env, env.reset(4321)), seed=4321, scene=np.zeros(3))
    found = replayer.replay(TASK, recording)
    assert (found.start, found.drift_m, found.success) == ("seed", (0.0, 0.0), False)
    assert found.onsets == {"goal": (), "grasp": (), "lift": ()} and not found.failure(1e-9)


def test_without_a_seed_the_official_state_is_known_by_the_robots(env: LiberoEnv, replayer: Replayer) -> None:
    official = initial_states(find_task(TASK))
    recording = record(env, env.reset_to(official[3], 3))
    found = replayer.replay(TASK, recording)
    assert found.start == "official 3" and found.drift_m == (0.0, 0.0)
    # one that nothing fits, and one that is not followed
    found = replayer.replay(TASK, replace(recording, state=recording.state + 0.01))
    assert (found.start, found.drift_m) == ("", None) and "no initial state fits" in found.failure(1.0)
    found = replayer.replay(TASK, replace(recording, action=-ACTIONS))
    assert found.start == "official 3" and found.drift_m is not None and found.drift_m[0] > 0.02
    assert found.failure(0.02) == f"the replay drifts by {found.drift_m[0]:.3f} m" and not found.failure(1.0)


def test_a_stored_state_is_that_of_the_first_frame_or_settles_first(
    env: LiberoEnv, replayer: Replayer
) -> None:
    step = env.reset(99)
    for action in ACTIONS:  # in motion: settling would end elsewhere
        step = env.step(action)
    stored = scene(env)
    found = replayer.replay(TASK, replace(record(env, step), scene=stored))
    assert found.start == "state" and found.drift_m is not None and found.drift_m[0] < 2e-3
    official = initial_states(find_task(TASK))[7]
    found = replayer.replay(TASK, replace(record(env, env.reset_to(official, 7)), scene=official))
    assert found.start == "settled state" and found.drift_m is not None and found.drift_m[0] < 2e-3
