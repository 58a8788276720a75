"""`--resume RUN` takes everything from RUN; a saved config.json begins a fresh run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chunk_data import random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.cli import main
from chunkrl.config import load_config
from chunkrl.errors import CheckpointError
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import RunRecord, beginning, resumed_config

OWN = {"gamma": 0.9, "seed": 3, "num_updates": 6, "save_updates": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "arm", random_episodes(6))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    ChunkLevelOfflineRL(**settings(data, folder, **OWN)).train()
    return folder


def weights(run: Path) -> bytes:
    return (run / "policy" / "state.safetensors").read_bytes()


def test_resume_alone_goes_on_to_the_same_policy(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    ChunkLevelOfflineRL(**settings(data, folder, **OWN)).train()
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole", **OWN | {"num_updates": 9}))
    whole.train()
    main(["train", "--resume", str(folder), "--num-updates", "9"])
    assert f"policy: {folder / 'policy'}" in capsys.readouterr().out
    assert weights(folder) == weights(tmp_path / "whole")
    # a checkpoint names its run as well, and Python has the same
    again = ChunkLevelOfflineRL(resume=str(folder / "checkpoints" / "last").removesuffix("/last"))
    assert (again.config.gamma, again.config.seed, again.config.num_updates) == (0.9, 3, 9)
    with pytest.raises(CheckpointError, match="another configuration: gamma"):
        ChunkLevelOfflineRL(resume=str(folder), gamma=0.5)


def test_flags_besides(run: Path) -> None:
    """A number of epochs is no dead letter where the run had a number of updates."""
    assert resumed_config(run).num_updates == 6 and resumed_config(run).save_updates == 2
    asked = resumed_config(run, {"num_epochs", "save_interval", "device"})
    assert asked.num_updates is None and asked.save_updates is None
    assert resumed_config(run, {"num_epochs", "num_updates"}).num_updates == 6


def test_a_saved_configuration_begins_a_fresh_run(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(TrainConfig, run / "config.json")
    assert (config.resume, config.init, config.output_dir, config.overwrite) == (None, None, "", False)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    main(["train", "--config", str(run / "config.json")])
    assert weights(Path("runs/arm-cross_fitted-001")) == weights(run)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_what_a_run_began_with_stands_beside_its_settings(data: Path, run: Path, tmp_path: Path) -> None:
    """Also where the networks came with values, so that none were trained first."""
    own = settings(data, tmp_path / "second", **OWN, init=str(run), value_updates=0)
    second = ChunkLevelOfflineRL(**own)
    second.train()
    saved = json.loads((tmp_path / "second" / "config.json").read_text())
    assert saved["init"] is None and saved["resume"] is None
    assert beginning(tmp_path / "second") == RunRecord("train", init=str(run))
    whole = ChunkLevelOfflineRL(**own | {"output_dir": str(tmp_path / "whole"), "num_updates": 8})
    whole.train()
    resumed = ChunkLevelOfflineRL(resume=str(tmp_path / "second"), num_updates=8)
    resumed.train()
    assert beginning(tmp_path / "second") == RunRecord("train", init=str(run))
    ours, theirs = (r.policy.parameters() for r in (whole, resumed))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # a checkpoint that goes on elsewhere says where it came from
    branch = ChunkLevelOfflineRL(replace(resumed.config, output_dir=str(tmp_path / "branch")))
    branch.train()
    assert beginning(tmp_path / "branch") == RunRecord("train", resumed=str(tmp_path / "second"))
