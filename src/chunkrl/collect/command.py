"""Collects mixed-quality episodes in simulator processes and writes them as a LeRobot data set.

Resumable: episode i depends on the configuration and i alone, and the data set says which configuration it is of
(`meta/collection.json`), so that what a kill left is resumed, and more episodes can be added later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pds

from chunkrl.collect.config import CollectCommand, CollectConfig, CollectPlan, plan
from chunkrl.collect.episode import CollectedEpisode, EpisodeMaker
from chunkrl.data.metadata import integer
from chunkrl.data.writer import DatasetWriter
from chunkrl.envs.registry import asset_fingerprint, opengl_library, prepare
from chunkrl.envs.workers import Lost, Workers
from chunkrl.errors import CheckpointError, ChunkRLError, DatasetError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import as_json, read_json
from chunkrl.files.output_folder import begin_folder
from chunkrl.progress import Progress, silent
from chunkrl.renamed import current_names

__all__ = ["CollectCommand", "CollectConfig", "collect", "collect_dataset", "collect_episodes"]

RECORD = "meta/collection.json"
_NOT_OF_THE_DATA = ("num_episodes", "num_workers", "hang_s", "device", "output_dir", "overwrite")
_LOST = "simulators_lost"  # in the record, of all sessions: their episodes were made again
_TOLD = (_LOST, "policy")  # for people: a policy is known by its contents, wherever it lies
_MOST_LOSSES = 3  # of one episode's simulator
_CURE = "choose another --output-dir, or put the new one in its place with --overwrite"


def collect_episodes(
    config: CollectConfig, progress: Progress = silent, first: int = 0
) -> Iterator[CollectedEpisode]:
    """The episodes `first`, `first` + 1, ... of `config` in order, made by `num_workers` processes.

    Raises ChunkRLError: no such task, a policy that does not fit, a simulator that is lost again and again.
    """
    planned = plan(config)
    stage = f"collect {config.env} ({config.mixture.mixture})"
    made = _in_processes(planned, first) if config.num_workers else _here(planned, first)
    for number, episode in enumerate(made, first):
        yield episode
        progress(stage, number + 1, config.num_episodes)


def _here(planned: CollectPlan, first: int) -> Iterator[CollectedEpisode]:
    maker = EpisodeMaker(planned)
    try:
        for number in range(first, planned.config.num_episodes):
            yield maker.make(number)
    finally:
        maker.close()


def _in_processes(planned: CollectPlan, first: int) -> Iterator[CollectedEpisode]:
    num_workers, last = planned.config.num_workers, planned.config.num_episodes
    prepare(planned.tasks)
    workers = Workers(num_workers, partial(EpisodeMaker, planned), planned.config.hang_s)
    waiting: dict[int, CollectedEpisode] = {}
    under_way: dict[int, int] = {}  # slot -> episode
    losses: Counter[int] = Counter()
    following, wanted = first, first

    def start(slot: int, number: int) -> None:
        under_way[slot] = number
        workers.order(slot, "make", number)

    try:
        while wanted < last:
            for slot in range(num_workers):  # not too far ahead of a slow episode: they wait in memory
                if slot not in under_way and following < min(last, wanted + 4 * num_workers):
                    start(slot, following)
                    following += 1
            for slot, answer in workers.answers():
                number = under_way.pop(slot)
                if not isinstance(answer, Lost):
                    waiting[number] = replace(answer, num_restarts=losses[number])
                    continue
                losses[number] += 1
                if losses[number] == _MOST_LOSSES:
                    raise ChunkRLError(
                        f"episode {number} of {planned.task_of(number)}: its simulator was lost {_MOST_LOSSES} "
                        f"times, at last: {answer.failure}"
                    )
                start(slot, number)
            while wanted in waiting:
                yield waiting.pop(wanted)
                wanted += 1
    finally:
        workers.close()


def collect_dataset(
    root: str | Path,
    config: CollectConfig,
    progress: Progress = silent,
    overwrite: bool = False,
    accept_complete: bool = False,
) -> int:
    """Writes the episodes of `config` to a LeRobot v3.0 data set at `root`; returns the successes, of all episodes.

    Resumes a data set that has fewer episodes of the same configuration.

    accept_complete: a data set that holds just these episodes already is what was asked for.

    Raises DatasetError where `root` holds all episodes already (the same ones twice would end in different folds), or
    episodes of another configuration.
    """
    root, planned = Path(root), plan(config)
    record = _record(planned, progress)
    names = [planned.tasks[0]] if len(planned.tasks) == 1 else [config.env]
    with DatasetWriter(
        root,
        fps=planned.fps,
        features=planned.features(),
        robot_type=f"{planned.info.kind.lower()}:{names[0]}",
        overwrite=overwrite or _is_empty(root),
    ) as writer:
        if writer.num_episodes:
            record[_LOST] = _check_same(root, record, writer.num_episodes)
            is_complete = writer.num_episodes == config.num_episodes
            if writer.num_episodes >= config.num_episodes and not (is_complete and accept_complete):
                raise DatasetError(
                    f"{root} holds {writer.num_episodes} episodes already, all that were asked for: {_CURE}"
                )
        _write_record(root, record)
        for episode in collect_episodes(config, progress, writer.num_episodes):
            writer.add_episode(episode.columns, episode.task)
            if episode.num_restarts:
                record[_LOST] += episode.num_restarts
                _write_record(root, record)
    return num_successes(root)


def _is_empty(root: Path) -> bool:
    """Whether a data set was begun at `root` and has no episode: what an error before the first one leaves."""
    info = root / "meta/info.json"
    cure = "restore it, or choose another output_dir"
    return info.exists() and read_json(info, dict, DatasetError, cure).get("total_episodes") == 0


def _record(planned: CollectPlan, progress: Progress) -> dict[str, Any]:
    """What the episodes depend on, as JSON, and what is told (`_TOLD`)."""
    config = planned.config
    record = {name: value for name, value in asdict(config).items() if name not in _NOT_OF_THE_DATA}
    record |= {
        "assets": asset_fingerprint(planned.tasks),
        "opengl": opengl_library(planned.tasks) if config.camera_size else "",
        "policy_fingerprint": "",
        "device": "",  # where the policy acts
        _LOST: 0,
    }
    if config.policy is not None:
        from chunkrl.integration.chunk_cache import fingerprint
        from chunkrl.run.build import choose_device  # both import torch

        folder = Path(config.policy)
        if not folder.is_dir():
            raise CheckpointError(
                f"--policy {folder} is no folder: give a run's `policy`, or a pi checkpoint's"
            )
        record["policy_fingerprint"] = fingerprint((folder,), progress)
        record["device"] = choose_device(config.device).type
    return as_json(record)


def _write_record(root: Path, record: dict[str, Any]) -> None:
    write_text(root / RECORD, json.dumps(record, indent=1) + "\n")


def _check_same(root: Path, asked: dict[str, Any], num_episodes: int) -> int:
    """The simulators that were lost with the episodes that are there.

    Raises DatasetError unless the data set at `root` is one of the record `asked`.
    """
    if not (root / RECORD).exists():
        raise DatasetError(
            f"{root} holds {num_episodes} episodes already, of which {RECORD} says nothing: {_CURE}"
        )
    known = current_names(CollectConfig, read_json(root / RECORD, dict, DatasetError, _CURE))
    since = (
        "assets",
        "opengl",
        "device",
        "rename",
        *(() if known.get("policy") else ("policy_fingerprint",)),
    )
    for name in since:  # of before they were noted
        known.setdefault(name, asked[name])
    names = sorted((known.keys() | asked.keys()) - set(_TOLD))
    other = [
        f"{name} ({known.get(name)!r} there, {asked.get(name)!r} asked for)"
        for name in names
        if known.get(name) != asked.get(name)
    ]
    if other:
        raise DatasetError(
            f"{root} holds {num_episodes} episodes already, collected with another "
            f"{', another '.join(other)}: {_CURE}"
        )
    known.setdefault(_LOST, 0)
    return integer(known, _LOST, str(root / RECORD))


def num_successes(root: str | Path) -> int:
    """Successful episodes of a collected data set."""
    table = pds.dataset(Path(root) / "data", format="parquet").to_table(
        columns=["episode_index", "next.success"]
    )
    return len(table.filter(pc.field("next.success"))["episode_index"].unique())


def collect(command: CollectCommand, progress: Progress) -> None:
    """Writes the data set and says what it holds."""
    plan(command)  # what is wrong with it is said before anything makes place
    folder = begin_folder(
        Path(command.folder), "collect", resumes=not command.overwrite, overwrite=command.overwrite
    )
    num_success = collect_dataset(folder, command, progress)
    told = f"{folder}: {command.num_episodes} episodes, {num_success} successful"
    if num_lost := read_json(folder / RECORD, dict, DatasetError, "collect again")[_LOST]:
        told += f"; simulators that were lost, and their episodes made again: {num_lost}"
    print(told)
