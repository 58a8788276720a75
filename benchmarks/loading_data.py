"""The data set of `benchmarks.data_loading`: two cameras with moving patterns that compress about as images do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.writer import DatasetWriter

CAMERAS = ("observation.images.front", "observation.images.wrist")
FPS, HORIZON, SIZE = 10, 10, 256
TASK = "push the block"


def episode(number: int, length: int) -> dict[str, np.ndarray]:
    """Moving patterns with a little noise: PNG and AV1 compress them about as camera images."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIZE, :SIZE]
    columns: dict[str, np.ndarray] = {
        "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
        "action": rng.normal(size=(length, 7)).astype(np.float32),
        "next.success": np.arange(length) == length - 1,
    }
    for place, name in enumerate(CAMERAS):
        shift = 40 * number + 90 * place
        pictures = [
            np.stack(
                [
                    127 + 100 * np.sin((x + 3 * t + shift) / 20),
                    127 + 100 * np.cos((y - 2 * t) / 17),
                    (x + y + t) / 2,
                ],
                axis=-1,
            )
            for t in range(length)
        ]
        noise = rng.integers(-3, 4, (length, SIZE, SIZE, 3))
        columns[name] = (np.stack(pictures) + noise).clip(0, 255).astype(np.uint8)
    return columns


def features(kind: str) -> dict[str, FeatureSpec]:
    """Of the benchmark's data set."""
    return {
        "observation.state": FeatureSpec("float32", (8,)),
        "action": FeatureSpec("float32", (7,)),
        "next.success": FeatureSpec("bool", (1,)),
        **{name: FeatureSpec(kind, (SIZE, SIZE, 3)) for name in CAMERAS},
    }


def write_set(root: Path, kind: str, num_episodes: int, length: int, seed: int) -> str:
    """Writes the set that is read, unless it is there; the digest of what it was made from."""
    digest = hashlib.sha256()
    exists = root.exists()
    with DatasetWriter(root, fps=FPS, features=features(kind)) as writer:
        for number in range(num_episodes):
            columns = episode(seed + number, length)
            for name in sorted(columns):
                digest.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
            if not exists:
                writer.add_episode(columns, TASK)
    return digest.hexdigest()
