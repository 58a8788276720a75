"""Chunks of a pi policy for every start of a data set: made in batches, kept in the data set's cache folder.

A start's noise depends on the seed and its row only, and what is done is counted after it is on the disk: a run
killed on the way goes on to the same chunks.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkrl.data.cache import create_array, ensure, load_array, sync_array
from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.manifest import MANIFEST_FILE
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.progress import Progress
from chunkrl.types import Observation

_CHUNKS, _DONE = "chunks.npy", "done.json"
_BLOCK = 1 << 24
_VERSION = 1


def fingerprint(paths: tuple[Path, ...], progress: Progress) -> str:
    """The fingerprint of the contents of files and folders, hexadecimal: other weights are another policy whatever
    their name."""
    files = [
        (file.relative_to(path).as_posix(), file)
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file() and file.name != MANIFEST_FILE  # it follows from the others
    ]
    total, done = sum(file.stat().st_size for _, file in files), 0
    digest = hashlib.blake2b(digest_size=16)
    for name, file in files:
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                done += len(block)
                progress("checkpoint's fingerprint (MB)", done // 10**6, total // 10**6 + 1)
    progress("checkpoint's fingerprint (MB)", total // 10**6 + 1, total // 10**6 + 1)
    return digest.hexdigest()


@dataclass(frozen=True)
class ChunkRequest:
    """All that determines the chunks of a data set's starts.

    fingerprint: of the checkpoint. recipe: its JSON. cameras: (the policy's, the data set's) pairs.
    num_samples: N. horizon: H, the first of the policy's actions that are kept. batch_size: does not.
    """

    fingerprint: str
    recipe: str
    cameras: tuple[tuple[str, str], ...]
    num_samples: int
    horizon: int
    flow_steps: int
    seed: int
    dtype: str
    batch_size: int = field(compare=False)

    def described(self) -> dict[str, Any]:
        """What `key` is made of."""
        named = {key: value for key, value in asdict(self).items() if key not in ("batch_size", "flow_steps")}
        # by its name of before 2026-12: caches of then are found
        return named | {"num_steps": self.flow_steps, "version": _VERSION}

    def key(self) -> str:
        """Names the chunks in the cache."""
        text = json.dumps(self.described(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def cached_chunks(
    dataset: ChunkDataset, request: ChunkRequest, load: Callable[[], PiPolicy], progress: Progress
) -> np.ndarray:
    """Chunks of every start, float32 [len, N, H, A] in the data's units, mapped from the cache's file.

    Args:
        load: gives the policy; called only where chunks are missing.

    Raises:
        ChunkRLError: the cache cannot be written, or the policy's chunks are not finite.
    """
    starts = zlib.crc32(np.ascontiguousarray(dataset.starts).data)
    target = dataset.table.cache_dir / f"pi_chunks-{request.key()}-{starts:08x}"

    def build(folder: Path) -> None:
        _generate(load(), dataset, request, folder, progress)
        write_text(folder / "request.json", json.dumps(request.described(), indent=1))

    ensure(target, build, resume=True)
    return load_array(target / _CHUNKS)


def _generate(
    policy: PiPolicy, dataset: ChunkDataset, request: ChunkRequest, folder: Path, progress: Progress
) -> None:
    file, done_file = folder / _CHUNKS, folder / _DONE
    done = 0
    if done_file.exists():
        cure = f"delete the folder {folder}: its chunks are made again"
        done = read_json(done_file, dict, ChunkRLError, cure).get("done")
        if type(done) is not int or not 0 <= done <= len(dataset):
            raise ChunkRLError(
                f"{done_file}: 'done' is {done!r}, expected a number up to {len(dataset)}: {cure}"
            )
    if done == 0:
        shape = (len(dataset), request.num_samples, request.horizon, dataset.action_dim)
        create_array(file, np.dtype(np.float32), shape)
    chunks = load_array(file, writable=True)
    stage = "pi chunks (starts)"
    progress(stage, done, len(dataset))
    while done < len(dataset):
        rows = dataset.starts[done : done + request.batch_size]
        made = sample_rows(policy, dataset, rows, request)
        finite = np.isfinite(made).all(axis=(1, 2, 3))
        if not finite.all():
            row = int(rows[int(np.argmin(finite))])
            position = int(dataset.table.episode_of(np.asarray(row)))
            raise ChunkRLError(
                f"the pi policy's chunk at episode {dataset.table.episode_ids[position]}, frame "
                f"{row - dataset.table.episode_start[position]} is NaN or infinite: check its norm stats, or use "
                "--pi0.dtype float32"
            )
        chunks[done : done + len(rows)] = made
        done += len(rows)
        sync_array(chunks)  # before it is counted as done
        write_text(done_file, json.dumps({"done": done}))
        progress(stage, done, len(dataset))


def sample_rows(
    policy: PiPolicy, dataset: ChunkDataset, rows: np.ndarray, request: ChunkRequest
) -> np.ndarray:
    """The policy's chunks at table rows int [B]: float32 [B, N, H, A] in the data's units."""
    table, config = dataset.table, policy.recipe.config
    table.open_cameras([camera for _, camera in request.cameras])
    images: Mapping[str, torch.Tensor] = {
        name: torch.from_numpy(table.images(camera, rows)) for name, camera in request.cameras
    }
    uses_state = policy.recipe.settings.state_dim > 0 and table.state is not None
    state = (
        torch.from_numpy(np.asarray(table.state[rows])) if uses_state and table.state is not None else None
    )
    observation = Observation(images, state, tuple(table.task_text(int(row)) for row in rows))
    shape = (request.num_samples, config.horizon, config.action_dim)
    noise = np.stack(
        [
            np.random.default_rng([request.seed, int(row)]).standard_normal(shape, dtype=np.float32)
            for row in rows
        ]
    )
    chunks = policy.sample(
        observation, request.num_samples, request.flow_steps, noise=torch.from_numpy(noise)
    )
    return chunks[:, :, : request.horizon].cpu().numpy()
