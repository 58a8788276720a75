"""Labels within strata and pools, in closed form, and what is drawn by them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import open_chunks, random_episodes, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from chunkrl.algorithms.advantage_bins import label_bins, strata_bins
from chunkrl.algorithms.advantages import shuffle_between, step_rewards
from chunkrl.algorithms.balance import Strata, make_strata
from chunkrl.algorithms.conditioning import trained_texts
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.draws import MOST_TIMES, share_weights, starts_by_share
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.loader import ChunkLoader
from chunkrl.errors import LabelError

ALL_OF_THEM = ConditioningConfig(highest_part=1.0)  # as many as succeed


def strata_of(index: list[int], credit: list[float], uniform: list[bool] | None = None) -> Strata:
    """Strata with these starts; what is due is not read by labels."""
    known = [False] * len(index) if uniform is None else uniform
    return Strata(np.array(index, np.int32), np.array(credit, np.float32), np.array(known), np.ones(1))


# ---- edges of strata


def test_a_stratum_has_as_many_positives_as_successes_and_the_advantage_says_which() -> None:
    # two of four starts succeed in stratum 0, one of four in stratum 1
    advantage = np.array([0.1, 0.9, 0.5, 0.7, 3.0, 1.0, 2.0, 4.0])
    strata = strata_of([0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 0, 0, 0])
    free = ConditioningConfig(success="free", highest_part=1.0)
    assert strata_bins(advantage, strata.index, strata, free).tolist() == [0, 1, 0, 1, 0, 0, 0, 1]
    mask = ALL_OF_THEM
    assert strata_bins(advantage, strata.index, strata, mask).tolist() == [1, 1, 0, 0, 1, 0, 0, 0]
    half = ConditioningConfig(highest_part=0.5)
    assert strata_bins(advantage, strata.index, strata, half).tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_equal_advantages_share_what_is_due() -> None:
    """Values that come in stages tie: what is due goes evenly to those at the edge, and not to nobody."""
    strata = strata_of([0] * 8, [1.0] * 4 + [0.0] * 4)
    free = ConditioningConfig(success="free", highest_part=1.0)
    assert strata_bins(np.zeros(8), strata.index, strata, free).tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    best = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0])  # one above the edge, and three of five at it
    assert strata_bins(best, strata.index, strata, free).tolist() == [1, 1, 0, 1, 0, 1, 0, 0]
    half = ConditioningConfig(highest_part=0.5)  # of the four that succeed
    assert strata_bins(np.zeros(8), strata.index, strata, half).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    often = strata_bins(np.zeros(8), strata.index, strata, free, np.array([1.0] * 4 + [3.0] * 4))
    assert often.tolist() == [1, 0, 0, 0, 1, 0, 0, 0]  # 4 of 16 that are drawn


def test_the_rest_is_cut_into_equal_shares_of_the_lower_labels() -> None:
    advantage = np.arange(10.0)
    strata = strata_of([0] * 10, [1.0] * 2 + [0.0] * 8)
    config = ConditioningConfig(num_bins=5, success="free", highest_part=1.0)
    assert strata_bins(advantage, strata.index, strata, config).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_graded_returns_are_shares_of_positives() -> None:
    strata = strata_of([0] * 4, [0.0, 0.25, 0.75, 1.0])  # two of four
    assert strata_bins(np.arange(4.0), strata.index, strata, ALL_OF_THEM).tolist() == [0, 0, 1, 1]


def test_a_task_that_shows_nothing_is_cloned_or_left_out() -> None:
    advantage, index, unknown = np.arange(4.0), [0, 0, 1, 1], [False, False, True, True]
    cloned = strata_of(index, [1, 0, 0.5, 0.5], unknown)
    assert strata_bins(advantage, cloned.index, cloned, ALL_OF_THEM).tolist() == [1, 0, 1, 1]
    left_out = strata_of(index, [1, 0, 0, 0], unknown)
    assert strata_bins(advantage, left_out.index, left_out, ALL_OF_THEM).tolist() == [1, 0, 0, 0]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-50, 50), st.booleans(), st.integers(0, 3)),
        min_size=1,
        max_size=40,
        unique_by=lambda row: row[1],
    ),
    st.sampled_from(["mask", "free"]),
    st.floats(0.1, 1.0),
)
def test_positives_are_the_best_and_no_more_than_are_due(
    rows: list[tuple[int, int, bool, int]], rule: Any, part: float
) -> None:
    """A start that is drawn k times counts as k copies of it."""
    index, advantage, success, rates = (np.array(column, float) for column in zip(*rows, strict=True))
    strata = strata_of(index.astype(int).tolist(), success.tolist())
    config = ConditioningConfig(success=rule, highest_part=part)
    high = strata_bins(advantage, strata.index, strata, config, rates) == 1
    for number in np.unique(index):
        own = (index == number) & (rates > 0)
        due = part * rates[own] @ success[own]
        taken = rates[own] @ high[own]
        assert taken <= due + 1e-6 and due - taken < rates[own].max(initial=0) + 1e-6
        may = own & (success == 1) if rule == "mask" else own
        assert not (high & own & ~may).any()
        if (high & own).any() and (may & ~high).any():
            assert advantage[high & own].min() > advantage[may & ~high].max()


# ---- pools, and what is forced


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[ChunkDataset]:
    """Two data sets of 12 and 5 starts, whose first episode alone succeeds."""
    base = tmp_path_factory.mktemp("bins")
    sizes = {"a": (3, (4, 5)), "b": (1, (5, 6))}
    return [
        open_chunks(
            write_dataset(base / name, random_episodes(n, seed=n, lengths=lengths)),
            labels=LabelRule(success="episodes", success_episodes=(0,)),
        )
        for name, (n, lengths) in sizes.items()
    ]


def labels_of(data: Any, advantage: np.ndarray, config: ConditioningConfig, **more: Any) -> np.ndarray:
    """The labels, without strata unless they are given."""
    returns = np.concatenate([np.ones(len(data) // 2), np.zeros(len(data) - len(data) // 2)])
    return label_bins(data, advantage, returns, config, **more)[0]["advantage_bin"]


def test_a_pool_has_its_own_edges(datasets: list[ChunkDataset]) -> None:
    both = ChunkCollection(datasets)
    advantage = np.concatenate([np.arange(12.0), 100 + np.arange(5.0)])
    together = ConditioningConfig(edges="quantiles", cuts=(0.7,), success="free")
    assert labels_of(both, advantage, together).tolist() == [0] * 12 + [1] * 5
    apart = ConditioningConfig(edges="quantiles", cuts=(0.6,), success="free", pools="datasets")
    assert labels_of(both, advantage, apart).tolist() == [0] * 7 + [1] * 5 + [0] * 3 + [1] * 2


def test_the_parts_of_a_replay_are_one_pool(datasets: list[ChunkDataset]) -> None:
    """Behind the data sets that stay; alone they are all one."""
    advantage = np.concatenate([np.arange(12.0), 100 + np.arange(5.0)])
    apart = ConditioningConfig(edges="quantiles", cuts=(0.6,), success="free", pools="datasets")
    for num_apart, expected in (
        (0, [0] * 10 + [1] * 7),
        (1, [0] * 7 + [1] * 5 + [0] * 3 + [1] * 2),
        (None, [0] * 7 + [1] * 5 + [0] * 3 + [1] * 2),
    ):
        parts = ChunkCollection(datasets, num_apart=num_apart)
        assert labels_of(parts, advantage, apart).tolist() == expected, num_apart


def test_what_is_forced_high_moves_no_edge_of_the_others(datasets: list[ChunkDataset]) -> None:
    both = ChunkCollection(datasets)
    advantage = np.concatenate([np.arange(12.0), 100 + np.arange(5.0)])
    config = ConditioningConfig(edges="quantiles", cuts=(0.5,), success="free", force_high=(1,))
    assert labels_of(both, advantage, config).tolist() == [0] * 6 + [1] * 6 + [1] * 5
    human = np.zeros(17, bool)
    human[0] = True  # the median of the other eleven
    assert labels_of(both, advantage, config, human=human).tolist() == [1] + [0] * 6 + [1] * 5 + [1] * 5


def test_it_is_said_where_all_chunks_are_positive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of successes alone, as all positive: the policy is then a clone that was told so."""
    every = random_episodes(4)
    for columns in every:
        columns["next.success"][-1] = True
    data = open_chunks(write_dataset(tmp_path / "all", every))
    advantage = np.random.default_rng(0).normal(size=len(data)).astype(np.float32)
    strata = make_strata(data, None, step_rewards(data), None, None, BalanceConfig())
    assert (labels_of(data, advantage, ConditioningConfig(highest_part=1), strata=strata) == 1).all()
    assert "all chunks of" in caplog.text and "only tell quick from slow" in caplog.text
    caplog.clear()
    some = labels_of(data, advantage, ConditioningConfig(), strata=strata)  # a part is asked for
    assert 0 < some.mean() < 1 and not caplog.text


def test_failures_are_never_high_or_successes_always(datasets: list[ChunkDataset]) -> None:
    data = datasets[0]
    success = np.asarray(data.success)
    advantage = np.where(success, -1.0, 1.0) + np.arange(12) / 100
    quantiles = ConditioningConfig(edges="quantiles", cuts=(0.5,), success="free")
    assert labels_of(data, advantage, quantiles)[success].max() == 0
    mask = ConditioningConfig(edges="quantiles", cuts=(0.5,))
    with pytest.raises(LabelError, match="no episode succeeds"):  # the best half all failed
        labels_of(data, advantage, mask)
    assert not labels_of(data, -advantage, mask)[~success].any()
    force = ConditioningConfig(edges="quantiles", cuts=(0.5,), success="force")
    found = labels_of(data, advantage, force)
    assert found[success].all() and found[~success].sum() == (~success).sum() // 2


def test_the_control_permutes_labels_and_not_what_is_forced(datasets: list[ChunkDataset]) -> None:
    data, advantage = datasets[0], np.arange(12.0)
    strata = strata_of([0] * 12, np.asarray(data.success, float).tolist())
    human = np.zeros(12, bool)
    human[11] = True
    plain, shuffled = (
        labels_of(data, advantage, ALL_OF_THEM, strata=strata, human=human, control=control)
        for control in (None, partial(shuffle_between, seed=0))
    )
    np.testing.assert_array_equal(plain, np.asarray(data.success) | human)
    assert shuffled[11] == 1 and (shuffled != plain).any()
    assert abs(int(shuffled.sum()) - int(plain.sum())) <= 1  # the forced one may have had either label


# ---- drawn by label


def test_a_batch_has_its_share_of_positives_in_each_data_set_that_has_both(
    datasets: list[ChunkDataset],
) -> None:
    chosen = np.zeros(17, bool)
    chosen[[0, 3, 7]] = True  # of 12; none of the other 5
    for weights in (None, [1.0, 1.0]):
        data = ChunkCollection(datasets, weights)
        drawn = starts_by_share(data, None, chosen, 0.75, seed=0)
        loader = ChunkLoader(data, 8, 0, subset=drawn)
        rows = np.concatenate([loader.positions(update) for update in range(2000)])
        first = rows < 12
        assert first.mean() == pytest.approx(12 / 17 if weights is None else 0.5, abs=0.01)
        assert chosen[rows[first]].mean() == pytest.approx(0.75, abs=0.02)
        counts = np.bincount(rows, minlength=17)
        assert counts.min() > 0  # nothing is lost
        # all of a kind alike, up to the rounding of positions
        assert counts[[0, 3, 7]].max() < 1.3 * counts[[0, 3, 7]].min()
        assert counts[12:].max() < 1.3 * counts[12:].min()


def test_only_what_may_be_drawn_is(datasets: list[ChunkDataset]) -> None:
    chosen = np.arange(12) < 2
    may = np.arange(6)
    drawn = starts_by_share(datasets[0], may, chosen, 0.5, seed=1)
    assert set(drawn) <= set(may)
    assert len(drawn) <= MOST_TIMES * len(may)
    assert chosen[drawn].mean() == pytest.approx(0.5, abs=0.05)
    # a share that a data set has already changes nothing but the order
    assert sorted(starts_by_share(datasets[0], may, chosen, 1 / 3, seed=1)) == may.tolist()


def test_weights_of_labels_that_move_are_the_draws_of_those_that_stay(datasets: list[ChunkDataset]) -> None:
    chosen = np.zeros(17, bool)
    chosen[[0, 3, 7]] = True
    weight = share_weights(ChunkCollection(datasets), None, chosen, 0.75)
    np.testing.assert_allclose(weight[chosen], 3.0)
    np.testing.assert_allclose(weight[:12][~chosen[:12]], 1 / 3)
    np.testing.assert_allclose(weight[12:], 1.0)


# ---- what stands in the prompt


def test_negatives_may_train_what_is_not_asked() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    config = ConditioningConfig(num_bins=3, dropout=0.0)
    assert trained_texts(labels, config) == [
        f"Advantage: {n}" for n in ("negative", "neutral", *["positive"] * 2)
    ]
    config = ConditioningConfig(num_bins=3, dropout=0.0, negatives="unconditional", guidance=2.0)
    assert trained_texts(labels, config) == ["", "", "Advantage: positive", "Advantage: positive"]
