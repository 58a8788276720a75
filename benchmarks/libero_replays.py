"""Replays of LIBERO episodes that somebody else recorded: no placement seed, and fixtures where chunkrl would not put
them.

    python -m benchmarks.libero_replays --output-dir runs/libero_replays
    python -m benchmarks.libero_subgoals --datasets runs/libero_replays/official runs/libero_replays/fixtures ...

The noisy expert is recorded with openpi's names and LIBERO's `states`, the truth of its sub-goals beside it, from

- `official`: official initial states, fixtures as chunkrl places them with each (its own evaluations);
- `fixtures`: official initial states, fixtures as another history of the simulator leaves them (others' rollouts);
- `states`: drawn placements that are no official state, fixtures as another history leaves them, replayed from
  LIBERO's column `states` (demonstrations; each row is of the moment of its frame).

Each is labelled by `chunkrl label --replay.suite`. Prints Markdown: what the replays began from, and their drift.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro

from chunkrl.collect.config import SUBGOAL_KINDS
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.writer import DatasetWriter
from chunkrl.envs.libero import ACTION_DIM, FPS, STATE_DIM, LiberoEnv
from chunkrl.envs.libero_expert import LiberoExpert
from chunkrl.envs.libero_goals import KINDS, LiberoGoals, onset_kinds
from chunkrl.envs.libero_replay import ReplayConfig
from chunkrl.envs.libero_tasks import find_task, initial_states
from chunkrl.envs.registry import expand
from chunkrl.envs.scripted import MixtureConfig, MixtureController
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.progress import ProgressBars

Kind = Literal["official", "fixtures", "states"]
OTHER_SEED = 555000  # of placements, beyond the numbers of official states and the seeds of other benchmarks
EXPERT = MixtureConfig("episodes", episode_controllers=(1, 0, 0, 0))
STATES = "states"  # LIBERO's name of the simulator's state before each action


@dataclass(frozen=True)
class ReplaysConfig:
    """What to record and replay."""

    suite: str = "libero_spatial"
    """Suite whose expert is recorded."""
    num_states: int = 3
    """Recordings a task: official states 0, 1, ..., or as many drawn ones."""
    output_dir: str = "runs/libero_replays"
    """Folder for the data sets; those that are there are used."""
    num_workers: int = 2
    """Processes of the replays."""


def begin(env: LiberoEnv, kind: Kind, number: int) -> Any:
    """The first step of recording `number`."""
    if kind == "states":
        return env.reset_to(None, OTHER_SEED + number)
    fixtures = number if kind == "official" else OTHER_SEED + number
    return env.reset_to(initial_states(find_task(env.name))[number], fixtures)


def record(env: LiberoEnv, kind: Kind, number: int) -> dict[str, np.ndarray]:
    """The columns of one episode."""
    step = begin(env, kind, number)
    expert = LiberoExpert(env.domain)
    expert.reset()
    controller = MixtureController(expert, EXPERT, np.random.default_rng([OTHER_SEED, number]))
    goals = LiberoGoals(env.domain)
    rows, flags = [], [goals.flags()]
    while not step.done:
        scene = env.domain.sim.get_state().flatten()
        action, _ = controller.act(step)
        rows.append((step.state, action, scene))
        step = env.step(action)
        flags.append(goals.flags())
    onsets = onset_kinds(flags)
    kinds = sum(onsets[kind].astype(np.int64) << bit for bit, kind in enumerate(KINDS))
    states, actions, scenes = (np.stack(column) for column in zip(*rows, strict=True))
    success = np.zeros((len(rows), 1), dtype=bool)
    success[-1] = step.success
    named = {"state": states, "actions": actions, STATES: scenes, "next.success": success}
    return named | {SUBGOAL_KINDS: np.asarray(kinds)[:, None]}


def write(root: Path, kind: Kind, config: ReplaysConfig) -> None:
    """The data set of a kind."""
    writer: DatasetWriter | None = None
    for name in expand([config.suite]):
        env = LiberoEnv(name, initial="sampled")
        for number in range(config.num_states):
            columns = record(env, kind, number)
            if writer is None:
                features = {
                    "state": FeatureSpec("float32", (STATE_DIM,)),
                    "actions": FeatureSpec("float32", (ACTION_DIM,)),
                    STATES: FeatureSpec("float64", columns[STATES].shape[1:]),
                    "next.success": FeatureSpec("bool", (1,)),
                    SUBGOAL_KINDS: FeatureSpec("int64", (1,)),
                }
                writer = DatasetWriter(root, fps=FPS, features=features, robot_type="panda")
            writer.add_episode(columns, env.task)
        env.close()
    assert writer is not None
    writer.close()


def main(config: ReplaysConfig) -> None:
    """Records, replays, and prints the table."""
    progress = ProgressBars()
    print(
        "| data | replayed from | episodes | replayed | median, largest drift (mm) | successes, of replays |"
    )
    print("|---|---|---|---|---|---|")
    for kind in get_args(Kind):
        root = Path(config.output_dir) / kind
        if not (root / "meta/info.json").is_file():
            write(root, kind, config)
        replay = ReplayConfig(
            config.suite,
            ("goal", "grasp", "lift"),
            STATES if kind == "states" else None,
            skip_unmatched=True,
            num_workers=config.num_workers,
        )
        label_dataset(LabelCommand(str(root), replay=replay), progress)
        (file,) = (root / "labels").glob("replay-*.json")
        report = json.loads(file.read_text())
        starts = Counter(replay["start"].partition(" ")[0] or "nothing" for replay in report["replays"])
        drift = [1000 * report["drift_m"][name] for name in ("median", "max")]
        replayed = report["episodes"] - len(report["not_replayed"])
        print(
            f"| {kind} | {', '.join(f'{name} {count}' for name, count in starts.items())} | {report['episodes']} | "
            f"{replayed} | {drift[0]:.2f}, {drift[1]:.2f} | {report['successful_replays']} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(ReplaysConfig))
