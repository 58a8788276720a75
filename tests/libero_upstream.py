"""LIBERO's own environment, driven as openpi and LeRobot drive it, in a process of its own (one OpenGL context each).

    python tests/libero_upstream.py TASK INITIAL_STATE ACTIONS.npy FIXTURES.npz OUT.npz

FIXTURES: where the model has its bodies, which LIBERO draws again at every reset and keeps in no initial state.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.libero_steps import upstream_environment
from chunkrl.envs.libero import SIMULATOR_CAMERAS, axis_angle
from chunkrl.envs.libero_tasks import find_task, initial_states


def main(name: str, initial_state: str, actions: str, fixtures: str, out: str) -> None:
    """Writes states [T + 1, 8], images [T + 1, 2, size, size, 3], success [T] and the last qpos and qvel."""
    env = upstream_environment(name, camera_size=64)
    env.reset()
    for key, value in np.load(fixtures).items():
        getattr(env.env.sim.model, key)[:] = value
    seen = [env.set_init_state(initial_states(find_task(name))[int(initial_state)])]
    for _ in range(10):
        seen = [env.step([0] * 6 + [-1])[0]]
    success = []
    for action in np.load(actions):
        observation, _, done, _ = env.step(action)
        seen.append(observation)
        success.append(done)
    states = [
        np.concatenate(
            [o["robot0_eef_pos"], axis_angle(np.roll(o["robot0_eef_quat"], 1)), o["robot0_gripper_qpos"]]
        )
        for o in seen
    ]
    pictures = [[o[f"{camera}_image"][::-1, ::-1] for camera in SIMULATOR_CAMERAS] for o in seen]
    data = env.env.sim.data
    np.savez(
        out,
        state=states,
        images=pictures,
        success=success,
        qpos=np.array(data.qpos),
        qvel=np.array(data.qvel),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
