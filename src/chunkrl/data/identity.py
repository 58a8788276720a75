"""Which episode is which: names that stay with an episode while data sets grow, shrink and are put together again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chunkrl.data.episode_rows import by_data_file, episode_parts
from chunkrl.data.frames import FrameTable

EPISODE_ID_KEY = "complementary_info.episode_id"


def episode_identities(table: FrameTable) -> tuple[str, ...]:
    """A name of every episode, [E]: its own UUID where it was recorded online, else its data set's fingerprint and
    its index there.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    description = table.description
    if EPISODE_ID_KEY not in description.features:
        return tuple(f"{description.fingerprint}/{index}" for index in table.episode_ids)
    return tuple(
        part.column(EPISODE_ID_KEY)[0].as_py()
        for file, episodes in by_data_file(description.episodes)
        for _, frame, part in episode_parts(file, episodes, [EPISODE_ID_KEY], 1 << 20)
        if frame == 0
    )


def rows_before(
    old: Sequence[str], old_lengths: np.ndarray, new: Sequence[str], new_lengths: np.ndarray
) -> np.ndarray:
    """Where each frame of the new data was in the old: int64 [N], -1 for frames of episodes that were not there.

    old, new: identities of the episodes, in order. old_lengths, new_lengths: their frames, int.
    """
    starts = dict(zip(old, (np.cumsum(old_lengths) - old_lengths).tolist(), strict=True))
    lengths = dict(zip(old, np.asarray(old_lengths).tolist(), strict=True))
    parts = [np.zeros(0, np.int64)]
    for identity, length in zip(new, new_lengths, strict=True):
        known = lengths.get(identity) == length
        parts.append(starts[identity] + np.arange(length) if known else np.full(length, -1))
    return np.concatenate(parts)
