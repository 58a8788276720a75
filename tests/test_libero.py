"""LIBERO beside its own environment (mark `libero`; skipped without the package or its assets)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import until

from chunkrl.envs import libero, offscreen
from chunkrl.envs.family import EnvOptions
from chunkrl.envs.libero import CAMERAS, OPENPI_CAMERAS, LiberoEnv
from chunkrl.envs.libero_goals import LiberoGoals
from chunkrl.envs.libero_package import ASSET_FOLDERS, installed_assets
from chunkrl.envs.pool import LocalPool
from chunkrl.envs.registry import describe, expand, make_env
from chunkrl.envs.software_geometry import import_mujoco
from chunkrl.envs.workers import WorkerPool
from chunkrl.errors import ChunkRLError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "libero-assets"
if "LIBERO_ASSETS" not in os.environ and SHARED.is_dir():
    os.environ["LIBERO_ASSETS"] = str(SHARED)
HAS_LIBERO = (
    importlib.util.find_spec("libero") is not None
)  # importing robosuite would choose an OpenGL library
HAS_ASSETS = HAS_LIBERO and installed_assets() is not None
pytestmark = [
    pytest.mark.libero,
    pytest.mark.skipif(not HAS_LIBERO, reason="LIBERO is not installed: pip install '.[libero]'"),
    pytest.mark.skipif(not HAS_ASSETS, reason="no LIBERO assets here: export LIBERO_ASSETS=FOLDER"),
]
DRAWER = "libero_spatial/4"  # the bowl lies in a drawer: fixtures, joints and contacts from the first step
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (20, 7)) * [1, 1, 0, 1, 1, 1, 1] - [0, 0, 0.5, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    """The bowl in the drawer, on states alone."""
    made = LiberoEnv(DRAWER)
    yield made
    made.close()


def scene(env: LiberoEnv) -> np.ndarray:
    """Positions and velocities of everything."""
    _, data = env.mujoco
    return np.concatenate([data.qpos, data.qvel])


def play(env: LiberoEnv, seed: int, actions: np.ndarray = ACTIONS) -> tuple[np.ndarray, np.ndarray]:
    """States seen [T + 1, S] and the scene at the end."""
    states = [env.reset(seed).state, *(env.step(action).state for action in actions)]
    return np.stack(states), scene(env)


def test_what_is_seen_and_known_without_a_simulator(env: LiberoEnv) -> None:
    info = describe(expand([DRAWER]))
    assert (info.action_dim, info.fps, info.num_initial_states) == (7, 20.0, 50)
    assert info.max_steps == {DRAWER: 220} == {DRAWER: env.max_steps} and len(expand(["libero_90"])) == 90
    step = env.reset(0)
    assert step.state.shape == (8,) and step.state.dtype == np.float32 and step.images == {}
    assert (
        env.task == "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"
    )
    assert offscreen._current is None, "states need no rendering context"


def test_a_step_is_robosuites_to_the_last_bit(env: LiberoEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = play(env, 7)

    def plain(action: np.ndarray, draw: bool) -> dict:
        env.domain.step(action)
        return {"state": np.zeros(8)}

    def begin() -> None:
        env.domain.robots[0].gripper.current_action = np.zeros(2)

    monkeypatch.setattr(env, "_advance", plain)
    monkeypatch.setattr(env._control, "begin", begin)
    _, robosuites = play(env, 7)
    np.testing.assert_array_equal(ours, robosuites)


def test_contacts_are_robosuites() -> None:
    env = LiberoEnv("libero_spatial/0")
    try:
        upstream = importlib.import_module("robosuite.environments.base").MujocoEnv
        domain, gripper = env.domain, env.domain.robots[0].gripper
        pads = [gripper.important_geoms[side] for side in ("left_fingerpad", "right_fingerpad")]
        models = [domain.get_object(name) for name in domain.objects_dict]
        pairs = [(one, two) for one in (*models, *pads, gripper) for two in (*models, None)]
        pairs += [(pads[0][0], None), (models[0].contact_geoms[0], models[1]), (["no such geom"], None)]
        rng, answers = np.random.default_rng(1), []
        env.reset(0)
        for _ in range(60):
            env.step(np.clip(rng.normal(size=7) - [0, 0, 1, 0, 0, 0, 0], -1, 1))
            ours = [domain.check_contact(*pair) for pair in pairs]
            assert ours == [upstream.check_contact(domain, *pair) for pair in pairs]
            answers.append(ours)
        assert 0 < np.mean(answers) < 1 and np.ptp(np.array(answers, int), axis=0).any()
    finally:
        env.close()


def test_an_episode_is_liberos_own_in_physics_states_and_pictures(tmp_path: Path) -> None:
    env = LiberoEnv(DRAWER, camera_size=64)
    try:
        env.reset(3)
        steps = [env.reset(7), *(env.step(action) for action in ACTIONS)]
        end = scene(env)
        model, _ = env.mujoco
        np.savez(tmp_path / "fixtures.npz", body_pos=model.body_pos, body_quat=model.body_quat)
    finally:
        env.close()
    np.save(tmp_path / "actions.npy", ACTIONS)
    files = [str(tmp_path / name) for name in ("actions.npy", "fixtures.npz", "out.npz")]
    command = [sys.executable, str(Path(__file__).with_name("libero_upstream.py")), DRAWER, "7", *files]
    root = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=300, env=os.environ | root)
    upstream = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(np.concatenate([upstream["qpos"], upstream["qvel"]]), end)
    np.testing.assert_allclose(np.stack([step.state for step in steps]), upstream["state"], atol=1e-6)
    assert [step.success for step in steps[1:]] == upstream["success"].tolist()
    pictures = np.stack([[step.images[name] for name in CAMERAS] for step in steps])
    np.testing.assert_array_equal(pictures, upstream["images"])


@pytest.mark.parametrize("initial", ["official", "sampled"])
def test_an_episode_depends_on_its_seed_and_actions_alone(initial: libero.InitialStates) -> None:
    env = LiberoEnv(DRAWER, initial=initial)
    first = play(env, 3)
    play(env, 11, -ACTIONS)
    np.random.rand(5)
    drawn = np.random.get_state(legacy=False)
    again = play(env, 3)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], play(env, 4)[1])
    after = np.random.get_state(legacy=False)  # numpy's own generator is left as it was
    np.testing.assert_equal(after, drawn)
    env.close()


def test_a_state_from_the_middle_of_an_episode_goes_on(env: LiberoEnv) -> None:
    play(env, 3, ACTIONS[:10])
    middle = env.domain.sim.get_state().flatten()
    rest = np.stack([env.step(action).state for action in ACTIONS[10:]])
    env.reset_to(middle, 3, settle=False)
    again = np.stack([env.step(action).state for action in ACTIONS[10:]])
    # the solver starts without its last solution
    np.testing.assert_allclose(again[:, :3], rest[:, :3], atol=1e-3)
    env.reset_to(middle, 3)  # settling moves the hand back towards where the reset had put it
    settled = np.stack([env.step(action).state for action in ACTIONS[10:]])
    assert np.abs(settled[:, :3] - rest[:, :3]).max() > 5e-3


def test_official_states_are_numbered_and_sampled_ones_are_others(env: LiberoEnv) -> None:
    for seed in (-1, 50):
        with pytest.raises(ChunkRLError, match=f"official initial states 0 to 49, not {seed}"):
            env.reset(seed)
    sampled = LiberoEnv(DRAWER, initial="sampled")
    sampled.reset(1000)
    official = libero.initial_states(libero.find_task(DRAWER))
    places = sampled.mujoco[1].qpos[9:]  # after arm and fingers: the objects
    assert np.abs(official[:, 10 : 1 + len(sampled.mujoco[1].qpos)] - places).max(axis=1).min() > 1e-3
    sampled.close()


def test_the_tasks_predicate_ends_the_episode(env: LiberoEnv) -> None:
    env.reset(0)
    simulator = env.domain.sim
    plate = simulator.data.get_joint_qpos("plate_1_joint0").copy()
    plate[2] += 0.04
    simulator.data.set_joint_qpos("akita_black_bowl_1_joint0", plate)
    steps = [env.step(libero.NO_MOTION)]
    while not steps[-1].done and len(steps) < 20:
        steps.append(env.step(libero.NO_MOTION))
    last = steps[-1]
    assert last.success and last.terminated and not last.truncated and last.reward == 1 and len(steps) < 20
    assert not any(step.success or step.reward for step in steps[:-1])


def test_tasks_of_the_long_and_the_large_suite() -> None:
    several = LiberoEnv("libero_10/8")
    assert (several.task, several.max_steps) == ("put both moka pots on the stove", 520)
    several.reset(49)
    step = several.step(libero.NO_MOTION)
    assert (
        not step.success and np.isfinite(step.state).all() and len(LiberoGoals(several.domain).flags()) == 7
    )
    several.close()
    one = LiberoEnv("libero_90/30")
    assert (one.task, one.max_steps) == ("put the black bowl on the plate", 400)
    assert one.reset(0).state.shape == (8,)
    one.close()


def test_time_runs_out_and_bad_actions_are_refused() -> None:
    env = LiberoEnv("libero_object/0", max_steps=2)
    env.reset(0)
    assert not env.step(libero.NO_MOTION).done
    last = env.step(libero.NO_MOTION)
    assert last.truncated and not last.terminated
    for action in (np.zeros(6), np.array([0, 0, 0, 0, 0, 0, np.nan])):
        with pytest.raises(ValueError, match="7 finite action values"):
            env.step(action)
    env.close()


class BrokenContext:
    """mujoco with a context that draws nothing."""

    def __getattr__(self, name: str):
        return getattr(import_mujoco(), name)

    def mjr_readPixels(self, picture: np.ndarray, *_) -> None:  # noqa: N802 (mujoco's name)
        picture.fill(0)


class NoContext(BrokenContext):
    """mujoco with an OpenGL library that cannot draw."""

    def MjrContext(self, *_) -> None:  # noqa: N802 (mujoco's name)
        raise import_mujoco().FatalError("gladLoadGL error")


def test_an_opengl_library_that_cannot_draw_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(offscreen, "import_mujoco", NoContext)
        with pytest.raises(
            ChunkRLError, match=r"OpenGL by \w+ does not work here.*gladLoadGL.*apt-get install"
        ):
            LiberoEnv(DRAWER, camera_size=16)
    assert offscreen._current is None


def test_pictures_are_named_rotated_and_one_context_is_all() -> None:
    env = LiberoEnv(DRAWER, camera_size=48, cameras=OPENPI_CAMERAS, rendering="fast")
    step = env.reset(0)
    assert {name: picture.shape for name, picture in step.images.items()} == {
        "image": (48, 48, 3),
        "wrist_image": (48, 48, 3),
    }
    assert env.step(libero.NO_MOTION, draw=False).images == {}
    with pytest.raises(ChunkRLError, match="this process has a rendering context already"):
        LiberoEnv("libero_spatial/0", camera_size=48)
    assert env.render().shape == (256, 256, 3)
    assert env._renderer is not None
    raw = env._renderer.draw(env.mujoco[1], env._camera_ids[0], 48)
    np.testing.assert_array_equal(env._draw(env._camera_ids[0], 48), np.rot90(raw, 2))
    env._renderer._mujoco = BrokenContext()
    with pytest.raises(offscreen.RenderError, match="'agentview' gave a blank image"):
        env.step(libero.NO_MOTION)
    env.close()
    after = LiberoEnv("libero_spatial/0", camera_size=48, rendering="fast")  # the next may have the context
    assert after.reset(0).images[CAMERAS[0]].std() > 20
    after.close()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rendering": "slow"}, "rendering is 'slow'; LIBERO's tasks have default and fast"),
        ({"initial": "any"}, "initial is 'any'; LIBERO's tasks have official and sampled"),
        ({"state": "half"}, "state is 'half'; LIBERO's tasks have full and privileged"),
        ({"camera_size": -1}, "camera_size is -1"),
        ({"cameras": ("image",)}, "1 names are given"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_built(wrong: dict, told: str) -> None:
    with pytest.raises(ChunkRLError, match=told):
        LiberoEnv(DRAWER, **wrong)


def test_an_absent_mesh_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = installed_assets()
    assert whole is not None
    for name in ASSET_FOLDERS:
        (tmp_path / name).mkdir()
        for entry in (whole / name).iterdir():
            if "basket" not in entry.name:
                (tmp_path / name / entry.name).symlink_to(entry)
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(ChunkRLError, match=r"libero_object/0: its scene cannot be built.*basket"):
        LiberoEnv("libero_object/0")


def test_nothing_is_asked_and_the_users_folder_is_left_alone(tmp_path: Path) -> None:
    code = "from chunkrl.envs.libero import LiberoEnv; print(LiberoEnv('libero_goal/0').reset(0).state.shape)"
    changed = {"HOME": str(tmp_path), "CHUNKRL_CACHE": str(tmp_path / "cache")}
    kept = {key: value for key, value in os.environ.items() if key not in ("LIBERO_CONFIG_PATH", "MUJOCO_GL")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | changed,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(8,)\n" and "robosuite" not in done.stderr
    assert not (tmp_path / ".libero").exists()


def _both(pool: WorkerPool | LocalPool) -> dict[int, Any]:
    """The reports of two environments, by their slots."""
    reports: dict[int, Any] = {}

    def have_come() -> bool:
        reports.update({report.slot: report for report in pool.wait()})
        return len(reports) == 2

    until(have_come)
    return reports


def test_processes_give_what_one_process_gives() -> None:
    make = partial(make_env, options=EnvOptions(max_steps=5))
    ended = {}
    for name, pool in (
        ("workers", WorkerPool(2, make)),
        ("local", LocalPool(2, lambda slot, env: make(env))),
    ):
        for slot, task in enumerate((DRAWER, "libero_object/1")):
            pool.reset(slot, task, slot)
        reports = _both(pool)
        for slot in range(2):
            pool.execute(slot, ACTIONS[:8])
        reports = _both(pool)
        pool.close()
        assert all(report.failure == "" and report.num_steps == 5 for report in reports.values())
        ended[name] = np.stack([reports[slot].step.state for slot in range(2)])
    np.testing.assert_array_equal(ended["workers"], ended["local"])
