"""Programs that a learner starts alongside its training, fed through files: one evaluates a snapshot of the policy,
one renders the video of an episode.

`python -m chunkrl.report.beside_learner evaluation FOLDER`, or `... video RUN FOLDER`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chunkrl.config import load_config
from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.config import EvaluateCommand
from chunkrl.files.tensor_files import read_tensors
from chunkrl.online.learner.data import open_shard_table, replay_settings
from chunkrl.online.learner.evaluation import JOB_FILE, PARAMETERS_FILE, SnapshotJob
from chunkrl.online.learner.replay import reading
from chunkrl.online.learner.videos import EPISODE_FILE
from chunkrl.progress import silent
from chunkrl.report.commands import evaluate_policy
from chunkrl.report.training_run import LabelledData
from chunkrl.report.value_video import render_beside_training, render_episode, side_by_side, write_video
from chunkrl.run.config import TrainConfig
from chunkrl.run.policy_io import load_policy


@dataclass(frozen=True)
class EpisodeJob:
    """An episode of a shard by its identity, and its labels, [T] each."""

    shard: str
    episode: str
    value: tuple[float, ...]
    advantage: tuple[float, ...]


def evaluate_snapshot(folder: Path) -> None:
    """Works in a process of its own: makes a policy's folder of the snapshot and evaluates it."""
    job = load_config(SnapshotJob, folder / JOB_FILE, cure="delete it, and start the learner again")
    policy = load_policy(job.base, "cpu")
    known = dict(policy.policy.named_parameters())
    with torch.no_grad():
        cure = "delete its folder: the next snapshot is evaluated"
        for name, tensor in read_tensors(folder / PARAMETERS_FILE, ChunkRLError, cure).items():
            if name not in known or known[name].shape != tensor.shape or not tensor.is_floating_point():
                raise ChunkRLError(f"{folder}: {name} is none of the policy's parameters: {cure}")
            known[name].copy_(tensor)
    policy.save(folder / "policy")
    config = job.evaluation
    command = EvaluateCommand(
        policy=str(folder / "policy"),
        env=config.env,
        num_episodes=config.num_episodes,
        seed=config.seed,
        max_steps=config.max_steps,
        exec_steps=config.exec_steps,
        mode=config.mode,
        num_workers=config.num_workers,
        output_dir=str(folder / "result"),
        device=job.device,
    )
    evaluate_policy(command, silent)


def write_episode_video(config: TrainConfig, folder: Path) -> Path:
    """The video of the episode that the file in `folder` names.

    Raises:
        ChunkRLError: the replay dropped its data set meanwhile; or as `render_episode`.
    """
    job = load_config(EpisodeJob, folder / EPISODE_FILE)
    shard, settings = Path(job.shard), replay_settings(config.chunk_settings())
    with tempfile.TemporaryDirectory() as cache:
        # no longer than it takes to decode: no episode is stored meanwhile
        with reading(shard.parent) as shards:
            if shard.resolve() not in {path.resolve() for path in shards}:
                raise ChunkRLError(
                    f"{shard} was dropped before its newest episode was on video: raise --replay.capacity-steps"
                )
            dataset = ChunkDataset(open_shard_table(shard, settings, Path(cache)), settings)
            data = LabelledData(dataset, _spread(job, dataset), {})
            episode = data.episodes[_position(job, dataset)]
            frames = side_by_side(data, episode)
        return write_video(folder, episode, *render_episode(data, episode, frames))


def _position(job: EpisodeJob, dataset: ChunkDataset) -> int:
    if job.episode not in dataset.episode_identities:
        raise ChunkRLError(
            f"{job.shard} has no episode {job.episode}: it has changed since the video was asked for"
        )
    return dataset.episode_identities.index(job.episode)


def _spread(job: EpisodeJob, dataset: ChunkDataset) -> dict[str, np.ndarray]:
    """The labels of the job's episode in their places among all frames of its data set, [N] each; elsewhere NaN."""
    position = _position(job, dataset)
    begin, length = (int(of[position]) for of in (dataset.table.episode_start, dataset.table.episode_length))
    labels = {}
    for name, values in (("value", job.value), ("advantage", job.advantage)):
        if len(values) != length:
            raise ChunkRLError(
                f"{job.shard}: {len(values)} values of episode {job.episode}, which has {length} frames"
            )
        labels[name] = np.full(dataset.num_frames, np.nan)
        labels[name][begin : begin + length] = values
    return labels


def _end_with_parent() -> None:
    """A learner that is killed closes the pipe."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not through sys.stdin: its lock would be held at the end
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> None:
    """What the learner asks for."""
    what, *folders = arguments
    if what == "evaluation":
        _end_with_parent()
        torch.set_num_threads(1)
        evaluate_snapshot(Path(folders[0]))
    else:
        run, folder = map(Path, folders)
        render_beside_training(
            lambda: write_episode_video(load_config(TrainConfig, run / "config.json"), folder)
        )


if __name__ == "__main__":
    main(sys.argv[1:])
