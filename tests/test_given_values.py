"""Values of another run: whose they may be, and what they must have been made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import open_chunks, random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.values_io import load_values, save_values
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("given") / "d", random_episodes(8))


def trained(root: Path, folder: Path, **changes: Any) -> Path:
    ChunkLevelOfflineRL(**settings(root, folder, **changes)).train()
    return folder


@pytest.mark.parametrize("objective", ["document", "iql"])
def test_values_of_a_joint_method_are_nobodys_else(root: Path, tmp_path: Path, objective: str) -> None:
    """The document's V saw every episode, and would count as held out; iql's advantages are Q - V."""
    run = trained(root, tmp_path / "joint", objective=objective)
    with pytest.raises(ChunkRLError, match=f"--objective {objective}, whose values belong to its own Q"):
        ChunkLevelOfflineRL(**settings(root, tmp_path / "run", values=str(run)))


@pytest.mark.parametrize(("there", "here"), [((2, 1), (1, 2)), ((1, 2), (2, 1))])
def test_as_many_networks_in_other_folds_are_not_gone_on_from(
    root: Path, tmp_path: Path, there: tuple[int, int], here: tuple[int, int]
) -> None:
    """The first network of two folds never saw the episodes of fold 0; that of two critics saw all."""
    folds, critics = there
    fit = ValueFit(num_critics=critics)
    begun = trained(root, tmp_path / "a", num_folds=folds, fit=fit, save_updates=1, keep_checkpoints=9)
    more: dict[str, Any] = {"init": str(begun), "num_folds": here[0], "fit": ValueFit(num_critics=here[1])}
    with pytest.raises(ChunkRLError, match=rf"Use --num-folds {folds} --fit.num-critics {critics}"):
        ChunkLevelOfflineRL(**settings(root, tmp_path / "b", **more))


def test_the_range_of_values_goes_on_with_their_networks(root: Path, tmp_path: Path) -> None:
    """What an output of 1 stands for: another range would make other values of the same networks."""
    own = ValueFit(return_range=(-1.0, 3.0))
    begun = trained(root, tmp_path / "a", fit=own, save_updates=1, keep_checkpoints=9)
    for asked in (None, (-1.0, 3.0)):
        run = ChunkLevelOfflineRL(
            **settings(root, tmp_path / "b", init=str(begun), fit=ValueFit(return_range=asked))
        )
        assert (run.algorithm.values.range.low, run.algorithm.values.range.high) == (-1.0, 3.0)
    with pytest.raises(
        ChunkRLError, match=r"returns from -1 to 3, .* --fit\.return-range 0 1 asks for others"
    ):
        ChunkLevelOfflineRL(
            **settings(root, tmp_path / "c", init=str(begun), fit=ValueFit(return_range=(0.0, 1.0)))
        )


def test_values_know_where_episodes_end(root: Path, tmp_path: Path) -> None:
    """Which failures are terminal decides advantages where time-outs bootstrap."""
    plain = open_chunks(root)
    terminal = open_chunks(root, labels=LabelRule(failure_terminal=True))
    zero = plain.frame_labels.reward[plain.starts]
    labels: dict[str, np.ndarray] = dict.fromkeys(("value", "value_seen", "return", "advantage"), zero)
    save_values(tmp_path, plain, labels, {})
    load_values(tmp_path, plain)
    with pytest.raises(ChunkRLError, match="values of other returns"):
        load_values(tmp_path, terminal)


def test_settings_that_would_train_values_are_of_the_run_that_trained_them(
    root: Path, tmp_path: Path
) -> None:
    """The same flags may stand there again; others would train nothing, unless Q is trained."""
    own: dict[str, Any] = {"value_lr": 1e-3, "fit": ValueFit(dropout=0.1)}
    run = trained(root, tmp_path / "values", objective="value", **own)
    given: dict[str, Any] = {"values": str(run)}
    for same in ({}, own):
        ChunkLevelOfflineRL(**settings(root, tmp_path / "same", **given, **same))
    other: dict[str, Any] = {"value_epochs": 9.0, "fit": ValueFit(dropout=0.2, hidden_dim=8)}
    with pytest.raises(
        ChunkRLError,
        match=r"fit.hidden_dim 128 there and 8 here, fit.dropout 0.1 there and 0.2 here, value_epochs 1.0 there and "
        r"9.0 here, and no values are trained here. Leave --fit.hidden-dim, --fit.dropout, --value-epochs out, or",
    ):
        ChunkLevelOfflineRL(**settings(root, tmp_path / "other", **given, **other))
    ChunkLevelOfflineRL(**settings(root, tmp_path / "q", **given, **other, train_q=True))
