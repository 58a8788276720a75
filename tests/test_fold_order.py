"""Folds that train one after the other: the networks of training them together, in the memory of one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, open_chunks, random_episodes, settings, write_dataset
from torch import nn

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms import cross_fit
from chunkrl.algorithms.fold_training import FoldTraining
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.weighted import AdvantageWeighted, WeightedConfig
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig
from chunkrl.training.checkpoint import load_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig

CPU = torch.device("cpu")
QUIET = ValueFit(dropout=0.0, noise=0.0)  # what is drawn at random differs between the orders
BOOTSTRAP = replace(QUIET, target="bootstrap", target_rate=0.1)
FITS = {
    "monte_carlo": QUIET,
    "bootstrap": BOOTSTRAP,
    "two a fold": replace(BOOTSTRAP, num_critics=2, aggregate="min"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


class OneAtWork:
    """Stands for a GPU beside the CPU: parameters that wait hold no numbers, so that whoever reads them finds out."""

    def __init__(self) -> None:
        self.most_optimizers = 0

    def move(self, module: Any, device: torch.device) -> None:
        kept = module.__dict__.pop("kept", None)
        if kept is None:
            # in the module, for its copies (averages) wait as it does
            module.__dict__["kept"] = [p.data.clone() for p in module.parameters()]
        for number, parameter in enumerate(module.parameters()):
            parameter.data.copy_(torch.full_like(parameter, torch.nan) if kept is None else kept[number])


def train(data: Path, fit: ValueFit, fake: OneAtWork | None = None, updates: int = 6) -> AdvantageWeighted:
    dataset = open_chunks(data, reward="sum")
    torch.manual_seed(0)
    config = WeightedConfig(policy_updates=3, value_updates=updates, num_folds=3, fit=fit, microbatch_size=4)
    learner = AdvantageWeighted(config, identity_factory(dataset), OptimConfig(), dataset, 0, CPU)
    if fake is not None:
        assert learner.values is not None
        update, training = learner.values.update, learner.values.training

        def counted(batch: Any) -> Any:
            metrics = update(batch)
            fake.most_optimizers = max(fake.most_optimizers, len(training.optimizers))
            assert training.num_passes == 3 * fit.num_critics
            waits = ["kept" in network.__dict__ for network in training.networks.networks]
            assert waits == [number not in training.optimizers for number in range(len(waits))]
            if training.targets is not None:
                assert all("kept" in network.__dict__ for network in training.targets.networks)
            return metrics

        learner.values.update = counted  # type: ignore[method-assign]
    Trainer(learner, dataset, TrainerConfig(batch_size=8, log_interval=1)).run()
    return learner


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_one_by_one_gives_the_networks_of_together(
    data: Path, fit: ValueFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = train(data, fit)
    fake = OneAtWork()
    with monkeypatch.context() as patch:
        patch.setattr(cross_fit, "move_parameters", fake.move)
        alone = train(data, replace(fit, fold_order="one_by_one"), fake)
    assert fake.most_optimizers == 1
    assert together.labels.keys() == alone.labels.keys()
    for name, values in together.labels.items():
        assert np.array_equal(values, alone.labels[name]), name
    policies = zip(together.policy.parameters(), alone.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in policies)


def test_a_run_one_by_one_resumes_in_every_pass(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "fit": ValueFit(fold_order="one_by_one"),
        "network": NetworkConfig(hidden_dim=8, num_layers=1),
        "value_epochs": 1.0,
    }
    whole = ChunkLevelOfflineRL(**settings(data, tmp_path / "whole", save_updates=1, **changes))
    whole.train()
    assert whole.trainer is not None
    per_fold = whole.updates_per_epoch
    value, policy = whole.algorithm.phases()
    assert (value.num_updates, value.num_passes, policy.num_passes) == (2 * per_fold, 2, 1)
    for update in (1, per_fold, per_fold + 1, 2 * per_fold, 2 * per_fold + 1):
        resumed = ChunkLevelOfflineRL(**settings(data, tmp_path / f"from{update}", **changes), save_updates=1)
        resumed.load(tmp_path / "whole" / "checkpoints" / f"{update:07d}")
        resumed.train()
        assert resumed.trainer is not None
        assert dict(resumed.trainer.history) == dict(whole.trainer.history)
        ours, theirs = (run.policy.parameters() for run in (whole, resumed))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("order", ["together", "one_by_one"])
def test_checkpoints_of_the_policy_hold_no_finished_values(data: Path, tmp_path: Path, order: Any) -> None:
    run = ChunkLevelOfflineRL(
        **settings(data, tmp_path / "run", fit=ValueFit(fold_order=order), save_updates=1)
    )
    run.train()
    assert run.trainer is not None
    folders = sorted(f for f in (tmp_path / "run" / "checkpoints").iterdir() if f.is_dir())
    num_values = run.algorithm.phases()[0].num_updates
    for folder in folders:
        values = load_state(folder)["algorithm"]["values"]
        if int(folder.name) <= num_values:
            # one optimiser a network that is learning
            assert len(values["training"]["optimizers"]) == (2 if order == "together" else 1)
        else:
            assert "training" not in values
    # and the labels that they left are in each of them
    assert "value" in load_state(folders[-1])["algorithm"]["labels"]
    with pytest.raises(AssertionError, match="finished"):
        _ = run.algorithm.values.networks


def test_moments_of_a_waiting_network_are_gone_and_its_gradients_too(data: Path) -> None:
    dataset = open_chunks(data)
    factory = identity_factory(dataset)
    training = FoldTraining(
        lambda: factory.value(QUIET.head), 3, OptimConfig(), num_updates=2, device=CPU, order="one_by_one"
    )
    turns = []
    for _ in range(6):
        ((fold, optimizer),) = training.optimizers.items()
        turns.append((fold, optimizer.num_applied))
        optimizer.step(sum(p.square().sum() for p in training.networks.networks[fold].parameters()))  # type: ignore[arg-type]
        training.end_update()
        assert all(p.grad is None for p in training.networks.parameters())
    assert turns == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_orders_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChunkRLError, match="use together or one_by_one"):
        ValueFit(fold_order="sideways")  # type: ignore[arg-type]
    with pytest.raises(ChunkRLError, match=r"--fit\.fold-order together"):
        WeightedConfig(
            1, 1, value_updates_per_update=1, relabel_interval=1, fit=ValueFit(fold_order="one_by_one")
        )
    monkeypatch.setattr("chunkrl.ranks.world_size", lambda: 2)
    with pytest.raises(ChunkRLError, match="one process"):
        FoldTraining(lambda: nn.Linear(1, 1), 2, OptimConfig(), 1, CPU, "one_by_one")
