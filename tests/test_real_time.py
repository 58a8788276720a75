"""Chunks that come late (`benchmarks.real_time`): what is executed meanwhile, and how the new chunk goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from actor_fakes import small_policy
from toy_env import ToyEnv

from benchmarks.real_time import BenchmarkConfig, RealTimeEpisode, run, run_episode
from chunkrl import ChunkLevelOfflineRL
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.policies.chunk_policy import ChunkPolicy


class FarGoal(ToyEnv):
    """A goal that is never reached, and a log of the actions."""

    def reset(self, seed: int) -> EnvStep:
        step = super().reset(seed)
        self._state[1], self.log = 100.0, []
        return EnvStep(np.array([step.state[0], 100.0], np.float32))

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        self.log.append(np.array(action))
        return super().step(action, draw)


def toy() -> tuple[ChunkPolicy, FarGoal]:
    """A flow with random weights, chunks of 8, and 40 steps to act in."""
    return small_policy(0, 2, 1, kind="flow"), FarGoal("toy/line", 40)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_until_a_chunk_is_there_the_last_one_is_executed(delay: int, guided: bool) -> None:
    policy, env = toy()
    episode = run_episode(policy, env, 5, exec_steps=4, delay=delay, guided=guided)
    np.testing.assert_array_equal(episode.executed, np.stack(env.log))
    # asked for after 4, 8, ... steps
    assert episode.joints.tolist() == [4 * number + delay for number in range(1, 10)]
    for joint, frozen in zip(episode.joints, episode.frozen, strict=True):
        np.testing.assert_array_equal(episode.executed[joint - delay : joint], frozen)
    again = run_episode(policy, env, 5, exec_steps=4, delay=delay, guided=guided)
    np.testing.assert_array_equal(again.executed, episode.executed)


def test_guided_chunks_go_on_from_what_is_executed() -> None:
    policy, env = toy()
    plain, guided = ([run_episode(policy, env, s, 4, 3, g) for s in range(4)] for g in (False, True))

    def away(episodes: list[RealTimeEpisode]) -> float:
        return float(np.mean([np.abs(e.begun - e.frozen).mean() for e in episodes]))

    assert away(guided) < 0.2 * away(plain)


def test_jumps_at_joints_and_elsewhere() -> None:
    executed = np.array([[0.0], [1.0], [3.0], [3.0], [7.0]])
    none = np.zeros((2, 0, 1))
    at, off = RealTimeEpisode(False, executed, np.array([2, 4]), none, none).jumps()
    assert (at.tolist(), off.tolist()) == ([2.0, 4.0], [1.0, 0.0])
    # asked for, and the episode ended before the chunk was there
    at, off = RealTimeEpisode(True, executed, np.array([2, 6]), none, none).jumps()
    assert (at.tolist(), off.tolist()) == ([2.0], [1.0, 0.0, 4.0])


def test_a_delay_that_does_not_fit_is_refused() -> None:
    policy, env = toy()
    for exec_steps, delay in ((4, 5), (6, 3), (4, -1)):
        with pytest.raises(ChunkRLError, match="not than the policy's chunk, 8"):
            run_episode(policy, env, 0, exec_steps, delay, guided=True)


@pytest.mark.slow
def test_in_metaworld_with_a_delay(tmp_path: Path) -> None:
    """A flow trained for seconds: guided chunks join more smoothly."""
    pytest.importorskip("metaworld", reason="needs chunkrl[sim]")
    from chunkrl.collect.command import CollectConfig, collect_dataset

    collect_dataset(tmp_path / "data", CollectConfig(env="reach-v3", num_episodes=12, num_workers=0))
    ChunkLevelOfflineRL(
        dataset_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "run"),
        objective="behaviour_cloning",
        policy=PolicyConfig(kind="flow"),
        network=NetworkConfig(hidden_dim=64),
        action_horizon=10,
        action_dim=4,
        num_updates=300,
        batch_size=64,
        device="cpu",
    ).train()
    plain, guided = run(
        BenchmarkConfig(str(tmp_path / "run/policy"), delays=(3,), exec_steps=5, num_episodes=4)
    )
    assert plain.num_joints > 20 and guided.num_joints > 20
    assert guided.joint < plain.joint
    assert guided.prefix < 0.5 * plain.prefix
