"""Stored initial states of MetaWorld and contacts read as arrays: the same simulation, to the bit."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")

from chunkrl.envs import metaworld, metaworld_states
from chunkrl.envs.metaworld import ACTION_DIM, MetaWorldEnv, make_expert
from chunkrl.envs.metaworld_states import InitialStates

# Bodies that resets move (door, basket, coffee machine), fields that look into the simulator's arrays (door-lock,
# basketball), and contacts that are asked for (the others).
TASKS = ("push-v3", "pick-place-v3", "coffee-pull-v3", "door-open-v3", "door-lock-v3", "basketball-v3")
MAX_STEPS = 60
SEEDS = (3, 4)


@pytest.fixture(autouse=True)
def states(monkeypatch: pytest.MonkeyPatch) -> InitialStates:
    states = InitialStates()
    monkeypatch.setattr(metaworld, "_INITIAL_STATES", states)
    return states


def episode(env: MetaWorldEnv, seed: int, by_expert: bool) -> list[tuple[Any, ...]]:
    """All that can be seen of an episode: MetaWorld's own observation, reward and facts (among them `grasp_success`),
    the step's state, success and ends, and where things are at first, which is what images are drawn from."""
    own: list[tuple[Any, ...]] = []
    simulate = type(env._env).step

    def recorded(action: np.ndarray):
        found = simulate(env._env, action)
        own.append((found[0].tobytes(), found[1], *map(float, found[4].values())))
        return found

    env._env.step = recorded
    rng, expert = np.random.default_rng(seed), make_expert(env.name)
    step = env.reset(seed)
    model, data = env.mujoco
    places = [array.tobytes() for array in (data.qpos, model.body_pos, model.site_pos)]
    seen: list[tuple[Any, ...]] = [(step.state.tobytes(), *places)]
    while not step.done:
        action = rng.uniform(-1, 1, ACTION_DIM)
        if by_expert:
            action = np.clip(expert(step.state) + 0.2 * action, -1, 1)
        step = env.step(action, draw=False)
        seen.append((step.state.tobytes(), step.reward, step.success, step.terminated, step.truncated))
    return [*seen, *own]


@pytest.mark.parametrize("task", TASKS)
def test_restored_states_are_those_of_resets(task: str, states: InitialStates) -> None:
    plain, first, second = (MetaWorldEnv(task, MAX_STEPS, plain=how) for how in (True, False, False))
    assert "touching_object" in vars(first._env) and "touching_object" not in vars(plain._env)
    for by_expert in (True, False):
        # the seeds in turn: each state is restored where another episode ended, and in another environment
        for seed in SEEDS:
            expected = episode(plain, seed, by_expert)
            for env in (first, second):
                assert episode(env, seed, by_expert) == expected
    assert list(states._states) == [(task, seed) for seed in SEEDS]
    for env in (plain, first, second):
        env.close()


def test_a_grasp_is_seen() -> None:
    """What the arrays of contacts are for: otherwise the comparison above could be of two that never touch."""
    env, expert = MetaWorldEnv("pick-place-v3"), make_expert("pick-place-v3")
    step, grasped = env.reset(0), False
    while not step.done:
        step = env.step(expert(step.state))
        grasped |= env._env.touching_main_object
        found = env._env.touching_main_object
        assert found == type(env._env).touching_object(env._env, env._env._get_id_main_object())
    assert grasped and step.success
    env.close()


def test_only_the_last_states_are_kept(states: InitialStates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaworld_states, "MAX_STATES", 2)
    env = MetaWorldEnv("reach-v3")
    for seed in (1, 2, 1, 3):
        env.reset(seed)
    assert list(states._states) == [("reach-v3", 1), ("reach-v3", 3)]  # 1 was used after 2
    env.close()
