"""`--use-pi0-actions`: a pi policy's chunks for every start of a data set, made once and kept in its cache folder.

Two uses, `PiChunkConfig.use`:
- "replace", the chunk-level document's: the policy's chunk stands in place of the recorded one, while reward and
  next observation stay those of the recording. Q then learns from (x, A_pi, r): r came from another chunk, so
  Q(x, A) has nothing to learn about A (docs/pi0.md shows it).
- "candidates": Q learns from the recorded chunk alone; V's target and the chunk that the policy clones are chosen
  among the recorded chunk and the policy's (`chunkrl.algorithms.iql`).
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch

from chunkrl.data.collection import ChunkCollection, ChunkData
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.integration.chunk_cache import ChunkRequest, cached_chunks, fingerprint
from chunkrl.integration.config import PiChunkConfig
from chunkrl.models.pi.checkpoint import RECIPE_FILE, find_layout, find_recipe, load_pretrained
from chunkrl.models.pi.config import PiRecipe
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.pi.recipes import choose_recipe
from chunkrl.models.pi.tokenizer import find_tokenizer
from chunkrl.progress import Progress

_LOG = logging.getLogger(__name__)


def use_pi_chunks(
    data: ChunkData,
    checkpoint: Path,
    config: PiChunkConfig,
    device: torch.device,
    progress: Progress,
) -> None:
    """Give data a pi policy's chunks in the way that `config.use` says; made now unless the cache has them.

    Args:
        data: every start gets chunks. It changes: see `ChunkDataset.replace_actions` and `attach`.
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
    datasets = data.datasets if isinstance(data, ChunkCollection) else (data,)
    known = datasets[0].table.description.cameras
    recipe = find_pi_recipe(datasets[0], checkpoint, config, known)
    cameras = [
        check_fits(dataset, recipe, config.cameras, dataset.table.description.cameras) for dataset in datasets
    ]
    dtype = _dtype(config, device)

    @functools.cache
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
    weights = fingerprint((checkpoint, tokenizer), progress)
    if config.use == "replace":
        _LOG.warning(
            "the pi policy's chunks stand in place of the recorded ones, whose rewards stay: Q cannot learn "
            "from that which action is better (docs/pi0.md); --objective iql --pi0.use candidates can"
        )
    for dataset, pairs in zip(datasets, cameras, strict=True):
        request = ChunkRequest(
            fingerprint=weights,
            recipe=recipe.to_json(),
            cameras=pairs,
            num_samples=config.num_samples,
            horizon=dataset.action_horizon,
            flow_steps=config.flow_steps,
            seed=config.seed,
            dtype=str(dtype),
            batch_size=config.batch_size,
        )
        chunks = cached_chunks(dataset, request, load, progress)
        if config.use == "replace":
            dataset.replace_actions(chunks[:, 0])
        else:
            dataset.attach("candidates", chunks)
        dataset.action_source = f"{config.use} {request.key()}"


def find_pi_recipe(
    dataset: ChunkData, checkpoint: Path, config: PiChunkConfig, cameras: tuple[str, ...]
) -> PiRecipe:
    """The recipe that the configuration, the folder or the folder's name says. cameras: the data set's."""
    if config.recipe is not None:
        cameras = config.cameras or cameras
        return choose_recipe(config.recipe, tuple(cameras), dataset.state_dim, dataset.action_dim)
    if (checkpoint / RECIPE_FILE).is_file() or find_layout(checkpoint) == "LeRobot":
        return find_recipe(checkpoint)
    try:
        return choose_recipe(checkpoint.name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{checkpoint} does not say its settings and neither does its name ({error}): give --pi0.recipe, a JSON "
            "file, or pi0_base or pi05_base, which take cameras and widths from the data"
        ) from error


def check_fits(
    dataset: ChunkData, recipe: PiRecipe, cameras: tuple[str, ...] | None, known: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """(the policy's camera, the data set's) for each camera of the policy. known: the data set's.

    Raises:
        ChunkRLError: the policy's horizon is shorter than the data set's, or action, state or cameras differ.
    """
    config, settings, root = recipe.config, recipe.settings, dataset.name
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
            f"{dataset.action_dim} and {dataset.state_dim}: it was trained for another robot (a base checkpoint, "
            f"of no one robot, takes the data's widths and cameras with --pi0.recipe {config.kind}_base)"
        )
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
