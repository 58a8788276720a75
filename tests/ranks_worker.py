"""Runs training configurations one after the other, in every process that torchrun starts.

`--frozen-bfloat16`: frozen parameters in bfloat16, as on a GPU. `--kill RANK SAVE`: that process dies by SIGKILL
while it writes its part of that checkpoint (counted from 1). `--nan RANK UPDATE`: its loss is not a number there.
`--stop RANK UPDATE`: it alone is asked to stop during the first run's update.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch

from chunkrl import ChunkLevelOfflineRL, TrainConfig, ranks
from chunkrl.config import load_config
from chunkrl.errors import TrainingStopped
from chunkrl.integration import pi_training
from chunkrl.models.pi.learner import PiLearner
from chunkrl.training import checkpoint
from chunkrl.training.distributed import process_group


def dies_while_saving(rank: int, save: int) -> None:
    save_file, left = checkpoint.save_file, [save]

    def dying(tensors: Any, path: Any) -> None:
        left[0] -= "-of-" in Path(path).name
        if left[0] == 0 and ranks.rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        save_file(tensors, path)

    checkpoint.save_file = dying


def has_no_number(rank: int, update: int) -> None:
    imitation_loss, left = PiLearner.imitation_loss, [update]

    def damaged(self: PiLearner, *arguments: Any) -> Any:
        left[0] -= 1
        loss = imitation_loss(self, *arguments)
        if left[0] == 0 and ranks.rank() == rank:
            loss.per_chunk.data[0] = torch.nan
        return loss

    PiLearner.imitation_loss = damaged  # type: ignore[method-assign]


def is_asked_to_stop(run: ChunkLevelOfflineRL, rank: int, update: int) -> None:
    original = run.algorithm.update

    def asked(*arguments: Any) -> Any:
        assert run.trainer is not None
        if ranks.rank() == rank and run.trainer.update + 1 == update:
            run.stop()
        return original(*arguments)

    run.algorithm.update = asked


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--frozen-bfloat16", action="store_true")
    parser.add_argument("--kill", type=int, nargs=2)
    parser.add_argument("--nan", type=int, nargs=2)
    parser.add_argument("--stop", type=int, nargs=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.frozen_bfloat16:
        pi_training.frozen_dtype = lambda device: torch.bfloat16
    if arguments.kill:
        dies_while_saving(*arguments.kill)
    if arguments.nan:
        has_no_number(*arguments.nan)
    with process_group(torch.device("cpu")):
        for number, path in enumerate(arguments.configs):
            run = ChunkLevelOfflineRL(load_config(TrainConfig, path))
            if arguments.stop and number == 0:
                is_asked_to_stop(run, *arguments.stop)
            try:
                run.train()
            except TrainingStopped as stopped:
                print(f"rank {ranks.rank()}: {stopped}")


if __name__ == "__main__":
    main()
