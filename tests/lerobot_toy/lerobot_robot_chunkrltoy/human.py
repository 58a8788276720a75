"""A person who corrects the toy robot in `lerobot-rollout`'s DAgger strategy: keys by the robot's own clock."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

KEYS = "CHUNKRL_TOY_KEYS"
"""Environment variable: keys and the robot's observations before which they are pressed, "5 space 6 tab"."""


@TeleoperatorConfig.register_subclass("chunkrltoyteleop")
@dataclass
class ToyTeleopConfig(TeleoperatorConfig):
    """Nothing to set."""


class ToyTeleop(Teleoperator):
    """A leader arm that says 2, 3, 4, ... to all seven joints."""

    config_class = ToyTeleopConfig
    name = "chunkrltoyteleop"
    is_connected = is_calibrated = False
    said = 1

    @property
    def action_features(self) -> dict:
        return {f"j{i}.pos": float for i in range(7)}

    @property
    def feedback_features(self) -> dict:
        return {}

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_action(self) -> dict[str, Any]:
        self.said += 1
        return dict.fromkeys(self.action_features, float(self.said))

    def send_feedback(self, feedback: dict[str, Any]) -> None: ...

    def disconnect(self) -> None:
        self.is_connected = False


class Keyboard:
    """Presses keys when the robot has been looked at so often: no test waits for a clock."""

    def __init__(self) -> None:
        words = os.environ.get(KEYS, "").split()
        self._keys = {int(when): key for when, key in zip(words[::2], words[1::2], strict=True)}
        self._press: Callable[[str], None] = lambda key: None
        self._looks = 0

    def plug_in(self) -> None:
        """In place of LeRobot's listener, which wants a terminal."""
        if self._keys:
            from lerobot.rollout.strategies import dagger

            dagger.create_key_listener = self._listen

    def _listen(self, press: Callable[[str], None], **_: Any) -> Any:
        self._press, self._looks = press, 0
        return SimpleNamespace(stop=lambda: None)

    def look(self) -> None:
        """The robot is looked at once more."""
        self._looks += 1
        if self._looks in self._keys:
            self._press(self._keys[self._looks])
