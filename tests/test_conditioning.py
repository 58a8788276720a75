"""Advantages to labels in the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chunkrl.algorithms.advantage_bins import advantage_bins, forced_high
from chunkrl.algorithms.conditioned import ConditionedConfig
from chunkrl.algorithms.conditioning import check_prompts, conditions, drop_labels, guidance_from, texts
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig
from chunkrl.errors import ChunkRLError
from chunkrl.models.condition import NO_LABEL, condition_text

QUANTILES = ConditioningConfig(edges="quantiles")


def test_texts() -> None:
    assert [condition_text(i, 2) for i in (0, 1)] == ["Advantage: negative", "Advantage: positive"]
    assert [condition_text(i, 3) for i in range(3)][1] == "Advantage: neutral"
    assert [condition_text(i, 5) for i in range(5)] == [f"Advantage: {i}" for i in range(5)]
    assert condition_text(NO_LABEL, 5) == ""
    assert texts(torch.tensor([1, NO_LABEL]), 2) == ["Advantage: positive", ""]
    with pytest.raises(ValueError):
        condition_text(2, 2)
    assert conditions(ConditioningConfig()) == ("Advantage: negative", "Advantage: positive")
    assert conditions(ConditioningConfig(num_bins=3, negatives="unconditional")) == ("Advantage: positive",)


def test_quantiles_are_each_tasks_own() -> None:
    """A task whose advantages are all larger than another's still has its share of negatives."""
    task = np.repeat([0, 1], 100)
    advantage = np.concatenate([np.linspace(0, 1, 100), np.linspace(10, 11, 100)])
    bins = advantage_bins(advantage, task, QUANTILES, 1.0)
    assert bins[:100].sum() == bins[100:].sum() == 35
    assert (np.diff(bins[:100]) >= 0).all()


def test_the_documents_fixed_edges() -> None:
    """-1, -.6, -.2, .2, .6, 1 of the range of returns."""
    config = ConditioningConfig(num_bins=5, edges="fixed")
    advantage = 2.0 * np.array([-1.0, -0.61, -0.59, -0.21, -0.19, 0.19, 0.21, 0.59, 0.61, 1.0])
    bins = advantage_bins(advantage, np.zeros(10, int), config, 2.0)
    assert bins.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_extreme_advantages_get_different_words() -> None:
    """Lesson 1 of the earlier implementation: scaling put all labels into the middle bin for two months."""
    for config in (
        QUANTILES,
        ConditioningConfig(num_bins=3, edges="fixed"),
        ConditioningConfig(num_bins=5, edges="quantiles"),
    ):
        bins = advantage_bins(np.linspace(-1, 1, 11), np.zeros(11, int), config, 1.0)
        assert bins[0] == 0 and bins[-1] == config.highest


def test_an_empty_bin_is_an_error_that_says_which() -> None:
    config = ConditioningConfig(num_bins=5, edges="fixed")
    with pytest.raises(ChunkRLError, match=r"Advantage: 0.*quantiles"):
        advantage_bins(np.linspace(-0.1, 0.1, 20), np.zeros(20, int), config, 1.0)
    with pytest.raises(ChunkRLError, match="only successes or only failures"):
        advantage_bins(np.zeros(20), np.zeros(20, int), QUANTILES, 1.0)


def test_a_task_without_its_share_is_an_error() -> None:
    task = np.repeat([0, 1], 20)
    advantage = np.concatenate([np.linspace(0, 1, 20), np.full(20, 0.5)])
    with pytest.raises(ChunkRLError, match="no chunk of a task got"):
        advantage_bins(advantage, task, QUANTILES, 1.0)


def test_human_chunks_chosen_data_and_successes_are_forced_high() -> None:
    human = np.array([True, False, False, False])
    source, success = np.array([0, 0, 0, 1]), np.array([False, True, False, False])
    assert forced_high(human, source, success, ConditioningConfig()).tolist() == [True, False, False, False]
    chosen = ConditioningConfig(force_high=(1,))
    assert forced_high(None, source, success, chosen).tolist() == [False, False, False, True]
    every = ConditioningConfig(force_high=(1,), success="force")
    assert forced_high(human, source, success, every).tolist() == [True, True, False, True]


def test_dropout_takes_its_share_and_nothing_else() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (20_000,))
    dropped = drop_labels(labels, 0.3)
    gone = dropped == NO_LABEL
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(dropped[~gone], labels[~gone])
    assert torch.equal(drop_labels(labels, 0.0), labels)


@given(st.lists(st.floats(-5, 5), min_size=20, max_size=60, unique=True), st.sampled_from([2, 3, 5]))
def test_labels_do_not_fall_as_advantages_rise(values: list[float], num_bins: int) -> None:
    advantage = np.array(values)
    config = ConditioningConfig(num_bins=num_bins, edges="quantiles")
    bins = advantage_bins(advantage, np.zeros(len(values), int), config, 1.0)
    assert (np.diff(bins[np.argsort(advantage)]) >= 0).all()
    assert set(bins) == set(range(num_bins))


def test_prompts_that_do_not_differ_are_refused() -> None:
    check_prompts([[1, 2, 3], [1, 2, 4]], ["low", "high"], "push")
    with pytest.raises(ChunkRLError, match=r"'low' and 'high' are equal.*push"):
        check_prompts([[1, 2], [1, 2]], ["low", "high"], "push")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_bins": 4},
        {"cuts": (0.5,)},
        {"edges": "quantiles", "cuts": (0.5, 0.6)},
        {"edges": "quantiles", "cuts": (1.5,)},
        {"edges": "quantiles", "highest_part": 0.5},
        {"edges": "tertiles"},
        {"success": "high"},
        {"pools": "apart"},
        {"negatives": "none"},
        {"highest_part": 0.0},
        {"positive_share": 1.0},
        {"num_bins": 3, "edges": "fixed", "cuts": (0.5, -0.5)},
        {"dropout": 1.0},
        {"dropout": 0.0, "guidance": 2.0, "guidance_from": "unlabelled"},
        {"guidance_from": "negative"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:
    with pytest.raises(ChunkRLError):
        ConditioningConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "away"),
    [
        ({}, "Advantage: negative"),
        ({"num_bins": 5}, "Advantage: 0"),
        ({"guidance_from": "unlabelled"}, ""),
        ({"negatives": "unconditional"}, ""),  # no chunk is trained with a lower label
        ({"dropout": 0.0, "guidance": 2.0}, "Advantage: negative"),
    ],
)
def test_guidance_leads_away_from_the_lowest_label_that_is_trained(settings: dict, away: str) -> None:
    assert guidance_from(ConditioningConfig(**settings)) == away


def test_labels_are_cut_in_strata_of_places_whoever_was_there() -> None:
    balanced = ConditionedConfig(1, 1)
    assert balanced.balance.failures == "left_out" and balanced.places == BalanceConfig(failures="together")
    cut_over_all = ConditionedConfig(
        1, 1, conditioning=ConditioningConfig(edges="quantiles"), balance=BalanceConfig("none")
    )
    assert cut_over_all.places == BalanceConfig("none")
