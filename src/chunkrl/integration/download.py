"""`chunkrl download`: the published pi checkpoints from Google Cloud Storage, or any repository of the Hub.

    chunkrl download pi05_libero                     into checkpoints/pi0/pi05_libero
    chunkrl download --checkpoints all               every known one
    chunkrl download --repo-id owner/name            into checkpoints/pi0/name
    chunkrl download tokenizer                       PaliGemma's, into the cache

The tokenizer comes along with every checkpoint of Google Cloud Storage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HUB_OFFLINE

from chunkrl.integration.config import DownloadCommand
from chunkrl.integration.hub import RepositoryKind, hub_url, list_repository
from chunkrl.integration.remote import DownloadError, list_tree
from chunkrl.integration.transfer import (
    Tree,
    check_free_space,
    fetch_tree,
    is_recorded_whole,
    missing_bytes,
)
from chunkrl.progress import Progress

CHECKPOINTS = ("pi0_libero", "pi0_base", "pi05_libero", "pi05_base")
DEFAULT_FOLDER = Path("checkpoints/pi0")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class _Order:
    tree: Tree
    target: Path
    recipe: str | None


def download(command: DownloadCommand, progress: Progress) -> tuple[Path, ...]:
    """Fetches everything asked for and says where it is; the folders.

    Raises:
        DownloadError: nothing asked for, a name that is not there, no space, a failed connection or checksum.
        MissingExtraError: gcsfs is not installed.
    """
    names = dict.fromkeys((*command.names, *command.checkpoints))
    if not names and command.repo_id is None:
        raise DownloadError(
            f"say what to download: {', '.join(CHECKPOINTS)}, all, tokenizer or --repo-id owner/name"
        )
    if names and command.repo_id is not None:
        raise DownloadError(
            f"{', '.join(names)} and --repo-id {command.repo_id} are two downloads; give one at a time"
        )
    if "all" in names:
        names = dict.fromkeys((*CHECKPOINTS, *(name for name in names if name == "tokenizer")))
    if command.include and command.repo_id is None:
        raise DownloadError("--include names files of a Hub repository: give --repo-id owner/name with it")
    if command.repo_id is not None:
        default = DEFAULT_FOLDER / command.repo_id.partition("/")[2]
        target = default if command.download_dir is None else Path(command.download_dir).expanduser()
        return (fetch_repository(command.repo_id, command.revision, target, progress, command.include),)
    root = DEFAULT_FOLDER if command.download_dir is None else Path(command.download_dir).expanduser()
    orders = [
        _Order(list_tree(f"{command.source.rstrip('/')}/{name}"), root / name, name)
        for name in names
        if name != "tokenizer"
    ]
    _fetch(orders, progress)
    print(f"{fetch_tokenizer(command.tokenizer_source, progress)}: tokenizer")
    return tuple(order.target for order in orders)


def fetch_repository(
    repo_id: str,
    revision: str | None,
    target: Path,
    progress: Progress,
    include: tuple[str, ...] = (),
    kind: RepositoryKind = "model",
) -> Path:
    """A repository of the Hub, whole or not at all, as the folder `target`; says so.

    Raises:
        DownloadError: see `download`.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise DownloadError(f"--repo-id is '{repo_id}'; a Hub repository is owner/name")
    if HF_HUB_OFFLINE and is_recorded_whole(target, hub_url(repo_id, revision)):
        print(
            f"{target}: there and whole; HF_HUB_OFFLINE is set, so that the Hub was not asked for newer files"
        )
        return target
    _fetch([_Order(list_repository(repo_id, revision, include, kind), target, None)], progress)
    return target


def _fetch(orders: Sequence[_Order], progress: Progress) -> None:
    if orders:
        needed = sum(missing_bytes(order.target, order.tree) for order in orders)
        check_free_space(orders[0].target.parent, needed, ", ".join(str(order.target) for order in orders))
    for order in orders:
        fetched = fetch_tree(order.tree, order.target, progress, _recipe_file(order.recipe))
        size = f"{order.tree.size / 1e9:.2f} GB, {len(order.tree.files)} files"
        print(f"{order.target}: {size}{'' if fetched else ' (already there)'}")


def _recipe_file(name: str | None) -> dict[str, str]:
    """The settings that openpi's folders do not hold, for the checkpoints whose name alone determines them."""
    from chunkrl.models.pi.checkpoint import RECIPE_FILE
    from chunkrl.models.pi.recipes import RECIPES

    recipe = None if name is None else RECIPES.get(name)
    return {} if recipe is None else {RECIPE_FILE: recipe().to_json()}


def fetch_tokenizer(source: str | None, progress: Progress) -> Path:
    """PaliGemma's tokenizer in the cache, fetched if it is not there.

    Args:
        source: URL of the file; None: `TOKENIZER_SOURCE`.

    Raises:
        DownloadError, MissingExtraError: see `download`.
    """
    from chunkrl.models.pi.tokenizer import TOKENIZER_SOURCE, cached_tokenizer

    file = cached_tokenizer()
    if not file.is_file():
        tree = list_tree(source or TOKENIZER_SOURCE)
        if [remote.name for remote in tree.files] != [file.name]:
            raise DownloadError(f"{tree.url} is not a file {file.name}; --tokenizer-source must name one")
        fetch_tree(tree, file.parent, progress)
    return file
