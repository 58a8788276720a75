"""`chunkrl push`: a policy with its card, or a data set, to the Hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chunkrl.data.metadata import read_info
from chunkrl.errors import CheckpointError, ChunkRLError, DatasetError
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.integration.transfer import origin
from chunkrl.integration.upload import (
    CARD,
    Destination,
    Standing,
    Upload,
    UploadError,
    check_access,
    check_name,
    look,
    send,
    tag,
)
from chunkrl.models.plugin_files import policy_below
from chunkrl.progress import Progress
from chunkrl.publish.config import PushCommand
from chunkrl.publish.contents import (
    check_no_paths,
    dataset_files,
    left_out,
    listing,
    policy_files,
)
from chunkrl.report.card import CardRequest, card_of_policy
from chunkrl.report.dataset_card import card_of_dataset
from chunkrl.report.load_run import load_run
from chunkrl.report.training_run import TrainingRun
from chunkrl.run.folder import is_run_folder
from chunkrl.run.parts import check_one_run_of
from chunkrl.training.metrics import METRICS_FILE

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class _Order:
    """What is pushed. tag: that LeRobot finds a data set by; "" for a policy."""

    folder: Path
    files: tuple[Upload, ...]
    card: str
    to: Destination
    tag: str = ""


def push(command: PushCommand, progress: Progress) -> None:
    """Looks the folder through, lists what would be sent, asks, sends it, and compares what has arrived.

    Raises:
        UploadError: a setting is missing or wrong, or the Hub refuses. CheckpointError, DatasetError: the folder is
            not whole.
    """
    repo_id = _checked(command)
    if not command.dry_run:
        check_access(repo_id)
    order = _order(command, repo_id, progress)
    seen = "public: everybody may see it" if command.public else "private"
    print(f"{order.folder} -> {order.to.url}, {order.to.kind}, {seen}, licence {command.licence}")
    if command.dry_run:
        print(f"{listing(order.files)}{_not_pushed(order)}\n\n{order.card}\nnothing was sent (--dry-run)")
        return
    found = look(order.to, order.files)
    print(f"{listing(order.files, found.same)}{_not_pushed(order)}")
    if len(found.same) == len(order.files) and not found.foreign:
        print(f"{order.to.url}: all of it is already there")
        commit = found.commit or ""
    else:
        _check_replacing(order, found, command.overwrite)
        _ask(command, order)
        commit = send(order.to, order.files, found, f"{order.to.repo_id} by chunkrl push", progress)
    if order.tag and order.to.branch is None:
        tag(order.to, order.tag, commit)
    what = " --what dataset" if order.to.kind == "dataset" else ""
    at = "" if order.to.branch is None else f" --revision {order.to.branch}"
    print(f"{order.to.url}: commit {commit}; chunkrl pull {repo_id}{what}{at} fetches it")


def _checked(command: PushCommand) -> str:
    """The repository's name. Raises UploadError where a setting is missing or wrong."""
    if not command.run:
        raise UploadError("name what is pushed: chunkrl push RUN --repo-id account/name --licence apache-2.0")
    if command.repo_id is None:
        raise UploadError("--repo-id is missing: the repository's name, account/name")
    if command.licence is None:
        raise UploadError(
            "--licence is missing: nobody may use what has none, and it is yours to choose. Name it as the Hub does: "
            "apache-2.0, mit, cc-by-4.0, other (huggingface.co/docs/hub/repositories-licenses); what you trained "
            "from may ask for its own"
        )
    if not _LICENCE.fullmatch(command.licence):
        raise UploadError(f"--licence is {command.licence!r}; the Hub's names are as apache-2.0, mit, other")
    check_name(command.repo_id)
    return command.repo_id


def _order(command: PushCommand, repo_id: str, progress: Progress) -> _Order:
    root = Path(command.run).expanduser()
    if not root.is_dir():
        raise UploadError(f"{root} is no folder: give a run's, a policy's or a data set's")
    request = CardRequest(repo_id, command.licence or "", command.revision)
    is_dataset = command.what == "dataset" or (command.what == "auto" and (root / "meta/info.json").is_file())
    if is_dataset:
        if command.evaluation or command.without_run:
            raise UploadError(f"{root} is a data set: --evaluation and --without-run are for policies")
        to = Destination(repo_id, "dataset", command.revision, command.public)
        files = dataset_files(root)
        card = card_of_dataset(request, root, progress)
        return _with_card(root, files, card, to, read_info(root).version)
    folder, run = _policy(root, command.without_run, progress)
    files = policy_files(folder)
    request = CardRequest(repo_id, command.licence or "", command.revision, _began_with(run))
    evaluated = fingerprint((folder,), progress) if command.evaluation else ""
    card = card_of_policy(request, folder, run, command.evaluation, evaluated)
    return _with_card(folder, files, card, Destination(repo_id, "model", command.revision, command.public))


def _began_with(run: TrainingRun | None) -> str | None:
    """Where the checkpoint that a run began with was fetched, if that is known and no place of this machine."""
    base = None if run is None else run.config.family.base(run.config)
    url = None if base is None else origin(base)
    return url if url is not None and url.startswith(("hf://", "gs://")) else None


def _with_card(folder: Path, files: Sequence[Upload], card: str, to: Destination, name: str = "") -> _Order:
    check_no_paths(card, "the card", folder)
    return _Order(folder, (Upload(CARD, card.encode()), *files), card, to, name)


def _policy(root: Path, without_run: bool, progress: Progress) -> tuple[Path, TrainingRun | None]:
    """The policy's folder, and the run that made it where that is beside it."""
    is_run = is_run_folder(root)
    if is_run and not (root / "policy").is_dir():
        raise CheckpointError(f"{root} has no policy yet: chunkrl train --resume {root} goes on")
    folder = root / "policy" if is_run else policy_below(root)
    run = folder.resolve().parent
    has_run = folder.resolve().name == "policy" and (run / METRICS_FILE).is_file()
    if without_run or not has_run:
        check_one_run_of(folder)
        return folder, None
    try:
        return folder, load_run(run, progress)
    except DatasetError as error:
        raise DatasetError(
            f"{error}; the card tells of the data: --without-run makes one that does not, nor of the training"
        ) from error


def _not_pushed(order: _Order) -> str:
    names = left_out(order.folder, order.files)
    return f"\n  not pushed: {', '.join(names)}" if names else ""


def _check_replacing(order: _Order, found: Standing, overwrite: bool) -> None:
    """Raises UploadError where something else stands there."""
    if overwrite or not found.has_branch or not (found.other or found.foreign):
        return
    there = ", ".join((*found.other, *found.foreign)[:5])
    raise UploadError(
        f"{order.to.url} holds something else ({there}): give another --repo-id, --revision BRANCH, or --overwrite "
        "to replace it (older commits stay in its history)"
    )


def _ask(command: PushCommand, order: _Order) -> None:
    """Raises UploadError unless the user wants it sent."""
    if command.yes:
        return
    if not sys.stdin.isatty():
        raise UploadError(
            "nothing was sent: look at the list above, and give --yes (or --dry-run for the card)"
        )
    if input(f"send this to {order.to.url}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ChunkRLError("nothing was sent")
