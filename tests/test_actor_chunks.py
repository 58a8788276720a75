"""Chunked execution, prefetch, hold, weight swaps and the action guard."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from actor_fakes import CountingSource
from torch import nn

from chunkrl.data.hold_action import HoldAction
from chunkrl.envs.action_guard import ActionGuard, ActionSpace
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.online.actor.executor import ChunkExecutor, ExecutionConfig, ProposedAction
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.types import Observation


def _step(value: float) -> EnvStep:
    return EnvStep(state=np.array([value], np.float32))


def _drive(executor: ChunkExecutor, num_steps: int, first: int = 0):
    """Steps whose state is 100 times their number; what was proposed at each."""
    return [_next(executor, 100.0 * t) for t in range(first, first + num_steps)]


def _next(executor: ChunkExecutor, state: float) -> ProposedAction:
    action = executor.next_action(_step(state))
    assert action is not None
    return action


# ---- executor


def test_without_prefetch_each_chunk_belongs_to_the_step_where_it_begins():
    source = CountingSource(10)
    executor = ChunkExecutor(source, ExecutionConfig(exec_steps=4, when_dry="wait"))
    executor.begin_episode(_step(0.0), seed=7)
    actions = [float(a.action[0]) for a in _drive(executor, 10)]
    executor.close()
    assert actions == [0, 1, 2, 3, 400, 401, 402, 403, 800, 801]
    assert source.begun == [0] and source.asked == [0, 400, 800] and len(set(source.seeds)) == 3


def test_prefetch_aligns_a_chunk_with_the_step_from_which_it_was_seen():
    source = CountingSource(10)
    executor = ChunkExecutor(source, ExecutionConfig(exec_steps=4, prefetch_steps=3, when_dry="wait"))
    executor.begin_episode(_step(0.0), seed=0)
    proposed = _drive(executor, 12)
    executor.close()
    # asked for at step 1 (3 actions left): its action 3 is for step 4; then at 5, for 8
    assert [float(a.action[0]) for a in proposed] == [0, 1, 2, 3, 103, 104, 105, 106, 503, 504, 505, 506]
    assert [a.offset for a in proposed] == [0, 1, 2, 3] + [3, 4, 5, 6] * 2
    assert [a.chunk for a in proposed] == [0] * 4 + [1] * 4 + [2] * 4
    assert source.asked[:3] == [0, 100, 500]


def test_prefetch_hides_the_time_that_a_chunk_takes_and_a_late_one_skips_nothing():
    source = CountingSource(6)
    executor = ChunkExecutor(source, ExecutionConfig(exec_steps=3, prefetch_steps=2))
    executor.begin_episode(_step(0.0), seed=0)
    source.gate.clear()
    early = _drive(executor, 3)
    assert [float(a.action[0]) for a in early] == [0, 1, 2] and executor.queue_length == 0
    assert executor.next_action(_step(300.0)) is None  # dry: position is held
    assert executor.next_action(_step(400.0)) is None
    source.gate.set()
    assert executor._request is not None
    executor._request.future.result(timeout=240.0)
    late = _next(executor, 500.0)
    assert (float(late.action[0]), late.offset) == (
        102.0,
        2,
    )  # seen at step 1, 2 of its actions were executed
    executor.close()
    assert executor.statistics().num_dry == 2


def test_an_interruption_drops_what_is_queued_and_what_is_being_made():
    source = CountingSource(6)
    executor = ChunkExecutor(source, ExecutionConfig(exec_steps=3, prefetch_steps=3, when_dry="wait"))
    executor.begin_episode(_step(0.0), seed=0)
    _drive(executor, 1)  # asks for the next one at once
    executor.interrupt()
    assert executor.queue_length == 0
    action = _next(executor, 900.0)
    executor.close()
    assert (float(action.action[0]), action.offset) == (900.0, 0)


def test_what_the_policy_raises_reaches_the_loop():
    class Broken(CountingSource):
        def act(self, step, seed):
            raise ChunkRLError("no camera 'front'")

    executor = ChunkExecutor(Broken(5), ExecutionConfig(exec_steps=5))
    with pytest.raises(ChunkRLError, match="front"):
        executor.begin_episode(_step(0.0), seed=0)
    executor.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exec_steps": 0}, "exec_steps"),
        ({"exec_steps": 2, "prefetch_steps": 3}, "prefetch_steps"),
        ({"when_dry": "guess"}, "when_dry"),
        ({"exec_steps": 4, "prefetch_steps": 3}, "chunk of 6"),
    ],
)
def test_execution_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ChunkRLError, match=message):
        ChunkExecutor(CountingSource(6), ExecutionConfig(**settings))


# ---- weights


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.ones(3))
        self.offset: torch.Tensor
        self.register_buffer("offset", torch.zeros(2))


class _ConstantPolicy:
    """Chunks of what `value` is; may be stopped while it acts."""

    action_horizon, action_dim, cameras = 4, 2, ()

    def __init__(self) -> None:
        self.policy = _Constant()
        self.q = nn.Linear(2, 1)
        self.entered: Any = None
        self.asked: tuple[str, int] | None = None
        self.leave: Any = None

    def act(
        self, observation: Observation, generators: Sequence[torch.Generator], mode: str, num_candidates: int
    ) -> torch.Tensor:
        self.asked = (mode, num_candidates)
        if self.entered is not None:
            self.entered.set()
            assert self.leave.wait(timeout=240.0)
        noise = torch.randn(1, generator=generators[0]) if mode == "sample" else 0.0
        return (self.policy.value + self.policy.offset + noise).expand(1, 4, 2)


def _runner(**settings) -> PolicyRunner:
    return PolicyRunner(_ConstantPolicy(), "reach", "mode", trained=["value"], **settings)


def test_pushed_weights_act_from_the_next_chunk_or_episode():
    for swap_at, version_then in (("chunk", 3), ("episode", 0)):
        runner = _runner(swap_at=swap_at)
        assert runner.act(_step(0.0), 0).version == 0
        runner.push(3, {"value": torch.tensor([5.0, 6.0], dtype=torch.bfloat16)})
        assert runner.version == 0
        chunk = runner.act(_step(0.0), 0)
        assert chunk.version == version_then
        runner.begin_episode()
        chunk = runner.act(_step(0.0), 0)
        assert chunk.version == runner.version == 3
        np.testing.assert_array_equal(chunk.actions, np.tile(np.array([5, 6], np.float32), (4, 1)))


def test_versions_alternate_between_two_copies_that_share_what_is_frozen():
    policy = _ConstantPolicy()
    runner = PolicyRunner(policy, "reach", "mode", trained=["value"])
    assert runner._standby is not None
    other = runner._standby.policy
    assert isinstance(other, _ConstantPolicy)
    assert other.policy.value is not policy.policy.value
    assert other.policy.frozen is policy.policy.frozen
    assert other.policy.offset is policy.policy.offset and other.q is policy.q
    for version in range(1, 6):
        runner.push(version, {"value": torch.full((2,), float(version))})
        if version == 3:  # one that was never used
            continue
        chunk = runner.act(_step(0.0), 0)
        assert chunk.version == version and (chunk.actions == version).all()


@pytest.mark.parametrize(
    ("version", "tensors", "message"),
    [
        (2, {"value": torch.ones(2)}, "version 2 is there"),
        (1, {"value": torch.ones(2)}, "version 2 is there"),
        (3, {}, "hold nothing"),
        (3, {"other": torch.ones(2)}, "lack parameter 'value'"),
        (3, {"value": torch.ones(2), "frozen": torch.ones(3)}, "unknown parameter 'frozen'"),
        (3, {"value": torch.ones(3)}, "shape"),
        (3, {"value": torch.tensor([1.0, float("nan")])}, "NaN"),
        (3, {"value": torch.ones(2, dtype=torch.int64)}, "int64"),
    ],
)
def test_wrong_weights_are_refused_and_the_old_ones_stay(version, tensors, message):
    runner = _runner()
    runner.push(2, {"value": torch.full((2,), 7.0)})
    with pytest.raises(CheckpointError, match=message):
        runner.push(version, tensors)
    chunk = runner.act(_step(0.0), 0)
    assert chunk.version == 2 and (chunk.actions == 7.0).all()
    runner.push(3, {"value": torch.full((2,), 8.0)})  # and the next good ones are taken
    assert (runner.act(_step(0.0), 0).actions == 8.0).all()


def test_what_trains_is_what_the_first_push_holds():
    policy = _ConstantPolicy()
    runner = PolicyRunner(policy, "reach", "mode")
    for tensors, message in (({"head": torch.ones(2)}, "unknown"), ({"value": torch.ones(3)}, "shape")):
        with pytest.raises(CheckpointError, match=message):
            runner.push(1, tensors)
    runner.push(1, {"value": torch.ones(2)})
    assert (runner.act(_step(0.0), 0).actions == 1.0).all()
    assert runner._active.policy is not policy and (policy.policy.value == 0.0).all()
    with pytest.raises(CheckpointError, match="unknown parameter 'frozen'"):
        runner.push(2, {"value": torch.ones(2), "frozen": torch.ones(3)})


def test_a_policy_that_chooses_by_its_own_q_takes_no_weights():
    runner = PolicyRunner(_ConstantPolicy(), "reach", "best_of_n")
    with pytest.raises(CheckpointError, match="Q that chooses"):
        runner.push(1, {"value": torch.ones(2)})


def test_as_many_candidates_are_drawn_as_were_asked_for():
    policy = _ConstantPolicy()
    PolicyRunner(policy, "reach", "best_of_n", num_candidates=3).act(EnvStep(np.zeros(3, np.float32), {}), 0)
    assert policy.asked == ("best_of_n", 3)


def test_weights_arrive_while_a_chunk_is_made_and_never_change_it():
    policy = _ConstantPolicy()
    runner = PolicyRunner(policy, "reach", "mode", trained=["value"])
    policy.entered, policy.leave = threading.Event(), threading.Event()
    chunks = []
    acting = threading.Thread(target=lambda: chunks.append(runner.act(_step(0.0), 0)))
    acting.start()
    assert policy.entered.wait(timeout=240.0)
    runner.push(1, {"value": torch.ones(2)})  # goes to the other copy: does not wait for the chunk
    policy.leave.set()
    acting.join(timeout=240.0)
    assert chunks[0].version == 0 and (chunks[0].actions == 0.0).all()
    assert runner.act(_step(0.0), 0).version == 1


def test_the_seed_of_an_episode_determines_its_noise_dropped_chunks_or_not():
    runner = PolicyRunner(_ConstantPolicy(), "reach", "sample")
    executor = ChunkExecutor(runner, ExecutionConfig(exec_steps=2, prefetch_steps=1, when_dry="wait"))

    def actions(seed: int, wait_s: float) -> np.ndarray:
        executor.begin_episode(_step(0.0), seed)
        taken = [_next(executor, 0.0).action for _ in range(6)]
        threading.Event().wait(wait_s)  # the chunk that was asked for is made, or not
        executor.interrupt()
        return np.stack(taken + [_next(executor, 0.0).action for _ in range(6)])

    first, other, again = actions(1, 0.0), actions(2, 0.0), actions(1, 0.05)
    executor.close()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[2]).any()


def test_a_runner_of_parameters_that_are_not_there_is_refused():
    with pytest.raises(ChunkRLError, match="no parameter 'head'"):
        PolicyRunner(_ConstantPolicy(), "reach", trained=["head"])
    with pytest.raises(ChunkRLError, match="swap_at"):
        _runner(swap_at="never")


# ---- guard


def test_actions_are_clipped_with_a_count_and_refused_ones_hold_position():
    space = ActionSpace.simulator(3)
    guard = ActionGuard(space)
    guard.reset(_step(0.0))
    clipped = guard.check(np.array([2.0, -0.5, -3.0]))
    np.testing.assert_array_equal(clipped.action, np.array([1.0, -0.5, -1.0], np.float32))
    assert clipped.num_clipped == guard.num_clipped == 2 and not clipped.held
    guard.executed(clipped.action)
    for wrong, fault in ((np.array([0.0, np.nan, 0.0]), "NaN"), (np.zeros(2), "shape")):
        held = guard.check(wrong)
        assert held.held and fault in held.fault
        np.testing.assert_array_equal(
            held.action, np.array([0, 0, -1], np.float32)
        )  # no motion, gripper as it was
    held = guard.check(None)
    assert held.held and held.fault == ""
    assert guard.num_held == 3 and [(f.episode, f.step) for f in guard.faults] == [(0, 1), (0, 1)]


def test_joint_targets_are_held_where_the_robot_rests():
    space = ActionSpace.joint_targets(np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    guard = ActionGuard(space)
    guard.reset(EnvStep(state=np.array([0.25, 3.0, 9.0], np.float32)))
    np.testing.assert_array_equal(
        guard.check(None).action, np.array([0.25, 1.0], np.float32)
    )  # within the limits
    guard.executed(np.array([0.5, 0.5], np.float32))
    np.testing.assert_array_equal(guard.check(None).action, np.array([0.5, 0.5], np.float32))


def test_limits_that_are_none_are_refused():
    hold = HoldAction(control="absolute", gripper_dims=())
    for low, high in (([0.0, 1.0], [1.0, 1.0]), ([0.0, np.nan], [1.0, 2.0]), ([0.0], [1.0, 2.0])):
        with pytest.raises(ChunkRLError, match="limit"):
            ActionSpace(np.array(low), np.array(high), hold, lambda step: step.state)
