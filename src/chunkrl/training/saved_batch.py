"""A training batch on disk: what a run leaves of the one that stopped it.

`load_batch("RUN/non_finite_batch")` gives it back, to look at or to train on again: `algorithm.update(phase, batch)`
of a run that went on from the last checkpoint before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from chunkrl.errors import CheckpointError
from chunkrl.training.checkpoint import load_state, save_state
from chunkrl.types import ChunkTransition, Observation

_OBSERVATIONS = ("observation", "next_observation")


def save_batch(folder: Path, batch: ChunkTransition, facts: Mapping[str, Any]) -> None:
    """Writes the whole batch [B] as safetensors and JSON.

    facts: what `load_batch` gives back beside it, plain JSON values.
    """
    tree: dict[str, Any] = {
        f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in _OBSERVATIONS
    }
    tree["observation"] = _observation_tree(batch.observation)
    if batch.next_observation is not batch.observation:
        tree["next_observation"] = _observation_tree(batch.next_observation)
    save_state(folder, {"batch": tree, "facts": dict(facts)})


def load_batch(folder: str | Path) -> tuple[ChunkTransition, dict[str, Any]]:
    """The batch [B], on the CPU, and the facts: of a run's `non_finite_batch` the `update`, its `phase`, and the
    `metrics`, name -> the number in words.

    Raises:
        CheckpointError: the folder is no whole batch.
    """
    state = load_state(Path(folder), finite=False)  # NaN may be what it was saved for
    try:
        tree = dict(state["batch"])
        observation = _observation(tree.pop("observation"))
        following = tree.pop("next_observation", None)
        then = observation if following is None else _observation(following)
        return ChunkTransition(observation=observation, next_observation=then, **tree), state["facts"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not a saved batch (a run's non_finite_batch): {error!r}; name another folder"
        ) from error


def _observation_tree(observation: Observation) -> dict[str, Any]:
    return {"images": observation.images, "state": observation.state, "task": list(observation.task)}


def _observation(tree: Mapping[str, Any]) -> Observation:
    images: Mapping[str, Tensor] = tree["images"]
    return Observation(images=images, state=tree["state"], task=tuple(tree["task"]))
