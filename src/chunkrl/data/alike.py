"""Whether two data sets can be trained on together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import DatasetError

ACTION, STATE = "values an action", "values per state"
CAMERAS, RATE = "cameras (height, width)", "frames per second"
ORDER = "order"


def _cure(differing: str) -> str:
    if differing == ORDER:
        return "write one of them again in the other's order, or correct wrong names in meta/info.json"
    return "name columns and cameras alike, resize images, or leave the data set out"


@dataclass(frozen=True)
class Likeness:
    """What of a data set is compared. name: for messages. values: must be equal, by their names in the message.
    entries: role ("action", "state") -> what its entries are called, () where nothing says it."""

    name: str
    values: Mapping[str, Any]
    entries: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: ChunkDataset) -> Likeness:
        """What a data set that is there is compared by."""
        table = dataset.table
        return cls.expected(
            dataset.name,
            dataset.settings,
            {"action": table.description.action_names or (), "state": table.description.state_names or ()},
            (dataset.action_dim, dataset.state_dim),
            {name: table.camera(name).size for name in dataset.cameras},
            dataset.fps,
        )

    @classmethod
    def expected(
        cls,
        name: str,
        settings: ChunkSettings,
        entries: Mapping[str, Sequence[str]],
        dims: tuple[int, int],
        cameras: Mapping[str, tuple[int, int]],
        fps: float,
    ) -> Likeness:
        """What a data set will be compared by that may not be there yet.

        dims: values of an action and of a state. cameras: those that are used -> (height, width) of their images as
        they are given.
        """
        values = {
            "actions per chunk": settings.action_horizon,
            "steps of the critic": settings.critic_horizon or settings.action_horizon,
            ACTION: dims[0],
            STATE: dims[1],
            CAMERAS: dict(sorted(cameras.items())),
            RATE: float(fps),
            "discount": settings.gamma,
            "reward": settings.reward,
            "action encoding": settings.encoding,
        }
        return cls(name, values, entries)


def check_alike(a: Likeness, b: Likeness, cure: Callable[[str], str] = _cure) -> None:
    """Raises DatasetError where chunks of the two cannot stand in one batch. cure: what to do, by what differs."""
    for name, value in a.values.items():
        if b.values[name] != value:
            raise DatasetError(f"{b.name}: {name}: {b.values[name]}, but {a.name} has {value}: {cure(name)}")


def check_names(a: Likeness, b: Likeness, cure: Callable[[str], str] = _cure) -> None:
    """Refuses two data sets that have an entry of the same name at different places of their actions or states.

    Names that only one of them has say nothing. cure: as of `check_alike`.
    """
    for role, of_a in a.entries.items():
        ours, theirs = (_plain(names) for names in (of_a, b.entries.get(role, ())))
        known = {name: place for place, name in enumerate(ours) if ours.count(name) == 1}
        for place, name in enumerate(theirs):
            if theirs.count(name) == 1 and known.get(name, place) != place:
                raise DatasetError(
                    f"{b.name}: its {role}s are {', '.join(theirs)}, those of {a.name} are {', '.join(ours)}: "
                    f"'{name}' stands at another place; {cure(ORDER)}"
                )


def _plain(names: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in names]
