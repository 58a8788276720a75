"""LeRobot's processor pipelines between a robot and the policy (extra `lerobot`; LeRobot 0.4.4).

A robot seen through pipelines that LeRobot saved (`save_pretrained`, a JSON file with its state beside it): what it
observes goes through `observation`, what the policy asks for through `action` before it is sent.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.integration.lerobot_devices import RobotDevice


@dataclass(frozen=True)
class ProcessorFiles:
    """JSON files of LeRobot's processor pipelines; None: nothing is changed."""

    observation: str | None = None
    """The pipeline of robot observations: what the robot sees to what the policy and the records see."""
    action: str | None = None
    """The pipeline of (action, newest observation): what the policy asks for to what the robot takes."""


def _load(path: str, to_transition: str, to_output: str) -> Callable[[Any], Any]:
    file = Path(path)
    if not file.is_file():
        raise ChunkRLError(f"no processor pipeline {file}: give the JSON file that LeRobot saved")
    try:
        processor = importlib.import_module("lerobot.processor")
        converters = importlib.import_module("lerobot.processor.converters")
    except ImportError as error:
        raise MissingExtraError("LeRobot's processors", error.name or "lerobot", "lerobot") from error
    try:
        return processor.RobotProcessorPipeline.from_pretrained(
            file.parent,
            config_filename=file.name,
            local_files_only=True,
            to_transition=getattr(converters, to_transition),
            to_output=getattr(converters, to_output),
        )
    except Exception as error:  # LeRobot raises many kinds
        raise ChunkRLError(f"LeRobot cannot read the processor pipeline {file}: {error}") from error


class ProcessedDevice:
    """A robot device behind pipelines, itself a `RobotDevice`.

    Its features are those of what comes out of `observation`, known from the first observation, so that making it
    connects the robot. With an `action` pipeline the policy's targets are of the processed scalars; what the robot's
    own limits make of them lies behind the pipeline, and `send_action` returns what was asked for.
    """

    def __init__(
        self,
        device: RobotDevice,
        observation: Callable[[Any], Any] | None,
        action: Callable[[Any], Any] | None,
    ) -> None:
        self._device, self._observation, self._action = device, observation, action
        self.name = str(getattr(device, "name", type(device).__name__))
        self._seen: Mapping[str, Any] = {}

    @property
    def is_connected(self) -> Any:
        """The robot's."""
        return self._device.is_connected

    @property
    def is_calibrated(self) -> Any:
        """The robot's."""
        return self._device.is_calibrated

    @property
    def observation_features(self) -> dict[str, Any]:
        """name -> float, or the shape of an image."""
        if self._observation is None:
            return dict(self._device.observation_features)
        seen = self.get_observation()
        return {name: value.shape if np.ndim(value) == 3 else float for name, value in seen.items()}

    @property
    def action_features(self) -> dict[str, Any]:
        """name -> float."""
        if self._action is None:
            return dict(self._device.action_features)
        return {name: kind for name, kind in self.observation_features.items() if kind is float}

    def connect(self, calibrate: bool = True) -> None:
        """Connects the robot."""
        self._device.connect(calibrate=calibrate)

    def disconnect(self) -> None:
        """Disconnects the robot."""
        self._device.disconnect()

    def get_observation(self) -> dict[str, Any]:
        """Scalars and images, processed. Raises ChunkRLError where something else comes out of the pipeline."""
        self._seen = self._device.get_observation()
        if self._observation is None:
            return dict(self._seen)
        processed = {}
        for name, value in self._observation(dict(self._seen)).items():
            array = np.asarray(value)
            if array.ndim == 3 and (array.dtype != np.uint8 or array.shape[2] != 3):
                raise ChunkRLError(
                    f"the observation pipeline gives the image {name!r} as {array.dtype} {list(array.shape)}: "
                    "leave out steps that prepare for a policy; images stay uint8 [height, width, 3]"
                )
            if array.ndim != 3 and array.size != 1:
                raise ChunkRLError(
                    f"the observation pipeline gives {name!r} with {array.size} values: robots observe scalars and "
                    "images; leave out steps that stack them"
                )
            processed[name] = array if array.ndim == 3 else float(array.reshape(()))
        return processed

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """action: the policy's, by name."""
        if self._action is None:
            return self._device.send_action(action)
        processed = self._action((dict(action), dict(self._seen)))
        missing = set(self._device.action_features) - set(processed)
        if missing:
            raise ChunkRLError(
                f"the action pipeline gives no {min(missing)!r}, which {self.name} takes: {sorted(processed)}"
            )
        self._device.send_action({name: float(processed[name]) for name in self._device.action_features})
        return action


def processed(device: RobotDevice, files: ProcessorFiles) -> RobotDevice:
    """`device` behind the pipelines of `files`, connected; itself where there are none.

    Raises:
        ChunkRLError: a pipeline that cannot be read. MissingExtraError: without LeRobot.
    """
    if files.observation is None and files.action is None:
        return device
    observation = action = None
    if files.observation is not None:
        observation = _load(files.observation, "observation_to_transition", "transition_to_observation")
    if files.action is not None:
        action = _load(files.action, "robot_action_observation_to_transition", "transition_to_robot_action")
    return ProcessedDevice(device, observation, action)
