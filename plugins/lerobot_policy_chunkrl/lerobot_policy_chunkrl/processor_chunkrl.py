"""The pipelines around a chunkrl policy: names, batch and device; the policy normalises itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from chunkrl.errors import CheckpointError
from chunkrl.models.plugin_files import POSTPROCESSOR, PREPROCESSOR, STEPS
from lerobot_policy_chunkrl.configuration_chunkrl import ChunkRLConfig


def make_chunkrl_pre_post_processors(
    config: ChunkRLConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Both pipelines. dataset_stats: not read, the policy has those that it was trained with."""
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device or "cpu"),
    ]
    return (
        PolicyProcessorPipeline(steps=before, name=PREPROCESSOR.removesuffix(".json")),
        PolicyProcessorPipeline(
            steps=[DeviceProcessorStep(device="cpu")],
            name=POSTPROCESSOR.removesuffix(".json"),
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )


def check_pipelines(folder: Path) -> None:
    """Raises CheckpointError unless the folder's pipelines are those of a chunkrl policy.

    LeRobot runs any: a normaliser would change what the policy normalises itself, and one without statistics changes
    nothing where somebody relies on it.
    """
    for file, expected in STEPS.items():
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: copy the folder again")
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            names = [step["registry_name"] for step in steps]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is no pipeline ({error!r}): copy the folder again") from error
        for step in steps:
            if step["registry_name"].endswith("normalizer_processor") and "state_file" not in step:
                raise CheckpointError(
                    f"{path}: {step['registry_name']} has no statistics (no state_file), so that LeRobot would pass "
                    "values unchanged and say nothing: copy the folder again"
                )
        if names != list(expected):
            raise CheckpointError(
                f"{path} has the steps {names}, and a chunkrl policy's are {list(expected)}: it normalises itself; "
                "copy the folder again"
            )
