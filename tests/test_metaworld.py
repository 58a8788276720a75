"""MetaWorld: reproducible resets, collection and evaluation."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")

from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.collect.config import plan
from chunkrl.collect.episode import CollectedEpisode, EpisodeMaker
from chunkrl.data.frames import FrameTable
from chunkrl.data.labels import label_frames
from chunkrl.envs.metaworld import ACTION_DIM, CAMERA, GOAL, STATE_DIM, STATE_NAMES, MetaWorldEnv, make_expert
from chunkrl.envs.scripted import MixtureConfig
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.evaluation.rollout import Rollouts, evaluate, initial_seeds
from chunkrl.progress import silent
from chunkrl.types import Observation


@pytest.fixture(scope="module")
def envs() -> Iterator[list[MetaWorldEnv]]:
    made = [MetaWorldEnv("push-v3", max_steps=30) for _ in range(3)]
    yield made
    for env in made:
        env.close()


def test_resets_depend_on_the_seed_alone(envs: list[MetaWorldEnv]) -> None:
    first = envs[0].reset(5).state
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, size=(20, ACTION_DIM))
    path = [envs[0].step(action).state for action in actions]
    assert not np.array_equal(envs[0].reset(6).state, first)
    for env in (envs[0], envs[1]):
        assert np.array_equal(env.reset(5).state, first)
        # and so does everything after it, whatever ran before
        assert all(np.array_equal(env.step(a).state, s) for a, s in zip(actions, path, strict=True))
    assert first.shape == (STATE_DIM,) and first.dtype == np.float32
    assert np.abs(first[GOAL]).sum() > 0  # the goal is part of the observation


def test_time_limit_and_success(envs: list[MetaWorldEnv]) -> None:
    env = envs[0]
    step = env.reset(0)
    for number in range(30):
        assert not step.done
        step = env.step(np.zeros(ACTION_DIM))
        assert step.truncated == (number == 29)
    assert step.done and not step.terminated and step.reward == 0
    long = MetaWorldEnv("push-v3", max_steps=150)
    expert = make_expert("push-v3")
    step = long.reset(0)
    for _ in range(150):
        if not step.done:
            step = long.step(expert(step.state))
    assert step.success and step.terminated and not step.truncated and step.reward == 1
    long.close()


def test_actions_and_tasks_that_do_not_fit(envs: list[MetaWorldEnv]) -> None:
    for action in (np.zeros(3), np.full(ACTION_DIM, np.nan)):
        with pytest.raises(ValueError, match="4 finite action values"):
            envs[0].step(action)
    with pytest.raises(ChunkRLError, match=r"no task 'push-v9'.*push-v3"):
        MetaWorldEnv("push-v9")


def test_compact_state_and_camera(envs: list[MetaWorldEnv]) -> None:
    env = MetaWorldEnv("push-v3", max_steps=30, state="compact", camera_size=24)
    full, seen = envs[0].reset(5).state, env.reset(5)
    assert env.state_dim == len(STATE_NAMES["compact"]) == 10 and len(STATE_NAMES["full"]) == STATE_DIM
    # hand, gripper and object position, then the goal
    assert np.array_equal(seen.state, full[[0, 1, 2, 3, 4, 5, 6, 36, 37, 38]])
    assert np.array_equal(env.full_state, full)
    for step in (seen, env.step(np.ones(ACTION_DIM))):
        assert step.images[CAMERA].shape == (24, 24, 3) and step.images[CAMERA].dtype == np.uint8
        assert step.images[CAMERA].std() > 10
    env.close()
    for bad, message in (
        ({"state": "short"}, "state is 'short'"),
        ({"camera_size": -1}, "camera_size is -1"),
    ):
        with pytest.raises(ChunkRLError, match=message):
            MetaWorldEnv("push-v3", **bad)  # type: ignore[arg-type]
        with pytest.raises(ChunkRLError, match=message):
            plan(CollectConfig(**bad))  # type: ignore[arg-type]
    with pytest.raises(ChunkRLError, match="--rendering fast is of LIBERO"):
        plan(CollectConfig(rendering="fast"))


CONFIG = CollectConfig(num_episodes=3, max_steps=12, seed=4, num_workers=0)


def collect_episode(config: CollectConfig, number: int) -> CollectedEpisode:
    return EpisodeMaker(plan(config)).make(number)


@pytest.mark.parametrize("mixture", ["within", "episodes"])
def test_an_episode_is_a_function_of_configuration_and_number(mixture: str) -> None:
    config = replace(CONFIG, mixture=MixtureConfig(mixture=mixture))  # type: ignore[arg-type]
    second = collect_episode(config, 1)
    maker = EpisodeMaker(plan(config))
    maker.make(0)
    again = maker.make(1)  # after another one in the same simulator
    assert second.columns.keys() == plan(config).features().keys()
    for name, values in second.columns.items():
        assert np.array_equal(values, again.columns[name]), name
    other = collect_episode(replace(config, seed=5), 1)
    assert not np.array_equal(second.columns["action"], other.columns["action"])
    assert np.abs(second.columns["action"]).max() <= 1
    if mixture == "episodes":
        assert len(np.unique(second.columns["complementary_info.controller"])) == 1


def test_collected_data_set(tmp_path: Path) -> None:
    root = tmp_path / "d"
    num_success = collect_dataset(root, CONFIG)
    table = FrameTable.open(root, progress=silent)
    assert table.num_episodes == 3 and table.action.shape[1] == ACTION_DIM
    assert table.state is not None and table.state.shape[1] == STATE_DIM
    labels = label_frames(table)
    assert labels.success.sum() == num_success
    assert labels.rule.success == "next.success"
    done = table.column("next.done").reshape(-1)
    last = table.episode_start + table.episode_length - 1
    assert np.flatnonzero(done).tolist() == last.tolist()
    truncated = table.column("next.truncated").reshape(-1)
    assert np.array_equal(truncated[last], ~labels.success)
    rows = slice(int(table.episode_start[1]), int(table.episode_start[2]))
    assert np.array_equal(table.action[rows], collect_episode(CONFIG, 1).columns["action"])
    # once more into the same folder would write every episode twice
    with pytest.raises(DatasetError, match=r"3 episodes already.*--output-dir"):
        collect_dataset(root, CONFIG)
    assert collect_dataset(root, CONFIG, overwrite=True) == num_success
    with pytest.raises(ChunkRLError, match="no task 'push-v9'"):
        collect_dataset(tmp_path / "new", replace(CONFIG, env="push-v9"))
    assert not (tmp_path / "new").exists()


def test_what_is_observed_changes_nothing_else(tmp_path: Path) -> None:
    config = replace(CONFIG, num_episodes=1, max_steps=4, state="compact", camera_size=16)
    collect_dataset(tmp_path / "d", config)
    table = FrameTable.open(tmp_path / "d", progress=silent)
    full = collect_episode(replace(config, state="full", camera_size=0), 0).columns
    assert np.array_equal(table.action, full["action"])
    names = json.loads((tmp_path / "d/meta/info.json").read_text())["features"]["observation.state"]["names"]
    entries = [STATE_NAMES["full"].index(name) for name in names]
    assert table.state is not None and np.array_equal(table.state, full["observation.state"][:, entries])
    assert table.images(CAMERA, np.arange(4)).size == 4 * 16 * 16 * 3


def noisy_actor(observation: Observation, generators: list[torch.Generator]) -> torch.Tensor:
    """Chunks [B, 4, 4] of state and of each row's own noise."""
    assert observation.state is not None
    noise = torch.stack([torch.randn(4, ACTION_DIM, generator=g) for g in generators])
    return (noise + observation.state[:, None, :ACTION_DIM]).clamp(-1, 1)


def test_evaluation_does_not_depend_on_the_number_of_environments(envs: list[MetaWorldEnv]) -> None:
    seeds = initial_seeds(0, 5)
    assert seeds[:3] == initial_seeds(0, 3) and seeds != initial_seeds(1, 5)
    final: list[np.ndarray] = []
    outcomes: list[Rollouts] = []
    for num_envs in (1, 3):
        states: list[np.ndarray] = []

        def actor(observation: Observation, generators, states: list[np.ndarray] = states) -> torch.Tensor:
            assert observation.state is not None
            states.extend(observation.state.numpy())
            return noisy_actor(observation, generators)

        outcomes.append(evaluate(actor, envs[:num_envs], seeds, exec_steps=3))
        final.append(np.unique(np.stack(states), axis=0))  # a batch that is not full is filled up by copies
    assert outcomes[0].num_steps.tolist() == outcomes[1].num_steps.tolist()
    assert outcomes[0].success.tolist() == outcomes[1].success.tolist()
    assert np.array_equal(final[0], final[1])
    assert outcomes[0].seeds == seeds and outcomes[0].exec_steps == 3


def test_executed_steps_are_bounded(envs: list[MetaWorldEnv]) -> None:
    for exec_steps in (0, -4):
        with pytest.raises(ChunkRLError, match="at least 1 action"):
            evaluate(noisy_actor, envs[:1], (0,), exec_steps)  # type: ignore[arg-type]
    with pytest.raises(ChunkRLError, match="exec_steps 5 is longer than the policy's chunk 4"):
        evaluate(noisy_actor, envs[:1], (0,), 5)  # type: ignore[arg-type]
    with pytest.raises(ChunkRLError, match="at least one environment"):
        evaluate(noisy_actor, [], (0,), 1)  # type: ignore[arg-type]


def test_collection_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    collect_dataset(whole, CONFIG)
    collect_dataset(parts, replace(CONFIG, num_episodes=1))
    assert collect_dataset(parts, CONFIG) == collect_dataset(whole, CONFIG, overwrite=True)
    first, second = (FrameTable.open(root, progress=silent) for root in (whole, parts))
    assert second.num_episodes == 3 and np.array_equal(first.action, second.action)
    with pytest.raises(DatasetError, match="collected with another seed"):
        collect_dataset(parts, replace(CONFIG, seed=5, num_episodes=9))
    with pytest.raises(ChunkRLError, match="go together"):
        replace(CONFIG, policy="runs/x/policy")
