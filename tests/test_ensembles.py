"""Several value networks per fold: what V is of them, and that one of them is what it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, open_chunks, random_episodes, settings, write_dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.cross_fit import CrossFitted
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.weighted import AdvantageWeighted, WeightedConfig
from chunkrl.errors import ChunkRLError
from chunkrl.models.value_head import ValueHead
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig

CPU = torch.device("cpu")
GAUSS = ValueHead("hl_gauss")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


values = arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32))


@given(values, st.floats(0.05, 0.95))
def test_what_v_is_of_several_numbers(found: np.ndarray, level: float) -> None:
    tensor = torch.from_numpy(found)
    expected = {
        "mean": found.mean(axis=1),
        "min": found.min(axis=1),
        "quantile": np.quantile(found.astype(np.float64), level, axis=1),
    }
    for aggregate, value in expected.items():
        fit = ValueFit(num_critics=3, aggregate=aggregate, quantile=level)  # type: ignore[arg-type]
        np.testing.assert_allclose(fit.combine(tensor).numpy(), value, atol=1e-6)


def outputs_of(*targets: float) -> torch.Tensor:
    """Outputs [M, 1, O] of networks that are sure of these values."""
    return torch.stack([GAUSS.smoothed(torch.tensor([target])).clamp(min=1e-30).log() for target in targets])


@given(st.floats(0.1, 0.9), st.floats(0.05, 0.95))
def test_the_quantile_of_a_distribution(target: float, level: float) -> None:
    """Of one network: the Gaussian's own quantile around what it learned, to half a bin."""
    fit = ValueFit(head=GAUSS, aggregate="quantile", quantile=level)
    width = 1 / (GAUSS.num_bins - 8 * GAUSS.sigma)
    z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(level)).item()
    expected = target + z * GAUSS.sigma * width
    assert fit.combine(outputs_of(target)).item() == pytest.approx(expected, abs=0.5 * width)


def test_the_quantile_of_several_distributions_is_of_all_their_mass() -> None:
    """Two networks that are sure of .2 and .8: a quarter of the mass lies in the middle of the lower one."""
    for level, expected in ((0.25, 0.2), (0.75, 0.8)):
        fit = ValueFit(head=GAUSS, num_critics=2, aggregate="quantile", quantile=level)
        assert fit.combine(outputs_of(0.2, 0.8)).item() == pytest.approx(expected, abs=1e-3)
    # of outcomes that are all or none, as success: below the chance of failure it is failure
    chance = GAUSS.smoothed(torch.tensor([[0.0], [1.0]])).mul(torch.tensor([[[0.3]], [[0.7]]])).sum(0)
    for level, expected in ((0.25, 0.0), (0.35, 1.0)):
        assert GAUSS.quantile(chance, level).item() == pytest.approx(expected, abs=1e-2)


def test_networks_of_a_fold_learn_from_the_same_episodes() -> None:
    fitted = CrossFitted(lambda: torch.nn.Linear(1, 1), 2, num_critics=3)
    assert len(fitted.networks) == 6
    assert fitted.trains_on(torch.tensor([0, 1])).tolist() == [[False, True]] * 3 + [[True, False]] * 3
    said = torch.arange(6.0)[:, None].expand(6, 4)
    assert fitted.by_fold(said)[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    single = CrossFitted(lambda: torch.nn.Linear(1, 1), 1, num_critics=3)
    assert single.trains_on(torch.tensor([0, 0])).all() and single.trains_on(torch.tensor([0])).shape == (
        3,
        1,
    )


def trained(data: Path, **fit: Any) -> tuple[AdvantageWeighted, np.ndarray]:
    """A learner, and what each of its value networks says of every start in [0, 1], [K, M, len]."""
    dataset = open_chunks(data)
    torch.manual_seed(0)
    config = WeightedConfig(policy_updates=1, value_updates=6, num_folds=3, fit=ValueFit(**fit))
    learner = AdvantageWeighted(config, identity_factory(dataset), OptimConfig(lr=1e-2), dataset, 0, CPU)
    assert learner.values is not None
    networks = learner.values.networks
    Trainer(learner, dataset, TrainerConfig(batch_size=8)).run()
    networks.eval()
    with torch.no_grad():
        observation = dataset.batch(np.arange(len(dataset))).observation
        said = networks.by_fold(networks.each(lambda v: v(observation)))
    return learner, said.numpy()


@pytest.mark.parametrize("aggregate", ["mean", "min", "quantile"])
@pytest.mark.parametrize("head", ["sigmoid", "hl_gauss"])
def test_held_out_values_are_of_the_folds_own_networks(data: Path, aggregate: Any, head: Any) -> None:
    learner, said = trained(
        data, num_critics=3, aggregate=aggregate, quantile=0.4, head=ValueHead(head), lam=1.0
    )
    values, labels = learner.values, learner.labels
    assert values is not None and said.shape[:2] == (3, 3)
    fold, row = values.fold[open_chunks(data).episode], np.arange(said.shape[2])
    if aggregate == "mean":
        unit = said.mean(axis=1)
    elif aggregate == "min":
        unit = said.min(axis=1)
    elif head == "sigmoid":
        unit = np.quantile(said, 0.4, axis=1)
    else:  # of their distributions, which lie on both sides of their means
        assert (labels["value"] != values.range.from_unit(said.mean(axis=1)[fold, row])).all()
        return
    np.testing.assert_allclose(labels["value"], values.range.from_unit(unit[fold, row]), atol=1e-5)
    seen = (unit.sum(axis=0) - unit[fold, row]) / 2
    np.testing.assert_allclose(labels["value_seen"], values.range.from_unit(seen), atol=1e-5)
    np.testing.assert_allclose(labels["advantage"], labels["return"] - labels["value"], atol=1e-6)


def test_one_critic_a_fold_is_what_there_was_to_the_bit(data: Path) -> None:
    """The networks' own outputs, without anything between."""
    learner, said = trained(data)
    assert learner.values is not None
    fold, row = learner.values.fold[open_chunks(data).episode], np.arange(said.shape[2])
    np.testing.assert_array_equal(
        learner.labels["value"], learner.values.range.from_unit(said[:, 0][fold, row])
    )


def test_values_of_another_ensemble_are_refused(data: Path, tmp_path: Path) -> None:
    three = ValueFit(num_critics=3, aggregate="min")
    ChunkLevelOfflineRL(**settings(data, tmp_path / "value", objective="value", fit=three)).train()
    own = settings(data, tmp_path / "run", values=str(tmp_path / "value"))
    with pytest.raises(ChunkRLError, match=r"fit.aggregate min there and mean here.*--fit.num-critics 3"):
        ChunkLevelOfflineRL(**own)
    ChunkLevelOfflineRL(**own, fit=three).train()


def test_settings_that_say_nothing_are_refused(data: Path, tmp_path: Path) -> None:
    meaningless: list[dict[str, Any]] = [
        {"aggregate": "max"},
        {"num_critics": 0},
        {"num_critics": 2, "quantile": 1.0},
    ]
    for wrong in meaningless:
        with pytest.raises(ChunkRLError, match=r"use mean, min or quantile"):
            ValueFit(**wrong)
    for alone in ({"aggregate": "min"}, {"aggregate": "quantile"}, {"aggregate": "min", "head": GAUSS}):
        with pytest.raises(ChunkRLError, match=r"--fit\.num-critics 3, or quantile with --fit\.head\.kind"):
            ValueFit(**alone)  # type: ignore[arg-type]
    assert replace(ValueFit(head=GAUSS), aggregate="quantile").of_distribution
    with pytest.raises(
        ChunkRLError, match=r"does not read --fit\.num-critics \(its own is --iql\.num-critics\)"
    ):
        fit = ValueFit(num_critics=2)
        ChunkLevelOfflineRL(**settings(data, tmp_path / "run", objective="iql", fit=fit))
