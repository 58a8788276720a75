"""`--init`: what a new run begins with, from another run or from a saved policy's folder alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from chunk_data import policy_of_one_update, random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.hold_action import HoldAction
from chunkrl.errors import CheckpointError
from chunkrl.models.config import NetworkConfig
from chunkrl.policies.chunk_policy import ChunkPolicy


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy, of a data set that is not the tests' own; nothing else of its run is left."""
    root = tmp_path_factory.mktemp("saved")
    episodes = random_episodes(4, seed=7)
    for columns in episodes:
        columns["observation.state"] *= 5.0  # other statistics than those of the new data
    policy_of_one_update(write_dataset(root / "data", episodes), root / "run", 2)
    shutil.move(root / "run" / "policy", root / "policy")
    return root / "policy"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", random_episodes(6))


def test_a_saved_policy_gives_its_networks_and_statistics_and_values_are_trained_anew(
    saved: Path, data: Path, tmp_path: Path
) -> None:
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", init=str(saved)))
    before = ChunkPolicy.load(saved).policy.state_dict()
    assert run.policy.state_dict().keys() == before.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(run.policy.state_dict()[name], tensor, err_msg=name)
    run.train()
    assert run.trainer is not None and run.trainer.history["loss/value"]
    assert any(not torch.equal(run.policy.state_dict()[name], before[name]) for name in before)


def test_each_run_begins_again_from_the_saved_policy(saved: Path, data: Path, tmp_path: Path) -> None:
    """Equal settings give equal policies, and a resumed run does not begin again."""
    trained = []
    for name in ("a", "b"):
        run = ChunkLevelOfflineRL(**settings(data, tmp_path / name, init=str(saved)))
        run.train()
        trained.append(run.policy.state_dict())
    resumed = ChunkLevelOfflineRL(
        **settings(data, tmp_path / "b", init=str(saved), resume=str(tmp_path / "b"))
    )
    resumed.train()
    trained.append(resumed.policy.state_dict())
    for other in trained[1:]:
        assert all(torch.equal(trained[0][name], other[name]) for name in other)


def test_another_policy_than_the_settings_build_is_refused(saved: Path, data: Path, tmp_path: Path) -> None:
    def refused(**changes) -> str:
        with pytest.raises(CheckpointError) as error:
            ChunkLevelOfflineRL(**settings(data, tmp_path / "run", init=str(saved), **changes))
        return str(error.value)

    assert "network NetworkConfig(hidden_dim=8" in refused(network=NetworkConfig(hidden_dim=16, num_layers=1))
    assert "shape ChunkShape(horizon=3" in refused(action_horizon=4)
    # equal tensors, but the actions mean something else
    encoding = ActionEncoding("delta", action_dims=(0,), state_dims=(0,))
    assert "encoding" in refused(encoding=encoding, hold=HoldAction("absolute"))
    assert "--value-updates 0 trains none" in refused(value_updates=0)


def test_a_folder_that_is_neither_a_run_nor_a_policy_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        ChunkLevelOfflineRL(**settings(data, tmp_path / "run", init=str(tmp_path / "other")))
