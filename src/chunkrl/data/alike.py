"""Whether two data sets can be trained on together."""

from __future__ import annotations

from typing import Any

from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import DatasetError


def check_alike(a: ChunkDataset, b: ChunkDataset) -> None:
    """Raises DatasetError where chunks of the two cannot stand in one batch."""

    def shape(dataset: ChunkDataset) -> dict[str, Any]:
        """What must be equal, by its name in the message."""
        return {
            "actions per chunk": dataset.action_horizon,
            "steps of the critic": dataset.critic_horizon,
            "values an action": dataset.action_dim,
            "values per state": dataset.state_dim,
            "cameras (height, width)": {
                name: dataset.table.camera(name).size for name in sorted(dataset.cameras)
            },
            "frames per second": float(dataset.fps),
            "discount": dataset.gamma,
            "reward": dataset.reward_kind,
            "action encoding": dataset.encoding,
        }

    ours, theirs = shape(a), shape(b)
    for name, value in ours.items():
        if theirs[name] != value:
            raise DatasetError(
                f"{b.name}: {name}: {theirs[name]}, but {a.name} has {value}: "
                "name columns and cameras alike, resize images, or leave the data set out"
            )


def check_names(a: ChunkDataset, b: ChunkDataset) -> None:
    """Refuses two data sets that have an entry of the same name at different places of their actions or states.

    Names that only one of them has say nothing.
    """
    for role in ("action", "state"):
        ours, theirs = (_names(dataset, role) for dataset in (a, b))
        known = {name: place for place, name in enumerate(ours) if ours.count(name) == 1}
        for place, name in enumerate(theirs):
            if theirs.count(name) == 1 and known.get(name, place) != place:
                raise DatasetError(
                    f"{b.name}: its {role}s are {', '.join(theirs)}, those of {a.name} are {', '.join(ours)}: "
                    f"'{name}' stands at another place; write one of them again in the other's order, or correct the "
                    "names in meta/info.json where they are wrong"
                )


def _names(dataset: ChunkDataset, role: str) -> list[str]:
    names = getattr(dataset.table.description, f"{role}_names")
    return [name.strip().lower() for name in names or ()]
