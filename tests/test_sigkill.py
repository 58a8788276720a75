"""A training run that is killed at any moment goes on to the numbers of one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from chunk_data import random_episodes, settings, write_dataset
from waiting import until

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.config import save_config

NUM_UPDATES = 100


def start(config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "chunkrl.cli", "train", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


@pytest.mark.parametrize(
    ("phase_update", "delay"),
    [
        (1, 0.0),
        *(pytest.param(u, d, marks=pytest.mark.slow) for u in (4, 20, 40) for d in (0.0, 0.003, 0.011)),
    ],
)
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path, phase_update: int, delay: float) -> None:
    """Checkpoints are written at every update, so that nearly every moment is one of writing."""
    data = write_dataset(tmp_path / "d", random_episodes(6))
    # the command's number of threads may differ from the tests', and with it the order of sums
    torch.set_num_threads(1)
    same = {"num_updates": NUM_UPDATES, "save_interval": 0}
    often = {"save_updates": 1, "keep_checkpoints": 2}
    config = TrainConfig(**settings(data, tmp_path / "killed", **same, **often))
    save_config(config, tmp_path / "config.json")
    process = start(tmp_path / "config.json")
    last = tmp_path / "killed" / "checkpoints" / "last"

    def far_enough() -> bool:
        assert process.poll() is None, "the run ended before it was killed"
        return last.exists() and int(last.read_text() or 0) >= phase_update

    until(far_enough, 240, pause_s=0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = int(last.read_text())
    assert phase_update <= stopped < NUM_UPDATES
    resumed = ChunkLevelOfflineRL(
        **settings(data, tmp_path / "killed", **same, resume=str(tmp_path / "killed"))
    )
    resumed.train()
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole", **same))
    whole.train()
    assert whole.trainer is not None and resumed.trainer is not None
    assert dict(resumed.trainer.history) == dict(whole.trainer.history)
    ours, theirs = (run.policy.parameters() for run in (whole, resumed))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
