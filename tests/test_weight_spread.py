"""Where the weight lies, and that it is said of every method, in its log and on its page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import episode, open_chunks, random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.balance import Strata, starts_credit
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.algorithms.joint import JointMethod
from chunkrl.algorithms.weight_spread import (
    TASK_STARTS,
    TOLD_TASKS,
    Spread,
    StarvedOnce,
    balance_cure,
    lacks,
    spread_metrics,
    starved_warnings,
    strata_shares,
    weight_spread,
)
from chunkrl.algorithms.weights import WeightRule, to_weights
from chunkrl.data.chunk_semantics import Segments
from chunkrl.data.collection import ChunkCollection
from chunkrl.errors import ChunkRLError
from chunkrl.report.commands import load_run
from chunkrl.report.run import render_run, run_warnings

NINE = (9, 10)  # lengths of episodes
COARSE = BalanceConfig(min_starts=24, time_bins=3)  # a stratum a third, whatever the value
LATE = Spread(0.9, (0.1, 0.5, 0.4), (0.3, 0.4, 0.3))


def scalars(run: ChunkLevelOfflineRL) -> dict[str, float]:
    """The last of each metric."""
    assert run.trainer is not None
    return {name: points[-1][1] for name, points in run.trainer.history.items()}


def thirds(metrics: dict[str, float]) -> list[float]:
    return [metrics[f"weight/{name}_third"] for name in ("first", "middle", "last")]


# ---- of every method


@pytest.mark.parametrize(
    ("objective", "cross_fits"), [("cross_fitted", True), ("iql", True), ("iql", False), ("document", False)]
)
def test_every_weighted_method_says_where_its_weight_lies(
    tmp_path: Path, objective: str, cross_fits: bool
) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(8, lengths=NINE))
    own: dict[str, Any] = {"objective": objective}
    if objective != "document":
        own |= {"balance": COARSE, "num_folds": 2 if cross_fits else 1}
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", **own))
    run.train()
    metrics, weight = scalars(run), run.algorithm.labels["weight"]
    success = np.asarray(open_chunks(data).success)
    assert weight.mean() == pytest.approx(1, rel=1e-5)
    assert metrics["weight/on_successes"] == pytest.approx(weight[success].sum() / weight.sum(), rel=1e-5)
    assert 0 < metrics["weight/effective_sample_size"] <= 1
    if objective == "document":
        advantage = run.algorithm.labels["advantage"].astype(float)
        np.testing.assert_allclose(weight, np.exp(advantage) / np.exp(advantage).mean(), rtol=1e-4)
    else:  # three steps of each success in each of the bins: all thirds are due the same
        assert metrics["weight/num_strata"] == 3 and not weight[~success].max() > 0.2
        assert thirds(metrics) == pytest.approx([1 / 3] * 3, abs=0.01)
        assert 0 < metrics["weight/lowest_stratum_size"] <= 1
    page = render_run(load_run(tmp_path / "run"))
    assert "Weight along successful episodes" in page and "Weight over time and value" in page
    assert (">Strata<" in page) == (objective != "document")


def test_batches_of_iql_weigh_as_its_labels_say(tmp_path: Path) -> None:
    """The label is what the running means of batches come to."""
    data = write_dataset(tmp_path / "d", random_episodes(8, lengths=NINE))
    own = {"objective": "iql", "balance": COARSE, "num_updates": 200, "lr": 1e-9}  # nothing moves
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", **own))
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    weights = run.algorithm._weights  # type: ignore[attr-defined]

    def kept(advantage: Any, batch: Any) -> Any:
        found = weights(advantage, batch)
        seen.append((batch.index.numpy(), found[0].numpy()))
        return found

    run.algorithm._weights = kept  # type: ignore[attr-defined]
    run.train()
    index, weight = (np.concatenate(parts) for parts in zip(*seen[20:], strict=True))
    mean = np.bincount(index, weights=weight, minlength=72) / np.bincount(index, minlength=72)
    labelled = run.algorithm.labels["weight"]
    assert np.corrcoef(mean, labelled)[0, 1] > 0.9
    assert mean.mean() == pytest.approx(1, abs=0.1)


def test_a_starved_third_stands_on_the_page_without_cross_fitting(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(8, lengths=NINE))
    own = {"balance": BalanceConfig("none"), "num_folds": 1, "fit": {"lam": 0.0}}
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run", **own)).train()
    run = load_run(tmp_path / "run")
    weight = run.data[0].labels["weight"]
    weight[:] = np.where(np.tile(np.arange(9), 8) < 3, 1e-3, 1.0)
    found = [warning for warning in run_warnings(run, None) if "first third" in warning]
    assert len(found) == 1 and "Use --balance.kind strata" in found[0]
    page = render_run(run)
    assert "Cross-fitting was off" in page and "the first third of successful episodes carries" in page


def test_given_weights_that_starve_a_third(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(8, lengths=NINE))
    weight = np.where(np.tile(np.arange(9), 8) < 3, 1e-3, 1.0)
    pq.write_table(pa.table({"index": np.arange(72), "weight": weight}), tmp_path / "w.parquet")
    own = {"objective": "behaviour_cloning", "sample_weights": (str(tmp_path / "w.parquet"),)}
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run", **own)).train()
    assert "those of --sample-weights" in caplog.text
    page = render_run(load_run(tmp_path / "run"))
    assert "the first third of successful episodes carries" in page and "those of --sample-weights" in page
    assert "Weight along successful episodes" in page


def test_one_episode_is_enough_without_folds(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", [episode(9, True, np.random.default_rng(0))])
    with pytest.raises(ChunkRLError, match="2 folds need at least 2 episodes"):
        ChunkLevelOfflineRL(**settings(data, tmp_path / "refused")).train()
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", num_folds=1))
    run.train()
    assert run.algorithm.labels["weight"].mean() == pytest.approx(1, rel=1e-5)
    assert scalars(run)["weight/on_successes"] == 1.0


# ---- in closed form


def test_graded_episodes_count_by_their_returns(tmp_path: Path) -> None:
    """No episode succeeds; the better half earns 3 and counts, the other nothing."""
    rng = np.random.default_rng(0)
    rewards = [np.full(9, 1 / 3 if i % 2 else 0.0, np.float32) for i in range(8)]
    rewards[0] = np.full(9, 1 / 6, np.float32)  # counts half
    episodes = [episode(9, False, rng, **{"next.reward": own}) for own in rewards]
    data = open_chunks(write_dataset(tmp_path / "d", episodes), reward="sum")
    credit = starts_credit(data, None, BalanceConfig())
    assert credit[::9].tolist() == pytest.approx([0.5, 1, 0, 1, 0, 1, 0, 1])
    weight = np.where(np.tile(np.arange(9), 8) < 3, 0.1, 1.0)
    found = weight_spread(weight, data, None, credit)
    assert found.graded and found.on_successes == 0
    assert found.frames == pytest.approx([1 / 3] * 3)
    assert found.thirds == pytest.approx([0.3 / 6.3, 3 / 6.3, 3 / 6.3]) and found.starved == ("first",)
    assert lacks(found)[0].startswith("the first third of episodes (counted by their returns) carries 4.8%")
    assert np.isnan(weight_spread(weight, data, None).frames).all()  # as successes, none counts


def test_a_task_that_starves_alone_is_named(tmp_path: Path) -> None:
    """Of two tasks' first thirds one has hardly any weight and the other more than its share: together enough."""
    num = TASK_STARTS // 9 + 1
    sets = [
        open_chunks(
            write_dataset(tmp_path / task, random_episodes(2 * num, lengths=NINE), tasks=[task] * (2 * num))
        )
        for task in ("push", "pull")
    ]
    both = ChunkCollection(sets)
    first = np.tile(np.arange(9), 4 * num) < 3
    weight = np.where(first, np.where(np.asarray(both.task) == 0, 0.1, 2.0), 1.0)
    found = weight_spread(weight, both, None)
    assert found.starved == () and [own.starved for own in found.of_tasks.values()] == [("first",), ()]
    (said,) = lacks(found)
    assert said.startswith(f"the first third of successful episodes of {both.tasks[0]!r} carries 4.8%")


def test_of_many_tasks_a_few_are_named() -> None:
    spread = Spread(0.9, (0.3, 0.4, 0.3), (0.3, 0.4, 0.3), of_tasks={str(n): LATE for n in range(9)})
    said = lacks(spread)
    assert (
        len(said) == TOLD_TASKS + 1 and said[-1] == f"{9 - TOLD_TASKS} thirds of other tasks carry as little"
    )


def test_shares_of_strata() -> None:
    weight, index = np.array([1.0, 1, 4, 0, 2]), np.array([0, 0, 1, 1, 2])
    found = strata_shares(weight, index, np.array([1.0, 1, 1, 1, 2]), np.array([1.0, 1, 1, 0, 0]))
    np.testing.assert_allclose(found.weight, [0.2, 0.4, 0.4])
    np.testing.assert_allclose(found.due, [2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(found.size, [1, 0.5, 1])  # one of two starts carries the second
    assert found.successes.tolist() == [2, 1, 0]


def test_what_starves_later_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fair, once = Spread(0.9, (0.3, 0.4, 0.3), (0.3, 0.4, 0.3)), StarvedOnce()
    for spread in (fair, LATE, LATE):
        once.say(spread, "Do this")
    assert caplog.text.count("the first third") == 1


def test_chunks_of_another_policy_have_no_weight_of_their_own(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(8, lengths=NINE))
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", objective="iql"))
    run.dataset.attach("candidates", np.zeros((len(run.dataset), 2, 3, 2), np.float32))
    assert isinstance(run.algorithm, JointMethod)
    assert run.algorithm._label_weights(np.zeros(len(run.dataset), np.float32)) == {}


# ---- of successes


def test_the_spread_of_weight_over_successes(tmp_path: Path) -> None:
    data = open_chunks(write_dataset(tmp_path / "d", random_episodes(4, lengths=(9, 10))))
    weight = np.ones(len(data), np.float32)
    even = weight_spread(weight, data, None)
    assert even.on_successes == pytest.approx(data.success.mean())
    assert even.thirds == pytest.approx((1 / 3,) * 3) == even.frames and not even.starved
    step = np.concatenate([np.arange(9)] * 4)
    late = weight_spread(np.where(step < 3, 0.1, 1.0), data, None)
    assert late.thirds == pytest.approx((0.3 / 6.3, 3 / 6.3, 3 / 6.3)) and late.starved == ("first",)


def test_successes_without_any_weight_are_starved(tmp_path: Path) -> None:
    data = open_chunks(write_dataset(tmp_path / "d", random_episodes(4, lengths=(9, 10))))
    none = weight_spread(np.where(data.success, 0.0, 1.0), data, None)
    assert none.thirds == (0.0, 0.0, 0.0) and none.starved == ("first", "middle", "last")


def test_the_lowest_stratum_is_one_of_successes() -> None:
    """Half the weight of cloning of the successes takes from a stratum that has none, which is no lack."""
    index = np.repeat([0, 1], 20).astype(np.int32)
    credit = (index == 0).astype(np.float32)
    strata = Strata(index, credit, np.zeros(40, bool), np.bincount(index, weights=credit + 0.1))
    weight, _ = to_weights(
        np.random.default_rng(1).normal(size=40), WeightRule(success_mix=0.5), strata=strata
    )
    data = SimpleNamespace(
        segments=Segments(np.array([20, 40]), np.array([True, False])),
        starts=np.arange(40),
        success=credit > 0,
        task=np.zeros(40, int),
        tasks=("push",),
    )
    metrics, _ = spread_metrics(weight, data, None, strata)  # type: ignore[arg-type]
    assert metrics["weight/lowest_stratum"] == pytest.approx((22 + 24) / 2 / 22, rel=1e-5)


@pytest.mark.parametrize(
    ("balance", "cure"),
    [
        (BalanceConfig("none"), "Use --balance.kind strata"),
        (BalanceConfig(), "Use more --balance.time-bins"),
    ],
)
def test_what_helps_starved_thirds_can_be_done(balance: BalanceConfig, cure: str) -> None:
    spread = Spread(0.9, (0.1, 0.5, 0.4), (0.3, 0.4, 0.3))
    (message,) = starved_warnings(spread, balance_cure(balance))
    assert "the first third of successful episodes carries 10.0%" in message and cure in message
