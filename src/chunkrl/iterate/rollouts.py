"""Where a round's episodes come from: the simulator, an actor, or a folder that a person fills."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chunkrl.collect.command import collect_dataset
from chunkrl.collect.config import CollectCommand
from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.formats import describe
from chunkrl.data.label_files import chosen_labels
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.metadata import read_info
from chunkrl.data.problems import Collector
from chunkrl.errors import ChunkRLError
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.iterate.places import located
from chunkrl.iterate.records import Outcome, Rollouts
from chunkrl.label.command import label_dataset, read_labelled
from chunkrl.label.config import LabelCommand
from chunkrl.progress import Progress

if TYPE_CHECKING:  # it needs the extra `online`
    from chunkrl.online.actor.command import ActorCommand


def collect(command: CollectCommand, progress: Progress) -> Mapping[str, Any]:
    """The simulator's episodes; those that are there stay."""
    num_success = collect_dataset(command.output_dir, command, progress, accept_complete=True)
    return {"num_episodes": command.num_episodes, "num_success": num_success}


def record(command: ActorCommand, root: Path) -> Mapping[str, Any]:
    """An actor's episodes, as a data set under `root`.

    In a simulator a session is a function of its settings, so one that was interrupted begins again; what a robot
    recorded stays, and the session goes on.

    Raises ChunkRLError where there are fewer episodes than were asked for: somebody quit.
    """
    from chunkrl.online.actor.session import run_actor
    from chunkrl.online.learner.intake import store_recordings

    run_dir = Path(command.output_dir)
    if command.env is not None:
        for folder in (run_dir, root):
            shutil.rmtree(folder, ignore_errors=True)
    spool, wanted = run_dir / "spool", command.num_episodes
    num_stored = store_recordings(spool, root).num_episodes
    if wanted is None or num_stored < wanted:
        rest = None if wanted is None else wanted - num_stored
        run_actor(replace(command, num_episodes=rest), stores=False)
        num_stored = store_recordings(spool, root).num_episodes
    if num_stored < (wanted or 1):
        raise ChunkRLError(
            f"{run_dir}: {num_stored} episodes are recorded, {wanted or 'at least 1'} are wanted; record the rest "
            "with --resume, or ask for fewer in the actor's file"
        )
    return {"num_episodes": num_stored}


def check_there(data: Path, policy: Path) -> None:
    """Raises ChunkRLError unless there are episodes at `data`."""
    if not (data / "meta" / "info.json").is_file() or read_info(data).num_episodes == 0:
        raise ChunkRLError(
            f"{data} holds no episodes: record some with the policy {policy} there, for example by lerobot-rollout, "
            "and resume with --resume"
        )


def label(command: LabelCommand, progress: Progress) -> Mapping[str, Any]:
    """Labels the episodes, or reads the file of labels beside them as training does: the fields of `Rollouts`.

    Raises DatasetError where nothing says which succeeded, ChunkRLError where episodes or labels change meanwhile.
    """

    def noted() -> tuple[str, str]:
        return fingerprints(command.dataset, command.mapping, None, command.rule, progress)

    before = noted()
    root = describe(command.dataset, command.mapping, report=Collector()).root
    file = chosen_labels(root, command.rule)
    if file is not None:
        print(f"{command.dataset}: success is read from {file.told()}, as in training")
    table, labels = (label_dataset if file is None else read_labelled)(command, progress)
    texts = [table.task_text(int(row)) for row in table.episode_start]
    # a recording may go on after the success
    acted = ~labels.after_success
    steps, by_human = (
        np.add.reduceat(frames.astype(np.int64), table.episode_start)
        for frames in (acted, acted & labels.human)
    )
    each = zip(labels.success.tolist(), steps.tolist(), (by_human > 0).tolist(), strict=True)
    found = list(zip(texts, [Outcome(*one) for one in each], strict=True))
    outcomes = {task: [one for text, one in found if text == task] for task in dict.fromkeys(texts)}
    if noted() != before:
        raise ChunkRLError(
            f"{command.dataset} changed while its episodes were counted: let what writes there finish, and resume "
            "with --resume"
        )
    num_human = int(np.count_nonzero(labels.human))
    return asdict(Rollouts(command.dataset, before[0], outcomes, table.num_frames, num_human, before[1]))


def data_sources(
    dataset: str, mapping: ColumnMapping, revision: str | None, rule: LabelRule, progress: Progress
) -> dict[str, str]:
    """The two fingerprints, by what they are of, for `steps.check_sources`."""
    contents, told = fingerprints(dataset, mapping, revision, rule, progress)
    name = located(dataset)
    return {name: contents, f"the file of labels of {name}": told}


def fingerprints(
    dataset: str, mapping: ColumnMapping, revision: str | None, rule: LabelRule, progress: Progress
) -> tuple[str, str]:
    """Fingerprints of a data set's contents, also of episodes that are set aside, and of the file or list that says
    who succeeded by `rule`; the second is "" where its columns do."""
    description = describe(dataset, mapping, revision, Collector())
    labels = chosen_labels(description.root, rule)
    file = Path(rule.success_file).expanduser() if labels is None else labels.path
    said_by_columns = labels is None and not rule.success_file
    told = "" if said_by_columns else fingerprint((file,), progress)
    return description.fingerprint, told


def read_rollouts(found: Mapping[str, Any], folder: Path) -> Rollouts:
    """What `label` found, as it is read back from the folder of its round.

    Raises ChunkRLError where an earlier release did not note which episodes were corrected.
    """
    outcomes = {task: [Outcome(*one) for one in each] for task, each in found["outcomes"].items()}
    if found["num_human"] and any(
        len(one) < len(Outcome._fields) for each in found["outcomes"].values() for one in each
    ):
        raise ChunkRLError(
            f"{folder}/label.done.json does not say which episodes were corrected, and an earlier release counted "
            "them as the policy's successes: delete it and resume with --resume, which counts them again"
        )
    return Rollouts(**{**found, "outcomes": outcomes})
