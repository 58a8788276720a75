"""gym-hil corrected by keyboard: each scene in a process of its own, as it draws with OpenGL."""

import ctypes.util
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from actor_fakes import small_policy

from chunkrl.envs.gym_hil import ACTION_DIM, CAMERAS, STATE_DIM
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.registry import describe, expand
from chunkrl.errors import ChunkRLError
from chunkrl.online.human.correctors import MOTIONS, KeyboardCorrector
from chunkrl.online.human.intervention import Command
from chunkrl.online.human.keys import ScriptedKeys

LIVE = Path(__file__).parent / "hil_live.py"
needs_scene = pytest.mark.skipif(
    importlib.util.find_spec("gym_hil") is None or ctypes.util.find_library("OSMesa") is None,
    reason="gym-hil (extra hil) or libosmesa6 is not installed",
)


def test_keys_are_motions_while_the_human_acts_and_commands_stay_the_actors():
    assert not {command.value for command in Command} & set(MOTIONS)
    nothing = EnvStep(np.zeros(3, np.float32))
    corrector = KeyboardCorrector(ScriptedKeys(["w", "5", "Wdp5", "", "ws1", ""]), 4, hold_steps=2)
    corrector.begin_episode(nothing)
    assert corrector.keys.poll() == ""
    corrector.follow(nothing)  # pressed while the policy acted: means nothing
    assert corrector.keys.poll() == "5"
    corrector.take(nothing)
    np.testing.assert_array_equal(corrector.act(nothing), np.zeros(4))
    assert corrector.keys.poll() == "5"
    for _ in range(2):
        np.testing.assert_array_equal(corrector.act(nothing), [1, -1, 0, 1])
        corrector.keys.poll()
    np.testing.assert_array_equal(corrector.act(nothing), np.zeros(4))  # w and s cancel
    corrector.release(nothing)
    np.testing.assert_array_equal(corrector.act(nothing), np.zeros(4))
    with pytest.raises(ChunkRLError, match="motions of 4 values"):
        KeyboardCorrector(ScriptedKeys([]), 3)


def test_the_scene_is_an_environment_by_name():
    (name,) = expand(["gym_hil/PandaPickCube"])
    info = describe([name])
    assert (info.action_dim, len(info.states["full"]), info.cameras) == (ACTION_DIM, STATE_DIM, CAMERAS)
    with pytest.raises(ChunkRLError, match="different simulators"):
        describe([name, "push-v3"])


@needs_scene
def test_a_person_picks_the_cube_with_the_keys_of_a_terminal(tmp_path):
    """`chunkrl actor` in a process; keys as a person would press them, from what the state says."""
    small_policy(0, STATE_DIM, ACTION_DIM).save(tmp_path / "policy")
    done = subprocess.run(
        [sys.executable, str(LIVE), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["success"] and found["human"] > 20 and found["states_repeat"]
    assert found["picture"] == [96, 96, 3] and min(found["deviation"]) > 5
    assert "1 episodes, 1 successful" in done.stdout
