"""The arm's controller of LIBERO, robosuite's OSC_POSE, with its numbers and a quarter of its Python."""

from __future__ import annotations

import importlib
from types import MethodType
from typing import Any, NamedTuple

import numpy as np

from chunkrl.envs.software_geometry import import_mujoco


class _Sensed(NamedTuple):
    """What the control law reads of the scene: the hand's position [3], rotation [3, 3] and velocities [3], joints
    [7] and their velocities, Jacobians [3, 7] and [6, 7] and the mass matrix [7, 7]. Matrices lie in memory as
    robosuite's do: its compiled functions sum in that order."""

    position: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    angular_velocity: np.ndarray
    joints: np.ndarray
    joint_velocities: np.ndarray
    position_jacobian: np.ndarray
    rotation_jacobian: np.ndarray
    jacobian: np.ndarray
    mass: np.ndarray

    @classmethod
    def of(cls, controller: Any) -> _Sensed:
        """What robosuite's controller has read."""
        c = controller
        hand = (c.ee_pos, c.ee_ori_mat, c.ee_pos_vel, c.ee_ori_vel)
        return cls(*hand, c.joint_pos, c.joint_vel, c.J_pos, c.J_ori, c.J_full, c.mass_matrix)


class ArmControl:
    """Sets the motors of a robosuite arm with a Panda gripper, as `domain._pre_action` does, to the last bit.

    Operational space control (Khatib 1987) as robosuite 1.4's `OperationalSpaceController.run_controller` computes
    it, by its own compiled functions and in the order of its operations. What it reads of the scene is read once a
    physics step, not several times by name, and neither its record of recent values nor a third pass through the
    scene is made. MuJoCo must have found positions and velocities (`mj_step1`).
    """

    def __init__(self, domain: Any) -> None:
        """domain: a robosuite environment with one arm."""
        self._mujoco = import_mujoco()
        self._laws: Any = importlib.import_module("robosuite.utils.control_utils")
        robot = self._robot = domain.robots[0]
        sim = domain.sim
        model = self._model = sim.model._model
        self._data = sim.data._data
        self._site = sim.model.site_name2id(robot.gripper.important_sites["grip_site"])
        self._arm = np.array(robot._ref_joint_actuator_indexes)
        self._lowest, self._highest = robot.torque_limits
        self._fingers = np.array([sim.model.actuator_name2id(name) for name in robot.gripper.actuators])
        ranges = model.actuator_ctrlrange[self._fingers]
        self._middle, self._half = 0.5 * (ranges[:, 1] + ranges[:, 0]), 0.5 * (ranges[:, 1] - ranges[:, 0])
        self._positions, self._rotations = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self._closing = np.zeros(len(self._fingers))

    def begin(self) -> None:
        """After every reset, which makes robosuite's controller again."""
        controller, gripper = self._robot.controller, self._robot.gripper
        law = (controller.impedance_mode, controller.uncoupling, type(gripper).__name__)
        assert law == ("fixed", True, "PandaGripper") and controller.interpolator_pos is None, (
            f"written for OSC_POSE: {law}"
        )
        controller.update = MethodType(self._read, controller)
        gripper.current_action = np.zeros_like(gripper.current_action)  # the one state that a reset leaves
        self._joints, self._velocities = np.array(controller.qpos_index), np.array(controller.qvel_index)
        self._sensed = _Sensed.of(controller)  # robosuite reads the scene once more only after a physics step

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
        controller, gripper = robot.controller, robot.gripper
        if first:
            controller.set_goal(action[:-1])
            self._closing = np.array([-1.0, 1.0]) * gripper.speed * np.sign(action[-1:])
        else:
            self._sensed = self._sense()
        torques = self._torques(controller, self._sensed)
        controller.new_update = True
        data.ctrl[self._arm] = np.minimum(np.maximum(torques, self._lowest), self._highest)
        fingers = np.minimum(np.maximum(gripper.current_action + self._closing, -1.0), 1.0)
        gripper.current_action = fingers
        data.ctrl[self._fingers] = self._middle + self._half * fingers

    def _torques(self, controller: Any, sensed: _Sensed) -> np.ndarray:
        """Torques of the joints [7] that lead to the controller's goal."""
        laws, stiffness, damping = self._laws, controller.kp, controller.kd
        force = (controller.goal_pos - sensed.position) * stiffness[:3] + -sensed.velocity * damping[:3]
        error = laws.orientation_error(controller.goal_ori, sensed.rotation)
        torque = error * stiffness[3:6] + -sensed.angular_velocity * damping[3:6]
        _, by_position, by_rotation, null_space = laws.opspace_matrices(
            sensed.mass, sensed.jacobian, sensed.position_jacobian, sensed.rotation_jacobian
        )
        wrench = np.concatenate([np.dot(by_position, force), np.dot(by_rotation, torque)])
        torques = np.dot(sensed.jacobian.T, wrench) + self._data.qfrc_bias[self._velocities]
        torques += laws.nullspace_torques(
            sensed.mass, null_space, controller.initial_joint, sensed.joints, sensed.joint_velocities
        )
        return torques

    def _sense(self) -> _Sensed:
        """What the law reads of the scene, now."""
        mujoco, model, data, joints = self._mujoco, self._model, self._data, self._velocities
        mujoco.mj_jacSite(model, data, self._positions, self._rotations, self._site)
        mujoco.mj_fullM(model, self._mass, data.qM)
        velocities = data.qvel
        position, rotation = self._positions[:, joints], self._rotations[:, joints]
        jacobian = np.empty((6, len(joints)), order="F")
        jacobian[:3], jacobian[3:] = position, rotation
        return _Sensed(
            np.array(data.site_xpos[self._site]),
            np.array(data.site_xmat[self._site].reshape(3, 3)),
            np.dot(self._positions, velocities),
            np.dot(self._rotations, velocities),
            data.qpos[self._joints],
            velocities[joints],
            position,
            rotation,
            jacobian,
            self._mass[joints, :][:, joints],
        )

    def _read(self, controller: Any, force: bool = False) -> None:
        """In place of the controller's `update`, which it calls before it takes its position for what a goal is
        relative to."""
        if not (controller.new_update or force):
            return
        self._sensed = self._sense()
        controller.ee_pos, controller.ee_ori_mat = self._sensed.position, self._sensed.rotation
        controller.new_update = False
