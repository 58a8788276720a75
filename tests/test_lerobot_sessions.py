"""LeRobot's own sessions with our policies, and what they record: DAgger, the older `lerobot-record`, MetaWorld."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from actor_fakes import small_policy
from chunk_data import settings
from pi_tiny import ACTION_DIM, STATE_DIM
from test_lerobot_plugin import gap, lerobot, needs_rollout, rolled_out, small

from chunkrl import ChunkLevelOfflineRL, load_policy
from chunkrl.cli import main
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.labels import label_frames
from chunkrl.progress import silent

pytestmark = pytest.mark.lerobot
pytest.importorskip("lerobot.policies.pretrained", reason="needs LeRobot (make test-lerobot)")
needs_record = pytest.mark.skipif(
    importlib.util.find_spec("lerobot.rollout") is not None, reason="lerobot-record of 0.6 refuses policies"
)
ARMS = [f"j{i}.pos" for i in range(STATE_DIM)]


def recorded(root: Path, cache: Path) -> FrameTable:
    """The session's data set by our own reader."""
    table = FrameTable.open(root, cache_dir=cache, progress=silent)
    assert table.state is not None
    assert (table.state.shape[1], table.action.shape[1]) == (STATE_DIM, ACTION_DIM)
    assert {table.task_text(row) for row in range(table.num_frames)} == {"push the red cup"}
    return table


def same_pictures(table: FrameTable, episode: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """Images of the data set are those that the robot showed: of no camera, and of no frame, another's."""
    for name in ("front", "wrist"):
        found = table.images(f"observation.images.{name}", np.arange(table.num_frames))
        np.testing.assert_array_equal(found, episode[name][rows].transpose(0, 3, 1, 2))


@needs_rollout
def test_a_dagger_session_of_lerobot_rollout_is_inspected_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stretches of the policy, with a person in between: what was recorded is what the robot was told."""
    monkeypatch.setenv("CHUNKRL_TOY_KEYS", "6 space 8 tab 13 tab 15 space 21 esc")
    root = tmp_path / "data"
    episode, said = rolled_out(
        small(tmp_path / "policy"),
        tmp_path,
        "--strategy.type=dagger",
        "--strategy.record_autonomous=true",
        "--strategy.smooth_handover=false",
        "--teleop.type=chunkrltoyteleop",
        "--dataset.repo_id=local/rollout_toy",
        f"--dataset.root={root}",
        "--dataset.single_task=push the red cup",
        "--dataset.num_episodes=1",
        "--dataset.fps=5",
        "--dataset.video=false",
        "--dataset.push_to_hub=false",
        "--duration=300",
    )
    assert "Phase transition: paused -> correcting" in said
    table = recorded(root, tmp_path / "cache")
    assert table.state is not None
    human = np.asarray(table.column("intervention"), bool)
    # the keys say where: the policy, five frames of the person's, the policy
    begins = np.flatnonzero(np.diff(human.astype(int))) + 1
    assert len(begins) == 2 and begins[1] - begins[0] == 5 and not human[0] and not human[-1]
    told = 2.0 + np.arange(5)[:, None] + np.zeros(ACTION_DIM)
    np.testing.assert_array_equal(table.action[human], told.astype(np.float32))
    # each recorded frame is a step of the robot's own log; the robot also moved while nothing was recorded
    log = np.concatenate([episode["state"], episode["action"]], axis=1)
    rows = [
        np.flatnonzero((log == row).all(axis=1))
        for row in np.concatenate([table.state, table.action], axis=1)
    ]
    assert all(len(found) == 1 for found in rows)
    rows = np.concatenate(rows)
    assert (np.diff(rows) >= 1).all()
    same_pictures(table, episode, rows)

    main(["inspect", str(root), "--success", "all"])
    shown = capsys.readouterr().out
    assert "intervention" in shown
    rule = LabelRule(success="all")
    labels = label_frames(table, rule)
    assert labels.rule.human_key == "intervention"
    np.testing.assert_array_equal(labels.human, human)
    own = {"objective": "behaviour_cloning", "action_dim": ACTION_DIM}
    ChunkLevelOfflineRL(**settings(root, tmp_path / "run", own, labels=rule, cameras=())).train()
    assert load_policy(tmp_path / "run/policy").state_dim == STATE_DIM


@needs_record
def test_lerobot_record_of_the_older_release_acts_as_load_policy(tmp_path: Path) -> None:
    folder, log, root = small(tmp_path / "policy"), tmp_path / "log", tmp_path / "data"
    done = lerobot(
        "lerobot_record",
        f"--policy.path={folder}",
        "--policy.device=cpu",
        "--policy.n_action_steps=3",
        "--robot.type=chunkrltoyrobot",
        "--dataset.repo_id=local/eval_toy",
        f"--dataset.root={root}",
        "--dataset.single_task=push the red cup",
        "--dataset.num_episodes=1",
        "--dataset.episode_time_s=4",
        "--dataset.fps=5",
        "--dataset.vcodec=h264",  # without videos this release records no images
        "--dataset.push_to_hub=false",
        "--play_sounds=false",
        log=log,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    episode = dict(np.load(log / "robot.npz"))
    assert len(episode["action"]) >= 4
    assert gap(load_policy(folder), [episode], 3) == 0
    table = recorded(root, tmp_path / "cache")
    np.testing.assert_array_equal(table.state, episode["state"])
    np.testing.assert_array_equal(table.action, episode["action"])
    assert set(table.description.cameras) == {"observation.images.front", "observation.images.wrist"}


@pytest.mark.slow  # drawing takes one to two seconds a step
def test_lerobots_own_metaworld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is hand and gripper, four values: a policy of four, in two episodes of a few steps."""
    pytest.importorskip("metaworld", reason="needs MetaWorld (make test-lerobot)")
    monkeypatch.setenv("CHUNKRL_TOY_METAWORLD", "10")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    folder, log = tmp_path / "policy", tmp_path / "log"
    small_policy(0, 4, 4).save(folder)
    done = lerobot(
        "lerobot_eval",
        f"--policy.path={folder}",
        "--policy.device=cpu",
        "--policy.n_action_steps=4",
        "--env.type=metaworld",
        "--env.task=reach-v3",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'out'}",
        "--seed=7",
        log=log,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    episodes = [dict(np.load(file)) for file in sorted(log.iterdir())]
    assert len(episodes) == 2 and all(len(episode["action"]) == 10 for episode in episodes)
    assert all(np.abs(np.diff(episode["state"], axis=0)).max() > 1e-3 for episode in episodes)
    assert gap(load_policy(folder), episodes, 4) == 0
