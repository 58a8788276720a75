"""The arm's controller of LIBERO, robosuite's OSC_POSE, with its numbers and half of its Python."""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np

from chunkrl.envs.software_geometry import import_mujoco


class ArmControl:
    """Sets the motors of a robosuite arm with a gripper, as `domain._pre_action` does, to the last bit.

    The control law stays robosuite's. What it reads of the scene is read once a physics step, not several times by
    name, and neither its record of recent values nor a third pass through the scene is made. MuJoCo must have found
    positions and velocities (`mj_step1`).
    """

    def __init__(self, domain: Any) -> None:
        """domain: a robosuite environment with one arm."""
        self._mujoco = import_mujoco()
        robot = self._robot = domain.robots[0]
        sim = domain.sim
        self._model, self._data = sim.model._model, sim.data._data
        self._site = sim.model.site_name2id(robot.gripper.important_sites["grip_site"])
        self._arm = robot._ref_joint_actuator_indexes
        self._torque_limits = robot.torque_limits
        self._fingers = [sim.model.actuator_name2id(name) for name in robot.gripper.actuators]
        ranges = self._model.actuator_ctrlrange[self._fingers]
        self._middle, self._half = 0.5 * (ranges[:, 1] + ranges[:, 0]), 0.5 * (ranges[:, 1] - ranges[:, 0])

    def begin(self) -> None:
        """After every reset, which makes robosuite's controller again."""
        controller, gripper = self._robot.controller, self._robot.gripper
        controller.update = MethodType(self._read, controller)
        gripper.current_action = np.zeros_like(gripper.current_action)  # the one state that a reset leaves

    def hold(self) -> None:
        """After `begin` and a pass through the scene, for a state from the middle of a motion: its aims are where arm
        and fingers are now, not where the reset had put them."""
        controller, robot = self._robot.controller, self._robot
        controller.update(force=True)
        controller.reset_goal()
        fingers = self._data.qpos[robot._ref_gripper_joint_pos_indexes]
        robot.gripper.current_action = np.clip((fingers - self._middle) / self._half, -1.0, 1.0)

    def act(self, action: np.ndarray, first: bool) -> None:
        """Before one physics step. action: [7] in [-1, 1]; first: of the physics steps of this action."""
        robot, data = self._robot, self._data
        if first:
            robot.controller.set_goal(action[:-1])
        data.ctrl[self._arm] = np.clip(robot.controller.run_controller(), *self._torque_limits)
        data.ctrl[self._fingers] = self._middle + self._half * robot.gripper.format_action(action[-1:])

    def _read(self, controller: Any, force: bool = False) -> None:
        """What the control law reads, in place of the controller's `update`."""
        if not (controller.new_update or force):
            return
        mujoco, model, data = self._mujoco, self._model, self._data
        positions, rotations = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, positions, rotations, self._site)
        mass = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, mass, data.qM)
        joints, velocities = controller.qpos_index, controller.qvel_index
        controller.ee_pos = np.array(data.site_xpos[self._site])
        controller.ee_ori_mat = np.array(data.site_xmat[self._site].reshape([3, 3]))
        controller.ee_pos_vel = np.dot(positions, data.qvel)
        controller.ee_ori_vel = np.dot(rotations, data.qvel)
        controller.joint_pos = np.array(data.qpos[joints])
        controller.joint_vel = np.array(data.qvel[velocities])
        controller.J_pos = np.array(positions[:, velocities])
        controller.J_ori = np.array(rotations[:, velocities])
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = mass[velocities, :][:, velocities]
        controller.new_update = False
