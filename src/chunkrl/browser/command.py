"""`chunkrl label` and `chunkrl inspect`, with --browser and without."""

from __future__ import annotations

import logging
import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from chunkrl.data.chunk_settings import ColumnMapping, FrameSettings
from chunkrl.data.formats import DatasetDescription
from chunkrl.data.frames import FrameTable
from chunkrl.data.inspect import inspect_dataset
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.label_files import label_columns
from chunkrl.data.label_rules import columns_read
from chunkrl.data.notes import column_notes
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.label.command import found_by, label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.options import BrowserConfig
from chunkrl.progress import Progress
from chunkrl.signals import handled

_LOG = logging.getLogger(__name__)


def label(command: LabelCommand, progress: Progress) -> None:
    """By rule, or by hand on a page that is served until Control-C."""
    if not command.page.browser:
        _check_alone(command.page, command.others)
        if command.blank:
            raise ChunkRLError("--blank goes with --browser: labels by rule begin with none")
        label_dataset(command, progress)
        return
    _check_by_hand(command)
    with shown_by_hand(command, progress) as bench:
        serve(bench, command.page)


def inspect(command: InspectCommand, progress: Progress) -> None:
    """A report as text, or a page that is served until Control-C."""
    if not command.page.browser:
        _check_alone(command.page, command.others)
        inspect_dataset(command, progress)
        return
    if command.json:
        raise ChunkRLError("--json and --browser are two ways to be told: leave one out")
    from chunkrl.browser.workbench import FixedLabels, ShownSet, Workbench
    from chunkrl.label.base import base_labels

    tables = [
        _open(
            dataset,
            command.mapping,
            command.revision,
            partial(label_columns, command.labels),
            False,
            progress,
        )
        for dataset in _datasets(command.dataset, command.others)
    ]
    sets = [
        ShownSet(table, FixedLabels(table, base_labels(table, command.labels)), values, name, notes)
        for table, values, name, notes in _with_values(tables, command.page)
    ]
    serve(Workbench(sets, command.page.order), command.page)


def _check_alone(page: BrowserConfig, others: Sequence[str]) -> None:
    """Raises ChunkRLError where something is given that only the page takes."""
    if others:
        raise ChunkRLError(f"{', '.join(others)}: several data sets at once go with --browser")
    if changed := [name for name in ("run", "order", "address", "open") if _differs(page, name)]:
        flag = {"open": "no-open"}.get(changed[0], changed[0])
        raise ChunkRLError(f"--{flag} goes with --browser")


def _differs(page: BrowserConfig, name: str) -> bool:
    return getattr(page, name) != getattr(BrowserConfig(), name)


def _check_by_hand(command: LabelCommand) -> None:
    """Raises ChunkRLError where something is given that labels by hand have not."""
    returns = command.returns
    given = {
        "--export": bool(command.export),
        "--replay.suite": bool(command.replay.suite),
        "--overwrite": command.overwrite,
        "--n-step": returns.n_step is not None,
        "--values": returns.values is not None,
        "--output": bool(command.output) and bool(command.others),
    }
    if wrong := [name for name, is_given in given.items() if is_given]:
        why = {
            "--output": "names one file, and labels of several data sets are several: label one at a time",
            "--values": "is of labels by rule; values are shown with --run",
            "--export": "comes when episodes are labelled: chunkrl label DATASET --labels FILE --export FOLDER",
        }.get(wrong[0], "is of labels by rule: leave it out of --browser")
        raise ChunkRLError(f"{wrong[0]} {why}")


@contextmanager
def shown_by_hand(command: LabelCommand, progress: Progress) -> Iterator:
    """The workbench of a command's data sets, whose labels are held as long as it is used.

    Raises:
        DatasetError: a data set cannot be read, labels cannot be written; as `HandLabels` and `load_values`.
    """
    from chunkrl.browser.workbench import ShownSet, Workbench
    from chunkrl.label.by_hand import HandLabels, begun_rule, hand_file

    def columns(description: DatasetDescription) -> Collection[str]:
        begun = begun_rule(hand_file(description.root, command.output))
        if begun is None:
            return label_columns(command.rule, description)
        # of labels that are resumed, whatever lies beside them
        return columns_read(begun, description.features)

    tables = [
        _open(dataset, command.mapping, command.revision, columns, command.skip_bad_episodes, progress)
        for dataset in _datasets(command.dataset, command.others)
    ]
    with ExitStack() as stack:
        sets = []
        for table, values, name, notes in _with_values(tables, command.page):
            path = hand_file(table.description.root, command.output)
            labels = HandLabels(table, path, command.rule, command.returns, command.blank)
            stack.callback(labels.close)
            told = f"labels by hand are kept in {path}"
            sets.append(ShownSet(table, labels, values, name, (*notes, told)))
        yield Workbench(sets, command.page.order)
        for labels in (shown.labels for shown in sets if isinstance(shown.labels, HandLabels)):
            if not labels.is_new and labels.path.exists():
                print(f"{labels.path}: {found_by(labels.table.description.root, labels.path)}")


def _datasets(first: str, others: Sequence[str]) -> list[str]:
    if not first:
        raise ChunkRLError("name a data set: a folder, or owner/name on the Hub")
    return [first, *others]


def _open(
    dataset: str,
    mapping: ColumnMapping,
    revision: str | None,
    columns: Callable[[DatasetDescription], Collection[str]],
    skip_bad_episodes: bool,
    progress: Progress,
) -> FrameTable:
    settings = FrameSettings(cache=False, skip_bad_episodes=skip_bad_episodes)
    return FrameTable.open(
        dataset,
        mapping,
        revision,
        progress=progress,
        settings=settings,
        label_columns=columns,
    )


def _with_values(tables: Sequence[FrameTable], page: BrowserConfig) -> Iterator:
    """Each table with its values, its name on the page, and what to know of it.

    Raises:
        DatasetError: a data set is there twice; as `load_values`.
    """
    from chunkrl.browser.values import load_values
    from chunkrl.report.numbers import short_names

    roots = [table.description.root for table in tables]
    if twice := [root for number, root in enumerate(roots) if root in roots[:number]]:
        raise DatasetError(f"{twice[0]} is named twice: name it once")
    found = [None] * len(tables) if page.run is None else load_values(page.run, tables)
    for table, values, name in zip(tables, found, short_names(roots), strict=True):
        notes = [f"set aside: {problem.message}" for problem in table.problems] + column_notes(table)
        if page.run is not None and values is None:
            notes.append(f"{page.run} has no values of it")
        yield table, values, name, tuple(notes)


def serve(bench, page: BrowserConfig) -> None:
    """The page, until SIGINT or SIGTERM. Raises TransportError where the address cannot be had."""
    from chunkrl.browser.server import PageServer

    server, ended = PageServer(bench, page.address), threading.Event()
    with handled(ended.set):
        server.start()
        for shown in bench.sets:
            print(f"{shown.name}: {shown.table.num_episodes} episodes, {shown.labels.base.told}")
            for note in shown.notes:
                print(f"note: {note}")
        print(f"open {server.link}", flush=True)
        if not server.is_loopback:
            _LOG.warning(
                "other machines can reach the page; link and images travel unencrypted: use an SSH tunnel to "
                "127.0.0.1 unless the network is yours"
            )
        if page.open and _has_display():
            webbrowser.open(server.link)
        ended.wait()
        server.stop()


def _has_display() -> bool:
    """Whether a browser would have a window: else one for terminals may take this terminal."""
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(named) or sys.platform in ("darwin", "win32")
