"""Balanced weights of whole runs: runs from before there were any, tasks that come later, what the report says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_data import episode, open_chunks, random_episodes, settings, write_dataset

from benchmarks.libero import check_same_arm
from benchmarks.metaworld import (
    BenchmarkConfig,
    arm_settings,
    jobs,
    known_records,
    record_path,
    results_records,
)
from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.data.frames import FrameTable
from chunkrl.demo.arms import CHUNK_RL, TOGETHER
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.files.json_files import as_json
from chunkrl.improve.config import ImproveConfig, resumed_improvement
from chunkrl.iterate.config import IterateConfig, resumed_iteration
from chunkrl.models.config import PolicyConfig
from chunkrl.online.learner.config import LearnerConfig, resumed_learner
from chunkrl.progress import silent
from chunkrl.report.load_run import load_run
from chunkrl.report.numbers import percent
from chunkrl.report.run import render_run
from chunkrl.report.run_weights import weight_cards
from chunkrl.run.checks import check_config
from chunkrl.run.folder import run_config


def _of_before(data: Path, output: Path, **changes: Any) -> Path:
    """A run as it was left before weights were balanced: its config.json does not know the setting."""
    ChunkLevelOfflineRL(**settings(data, output, balance=BalanceConfig("none"), **changes)).train()
    config = json.loads((output / "config.json").read_text())
    del config["balance"]
    (output / "config.json").write_text(json.dumps(config))
    return output


@pytest.mark.parametrize("objective", ["cross_fitted", "iql"])
def test_a_run_of_before_goes_on_without_balance_or_not_at_all(tmp_path: Path, objective: str) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(8, lengths=(9, 10)))
    changes: dict[str, Any] = {"objective": objective, "num_folds": 1 if objective == "iql" else 2}
    old = _of_before(data, tmp_path / "old", **changes)
    assert load_run(old).config.balance.kind == "none"  # what its report says
    changes |= {"resume": str(old), "num_updates": 9}
    with pytest.raises(
        CheckpointError, match=r"another configuration: balance\.kind \(none then, strata now\)\."
    ):
        ChunkLevelOfflineRL(**settings(data, tmp_path / "new", balance=BalanceConfig(), **changes))
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "new", **changes))  # as the run was
    run.train()
    assert "stratum" not in run.dataset.label_names


def test_a_run_whose_failures_shared_strata_goes_on_so(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(8, lengths=(9, 10)))
    together = BalanceConfig(failures="together")
    ChunkLevelOfflineRL(**settings(data, tmp_path / "old", num_folds=2, balance=together)).train()
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    del config["balance"]["failures"]  # as releases of before wrote it
    file.write_text(json.dumps(config))
    assert load_run(tmp_path / "old").config.balance == together
    changes: dict[str, Any] = {"num_folds": 2, "resume": str(tmp_path / "old"), "num_updates": 9}
    with pytest.raises(CheckpointError, match=r"balance\.failures \(together then, left_out now\)"):
        ChunkLevelOfflineRL(**settings(data, tmp_path / "new", balance=BalanceConfig(), **changes))
    ChunkLevelOfflineRL(**settings(data, tmp_path / "new", **changes)).train()


def test_runs_from_before_failures_were_left_out_go_on(tmp_path: Path) -> None:
    """A weighted one as it was; of one that conditions, nothing read it."""
    for objective, expected in (("cross_fitted", "apart"), ("advantage_conditioned", "left_out")):
        pi = {"policy": PolicyConfig("pi"), "pi0_config": "pi05_libero"}
        config = TrainConfig(dataset_dir="d", action_dim=7, objective=objective, **pi)  # type: ignore[arg-type]
        said = as_json(asdict(config))
        said["balance"]["failures"] = "apart"
        (tmp_path / "config.json").write_text(json.dumps(said))
        found = run_config(tmp_path / "config.json")
        assert found.balance == BalanceConfig(failures=expected)  # type: ignore[arg-type]
        check_config(found)


@pytest.mark.parametrize(
    ("config", "file", "read_back"),
    [
        (IterateConfig(), "iterate.json", resumed_iteration),
        (LearnerConfig(), "learner.json", resumed_learner),
        (ImproveConfig(), "improve.json", resumed_improvement),
    ],
)
def test_commands_that_train_resume_with_the_weights_of_their_release(
    tmp_path: Path, config: Any, file: str, read_back: Callable[[Path], Any]
) -> None:
    said = as_json(asdict(config))
    for balance, expected in (
        (said["train"]["balance"], BalanceConfig()),
        (said["train"]["balance"] | {"failures": None}, BalanceConfig(failures="together")),
        (None, BalanceConfig("none")),
    ):
        noted = {name: value for name, value in (balance or {}).items() if value is not None}
        train = said["train"] | {"balance": noted}
        if balance is None:
            del train["balance"]
        (tmp_path / file).write_text(json.dumps(said | {"train": train}))
        assert read_back(tmp_path).train.balance == expected


def test_guidance_of_runs_of_before_led_away_from_no_label(tmp_path: Path) -> None:
    said = as_json(asdict(TrainConfig(objective="advantage_conditioned")))
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert run_config(tmp_path / "config.json").conditioning.guidance_from == "lowest"
    del said["conditioning"]["guidance_from"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert run_config(tmp_path / "config.json").conditioning.guidance_from == "unlabelled"
    (tmp_path / "config.json").write_text(json.dumps(said | {"objective": "cross_fitted"}))
    assert run_config(tmp_path / "config.json").conditioning.guidance_from == "lowest"  # nothing reads it


def test_a_run_that_has_no_weights_resumes_as_it_is(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(4))
    cloning: dict[str, Any] = {"objective": "behaviour_cloning"}
    ChunkLevelOfflineRL(**settings(data, tmp_path / "old", **cloning)).train()
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["balance"]
    config["fit"]["advantage_scale"] = 3.0  # another default, which nothing read
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    cloning |= {"resume": str(tmp_path / "old"), "num_updates": 9}
    ChunkLevelOfflineRL(**settings(data, tmp_path / "new", **cloning)).train()


def test_the_report_counts_frames_as_training_draws_them(tmp_path: Path) -> None:
    """Data sets with weights, and frames after a success, which are never drawn."""
    rng = np.random.default_rng(0)
    roots = []
    for name in "ab":
        flags = [np.arange(12) == (7 if good else 99) for good in (True, False, True, False)]
        episodes = [episode(12, False, rng, **{"next.success": own}) for own in flags]
        roots.append(write_dataset(tmp_path / name, episodes))
    changes = {"additional_offline_dataset_paths": (str(roots[1]),), "dataset_weights": (1.0, 4.0)}
    ChunkLevelOfflineRL(**settings(roots[0], tmp_path / "run", **changes)).train()
    run = load_run(tmp_path / "run")
    size = run.last("weight/effective_sample_size")
    assert size is not None and size < 0.99
    assert f"effective sample size {size:.2f}." in str(weight_cards(run)[0].parts[0])
    positive = run.last("advantage/positive_fraction")
    assert positive is not None and positive > np.mean(run.column("advantage") > 0)
    assert f"{percent(round(positive, 3))}</p>" in render_run(run)


def test_tasks_keep_their_place_whatever_their_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [episode(3, True, rng) for _ in range(6)]
    root = write_dataset(tmp_path / "d", episodes, tasks=("a", "b", "c"))
    data = open_chunks(root)
    table = FrameTable.open(root, progress=silent)
    assert [data.tasks[number] for number in data.task] == [table.task_text(row) for row in range(18)]


# ---- what the benchmarks keep


def _record(config: BenchmarkConfig, **changes: Any) -> dict[str, Any]:
    job = jobs(config)[0]
    record = {"task": job.task, "seed": job.train_seed, "arm": "chunk_rl", "error": None, "diagnostics": {}}
    same = ("data_seed", "eval_seed", "batch_size", "policy_updates")
    record |= {name: getattr(job, name) for name in same}
    return record | {"success": "1" * job.num_eval, "settings": arm_settings(CHUNK_RL)} | changes


def test_records_of_an_arm_that_meant_something_else_are_refused(tmp_path: Path) -> None:
    config = BenchmarkConfig(
        output_dir=str(tmp_path), results=str(tmp_path / "r.json"), arms=("chunk_rl",), seeds=(0,)
    )
    path = record_path(config, jobs(config)[0], "chunk_rl")
    path.parent.mkdir(parents=True)
    made = arm_settings(CHUNK_RL)
    for kept in (_record(config), _record(config, settings={})):  # as it is, and as records once were
        path.write_text(json.dumps(kept))
        assert len(known_records(config, [CHUNK_RL])) == 1
    del made["balance"]["failures"]  # a record of before failures could be apart: they were together
    path.write_text(json.dumps(_record(config, settings=made)))
    assert len(known_records(config, [replace(TOGETHER, name="chunk_rl")])) == 1
    with pytest.raises(ChunkRLError, match=r"other settings \(balance.failures\): use another --results"):
        known_records(config, [CHUNK_RL])
    made = arm_settings(CHUNK_RL)
    made["balance"]["time_bins"] = 16
    path.write_text(json.dumps(_record(config, settings=made)))
    with pytest.raises(ChunkRLError, match=r"other settings \(balance.time_bins\): use another --results"):
        known_records(config, [CHUNK_RL])


def test_libero_runs_of_other_data_or_another_meaning_are_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(4))
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", objective="behaviour_cloning"))
    run.train()
    check_same_arm(tmp_path / "run", run.config)
    others: list[dict[str, Any]] = [
        {"dataset_dir": str(tmp_path / "e")},
        {"balance": BalanceConfig(floor=0.1)},
    ]
    for change in others:
        with pytest.raises(ChunkRLError, match=f"other settings \\({next(iter(change))}\\)"):
            check_same_arm(tmp_path / "run", replace(run.config, **change))


def test_results_are_known_by_task_seed_and_arm(tmp_path: Path) -> None:
    config = BenchmarkConfig(results=str(tmp_path / "r.json"))
    assert results_records(config) == {}
    kept = _record(config, arm="another")
    (tmp_path / "r.json").write_text(json.dumps({"records": [kept]}))
    assert results_records(config) == {(kept["task"], kept["seed"], "another"): kept}
