"""gym-hil's Franka arm (extra `hil`, gym-hil 0.1.14), corrected by keyboard: the scenes without its own wrappers.

State [21]: 7 joint positions and velocities, the gripper's command (0 open, 255 closed), the gripper's position (m),
and the cube's. Action [4] in [-1, 1]: motion of the gripper (1: 2.5 cm), and change of its command (+1 closes, -1
opens, 0 leaves it). 10 actions per second. An episode ends at success (the cube 10 cm up), at a failure (the cube out
of reach) or after `max_steps`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from chunkrl.data.hold_action import HoldAction
from chunkrl.envs.offscreen import check_image, choose_backend
from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

PREFIX = "gym_hil/"
TASK = f"{PREFIX}PandaPickCube"
TASK_TEXT = "pick up the cube"
STATE_NAMES = (
    *(f"joint_{i}" for i in range(1, 8)),
    *(f"joint_velocity_{i}" for i in range(1, 8)),
    *("gripper", "x", "y", "z", "cube_x", "cube_y", "cube_z"),
)
ACTION_NAMES = ("dx", "dy", "dz", "gripper")
CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE_DIM, ACTION_DIM = len(STATE_NAMES), len(ACTION_NAMES)
FPS = 10.0
MAX_STEPS = 100
STEP_M = 0.025
HOLD = HoldAction(control="delta", gripper_dims=())
VIDEO_SIZE = 256


def _import_scene() -> tuple[Any, Any, Any]:
    os.environ.setdefault("MUJOCO_GL", choose_backend())  # read when mujoco is imported
    try:
        import mujoco
        from gym_hil.envs.panda_pick_gym_env import PandaPickCubeGymEnv  # type: ignore[import-not-found]
        from gym_hil.mujoco_gym_env import GymRenderingSpec  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtraError("gym-hil's scenes", error.name or "gym_hil", "hil") from error
    return mujoco, PandaPickCubeGymEnv, GymRenderingSpec


class GymHilEnv:
    """A scene behind `chunkrl.envs.protocol.Environment`. It draws with OpenGL: one in a process."""

    state_dim = STATE_DIM
    action_dim = ACTION_DIM
    fps = FPS

    def __init__(self, name: str = TASK, max_steps: int = MAX_STEPS, camera_size: int = 0) -> None:
        """
        Args:
            name: `TASK`.
            max_steps: time limit, steps.
            camera_size: side of the images of `CAMERAS`, pixels; 0: none.

        Raises:
            ChunkRLError: no such scene, a negative size, or no OpenGL.
            MissingExtraError: gym-hil is not installed.
        """
        if name != TASK:
            raise ChunkRLError(f"gym-hil has no scene {name!r} here; there is {TASK}")
        if camera_size < 0:
            raise ChunkRLError(f"camera_size is {camera_size}; it must be 0 (no camera) or pixels")
        self._mujoco, scene, rendering = _import_scene()
        self.name, self.task, self.max_steps = name, TASK_TEXT, max_steps
        self._camera_size, size = camera_size, camera_size or VIDEO_SIZE
        self._scene = scene(render_spec=rendering(size, size), random_block_position=True)
        self._draw_fast(size)
        self._num_steps = 0

    def _draw_fast(self, size: int) -> None:
        """Without shadows, reflections and multisampling: in software a tenth of the time."""
        self._scene._viewer.close()
        model, flags = self._scene.model, self._mujoco.mjtRndFlag
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        viewer = self._mujoco.Renderer(model, size, size)
        viewer.scene.flags[flags.mjRND_SHADOW] = viewer.scene.flags[flags.mjRND_REFLECTION] = 0
        self._scene._viewer = viewer

    def reset(self, seed: int) -> EnvStep:
        """`seed` alone determines where the cube lies."""
        before = np.random.get_state()
        np.random.seed(seed % 2**32)  # the scene draws from NumPy's global generator
        try:
            self._scene.reset()
        finally:
            np.random.set_state(before)
        # the controller's own mocap body and gripper are no part of what gym-hil resets
        self._scene.data.ctrl[self._scene._gripper_ctrl_id] = 0.0
        self._mujoco.mj_forward(self._scene.model, self._scene.data)
        self._num_steps = 0
        return EnvStep(**self._observe())

    def _observe(self, draw: bool = True) -> dict[str, Any]:
        cube = self._scene.data.sensor("block_pos").data
        state = np.concatenate([self._scene.get_robot_state(), cube]).astype(np.float32)
        if not (draw and self._camera_size):
            return {"state": state}
        images = dict(zip(CAMERAS, (np.array(picture) for picture in self._scene.render()), strict=True))
        for camera, picture in images.items():
            check_image(picture, f"camera {camera!r} of {self.name}")
        return {"state": state, "images": images}

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """One 10 Hz action; reward 1 at success, else 0. draw: with images."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"{self.name} takes {ACTION_DIM} finite action values, got {action}")
        x, y, z, gripper = np.clip(action, -1.0, 1.0).astype(np.float64)
        motion = np.array([STEP_M * x, STEP_M * y, STEP_M * z, 0.0, 0.0, 0.0, gripper])
        _, _, terminated, _, info = self._scene.step(motion)
        self._num_steps += 1
        success = bool(info["succeed"])
        return EnvStep(
            **self._observe(draw),
            reward=float(success),
            success=success,
            terminated=bool(terminated),
            truncated=not terminated and self._num_steps >= self.max_steps,
        )

    def render(self) -> np.ndarray:
        """What the front camera sees."""
        picture = np.array(self._scene.render()[0])
        check_image(picture, self.name)
        return picture

    def close(self) -> None:
        """Frees the scene and its rendering context."""
        self._scene.close()
