"""Rank, calibration and over-fit gap of values, in closed form."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, open_chunks, random_episodes, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.algorithms.cross_fitted import CrossFittedConfig, CrossFittedMethod
from chunkrl.algorithms.value_quality import (
    MAX_OVERFIT_GAP,
    MIN_RANK_CORRELATION,
    calibration,
    quality_warnings,
    value_quality,
)
from chunkrl.errors import ChunkRLError
from chunkrl.run.command import value_warnings
from chunkrl.training.config import OptimConfig


def test_calibration_of_two_bins() -> None:
    found = calibration([0.1, 0.3, 0.6, 0.8], [0.0, 0.0, 1.0, 0.0], num_bins=2)
    assert found.predicted == pytest.approx([0.2, 0.7])
    assert found.actual == pytest.approx([0.0, 0.5])
    assert found.counts.tolist() == [2, 2]
    assert found.error == pytest.approx(0.2)


def test_equal_values_share_a_bin() -> None:
    found = calibration([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0], num_bins=5)
    assert found.counts.tolist() == [5, 1]
    assert found.actual.tolist() == [0.4, 1.0]
    assert found.error == pytest.approx((5 * 0.4 + 0) / 6)
    assert calibration([2.0, 2.0], [1.0, 5.0]).error == pytest.approx(1.0)  # one bin: 2 against the mean 3


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12))
def test_bins_hold_everything_in_order(seed: int, num: int, num_bins: int) -> None:
    value, returns = np.random.default_rng(seed).integers(-9, 10, (2, num)).astype(float)  # with ties
    found = calibration(value, returns, num_bins)
    assert found.counts.sum() == num and len(found.counts) <= num_bins and (found.counts > 0).all()
    assert (np.diff(found.predicted) > 0).all()
    assert found.counts @ found.actual == pytest.approx(returns.sum())
    assert calibration(value, value, num_bins).error == pytest.approx(0, abs=1e-9)
    assert calibration(value, value + 3, num_bins).error == pytest.approx(3)


def test_quality_of_values() -> None:
    returns = np.arange(10.0)
    found = value_quality(-returns, returns, returns, num_bins=5)
    assert (found.held_out, found.seen, found.overfit_gap) == pytest.approx((-1, 1, 2))
    assert found.scalars() == {
        "value/rank_correlation_held_out": found.held_out,
        "value/rank_correlation_seen": found.seen,
        "value/overfit_gap": found.overfit_gap,
        "value/calibration_error": found.calibration.error,
    }
    assert len(found.warnings()) == 2


def test_warnings_say_what_to_do() -> None:
    assert quality_warnings(0.5, 0.5 + MAX_OVERFIT_GAP - 0.01) == []
    (memorised,) = quality_warnings(0.31, 0.88)
    assert "0.88" in memorised and "0.31" in memorised and "--fit.dropout" in memorised
    (noise,) = quality_warnings(MIN_RANK_CORRELATION - 0.01, 0.2)
    assert "More episodes" in noise
    (constant,) = quality_warnings(math.nan, math.nan)
    assert "the same everywhere" in constant
    assert value_quality([1.0, 1.0], [1.0, 1.0], [0.0, 1.0]).warnings() == [constant]


@pytest.mark.parametrize("arguments", [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]]), ([1.0], [1.0], 0)])
def test_refused(arguments: tuple) -> None:
    with pytest.raises(ChunkRLError, match="calibration needs"):
        calibration(*arguments)


def test_loss_on_held_out_rows_is_told_beside_the_one_that_trains(tmp_path: Path) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", random_episodes(6)))
    config = CrossFittedConfig(policy_updates=0, value_updates=2, num_folds=3)
    learner = CrossFittedMethod(
        config, identity_factory(dataset), OptimConfig(), dataset, 0, torch.device("cpu")
    )
    assert learner.values is not None
    batch = dataset.batch(np.arange(len(dataset)))
    networks, head = learner.values.networks, config.fit.head
    first: Any = networks.networks[0]
    with torch.no_grad():
        prepared = first.prepare(batch.observation)
        losses = networks.each(
            lambda v: head.loss(v.outputs(prepared), batch.labels["outcome"])  # type: ignore[operator]
        )
    trains = networks.trains_on(batch.labels["fold"])
    expected = [losses[k][trains[k]].mean() for k in range(3)]
    metrics = learner.update("value", batch)
    assert metrics["loss/value"] == pytest.approx(float(sum(expected)) / 3, rel=1e-5)
    assert metrics["loss/value_held_out"] == pytest.approx(float(losses[~trains].mean()), rel=1e-5)


def test_training_tells_the_last_values_warnings() -> None:
    names = ("value/rank_correlation_held_out", "value/rank_correlation_seen")
    history: dict[str, list[tuple[int, float]]] = dict(
        zip(names, ([(3, 0.5), (9, 0.3)], [(3, 0.6), (9, 0.9)]), strict=True)
    )
    (warning,) = value_warnings(history)
    assert "0.30 on others" in warning
    assert value_warnings({names[0]: [], names[1]: []}) == value_warnings({}) == []
