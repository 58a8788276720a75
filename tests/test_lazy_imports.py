"""What importing the package costs: torch is loaded when it is needed, not before."""

import subprocess
import sys

import pytest
import torch

import chunkrl
from chunkrl.cli.commands import COMMANDS


@pytest.mark.parametrize(
    "module",
    [
        *("chunkrl", "chunkrl.data", "chunkrl.data.writer", "chunkrl.data.frames", "chunkrl.cli"),
        *(
            "chunkrl.data.chunk_semantics",
            "chunkrl.collect.command",
            "chunkrl.envs.workers",
        ),  # simulator processes
        ", ".join(
            sorted({command.options.split(":")[0] for command in COMMANDS.values()})
        ),  # what help is made of
    ],
)
def test_torch_is_not_imported(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_public_names() -> None:
    from chunkrl import ChunkLevelOfflineRL, TrainConfig, data
    from chunkrl.data import ChunkDataset, chunks, loader
    from chunkrl.models import Critic, PolicyNetwork, ValueNetwork
    from chunkrl.run import offline

    assert ChunkDataset is chunks.ChunkDataset and data.ChunkLoader is loader.ChunkLoader
    assert all(getattr(data, name).__name__ == name for name in data.__all__)
    assert all(issubclass(c, torch.nn.Module) for c in (Critic, PolicyNetwork, ValueNetwork))
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = data.Missing
    assert ChunkLevelOfflineRL is offline.ChunkLevelOfflineRL
    assert TrainConfig(dataset_dir="x").dataset_dir == "x"
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = chunkrl.Missing
