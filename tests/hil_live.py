"""Run by `test_gym_hil.py`: python hil_live.py FOLDER picks the cube with keys and prints what came of it as JSON.

The keys go over a terminal's line to `chunkrl actor` itself; who presses them looks at the scene's state.
"""

import json
import os
import pty
import sys
from pathlib import Path

import numpy as np

from chunkrl.envs.gym_hil import GymHilEnv
from chunkrl.envs.protocol import EnvStep
from chunkrl.online.actor import station
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.actor.session import run_actor
from chunkrl.online.human import keys as key_module
from chunkrl.online.link.records import StepRecord
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.wire import decode_item


class Person:
    """Presses keys on `line` for what is seen: 5, then to the cube, close, lift."""

    def __init__(self, line: int) -> None:
        self._line = line
        self.num_steps = 0

    def look(self, step: EnvStep) -> None:
        """Before each step."""
        self.num_steps += 1
        if self.num_steps == 1:
            self._press("5")
            return
        if self.num_steps == 2:  # the policy has closed it a little
            self._press("o")
            return
        gap = step.state[18:21] - step.state[15:18]
        if self.num_steps < 40:
            order = (0, 1) if np.abs(gap[:2]).max() > 0.014 else (0, 1, 2)
            letters = ("ws", "ad", "ec")
            self._press("".join(letters[i][int(gap[i] < 0)] for i in order if abs(gap[i]) > 0.014))
        else:
            self._press("p" if self.num_steps < 48 else "pe")

    def _press(self, keys: str) -> None:
        os.write(self._line, keys.encode())


def main(folder: Path) -> None:
    """One episode by keyboard, then the same initial state with images."""
    outer, inner = pty.openpty()
    person = Person(outer)

    class Watched(GymHilEnv):
        """The scene, with somebody in front of it."""

        def step(self, action, draw=True):
            after = super().step(action, draw)
            person.look(after)
            return after

    key_module.TerminalKeys.__init__.__defaults__ = (inner,)  # the pty instead of standard input
    make = station.make_env
    station.make_env = lambda name, options: Watched(name, options.max_steps or 100, options.camera_size)
    run_actor(
        ActorCommand(
            policy=str(folder / "policy"),
            env="gym_hil/PandaPickCube",
            output_dir=str(folder / "run"),
            offline=True,
            num_episodes=1,
            rate_hz=20.0,
            corrector="keyboard",
            confirm=False,
            seed=3,
        )
    )
    station.make_env = make
    with Spool(folder / "run" / "spool") as spool:
        items = [decode_item(data) for data in spool.read(0, 2**30)]
    steps = [item for item in items if isinstance(item, StepRecord)]
    env = GymHilEnv(camera_size=96)
    first, again = env.reset(5), env.reset(5)
    other = env.reset(6)
    after = env.step(np.array([0.0, 0.0, 1.0, 0.0]))
    pictures = list(after.images.values())
    if len(sys.argv) > 2:
        from PIL import Image

        Image.fromarray(np.concatenate(pictures, axis=1)).save(sys.argv[2])
    print(
        json.dumps(
            {
                "success": steps[-1].success,
                "human": sum(step.human for step in steps),
                "states_repeat": bool(
                    (first.state == again.state).all() and (first.state != other.state).any()
                ),
                "picture": list(pictures[0].shape),
                "deviation": [float(picture.std()) for picture in pictures],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
