"""What LeRobot needs beside a saved policy to run it with the plug-in `lerobot_policy_chunkrl`.

Three files in the policy's own folder: config.json of the type `chunkrl`, and the two processor pipelines, which name
features, add the batch and move tensors and nothing more: the policy normalises itself. LeRobot without the plug-in
knows no type of this name, and stops.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # commands name the type, and their help texts need no torch
    from chunkrl.models.acting import ObservationInput

PLUGIN_TYPE = "chunkrl"
CONFIG_FILE, PREPROCESSOR, POSTPROCESSOR = (
    "config.json",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
)
STATE, ACTION = "observation.state", "action"
BELOW = "chunkrl"
"""In a LeRobot folder that is put together by hand, the policy may lie in a folder of this name."""
_OBSERVATION, _IMAGES = "observation.", "observation.images."
STEPS: Mapping[str, Sequence[str]] = {
    PREPROCESSOR: ("rename_observations_processor", "to_batch_processor", "device_processor"),
    POSTPROCESSOR: ("device_processor",),
}
_CONFIGS: Mapping[str, dict[str, Any]] = {
    "rename_observations_processor": {"rename_map": {}},
    "to_batch_processor": {},
    "device_processor": {"device": "cpu", "float_dtype": None},
}


def feature_key(camera: str) -> str:
    """A camera's key in LeRobot: names that are keys already stay, `observation.image` among them."""
    return camera if camera.startswith(_OBSERVATION) else _IMAGES + camera


class Described(Protocol):
    """What a saved policy says of itself (`chunkrl.models.acting_policy.ActingPolicy`)."""

    @property
    def takes(self) -> ObservationInput: ...
    @property
    def action_horizon(self) -> int: ...
    @property
    def action_dim(self) -> int: ...
    @property
    def own_image_size(self) -> int | None: ...


def features(policy: Described) -> tuple[dict[str, Any], dict[str, Any]]:
    """(input, output) features as LeRobot's config.json has them."""
    takes, own = policy.takes, policy.own_image_size or 0
    inputs: dict[str, Any] = {
        feature_key(camera.name): {"type": "VISUAL", "shape": [3, *(camera.size or (own, own))]}
        for camera in takes.cameras
    }
    if takes.state_dim:
        inputs[STATE] = {"type": "STATE", "shape": [takes.state_dim]}
    return inputs, {ACTION: {"type": "ACTION", "shape": [policy.action_dim]}}


def plugin_files(policy: Described) -> dict[str, str]:
    """File name -> text. Only keys that LeRobot 0.4.4 and 0.6.1 know alike: each refuses those of the other."""
    inputs, outputs = features(policy)
    config = {
        "type": PLUGIN_TYPE,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "chunk_size": policy.action_horizon,
        "n_action_steps": policy.action_horizon,
    }
    pipelines = {
        file: {
            "name": file.removesuffix(".json"),
            "steps": [{"registry_name": name, "config": _CONFIGS[name]} for name in names],
        }
        for file, names in STEPS.items()
    }
    return {
        name: json.dumps(data, indent=2) + "\n" for name, data in {CONFIG_FILE: config, **pipelines}.items()
    }


def policy_below(folder: Path) -> Path:
    """The folder of the policy itself: `folder`, or `BELOW` in it where LeRobot's files lie above the policy's."""
    below = folder / BELOW
    return below if below.is_dir() and (folder / CONFIG_FILE).is_file() else folder
