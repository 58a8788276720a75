"""Loading pi policies from every published layout, and saving them as a LeRobot folder.

What a folder of weights does not say (prompt format, cameras, horizon, normalisation) comes from, in this order:
the caller's recipe, `chunkrl_pi.json` (written by `save_pretrained`), LeRobot's `config.json`. Without any of
these, loading is an error: a wrong guess runs without complaint and never succeeds at a task.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from chunkrl.errors import CheckpointError
from chunkrl.files.json_files import read_json
from chunkrl.files.regular_files import is_there
from chunkrl.manifest import MANIFEST_FILE, MARK, read_manifest, verify, write_manifest
from chunkrl.models.pi import layout, lerobot_format, norm_stats
from chunkrl.models.pi.config import PiRecipe, PromptFormat
from chunkrl.models.pi.lerobot_check import check_export
from chunkrl.models.pi.norm_stats import NormStats
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.pi.tokenizer import TOKENIZER_FILE, SentencePieceTokenizer, find_tokenizer
from chunkrl.models.pi.weights import (
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
    LoadReport,
    WeightSource,
    compare,
    jax_source,
    load_model,
    torch_source,
)
from chunkrl.models.plugin_files import CONFIG_FILE, POSTPROCESSOR, PREPROCESSOR, policy_below

_LOG = logging.getLogger(__name__)

RECIPE_FILE = "chunkrl_pi.json"
_COPY = "copy the checkpoint again"
# What only LeRobot reads, where the statistics are beside our recipe.
_PIPELINES = tuple(name.removesuffix(".json") for name in (PREPROCESSOR, POSTPROCESSOR))
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class _Folder:
    """Where a checkpoint's parts are. weights: the folder of the arrays or shards; root: of the rest."""

    layout: str
    root: Path
    weights: Path


def _local_folder(path_or_repo: str | Path, revision: str | None) -> Path:
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        return policy_below(path)
    if path.exists() or not isinstance(path_or_repo, str) or not _REPO_ID.fullmatch(path_or_repo):
        raise CheckpointError(
            f"{path_or_repo} is neither a checkpoint folder nor a Hub repository 'owner/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path_or_repo, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"there is no folder '{path_or_repo}' here, and the Hub did not give a repository of that name: {error}"
        ) from error


def _find(root: Path) -> _Folder:
    if (root / WEIGHTS_FILE).is_file() or (root / WEIGHTS_INDEX).is_file():
        config = root / CONFIG_FILE
        is_lerobot = is_there(config, CheckpointError, _COPY) and "type" in lerobot_format.read_config(config)
        return _Folder("LeRobot" if is_lerobot else "openpi PyTorch", root, root)
    for weights, parent in ((root / "params", root), (root, root.parent)):
        if (weights / "_METADATA").is_file() or (weights / "manifest.ocdbt").is_file():
            return _Folder("openpi JAX", parent, weights)
    if any(root.glob("*.bin")) or any(root.glob("*.pt")):
        raise CheckpointError(f"{root} holds pickled weights, which are never loaded; convert to safetensors")
    nested = sorted(str(f.parent.relative_to(root)) for f in root.glob(f"*/{WEIGHTS_FILE}"))
    hint = f"; did you mean its folder {', '.join(nested)}?" if nested else ""
    raise CheckpointError(
        f"{root} holds neither {WEIGHTS_FILE}, {WEIGHTS_INDEX} nor an Orbax 'params' folder{hint}"
    )


def _find_recipe(
    folder: _Folder, recipe: PiRecipe | None, prompt_format: PromptFormat | None = None
) -> PiRecipe:
    if recipe is not None:
        return recipe
    own = folder.root / RECIPE_FILE
    if is_there(own, CheckpointError, _COPY):
        return PiRecipe.read(own)
    if folder.layout == "LeRobot":
        return lerobot_format.read_recipe(folder.root / CONFIG_FILE, prompt_format)
    raise CheckpointError(
        f"{folder.root} ({folder.layout}) does not say its prompt format, cameras, horizon and normalisation; "
        "give a recipe: pi0_libero, pi05_libero, pi0_base or pi05_base (chunkrl.models.pi.recipes)"
    )


def _check_openpi_config(folder: _Folder, recipe: PiRecipe) -> None:
    """openpi's converter writes horizon and action width beside the weights; a recipe must not contradict them."""
    file = folder.root / CONFIG_FILE
    if folder.layout != "openpi PyTorch" or not is_there(file, CheckpointError, _COPY):
        return
    written = lerobot_format.read_config(file)
    for key, value in (("action_horizon", recipe.config.horizon), ("action_dim", recipe.config.action_dim)):
        if written.get(key, value) != value:
            raise CheckpointError(
                f"{file} says {key} {written[key]} and the recipe {value}; change the recipe"
            )


def _source(folder: _Folder, recipe: PiRecipe) -> WeightSource:
    if folder.layout == "openpi JAX":
        return jax_source(folder.weights, recipe.config)
    return torch_source(folder.weights, folder.layout)


def find_recipe(
    path_or_repo: str | Path, revision: str | None = None, prompt_format: PromptFormat | None = None
) -> PiRecipe:
    """What a folder says of its sizes and settings, to be changed with `dataclasses.replace` and given to loading.

    For example a LeRobot folder that holds openpi's `pi05_libero`: its prompt format must be `pi05_no_state`.

    prompt_format: of a LeRobot folder that does not say it.

    Raises:
        CheckpointError: the folder does not say (openpi's folders; the prompt format of LeRobot 0.5.0 and before).
    """
    folder = _find(_local_folder(path_or_repo, revision))
    recipe = _find_recipe(folder, None, prompt_format)
    _verify(folder, only=(RECIPE_FILE, CONFIG_FILE))
    return recipe


def find_layout(folder: str | Path) -> str:
    """Which published layout a folder has: "LeRobot", "openpi PyTorch" or "openpi JAX".

    Raises:
        CheckpointError: none of them.
    """
    return _find(Path(folder)).layout


def inspect_pretrained(
    path_or_repo: str | Path, recipe: PiRecipe | None = None, revision: str | None = None
) -> LoadReport:
    """What a checkpoint holds against what its model needs, without reading a weight or raising on it."""
    folder = _find(_local_folder(path_or_repo, revision))
    recipe = _find_recipe(folder, recipe)
    return compare(recipe.config, _source(folder, recipe))


def load_pretrained(
    path_or_repo: str | Path,
    *,
    recipe: PiRecipe | None = None,
    stats: NormStats | None = None,
    asset_id: str | None = None,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> PiPolicy:
    """A policy from a LeRobot folder, an openpi PyTorch folder or an openpi JAX (Orbax) folder: whole, or an error.

    Memory stays near one copy of the weights: tensors are read, checked and placed one at a time.

    Args:
        path_or_repo: folder, or Hub repository `owner/name`.
        recipe: sizes and settings; None: as the folder says (openpi's folders do not).
        stats: norm stats; None: the folder's. `asset_id` chooses where an openpi folder has several.
        tokenizer: SentencePiece file; None: the folder's or the cache's where there is one (a policy without
            tokenizer can be converted and saved; running it says what is missing).
        dtype: of the parameters; None: as stored. device: where they go.
        revision: of the Hub repository.

    Raises:
        CheckpointError: names, shapes or values are not a whole model's, settings are missing or contradict, or a
            file is not what `save_pretrained` wrote.
        MissingExtraError: an optional package is needed and not installed; names the extra.
    """
    folder = _find(_local_folder(path_or_repo, revision))
    _verify(folder)
    recipe = _find_recipe(folder, recipe)
    _check_openpi_config(folder, recipe)
    if stats is None:
        found = norm_stats.find_own(folder.root) or norm_stats.find_lerobot(folder.root)
        stats = found or norm_stats.find_openpi(folder.root, asset_id)
    if stats is not None:
        stats.check(recipe.settings, str(folder.root))
    reader = _find_tokenizer(tokenizer, folder.root, recipe.config.vocab_size)
    source = _source(folder, recipe)
    model, report = load_model(recipe.config, source, dtype, device)
    _LOG.info("%s; prompt format %s", report.summary(), recipe.settings.prompt_format)
    return PiPolicy(model, recipe, stats, reader, source.unused(), str(folder.root))


def _verify(folder: _Folder, only: Collection[str] | None = None) -> None:
    """What `save_pretrained` wrote is compared with its manifest; of folders that others wrote there is none.

    only: the files to compare; None: all.
    """
    root, recipe = folder.root, folder.root / RECIPE_FILE
    is_ours = folder.layout == "LeRobot" and is_there(recipe, CheckpointError, _COPY)
    marked = is_ours and MARK in read_json(recipe, dict, CheckpointError, _COPY)
    if not is_ours and not is_there(root / MANIFEST_FILE, CheckpointError, _COPY):
        return
    used = [RECIPE_FILE, CONFIG_FILE, norm_stats.OWN_FILE, WEIGHTS_FILE, WEIGHTS_INDEX]
    used += [f.relative_to(root).as_posix() for f in (root / "assets").rglob(norm_stats.OPENPI_FILE)]
    if not (root / norm_stats.OWN_FILE).is_file():
        verify(root, marked, only=only, used=[*used, PREPROCESSOR])
        return
    listed = read_manifest(root)
    if only is not None or listed is None:
        verify(root, marked, only=only, used=used)
        return
    pipelines = {name for name in listed.files if name.startswith(_PIPELINES)}
    verify(root, marked, only=set(listed.files) - pipelines, used=used)
    try:
        verify(root, marked, only=pipelines)
    except CheckpointError as error:
        _LOG.warning("%s. chunkrl does not read it, and acts as before; LeRobot does read it", error)


def _find_tokenizer(
    explicit: str | Path | None, folder: Path, vocab_size: int
) -> SentencePieceTokenizer | None:
    if explicit is None:
        try:
            explicit = find_tokenizer(None, folder)
        except CheckpointError as error:
            _LOG.info("loaded without a tokenizer: %s", error)
            return None
    return SentencePieceTokenizer(explicit, vocab_size)


def published_tensors(policy: PiPolicy) -> dict[str, Tensor]:
    """All tensors of the LeRobot layout, on the CPU: what stock LeRobot's strict loading expects, no more, no less.

    The embedding is there under both its names, and the head that nothing uses as it was loaded, or as zeros.

    Raises:
        CheckpointError: parameters that the layout does not have: LoRA layers that are not merged.
    """
    config, model = policy.recipe.config, policy.model
    foreign = {name for name, _ in model.named_parameters()} - set(layout.parameter_shapes(config))
    if foreign:
        raise CheckpointError(
            f"no published layout has {min(foreign)} and {len(foreign) - 1} more; LoRA layers are merged "
            "(chunkrl.models.lora.merge_lora) before saving"
        )
    tensors = {
        layout.to_torch_name(name): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
    }
    embedding = tensors[layout.to_torch_name(layout.EMBEDDING)]
    # A copy: safetensors refuses two names for one memory.
    tensors[layout.TIED_HEAD] = embedding.clone()
    head = policy.unused_tensors.get(layout.UNUSED_HEAD)
    shape = (config.vocab_size, config.expert_width)
    if head is None or tuple(head.shape) != shape:
        head = torch.zeros(shape, dtype=embedding.dtype)
    tensors[layout.UNUSED_HEAD] = head
    return {layout.LEROBOT_PREFIX + name: tensor for name, tensor in tensors.items()}


def check_target(folder: str | Path, overwrite: bool) -> None:
    """Raise CheckpointError where `save_pretrained` would: something is there that must not be replaced."""
    folder = Path(folder)
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not overwrite:
        raise CheckpointError(f"{folder} exists and is not empty; choose another folder or overwrite it")


def save_pretrained(
    policy: PiPolicy,
    folder: str | Path,
    *,
    overwrite: bool = False,
    beside: Callable[[Path], None] | None = None,
    plugin: Mapping[str, str] | None = None,
) -> Path:
    """Write a LeRobot policy folder that `load_pretrained` reads back bit for bit, with a manifest of its files.

    It is written under a temporary name and renamed whole; an old folder goes only after that.

    Args:
        policy: any loaded or trained policy, each parameter in the dtype it has.
        folder: must not exist or be empty, unless `overwrite`.
        beside: writes what else belongs into the folder, which it is called with before that has its name.
        plugin: files of `plugin_files` in place of those that stock LeRobot reads, which then refuses the folder.

    Raises:
        CheckpointError: the folder is there already, or cannot be written.
    """
    folder = Path(folder)
    check_target(folder, overwrite)
    temporary = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        differences = _write(policy, temporary, plugin)
        if beside is not None:
            beside(temporary)
        for file in (f for f in temporary.rglob("*") if f.is_file()):
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        write_manifest(temporary)
        _put_in_place(temporary, folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error}; free some space or use a writable folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if differences:
        _LOG.warning(
            "%s: stock LeRobot %s; act with chunkrl's load_policy, or with the plug-in lerobot_policy_chunkrl",
            folder,
            " and ".join(differences),
        )
    return folder


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`; what was there is deleted after that, and comes back if it fails."""
    replaced = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
    if folder.exists():
        folder.rename(replaced)
    try:
        temporary.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
    if replaced.exists():
        shutil.rmtree(replaced)


def _write(policy: PiPolicy, folder: Path, plugin: Mapping[str, str] | None) -> list[str]:
    """Writes the files, and says what stock LeRobot would do otherwise with them."""
    recipe = policy.recipe
    save_file(published_tensors(policy), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / RECIPE_FILE).write_text(recipe.to_json({MARK: MANIFEST_FILE}), encoding="utf-8")
    if isinstance(policy.tokenizer, SentencePieceTokenizer):
        shutil.copyfile(policy.tokenizer.path, folder / TOKENIZER_FILE)
    if policy.norm_stats is not None:
        norm_stats.write_own(folder, policy.norm_stats)
    if plugin is not None:
        for name, text in plugin.items():
            (folder / name).write_text(text, encoding="utf-8")
        return []
    is_bfloat16 = policy.model.language.dtype == torch.bfloat16
    lerobot_format.write_config(folder, recipe, "bfloat16" if is_bfloat16 else "float32")
    differences = lerobot_format.differences(recipe)
    if policy.norm_stats is None and recipe.settings.normalization != "identity":
        # with pipelines it would act on numbers of another scale and say nothing; without them it stops
        return [
            *differences,
            "refuses the folder, which has no statistics (policy_preprocessor.json is left out)",
        ]
    lerobot_format.write_processors(folder, recipe, policy.stats())
    return differences + check_export(folder, recipe, policy.stats())
