"""Actions are recognised as targets or motions from the data, and padding, encodings and notes follow."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import open_chunks, settings, write_dataset
from pi_tiny import tiny_policy, tiny_recipe

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.control import ControlKind, control_notes
from chunkrl.data.hold_action import HoldAction
from chunkrl.data.inspect import make_report, to_text
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.envs.metaworld import MetaWorldEnv
from chunkrl.errors import CheckpointError, ChunkRLError, DatasetError
from chunkrl.models.pi.actor import PiActor
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.progress import silent
from chunkrl.run import command as commands
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import run_config

LENGTH = 40


def smooth(rng: np.random.Generator, num: int, size: float = 1.0) -> np.ndarray:
    """Positions [LENGTH + 1, num] that wander from a random start, about `size` wide."""
    steps = np.cumsum(rng.normal(0, 0.02, (LENGTH + 1, num)), axis=0)
    return size * (rng.uniform(-1, 1, num) + np.cumsum(steps, axis=0))


def columns(state: np.ndarray, action: np.ndarray, success: bool) -> dict[str, np.ndarray]:
    return {
        "observation.state": state.astype(np.float32),
        "action": action.astype(np.float32),
        "next.success": np.arange(len(action)) == (len(action) - 1 if success else -1),
    }


def arm(rng: np.random.Generator, success: bool, lag: float = 0.0) -> dict[str, np.ndarray]:
    """An SO-101: six joints in degrees, the gripper last; targets lead the next state by `lag` steps' motion."""
    joints = smooth(rng, 6, 50.0)
    targets = joints[1:] + lag * np.diff(joints, axis=0) + rng.normal(0, 0.3, (LENGTH, 6))
    return columns(joints[:-1], targets, success)


def other_gripper(rng: np.random.Generator, success: bool) -> dict[str, np.ndarray]:
    """Joint targets, and a gripper that is opened and closed by 0 and 1 and measured in metres."""
    found = arm(rng, success)
    grip = (np.arange(LENGTH) > LENGTH // 2).astype(np.float32)
    found["action"][:, -1] = grip
    found["observation.state"][:, -1] = 0.04 * grip + 0.001 * rng.normal(size=LENGTH)
    return found


def libero(rng: np.random.Generator, success: bool) -> dict[str, np.ndarray]:
    """An operational-space controller: motions in [-1, 1] of up to 5 cm, a gripper of -1 and 1, fingers in metres."""
    motion = np.clip(rng.normal(0, 0.5, (LENGTH, 6)) + 0.3, -1, 1)
    pose = np.concatenate([np.array([[0.0, 0, 1.1, 3.1, 0, 0]]), 0.05 * motion]).cumsum(axis=0)
    grip = np.where(np.arange(LENGTH) > 20, 1.0, -1.0)
    fingers = np.stack([0.02 - 0.01 * grip, -0.02 + 0.01 * grip], 1)
    return columns(
        np.concatenate([pose[:-1], fingers], 1), np.concatenate([motion, grip[:, None]], 1), success
    )


def velocities(rng: np.random.Generator, success: bool) -> dict[str, np.ndarray]:
    joints = smooth(rng, 6)
    return columns(joints[:-1], np.diff(joints, axis=0) * 30, success)


def still_joint(rng: np.random.Generator, success: bool) -> dict[str, np.ndarray]:
    """Targets, with a joint that never moves: it says nothing."""
    found = arm(rng, success)
    found["action"][:, 2] = found["observation.state"][:, 2] = 12.0
    return found


def half(rng: np.random.Generator, success: bool) -> dict[str, np.ndarray]:
    """Three joints with targets and two with velocities."""
    found = arm(rng, success)
    state = found["observation.state"]
    found["action"][:-1, 3:5] = 30 * np.diff(state[:, 3:5], axis=0)
    return found


MAKERS: dict[str, tuple[Any, ControlKind]] = {
    "arm": (arm, "absolute"),
    "lagging arm": (lambda rng, ok: arm(rng, ok, lag=4.0), "absolute"),
    "other gripper": (other_gripper, "absolute"),
    "still joint": (still_joint, "absolute"),
    "libero": (libero, "delta"),
    "velocities": (velocities, "delta"),
    "half": (half, "unclear"),
}


def write(root: Path, maker: Any, num: int = 8, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    return write_dataset(root, [maker(rng, number % 2 == 0) for number in range(num)])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 4))])
def test_what_actions_are_is_recognised(tmp_path: Path, name: str, seed: int) -> None:
    maker, kind = MAKERS[name]
    dataset = open_chunks(write(tmp_path / "d", maker, seed=seed))
    assert dataset.control.kind == kind, dataset.control.told
    assert dataset.hold.control == ("absolute" if kind == "absolute" else "delta")


@pytest.mark.parametrize("name", ["push-v3", "pick-place-v3"])
@pytest.mark.parametrize("state", ["full", "compact"])
def test_metaworlds_actions_are_motions(tmp_path: Path, name: str, state: Any) -> None:
    """Whatever acts: here noise around a drift."""
    env, rng, episodes = MetaWorldEnv(name, 30, state=state), np.random.default_rng(0), []
    for seed in range(4):
        step, states, actions = env.reset(seed), [], []
        drift = rng.uniform(-0.5, 0.5, 4)
        for _ in range(30):
            action = np.clip(drift + rng.normal(0, 0.4, 4), -1, 1).astype(np.float32)
            states.append(step.state)
            actions.append(action)
            step = env.step(action)
        episodes.append(columns(np.array(states), np.array(actions), seed % 2 == 0))
    env.close()
    assert open_chunks(write_dataset(tmp_path / "d", episodes)).control.kind == "delta"


def test_what_cannot_be_compared_is_unclear(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blind = [{n: v for n, v in arm(rng, True).items() if n != "observation.state"} for _ in range(2)]
    dataset = open_chunks(write_dataset(tmp_path / "blind", blind))
    assert dataset.control.kind == "unclear" and "no state to compare" in dataset.control.told
    short = [{n: v[:1] for n, v in arm(rng, True).items()} for _ in range(2)]
    assert open_chunks(write_dataset(tmp_path / "short", short), horizon=1).control.kind == "unclear"
    frozen = [{n: np.repeat(v[:1], 5, axis=0) for n, v in arm(rng, True).items()} for _ in range(2)]
    assert open_chunks(write_dataset(tmp_path / "frozen", frozen)).control.kind == "unclear"


def test_chunks_past_the_end_repeat_the_last_target(tmp_path: Path) -> None:
    root = write(tmp_path / "arm", arm)
    last = np.array([LENGTH - 1])
    for hold in (HoldAction(), HoldAction("absolute")):
        dataset = open_chunks(root, hold=hold)
        chunk = dataset.batch(last).actions[0].numpy()
        np.testing.assert_array_equal(chunk, np.repeat(dataset.table.action[last], 3, axis=0))
    zeros = open_chunks(root, hold=HoldAction("delta")).batch(last).actions[0].numpy()
    assert (zeros[1:, :-1] == 0).all()  # what it was before: the arm would go to its zero position
    motions = open_chunks(write(tmp_path / "libero", libero)).batch(last).actions[0].numpy()
    assert (motions[1:, :-1] == 0).all() and (motions[:, -1] == motions[0, -1]).all()


def test_encodings_are_of_targets_and_need_no_word_about_padding(tmp_path: Path) -> None:
    relative = ActionEncoding("relative")
    dataset = open_chunks(write(tmp_path / "arm", arm), encoding=relative)
    actions, state = dataset.table.action, dataset.table.state
    assert state is not None
    np.testing.assert_allclose(dataset.batch(np.array([0])).actions[0], actions[:3] - state[0], atol=1e-4)
    motions = write(tmp_path / "libero", libero)
    own: dict[str, Any] = {"encoding": ActionEncoding("relative", action_dims=(0, 1))}
    with pytest.raises(
        DatasetError, match=r"relative is for recorded targets, and the actions are not recognised"
    ):
        open_chunks(motions, **own)
    open_chunks(motions, **own, hold=HoldAction("absolute"))  # who says it is believed


def test_notes_say_what_follows(tmp_path: Path) -> None:
    kinds = {
        name: open_chunks(write(tmp_path / name.replace(" ", "_"), MAKERS[name][0])).control
        for name in ("arm", "libero", "half")
    }

    def told(name: str, **hold: Any) -> str:
        return " ".join(control_notes(HoldAction(**hold), kinds[name]))

    assert "targets near the next state" in told("arm") and "repeat the last action" in told("arm")
    assert "--encoding.kind relative" in told("arm")
    assert "--encoding" not in " ".join(control_notes(HoldAction(), kinds["arm"], may_encode=False))
    assert "send the robot to its zero position: leave it out" in told("arm", control="delta")
    assert told("libero") == told("libero", control="delta") == ""
    assert "actions are motions" in told("libero", control="absolute")
    assert "unclear" in told("half") and "--hold.control absolute or delta" in told("half")
    assert told("half", control="absolute") == ""


def config(root: Path, output: Path, **changes: Any) -> TrainConfig:
    own: dict[str, Any] = {"objective": "behaviour_cloning", "num_updates": 2, "action_dim": None}
    return TrainConfig(**settings(root, output, **(own | changes)))


def test_a_run_takes_what_the_data_decide_says_it_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "arm", arm)
    commands.train(config(root, tmp_path / "run"), silent)
    said = capsys.readouterr().out
    assert "chunks of 3 actions are 0.3 s at 10 frames per second" in said
    assert "note: actions are targets near the next state" in said
    kept = run_config(tmp_path / "run" / "config.json")
    assert kept.action_dim == 6 and kept.hold == HoldAction("absolute")
    resumed = config(root, tmp_path / "run", num_updates=4, resume=str(tmp_path / "run"))
    ChunkLevelOfflineRL(resumed).train()
    with pytest.raises(CheckpointError, match=r"hold\.control \(absolute then, delta now\)"):
        ChunkLevelOfflineRL(replace(resumed, hold=HoldAction("delta")))
    with pytest.raises(
        ChunkRLError, match=r"action_dim is 7, .* have 6 values: pass --action-dim 6, or leave it out"
    ):
        ChunkLevelOfflineRL(config(root, tmp_path / "other", action_dim=7))
    commands.train(config(write(tmp_path / "libero", libero), tmp_path / "motions"), silent)
    assert "targets" not in capsys.readouterr().out
    assert run_config(tmp_path / "motions" / "config.json").hold == HoldAction("delta")


def test_targets_and_motions_are_not_mixed(tmp_path: Path) -> None:
    targets, motions = write(tmp_path / "a", arm), write(tmp_path / "b", velocities)
    both = config(targets, tmp_path / "run", additional_offline_dataset_paths=(str(motions),))
    with pytest.raises(
        DatasetError, match=r"a are targets near .*b are motions .*one policy cannot learn both"
    ):
        ChunkLevelOfflineRL(both)
    run = ChunkLevelOfflineRL(replace(both, hold=HoldAction("absolute")))
    assert {dataset.hold.control for dataset in run.dataset.datasets} == {"absolute"}
    unclear = write(tmp_path / "c", half)
    alike = ChunkLevelOfflineRL(replace(both, additional_offline_dataset_paths=(str(unclear),)))
    assert {dataset.hold.control for dataset in alike.dataset.datasets} == {"absolute"}


def test_inspect_says_it(tmp_path: Path) -> None:
    for name, words in (("arm", "targets near the next state"), ("libero", "motions"), ("half", "unclear")):
        found = make_report(InspectCommand(str(write(tmp_path / name, MAKERS[name][0]))), silent)
        assert found.control is not None and found.control.kind == MAKERS[name][1]
        assert words in to_text(found) and "within 10 actions (1 s)" in to_text(found)


# ---- the rate of control


def test_a_robot_moves_at_the_rate_of_the_policys_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("grpc", reason="needs chunkrl[online]")
    from chunkrl.online.actor.command import ActorCommand
    from chunkrl.online.actor.station import open_station

    data = write(
        tmp_path / "d", lambda rng, ok: {n: v[:, :3] if v.ndim == 2 else v for n, v in arm(rng, ok).items()}
    )
    run = ChunkLevelOfflineRL(config(data, tmp_path / "run"))
    run.train()
    policy = run.chunk_policy()
    assert isinstance(policy, ChunkPolicy) and policy.fps == 10
    file = tmp_path / "robot.json"
    robot = {"robot": {"type": "fake", "num_joints": 3}, "task": "push", "low": [-1], "high": [1]}

    def rate(policy: Any = policy, **more: Any) -> float:
        caplog.clear()
        file.write_text(json.dumps(robot | more))
        station = open_station(ActorCommand(robot=str(file), policy="p"), policy)
        station.close()
        return station.env.fps

    with caplog.at_level(logging.WARNING):
        assert rate() == 10 and not caplog.records
        assert rate(rate_hz=10) == 10 and not caplog.records
        assert rate(rate_hz=30) == 30
        assert (
            "rate_hz is 30, and the policy's data had 10 frames per second: it moves 3 times" in caplog.text
        )
    recipe = tiny_recipe("pi05", cameras=(), state_dim=3, action_dim=3)
    unknown = PiActor(tiny_policy("pi05", recipe))  # as it was downloaded
    with pytest.raises(ChunkRLError, match=r"gives no rate_hz, and the policy does not say .*: give it"):
        rate(policy=unknown)
    known = PiActor(tiny_policy("pi05", replace(recipe, settings=replace(recipe.settings, fps=5.0))))
    assert rate(policy=known) == 5 and rate(policy=unknown, rate_hz=20) == 20
