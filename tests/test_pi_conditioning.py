"""Conditioning through files: bins that stay empty, values that are used again, positives drawn as data grow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="data that grow need chunkrl[online]")

from growing_data import Growing
from pi_runs import checkpoints, config, root  # noqa: F401  # fixtures
from test_learner_pi import corrected

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.config import ConditioningConfig
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.errors import ChunkRLError, LabelError

DOCUMENT = ConditioningConfig(num_bins=5, edges="fixed", success="free")


def test_an_empty_bin_is_found_before_the_policy_trains_and_the_values_are_kept(
    root: Path,  # noqa: F811
    checkpoints: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = config(root, checkpoints, tmp_path / "first", "advantage_conditioned", conditioning=DOCUMENT)
    run = ChunkLevelOfflineRL(replace(settings, human_chunks="critic"))
    with pytest.raises(LabelError, match=r"no chunk of a task got.*--values .*first") as error:
        run.train()
    assert run.trainer is not None and run.trainer.update == run.algorithm.phases()[0].num_updates
    assert (tmp_path / "first" / "values.parquet").is_file() and not (tmp_path / "first" / "policy").exists()
    # the cure as it is written
    found = re.search(r"--conditioning.cuts in that range \((.*) would", str(error.value))
    assert found is not None
    cuts = tuple(float(cut) for cut in found[1].split())
    cured = replace(
        settings,
        human_chunks="critic",
        output_dir=str(tmp_path / "second"),
        values=str(tmp_path / "first"),
        conditioning=replace(DOCUMENT, cuts=cuts),
    )
    # a plan finds it where the values are there, and knows nothing of it where they are to be learned
    with pytest.raises(LabelError, match="no chunk of a task got"):
        ChunkLevelOfflineRL(replace(cured, conditioning=DOCUMENT)).plan(num_rehearsed=1)
    assert ChunkLevelOfflineRL(replace(settings, human_chunks="critic")).plan(num_rehearsed=1).rehearsal
    second = ChunkLevelOfflineRL(cured)
    assert [phase.name for phase in second.algorithm.phases()] == ["policy"]
    second.train()
    np.testing.assert_array_equal(second.algorithm.labels["value"], run.algorithm.labels["value"])
    counts = np.bincount(second.algorithm.labels["advantage_bin"], minlength=5)
    assert counts.min() >= 4 and counts.sum() == 30  # six each, up to the rounding of what was printed


@pytest.mark.parametrize("grows", [False, True], ids=["several data sets", "data that grow"])
def test_positives_have_their_share_of_what_is_drawn(
    root: Path,  # noqa: F811
    checkpoints: Path,  # noqa: F811
    tmp_path: Path,
    grows: bool,
) -> None:
    labels = ConditioningConfig(edges="quantiles", success="free", positive_share=0.8)
    settings = config(
        *(root, checkpoints, tmp_path / "run", "advantage_conditioned"),
        num_updates=6,
        value_updates=2,
        human_chunks="critic",
        conditioning=labels,
    )
    first = ChunkDataset(root, settings.chunk_settings())
    second = ChunkDataset(corrected(tmp_path / "more"), settings.chunk_settings())
    both = ChunkCollection([first, second])
    if grows:
        run = ChunkLevelOfflineRL(settings, source=Growing({0: ChunkCollection([first]), 4: both}))
    else:
        more = (str(tmp_path / "more"),)
        run = ChunkLevelOfflineRL(replace(settings, additional_offline_dataset_paths=more))
    run.train()
    drawn, bins = run.algorithm.phases()[-1].subset, run.algorithm.labels["advantage_bin"]
    assert drawn is not None and len(bins) == 40 and set(drawn) == set(range(40))
    for rows in (drawn[drawn < 30], drawn[drawn >= 30]):
        assert np.mean(bins[rows] == 1) == pytest.approx(0.8, abs=0.05)


def test_positives_have_their_share_of_the_loss_where_labels_move(
    root: Path,  # noqa: F811
    checkpoints: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    labels = ConditioningConfig(edges="quantiles", success="free", positive_share=0.8)
    settings = config(
        root, checkpoints, tmp_path, "advantage_conditioned", conditioning=labels, num_updates=4
    )
    run = ChunkLevelOfflineRL(replace(settings, value_updates_per_update=2, relabel_interval=2, batch_size=4))
    run.train()
    weight = run.dataset.labels_at(np.arange(30))["weight"].numpy()
    high = run.algorithm.labels["advantage_bin"] == 1
    assert weight[high].sum() == pytest.approx(0.8 * 30, rel=1e-5) and weight.mean() == pytest.approx(1)
    assert run.algorithm.phases()[-1].subset is None


def test_strata_of_labels_are_those_of_balance(
    root: Path,  # noqa: F811
    checkpoints: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings: Any = config(root, checkpoints, tmp_path, "advantage_conditioned")
    run = ChunkLevelOfflineRL(replace(settings, human_chunks="critic"))
    run.train()
    labels = run.algorithm.labels
    success, task = np.asarray(run.dataset.success), np.asarray(run.dataset.task)
    assert labels["stratum"].shape == (30,)
    # one task succeeds always: .7 of its 15 chunks, the best; the other never, and is cloned
    assert set(task[success]) == {0} and labels["advantage_bin"][task == 1].all()
    advantage, high = labels["advantage"][task == 0], labels["advantage_bin"][task == 0] == 1
    assert high.sum() == 10 and advantage[high].min() > advantage[~high].max()
    with pytest.raises(ChunkRLError, match=r"--balance\.kind strata"):
        ChunkLevelOfflineRL(replace(settings, balance=replace(settings.balance, kind="none")))
