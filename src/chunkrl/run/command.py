"""What `chunkrl train` does once its options are read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from chunkrl import ranks
from chunkrl.algorithms.value_quality import quality_warnings
from chunkrl.data.notes import data_notes
from chunkrl.errors import TrainingStopped
from chunkrl.files.output_folder import check_folder
from chunkrl.progress import Progress
from chunkrl.run.build import choose_device
from chunkrl.run.config import TrainCommand, TrainConfig
from chunkrl.run.offline import ChunkLevelOfflineRL
from chunkrl.run.plan import FirstMinutes
from chunkrl.signals import handled
from chunkrl.training.distributed import process_group

REHEARSED = 10
"""Updates of each phase that are tried out to say how many minutes all of them take."""
SAME_SIGNAL_S = 0.5
"""A terminal and torchrun both pass a Control-C on."""


def train(command: TrainConfig, progress: Progress) -> None:
    """Trains a policy and says where it is, or only says what it would do."""
    config, is_dry = command, False
    if isinstance(command, TrainCommand):
        config, is_dry = command.run, command.dry_run
    if is_dry:
        # decoded on demand: a run keeps all images on the disk
        config = replace(config, frames=replace(config.frames, cache=False))
    if config.output_dir and not config.resume:  # before minutes of reading
        check_folder(Path(config.output_dir), "train", overwrite=config.overwrite)
    with process_group(choose_device(config.device)):
        if ranks.is_main():
            _train(config, progress, is_dry)
        elif is_dry:
            ChunkLevelOfflineRL(config)
        else:
            with contextlib.suppress(TrainingStopped):  # the main process says it
                train_until_stopped(ChunkLevelOfflineRL(config))


def _train(config: TrainConfig, progress: Progress, is_dry: bool) -> None:
    run = ChunkLevelOfflineRL(config, progress)
    print(
        f"{run.dataset.name}: {run.dataset.num_episodes} episodes, {len(run.dataset)} chunk starts, "
        f"{run.dataset.frame_labels.success.mean():.0%} successful; {config.objective} on {run.device}; chunks of "
        f"{config.action_horizon} actions are {config.action_horizon / run.dataset.fps:.2g} s at "
        f"{run.dataset.fps:g} frames per second"
    )
    for dataset in run.dataset.datasets:
        for problem in dataset.table.problems:
            print(f"  set aside: {problem.message}")
    for note in data_notes(run.dataset.datasets, config.family.encodes_actions):
        print(f"  note: {note}")
    if config.method.trains_policy and (told := config.family.told(run.policy, config)):
        print(told)
    # a large policy cannot be built twice, and several processes would have to rehearse together
    is_small = config.family.is_light and not config.use_pi0_actions
    rehearsed = REHEARSED if ranks.world_size() == 1 and (is_dry or is_small) else 0
    plan = run.plan(rehearsed)
    print(plan, flush=True)
    if is_dry:
        print("nothing was written (--dry-run)")
        return
    unmeasured = [phase.name for phase in plan.phases if phase.seconds is None]
    run.progress = FirstMinutes(progress, unmeasured, tqdm.write)
    run.before_training = lambda: _say_where(run)
    train_until_stopped(run)
    assert run.trainer is not None and run.run_dir is not None
    for name, points in run.trainer.history.items():
        if points and name.startswith(("value/", "advantage/", "weight/", "loss/")):
            print(f"  {name:<36} {points[-1][1]:.4g}")
    for warning in value_warnings(run.trainer.history):
        print(f"warning: {warning}", file=sys.stderr)
    if config.method.trains_policy:
        print(f"policy: {run.run_dir / 'policy'}")
    else:
        print(f"values: {run.run_dir}; other objectives use them with --values {run.run_dir}")
    print(f"report: chunkrl report {run.run_dir}")


def train_until_stopped(run: ChunkLevelOfflineRL) -> None:
    """Trains to the end, or until SIGINT or SIGTERM; a second one ends the process at once, without a checkpoint.

    Raises TrainingStopped.
    """

    def stop() -> None:
        run.stop()
        if ranks.is_main():  # not through sys.stderr, which the signal may have interrupted
            with contextlib.suppress(OSError):  # the terminal may be gone: SIGHUP
                os.write(
                    2, b"\nstopping after this update, with a checkpoint (again: at once, without one)\n"
                )

    with handled(stop, kill=True, same_s=SAME_SIGNAL_S):
        run.train()


def _say_where(run: ChunkLevelOfflineRL) -> None:
    trainer = run.trainer
    assert trainer is not None
    if run.resumed_from is not None:
        said = f"going on from update {trainer.update} of {trainer.num_updates}, with {run.resumed_from}"
        if trainer.update == trainer.num_updates:
            said += ": nothing is left to train (more: --num-updates or --num-epochs)"
        print(said, flush=True)


def value_warnings(history: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    """What to know of the last values before trusting them; none where there are none."""
    names = ("value/rank_correlation_held_out", "value/rank_correlation_seen")
    if not all(history.get(name) for name in names):
        return []
    return quality_warnings(*(history[name][-1][1] for name in names))
