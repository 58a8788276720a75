"""The privileged state of LIBERO's tasks (mark `libero`; skipped without the package or its assets)."""

from __future__ import annotations

import numpy as np
import pytest
from test_libero import DRAWER, pytestmark  # noqa: F401  # mark and reasons to skip

from chunkrl.envs.libero import NO_MOTION, STATES, LiberoEnv


def test_the_privileged_state_says_where_object_and_target_are() -> None:
    plain = LiberoEnv(DRAWER)
    field = plain.reset(0).state
    plain.close()
    seeing = LiberoEnv(DRAWER, state="privileged")
    names = STATES["privileged"]
    assert seeing.state_dim == len(names) == 24

    def entries(*wanted: str) -> np.ndarray:
        return step.state[[names.index(name) for name in wanted]]

    def three(name: str) -> np.ndarray:
        return entries(*(f"{name}_{axis}" for axis in "xyz"))

    step = seeing.reset(0)
    simulator = seeing.domain.sim
    bowl, plate = "akita_black_bowl_1", "plate_1"
    for turn in ([0.6, 0, 0, 0.8], [-0.6, 0, 0, -0.8]):  # one rotation, written in two ways
        pose = simulator.data.get_joint_qpos(f"{bowl}_joint0").copy()
        pose[:3], pose[3:] = [0.05, 0.1, 1.2], turn  # in the air
        simulator.data.set_joint_qpos(f"{bowl}_joint0", pose)
        simulator.data.set_joint_qvel(f"{bowl}_joint0", np.zeros(6))
        step = seeing.step(NO_MOTION)
        fallen = [0.05, 0.1, 1.2 - 9.81 * 0.05**2 / 2]
        np.testing.assert_allclose(three("object"), fallen, atol=2e-3)
        np.testing.assert_allclose(
            entries(*(f"object_{name}" for name in ("qw", "qx", "qy", "qz"))), [0.6, 0, 0, 0.8], atol=1e-3
        )
    place = simulator.data.body_xpos[seeing.domain.obj_body_id[plate]]
    np.testing.assert_allclose(three("object_to_target"), place - three("object"), atol=1e-4)
    np.testing.assert_allclose(three("hand_to_object"), three("object") - step.state[:3], atol=1e-4)
    fingers = [
        simulator.data.body_xpos[simulator.model.body_name2id(f"gripper0_{side}finger")]
        for side in ("left", "right")
    ]
    apart = (fingers[0] - fingers[1]) / np.linalg.norm(fingers[0] - fingers[1])
    assert abs(three("closing") @ apart) == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(seeing.reset(0).state[:8], field)
    seeing.close()
