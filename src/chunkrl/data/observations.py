"""Observations at rows of a FrameTable, as batches carry them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chunkrl.data.frames import FrameTable
from chunkrl.types import Observation


def read_observations(table: FrameTable, cameras: Sequence[str], *rows: np.ndarray) -> list[Observation]:
    """The batched observation at each of these table rows int [B]; their images are decoded together."""
    table.open_cameras(cameras)
    begun = {camera: table.start_images(camera, np.concatenate(rows)) for camera in cameras}
    pictures = {camera: finish() for camera, finish in begun.items()}
    found, end = [], 0
    for part in rows:
        begin, end = end, end + len(part)
        images = {camera: torch.from_numpy(values[begin:end]) for camera, values in pictures.items()}
        state = None if table.state is None else torch.from_numpy(np.asarray(table.state[part]))
        task = tuple(table.task_text(int(row)) for row in part)
        found.append(Observation(images=images, state=state, task=task))
    return found
