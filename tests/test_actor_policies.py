"""Real policies, small and random, under the actor: both kinds act from two copies and take pushed weights."""

import numpy as np
import pytest
import torch
from actor_fakes import small_policy
from pi_tiny import observation, tiny_policy

from chunkrl.envs.action_guard import ActionSpace
from chunkrl.envs.metaworld import ACTION_DIM, MetaWorldEnv
from chunkrl.envs.metaworld_family import MetaWorldFamily
from chunkrl.envs.protocol import EnvStep
from chunkrl.models.pi.actor import PiActor
from chunkrl.online.actor.actor import Actor, ActorConfig, Human
from chunkrl.online.actor.executor import ChunkExecutor, ExecutionConfig
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.online.human.correctors import ScriptedCorrector
from chunkrl.online.link.config import CorrectionRule
from chunkrl.online.link.records import Item, StepRecord


def test_a_small_policy_runs_on_metaworld_and_changes_its_weights_on_the_way():
    pytest.importorskip("metaworld")
    env = MetaWorldEnv("push-v3", max_steps=40)
    runner = PolicyRunner(small_policy(0), env.task, "sample")
    newer = dict(small_policy(1).policy.named_parameters())
    corrector = ScriptedCorrector.of(
        MetaWorldFamily().correction(env), CorrectionRule(budget=1, stall_steps=10, correction_steps=5)
    )
    items: list[Item] = []

    def show(status) -> None:
        if (status.episode, status.step) == (1, 20):
            runner.push(7, {name: tensor.detach().to(torch.bfloat16) for name, tensor in newer.items()})

    execution = ExecutionConfig(exec_steps=4, prefetch_steps=2, when_dry="wait")
    summary = Actor(
        env,
        ActionSpace.simulator(ACTION_DIM),
        ChunkExecutor(runner, execution),
        items,
        ActorConfig(num_episodes=2, confirm=False),
        Human(corrector=corrector),
        show=show,
    ).run()
    steps = [item for item in items if isinstance(item, StepRecord)]
    assert summary.num_steps == len(steps) and summary.num_interventions == 1
    versions = [step.policy_version for step in steps]
    assert set(versions) == {0, 7} and versions == sorted(versions) and set(versions[:20]) == {0}
    human = [step for step in steps if step.human]
    assert len(human) == 5 and all((np.abs(step.executed_action) <= 1.0).all() for step in steps)


def test_a_pi_policy_acts_from_two_copies_that_share_what_is_frozen():
    policy = PiActor(tiny_policy("pi05"))
    names = [name for name, _ in policy.policy.named_parameters()]
    trained = [name for name in names if "action_out_proj" in name]
    batch = observation(batch=1)
    assert batch.state is not None
    pictures = {name: image[0].permute(1, 2, 0).numpy() for name, image in batch.images.items()}
    step = EnvStep(batch.state[0].numpy(), pictures)
    runner = PolicyRunner(policy, "push", "sample", trained=trained)
    assert runner._standby is not None
    other = dict(runner._standby.policy.policy.named_parameters())
    for name, parameter in policy.policy.named_parameters():
        assert (other[name] is parameter) == (name not in trained)
    first = runner.act(step, seed=3)
    assert first.actions.shape == (policy.action_horizon, policy.action_dim)
    runner.push(1, {name: torch.zeros_like(other[name]) for name in trained})
    second = runner.act(step, seed=3)
    assert (first.version, second.version) == (0, 1) and (first.actions != second.actions).any()
    same = dict(tiny_policy("pi05").named_parameters())
    runner.push(2, {name: same[name].detach() for name in trained})
    np.testing.assert_array_equal(runner.act(step, seed=3).actions, first.actions)
