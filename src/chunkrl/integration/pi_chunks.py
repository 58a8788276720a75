"""`--use-pi0-actions`: a pi policy's chunks for every start of a data set, made once and kept in its cache folder.

Two uses, `PiChunkConfig.use`:
- "replace", the chunk-level document's: the policy's chunk stands in place of the recorded one, while reward and
  next observation stay those of the recording. Q then learns from (x, A_pi, r): r came from another chunk, so
  Q(x, A) has nothing to learn about A (docs/pi0.md shows it).
- "candidates": Q learns from the recorded chunk alone; V's target and the chunk that the policy clones are chosen
  among the recorded chunk and the policy's (`chunkrl.algorithms.chunk_awr`).

A start's noise depends on the seed and its row only, so that a run killed on the way goes on to the same chunks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from chunkrl.data.atomic import write_text
from chunkrl.data.cache import create_array, ensure, load_array
from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.models.pi.checkpoint import RECIPE_FILE, find_layout, find_recipe, load_pretrained
from chunkrl.models.pi.config import PiRecipe
from chunkrl.models.pi.policy import DEFAULT_NUM_STEPS, PiPolicy
from chunkrl.models.pi.recipes import choose_recipe
from chunkrl.models.pi.tokenizer import find_tokenizer
from chunkrl.progress import Progress
from chunkrl.types import Observation

_LOG = logging.getLogger(__name__)

_CHUNKS, _DONE = "chunks.npy", "done.json"
_BLOCK = 1 << 24
_VERSION = 1

PiUse = Literal["replace", "candidates"]
PiDtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class PiChunkConfig:
    """How a pi policy's chunks are made and used."""

    use: PiUse = "replace"
    """replace: in place of the data's chunks (the document's); candidates: beside them (objective iql)."""
    num_candidates: int = 4
    """Chunks a start, where they are candidates."""
    recipe: str | None = None
    """pi0_libero, pi05_libero, pi0_base, pi05_base or a JSON file; default: as the folder or its name says."""
    cameras: tuple[str, ...] | None = None
    """The data set's cameras in the policy's order; default: the same names."""
    tokenizer: str | None = None
    """SentencePiece file; default: the checkpoint's or the cache's."""
    asset_id: str | None = None
    """Which norm stats, where an openpi folder has several."""
    num_steps: int = DEFAULT_NUM_STEPS
    """Euler steps of the flow."""
    batch_size: int = 16
    """Starts at once."""
    dtype: PiDtype = "auto"
    """Of the weights; auto: bfloat16 on a GPU, float32 on a CPU."""
    seed: int = 0
    """Determines the noise."""

    def __post_init__(self) -> None:
        if self.use not in get_args(PiUse) or self.dtype not in get_args(PiDtype):
            raise ChunkRLError(
                f"pi0.use is {self.use!r} and pi0.dtype {self.dtype!r}: see chunkrl train --help"
            )
        for name in ("num_candidates", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ChunkRLError(f"pi0.{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ChunkRLError(f"pi0.seed is {self.seed}; it must not be negative")

    @property
    def num_samples(self) -> int:
        """N, chunks a start."""
        return self.num_candidates if self.use == "candidates" else 1


def use_pi_chunks(
    dataset: ChunkDataset,
    checkpoint: Path,
    config: PiChunkConfig,
    device: torch.device,
    progress: Progress,
) -> None:
    """Give the data set a pi policy's chunks in the way that `config.use` says; made now unless the cache has them.

    Args:
        dataset: every start gets chunks. It changes: see `ChunkDataset.replace_actions` and `attach`.
        checkpoint: folder of any published layout.

    Raises:
        CheckpointError: no checkpoint there, or it is not whole.
        ChunkRLError: the policy does not fit the data: horizon, action width, state or cameras.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"no pi checkpoint at {checkpoint}: chunkrl download {checkpoint.name} fetches published ones; or say "
            "where it is with --pi0-checkpoints-dir and --pi0-config"
        )
    recipe = _find_recipe(dataset, checkpoint, config)
    cameras = check_fits(dataset, recipe, config.cameras)
    dtype = _dtype(config, device)

    def load() -> PiPolicy:
        return load_pretrained(
            checkpoint,
            recipe=recipe,
            asset_id=config.asset_id,
            tokenizer=config.tokenizer,
            dtype=dtype,
            device=device,
        )

    tokenizer = find_tokenizer(config.tokenizer, checkpoint)
    request = ChunkRequest(
        fingerprint=fingerprint((checkpoint, tokenizer), progress),
        recipe=recipe.to_json(),
        cameras=cameras,
        num_samples=config.num_samples,
        horizon=dataset.action_horizon,
        num_steps=config.num_steps,
        seed=config.seed,
        dtype=str(dtype),
        batch_size=config.batch_size,
    )
    chunks = cached_chunks(dataset, request, load, progress)
    if config.use == "replace":
        _LOG.warning(
            "the pi policy's chunks stand in place of the recorded ones, whose rewards stay: Q cannot learn "
            "from that which action is better (docs/pi0.md); --objective iql --pi0.use candidates can"
        )
        dataset.replace_actions(chunks[:, 0])
    else:
        dataset.attach("candidates", chunks)
    dataset.action_source = f"{config.use} {request.key()}"


def _find_recipe(dataset: ChunkDataset, checkpoint: Path, config: PiChunkConfig) -> PiRecipe:
    if config.recipe is not None:
        cameras = config.cameras or dataset.table.description.cameras
        return choose_recipe(config.recipe, tuple(cameras), dataset.state_dim, dataset.action_dim)
    if (checkpoint / RECIPE_FILE).is_file() or find_layout(checkpoint) == "LeRobot":
        return find_recipe(checkpoint)
    try:
        return choose_recipe(checkpoint.name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{checkpoint} does not say its settings and neither does its name ({error}); give --pi0.recipe"
        ) from error


def check_fits(
    dataset: ChunkDataset, recipe: PiRecipe, cameras: tuple[str, ...] | None
) -> tuple[tuple[str, str], ...]:
    """(the policy's camera, the data set's) for each camera of the policy.

    Raises:
        ChunkRLError: the policy's horizon is shorter than the data set's, or action, state or cameras differ.
    """
    config, settings, root = recipe.config, recipe.settings, dataset.table.description.root
    if dataset.encoding.kind != "absolute":
        raise ChunkRLError(
            f"a pi policy's chunks are in the units of the recording, not {dataset.encoding.kind}: use the absolute "
            "action encoding"
        )
    if config.horizon < dataset.action_horizon:
        raise ChunkRLError(
            f"the pi policy's chunks have {config.horizon} actions and --action-horizon is "
            f"{dataset.action_horizon}: lower it to at most {config.horizon}"
        )
    if settings.action_dim != dataset.action_dim or settings.state_dim not in (0, dataset.state_dim):
        raise ChunkRLError(
            f"the pi policy has {settings.action_dim} action and {settings.state_dim} state values, {root} has "
            f"{dataset.action_dim} and {dataset.state_dim}: it was trained for another robot"
        )
    known = dataset.table.description.cameras
    chosen = settings.cameras if cameras is None else cameras
    absent = [camera for camera in chosen if camera not in known]
    if absent or len(chosen) != len(settings.cameras):
        raise ChunkRLError(
            f"the pi policy takes the cameras {list(settings.cameras)}, {root} has {list(known)}: name the data "
            "set's in the policy's order with --pi0.cameras"
        )
    return tuple(zip(settings.cameras, chosen, strict=True))


def _dtype(config: PiChunkConfig, device: torch.device) -> torch.dtype:
    name = config.dtype
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def fingerprint(paths: tuple[Path, ...], progress: Progress) -> str:
    """Of the contents of files and folders, hexadecimal: other weights are another policy whatever their name."""
    files = [
        (file.relative_to(path).as_posix(), file)
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
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
    num_steps: int
    seed: int
    dtype: str
    batch_size: int = field(compare=False)

    def described(self) -> dict[str, Any]:
        """What `key` is made of."""
        return {key: value for key, value in asdict(self).items() if key != "batch_size"} | {
            "version": _VERSION
        }

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
    done = json.loads(done_file.read_text())["done"] if done_file.is_file() else 0
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
            position = int(dataset.episode_of_row[row])
            raise ChunkRLError(
                f"the pi policy's chunk at episode {dataset.table.episode_ids[position]}, frame "
                f"{row - dataset.table.episode_start[position]} is NaN or infinite: check its norm stats, or use "
                "--pi0.dtype float32"
            )
        chunks[done : done + len(rows)] = made
        done += len(rows)
        chunks.flush()  # before it is counted as done
        write_text(done_file, json.dumps({"done": done}))
        progress(stage, done, len(dataset))


def sample_rows(
    policy: PiPolicy, dataset: ChunkDataset, rows: np.ndarray, request: ChunkRequest
) -> np.ndarray:
    """The policy's chunks at table rows int [B]: float32 [B, N, H, A] in the data's units."""
    table, config = dataset.table, policy.recipe.config
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
    chunks = policy.sample(observation, request.num_samples, request.num_steps, noise=torch.from_numpy(noise))
    return chunks[:, :, : request.horizon].cpu().numpy()
