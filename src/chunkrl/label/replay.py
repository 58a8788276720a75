"""Replays of a data set's episodes as a CSV file of sub-goals, which `--subgoal csv` reads, and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from chunkrl.collect.command import RECORD
from chunkrl.collect.config import INITIAL_SEED
from chunkrl.config import record_of
from chunkrl.data.frames import FrameTable
from chunkrl.envs.libero_replay import Recording, Replay, ReplayConfig, plain, replay_all, tasks_by_text
from chunkrl.envs.libero_tasks import LiberoTask, find_task
from chunkrl.envs.registry import asset_fingerprint, expand
from chunkrl.errors import DatasetError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import json_lines, read_json
from chunkrl.files.regular_files import check_regular
from chunkrl.progress import Progress

_VERSION = 2  # of how replays begin and are observed: those of another one are made again


def replay_subgoals(table: FrameTable, config: ReplayConfig, progress: Progress) -> Path:
    """Replays every episode and returns the CSV file: labels/replay-<digest>.csv, with a report in .json beside it.

    Finished replays are kept (.jsonl), so that a run that was killed is resumed; the digest is of all that they
    depend on: data, tasks, assets and version.

    Raises:
        ChunkRLError: LIBERO's assets are missing.
        DatasetError: a text that is no task of the suite, states or actions of another form, episodes that cannot be
            replayed (unless `skip_unmatched`).
    """
    recordings, tasks = _recordings(table, config)
    assets = asset_fingerprint(list(tasks.values()))
    content = json.dumps([_VERSION, table.description.fingerprint, tasks, assets, config.state_key])
    base = table.description.root / "labels" / f"replay-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    done = _finished(base.with_suffix(".jsonl"))
    todo = {episode: recording for episode, recording in recordings.items() if episode not in done}
    base.parent.mkdir(parents=True, exist_ok=True)
    if todo:
        with base.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            for replay in replay_all(todo, tasks, config.num_workers, progress):
                done[replay.episode] = replay
                file.write(json.dumps(asdict(replay), allow_nan=False) + "\n")
                file.flush()
    replays = [done[episode] for episode in sorted(recordings)]
    report = json.dumps(summary(replays, config), indent=1, allow_nan=False)
    write_text(base.with_suffix(".json"), report + "\n")
    _check(table, replays, config, base.with_suffix(".json"))
    lines = ["episode_index,frame_index,event"]
    for replay in replays:
        if not replay.failure(config.tolerance_m):
            lines += [
                f"{replay.episode},{t},{event}" for event in config.events for t in replay.onsets[event]
            ]
    write_text(base.with_suffix(".csv"), "\n".join(lines) + "\n")
    return base.with_suffix(".csv")


def summary(replays: list[Replay], config: ReplayConfig) -> dict[str, Any]:
    """How well the replays follow the recordings, as JSON."""
    drift = np.array([replay.drift_m[0] for replay in replays if replay.drift_m is not None])
    failed = {replay.episode: why for replay in replays if (why := replay.failure(config.tolerance_m))}
    return {
        "config": asdict(config),
        "episodes": len(replays),
        "drift_m": {"median": float(np.median(drift)), "max": float(drift.max())} if len(drift) else None,
        "successful_replays": sum(replay.success for replay in replays),
        "not_replayed": failed,
        "replays": [asdict(replay) for replay in replays],
    }


def _check(table: FrameTable, replays: list[Replay], config: ReplayConfig, report: Path) -> None:
    failed = {replay.episode: why for replay in replays if (why := replay.failure(config.tolerance_m))}
    if not failed:
        return
    episode, why = next(iter(failed.items()))
    text = (
        f"{table.description.root}: {len(failed)} of {len(replays)} episodes cannot be replayed, the first is "
        f"episode {episode}: {why}; {report} lists them"
    )
    if not config.skip_unmatched:
        raise DatasetError(
            f"{text}. Name the column with the simulator's state (--replay.state-key), give these episodes no "
            "sub-goals (--replay.skip-unmatched), or label by rules (--subgoal pick_place)"
        )
    print(f"no sub-goals: {text}")


def _recordings(table: FrameTable, config: ReplayConfig) -> tuple[dict[int, Recording], dict[int, str]]:
    """Recordings and names of their tasks, by episode."""
    root = table.description.root
    if table.state is None or table.state.shape[1] < 8 or table.action.shape[1] != 7:
        raise DatasetError(f"{root}: replays need LIBERO's state (8 entries) and actions (7)")
    by_text, envs = tasks_by_text(config.suite), _collected_envs(root)
    if config.state_key is not None and not table.has_column(config.state_key):
        raise DatasetError(f"{root} has no column '{config.state_key}': correct --replay.state-key")
    seeds = table.column(INITIAL_SEED) if table.has_column(INITIAL_SEED) else None
    scenes = None if config.state_key is None else table.column(config.state_key)
    recordings, tasks = {}, {}
    for episode, start, length in zip(
        table.episode_ids, table.episode_start, table.episode_length, strict=True
    ):
        rows, episode = slice(int(start), int(start + length)), int(episode)  # noqa: PLW2901
        text = table.description.tasks[int(table.task_index[rows.start])]
        if plain(text) not in by_text:
            raise DatasetError(
                f"{root}, episode {episode}: {text!r} is no task of {config.suite}: correct --replay.suite"
            )
        try:
            task = _task(by_text[plain(text)], envs, table.description.robot_type, episode)
        except DatasetError as error:
            raise DatasetError(f"{root}, episode {episode}: {error}") from error
        tasks[episode] = task.name
        recordings[episode] = Recording(
            episode,
            text,
            np.asarray(table.state[rows]),
            np.asarray(table.action[rows]),
            seed=None if seeds is None else int(np.asarray(seeds[rows.start]).reshape(-1)[0]),
            scene=None if scenes is None else np.asarray(scenes[rows.start]).reshape(-1),
        )
    return recordings, tasks


def _collected_envs(root: Path) -> tuple[str, ...]:
    """The tasks that take turns in a data set of `chunkrl collect`; () of others."""
    file = root / RECORD
    if not file.exists():
        return ()
    cure = "restore it, or delete it if the data set is none of chunkrl collect"
    env = read_json(file, dict, DatasetError, cure).get("env")
    if not isinstance(env, str):
        raise DatasetError(f"{file}: 'env' is {env!r}, expected the name of a task: {cure}")
    return expand(env.split("+"))


def _task(
    candidates: Sequence[LiberoTask], envs: Sequence[str], robot_type: str | None, episode: int
) -> LiberoTask:
    """The one of the candidates, tasks with the episode's text, that the data set names, by `envs` or by its robot.

    Raises DatasetError: it names another one, or none of several.
    """
    known: tuple[str, ...] = ()
    if envs and find_task(env := envs[episode % len(envs)]).text == candidates[0].text:
        known = (env,)
    elif (robot_type or "").startswith("libero:"):
        known = tuple((robot_type or "").removeprefix("libero:").split("+"))
    found = [task for task in candidates if not known or task.name in known or task.suite in known]
    told = " and ".join(task.name for task in candidates)
    if not found:
        raise DatasetError(f"it was recorded in {' or '.join(known)}, not in {told}: correct --replay.suite")
    if len(found) > 1:
        raise DatasetError(
            f"its text {candidates[0].text!r} is that of {told}, and the data set does not say in which of them it "
            f"was recorded: name the task (--replay.suite {candidates[0].name}; several joined by +)"
        )
    return found[0]


def _finished(path: Path) -> dict[int, Replay]:
    """Replays of an earlier run; a last line that a kill cut off is removed, so that the next one has its own.

    Raises DatasetError: another line is damaged.
    """
    found: dict[int, Replay] = {}
    if not path.exists():
        return found
    check_regular(path, DatasetError, "delete it")
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    for where, entry in json_lines(path, DatasetError, "delete the file"):
        replay = record_of(Replay, entry, where, DatasetError, "delete the file")
        found[replay.episode] = replay
    return found
