"""What the commands make of a damaged data set: inspect, read every frame, train two updates, label and export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from chunk_data import settings

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.frames import FrameTable
from chunkrl.data.inspect import make_report, to_text
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.interventions import LEROBOT_NAME as WHO_ACTED
from chunkrl.data.problems import Problem
from chunkrl.errors import ChunkRLError
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.progress import silent

from .outcomes import Found, Outcome, Probe, difference, names_a_file, probe
from .plain import Content, read_plain

EXPORTED_ANEW = ("episode_index", "task_index")
UNUSED = ("index", "next.done")
"""Columns that nothing reads: what stands in them is nobody's value."""


def read(root: Path, cache: Path, skip: bool = False) -> Content:
    """Every frame, as our reader gives it."""
    table = FrameTable.open(
        root, cache_dir=cache, progress=silent, settings=FrameSettings(skip_bad_episodes=skip)
    )
    rows = np.arange(table.num_frames)
    features = table.description.features.items()
    names = [name for name, feature in features if feature.is_numeric and name not in UNUSED]
    return Content(
        table.description.fps,
        table.episode_ids.tolist(),
        table.episode_length.tolist(),
        [table.task_text(int(row)) for row in rows],
        {name: np.array(table.column(name)) for name in names if table.has_column(name)},
        {name: table.images(name, rows) for name in table.description.cameras},
    )


def _plain(root: Path) -> Content:
    """The same, as the plain reader gives it."""
    found = read_plain(root)
    return replace(found, columns={name: v for name, v in found.columns.items() if name not in UNUSED})


def inspect(root: Path, cache: Path) -> tuple[Problem, ...]:
    """The problems that `inspect` lists; and that its text can be printed."""
    report = make_report(InspectCommand(str(root)), silent, cache)
    to_text(report).encode()
    return report.problems


def train(root: Path, scratch: Path) -> dict[str, Any]:
    """The policy after two updates, and what was recorded."""
    run = ChunkLevelOfflineRL(
        **settings(root, scratch / "run", objective="behaviour_cloning", num_updates=2, log_interval=1)
    )
    run.train()
    assert run.trainer is not None
    records = {
        name: points for name, points in run.trainer.history.items() if name.startswith(("loss", "grad"))
    }
    return {"policy": run.policy.state_dict(), "records": records}


def export(root: Path, scratch: Path) -> Content:
    """The data set that `label --export` makes of it."""
    target = scratch / "exported"
    command = LabelCommand(str(root), output=str(scratch / "labels.parquet"), export=str(target))
    try:
        label_dataset(command, silent)
    except ChunkRLError:
        assert not target.exists() and not list(scratch.glob(".exported*")), (
            "what failed left something behind"
        )
        raise
    return read(target, scratch / "export")


def _is_label(name: str) -> bool:
    return name.startswith("next.") or name == WHO_ACTED


def _as_exported(content: Content) -> Content:
    """What an exported data set has of its source: episodes counted again, times as LeRobot writes them, no '/' in
    names, labels of its own."""
    kept = {name: values for name, values in content.columns.items() if name not in EXPORTED_ANEW}
    kept["timestamp"] = (kept["frame_index"] / content.fps).astype(np.float32)
    return replace(
        content,
        ids=list(range(len(content.ids))),
        columns={name.replace("/", "."): v for name, v in kept.items() if not _is_label(name)},
        images={name.replace("/", "."): v for name, v in content.images.items()},
    )


def truth(name: str, root: Path, scratch: Path) -> dict[str, Any]:
    """What a whole folder gives; also that `inspect` finds no fault in it, and that both readers agree."""
    problems = inspect(root, scratch / "cache")
    assert not problems, problems
    content = read(root, scratch / "cache")
    assert difference(content, _plain(root)) is None, difference(content, _plain(root))
    exported = export(root, scratch)
    differs = difference(_as_exported(exported), _as_exported(content))
    assert differs is None, differs
    return {"content": content, "trained": train(root, scratch)}


def judge(root: Path, whole: dict[str, Any], scratch: Path) -> Found:
    """What becomes of a damaged copy. whole: `truth` of the undamaged one."""
    inspected = probe(lambda: inspect(root, scratch / "inspect"))
    opened = probe(lambda: read(root, scratch / "open"))
    trained = probe(lambda: train(root, scratch))
    exported = probe(lambda: export(root, scratch))
    for found in (inspected, opened, trained, exported):
        if found.error is not None and not names_a_file(found.error, root):
            return Found(Outcome.UNCLEAR, found.error)
    told = inspected.error or "; ".join(problem.message for problem in inspected.value)
    found = _opened(root, whole, told, opened, scratch)
    if found.outcome.is_fault:
        return found
    # what goes through reads what was opened, or none of the fault
    content = whole["content"] if opened.error is not None else opened.value
    differs = None if exported.error else difference(_as_exported(exported.value), _as_exported(content))
    if differs is not None:
        return Found(Outcome.SILENT, f"exported: {differs} ({found.detail})")
    if trained.error is None and found.outcome is not Outcome.UNDETECTABLE and not _differs(opened, whole):
        differs = difference(trained.value, whole["trained"])
    return found if differs is None else Found(Outcome.SILENT, f"trained: {differs} ({found.detail})")


def _differs(opened: Probe, whole: dict[str, Any]) -> bool:
    return opened.error is None and difference(opened.value, whole["content"]) is not None


def _opened(root: Path, whole: dict[str, Any], told: str, opened: Probe, scratch: Path) -> Found:
    """By what `inspect` told and what opening gave."""
    if opened.error is not None:
        if not told:
            return Found(Outcome.UNLISTED, opened.error)
        return _without_bad(root, whole, opened, scratch)
    differs = difference(opened.value, whole["content"])
    if told:
        return Found(Outcome.LISTED, told)
    return Found(Outcome.RIGHT) if differs is None else _could_be_known(root, opened.value, differs)


def _without_bad(root: Path, whole: dict[str, Any], opened: Probe, scratch: Path) -> Found:
    """Where bad episodes can be set aside the others are right, and the bad ones are those that were listed."""
    rest = probe(lambda: read(root, scratch / "rest", skip=True))
    if rest.error is not None:
        named = names_a_file(rest.error, root)
        return Found(Outcome.REFUSED, str(opened.error)) if named else Found(Outcome.UNCLEAR, rest.error)
    content: Content = whole["content"]
    strangers = [i for i in rest.value.ids if i not in content.ids]
    differs = (
        f"episodes {strangers}" if strangers else difference(rest.value, content.episodes(rest.value.ids))
    )
    if differs is None:
        return Found(Outcome.LISTED, str(opened.error))
    return _could_be_known(root, rest.value, f"what is left: {differs}")


def _could_be_known(root: Path, ours: Content, differs: str) -> Found:
    try:
        again = _plain(root)
    except Exception as error:
        return Found(Outcome.SILENT, f"{differs}; plainly: {type(error).__name__}: {str(error)[:200]}")
    other = difference(ours, again)
    if other is None:
        return Found(Outcome.UNDETECTABLE, differs)
    return Found(Outcome.SILENT, f"{differs}; plainly: {other}")
