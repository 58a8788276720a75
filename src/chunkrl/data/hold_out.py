"""Which episodes are kept from training, so that policies can be judged on them."""

from __future__ import annotations

import math

import numpy as np

from chunkrl.data.formats import DatasetDescription, without
from chunkrl.errors import DatasetError

_STREAM = 0x4E1D  # the random numbers that choose, apart from those of folds and batches


def held_out_places(num_episodes: int, part: float) -> np.ndarray:
    """Places int64 [n], growing, of the episodes that are held out: one of every 1 / part episodes that follow each
    other, drawn at random.

    So tasks and sources that were recorded one after the other give each their part, those that take turns are not
    all of one kind, and what is chosen depends on neither the outcome nor a run's seed, and stays as data grow.
    """
    chosen = []
    for block in range(math.ceil(num_episodes * part)):
        first, end = math.ceil(block / part), math.ceil((block + 1) / part)
        chosen.append(first + int(np.random.default_rng([_STREAM, block]).integers(end - first)))
    places = np.array(chosen, np.int64)
    return places[places < num_episodes]


def held_out_episodes(description: DatasetDescription, part: float) -> frozenset[int]:
    """Indices of the data set's episodes that are held out. They are chosen among all, whichever are left out
    already, so that setting one aside moves no other."""
    there = {episode.index for episode in description.episodes}
    everyone = sorted(there | description.left_out_episodes)
    return frozenset(everyone[place] for place in held_out_places(len(everyone), part)) & there


def split(description: DatasetDescription, part: float, held_out: bool) -> DatasetDescription:
    """The data set without the episodes that are held out, or with these alone (`held_out`).

    part: of the episodes, in [0, 1); 0: none is held out.

    Raises:
        DatasetError: another part; no episode would be left, or none held out though they are asked for.
    """
    if not 0 <= part < 1:
        raise DatasetError(f"held_out is {part}: it is a part of the episodes, 0 or more and below 1")
    episodes = description.episodes
    chosen = held_out_episodes(description, part) if part else frozenset()
    if held_out and not chosen:
        raise DatasetError(
            f"{description.root}: no episode is held out of {len(episodes)} with --held-out {part}: hold out more"
        )
    if len(chosen) == len(episodes):
        raise DatasetError(
            f"{description.root}: --held-out {part} leaves no episode of {len(episodes)} to train on: hold out less"
        )
    excluded = frozenset(episode.index for episode in episodes) - chosen if held_out else chosen
    return without(description, excluded) if excluded else description
