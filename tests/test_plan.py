"""A run says what it is going to do before it does; the bars say how it goes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.config import DistilConfig
from chunkrl.algorithms.value_learner import RECENT_BATCHES
from chunkrl.cli import main
from chunkrl.config import save_config
from chunkrl.progress import ProgressBars
from chunkrl.run.parts import check_one_run
from chunkrl.run.plan import (
    FIRST_UPDATES,
    FirstMinutes,
    NetworkPlan,
    PhasePlan,
    Rehearsal,
    TrainingPlan,
    minutes,
    size,
)
from chunkrl.statistics import spearman
from chunkrl.training.live_note import EVERY_S, LiveNote


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "arm", random_episodes(6))


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def as_file(folder: Path, config: dict[str, Any]) -> str:
    save_config(TrainConfig(**config), folder / "own.json")
    return str(folder / "own.json")


@pytest.mark.parametrize("objective", ["cross_fitted", "iql", "document", "behaviour_cloning", "value"])
def test_a_dry_run_prints_the_plan_alone(
    data: Path,
    tmp_path: Path,
    objective: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config: dict[str, Any] = settings(data, tmp_path, objective=objective, save_updates=4)
    config["output_dir"] = ""
    file = as_file(tmp_path, config)
    before = files(tmp_path) | files(data)
    main(["train", "--config", file, "--dry-run"])
    assert files(tmp_path) | files(data) == before
    told = capsys.readouterr().out
    run = ChunkLevelOfflineRL(**config)
    phases = [phase for phase in run.algorithm.phases() if phase.num_updates]
    for number, phase in enumerate(phases, 1):
        assert (
            f"phase {number} of {len(phases)}: {phase.name}, {phase.num_updates} updates of 8 chunks" in told
        )
    for name, module in run.algorithm.trained_networks().items():
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        if trained and (name, objective) != ("policy", "value"):
            assert f"{name}: {trained:,} parameters train" in told
    assert f"runs/arm-{objective}-001 (new, the next free number)" in told
    assert "on this machine (cpu), measured on the first updates" in told
    assert "checkpoints/: at the end of each phase, every 4 updates, after 2 minutes" in told
    assert "nothing was written" in told


@pytest.mark.parametrize(
    "own",
    [
        {"train_q": True},
        {"distil": DistilConfig(3, updates=5)},
        {"objective": "iql"},
        {"value_updates_per_update": 1, "relabel_interval": 2},
    ],
    ids=["q", "distil", "iql", "values that go on"],
)
def test_a_run_that_was_tried_out_is_the_same_run(data: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    """The command measures on the first updates; Python does not."""
    torch.set_num_threads(1)
    main(["train", "--config", as_file(tmp_path, settings(data, tmp_path / "told", **own))])
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "plain", **own))
    run.train()
    told, plain = (tmp_path / name / "policy" / "state.safetensors" for name in ("told", "plain"))
    assert told.read_bytes() == plain.read_bytes()


def test_the_plan_of_a_resumption_and_the_place_of_its_pictures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run decodes on demand, whatever the run that goes on did; where images are kept is no other run."""
    run = tmp_path / "run"
    ChunkLevelOfflineRL(**settings(data, run, objective="behaviour_cloning")).train()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    main(["train", "--resume", str(run), "--num-updates", "9", "--dry-run"])
    told = capsys.readouterr().out
    assert "policy, 9 updates of 8 chunks" in told and "6 are done" in told and "nothing was written" in told
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    main(["train", "--resume", str(run), "--num-updates", "9", "--no-cache"])
    check_one_run(run)
    main(["train", "--resume", str(run), "--num-updates", "12", "--cache"])
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(run), "--resize", "8", "8"])
    assert "another configuration: frames.resize" in capsys.readouterr().err


def test_folds_one_by_one_and_what_resumes(data: Path, tmp_path: Path) -> None:
    fit = replace(TrainConfig().fit, fold_order="one_by_one")
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", fit=fit))
    plan = run.plan(3)
    assert [phase.name for phase in plan.phases] == ["value", "policy"] and plan.seconds is not None
    run.train()
    resumed = ChunkLevelOfflineRL(resume=str(tmp_path / "run"), num_updates=9)
    assert f"{tmp_path / 'run'}, going on from {tmp_path / 'run' / 'checkpoints'}" in str(resumed.plan())
    value, policy = resumed.plan().phases
    assert (value.num_done, value.num_updates) == (value.num_updates,) * 2
    assert (policy.num_done, policy.num_updates) == (6, 9) and "6 are done" in str(resumed.plan())
    assert resumed.plan().seconds is None and "measured on each phase's first updates" in str(resumed.plan())


def plan(**changes: Any) -> TrainingPlan:
    phases = (PhasePlan("value", 100, 50, 0.5), PhasePlan("policy", 1000, 50, 0.25))
    networks = {"policy": NetworkPlan(10, 5, 60, 120), "V": NetworkPlan(20, 0, 80, 240)}
    config = replace(TrainConfig(batch_size=10), **changes)
    return TrainingPlan(config, "out", phases, 5, 60, networks, "cpu", Rehearsal({}, 0.01, 10**9, 0))


def test_numbers_of_a_plan() -> None:
    whole = plan()
    assert whole.seconds == 100 * 0.5 + 1000 * 0.25 + 60 * 0.01
    assert whole.checkpoint_bytes == 120 + 240 + 4 * 8 * 60
    value, policy = whole.phases
    begun = replace(whole, phases=(replace(value, num_done=40), policy))
    assert begun.seconds == 60 * 0.5 + 1000 * 0.25 + 60 * 0.01
    labelled = replace(whole, phases=(replace(value, num_done=100), replace(policy, num_done=1)))
    assert labelled.seconds == 999 * 0.25
    assert (whole.label_seconds, labelled.label_seconds) == (60 * 0.01, 0.0)
    slow = replace(whole, rehearsal=Rehearsal({}, 0.5, 10**9, 0))
    assert "about 5.5 minutes on this machine (cpu)" in str(slow)
    assert "measured on the first updates, with about 30 seconds in which 60 starts are labelled" in str(slow)
    text = str(whole)
    assert "are labelled" not in text  # in less than a second
    assert (
        "phase 2 of 2: policy, 1,000 updates of 10 chunks (200 passes over 50 starts, more "
        "over those that will weigh something), about 4.2 minutes" in text
    )
    assert "policy: 10 parameters train, 5 are frozen" in text
    assert "every 50 updates" in text  # 10 epochs of 5
    assert "every" not in str(plan(save_interval=0, save_minutes=0.0)).split("checkpoints/")[1].split("\n")[0]
    assert "the newest 2 stay" in str(plan(keep_checkpoints=2))
    lost = replace(whole, phases=(*whole.phases, PhasePlan("distil", 7, 50)))
    assert lost.seconds is None and "distil could not be measured beforehand" in str(lost)
    assert "policy/, values.parquet, config.json" in text
    assert "no value phase" not in text
    assert "  plan      no value phase: values and advantages are those of runs/value\n" in str(
        plan(values="runs/value")
    )
    assert "policy/, config.json" in str(plan(objective="success_cloning"))  # it fits no values
    assert " values.parquet, config.json" in str(plan(objective="value"))
    assert [minutes(s) for s in (0.2, 59, 60, 5399, 5400)] == [
        *("about 1 second", "about 59 seconds", "about 1.0 minutes", "about 90.0 minutes", "about 1.5 hours")
    ]
    assert [size(b) for b in (1.5e6, 2.5e9)] == ["1.5 MB", "2.50 GB"]


def test_minutes_of_a_phase_that_was_not_tried_out() -> None:
    now, said, seen = [0.0], [], []
    progress = FirstMinutes(
        lambda *a, **more: seen.append(a), ["value", "policy"], said.append, lambda: now[0]
    )
    for done in range(1, FIRST_UPDATES + 3):
        now[0] += 1.0
        progress("value", done, 1000)
    left = 1000 - FIRST_UPDATES - 1
    assert said == [
        f"  value: about {left / 60:.1f} minutes for the other {left} updates, measured on the first "
        f"{FIRST_UPDATES + 1}"
    ]
    for done in (1, 2):  # slow ones are told of earlier
        now[0] += 40.0
        progress("policy", done, 4)
    assert said[1] == "  policy: about 1.3 minutes for the other 2 updates, measured on the first 2"
    progress("label", 1, 2)
    assert len(said) == 2 and len(seen) == FIRST_UPDATES + 5


class Told:
    """A progress that keeps what a bar would show."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str, str]] = []

    def describe(self, stage: str, place: str, note: str) -> None:
        self.shown.append((stage, place, note))

    def __call__(self, stage: str, done: int, total: int) -> None:
        pass


def test_bars_say_the_phase_the_loss_and_what_values_are_worth(data: Path, tmp_path: Path) -> None:
    told = Told()
    run = ChunkLevelOfflineRL(
        TrainConfig(**settings(data, tmp_path / "run", value_updates=6, log_interval=1)), told
    )
    run.train()
    assert [(stage, place) for stage, place, _ in told.shown] == [
        *[("value", "phase 1 of 2")] * 6,
        *[("policy", "phase 2 of 2")] * 6,
    ]
    assert run.trainer is not None
    history = run.trainer.history
    for (_, _, note), (_, loss) in zip(told.shown[6:], history["loss/policy"], strict=True):
        found = history["value/rank_correlation_held_out"][-1][1]
        assert note == f"loss {loss:.4g}, held-out rank correlation {found:.2f}"
    assert all("held-out rank correlation" in note for _, _, note in told.shown[:6])


def test_the_rank_correlation_while_values_learn(data: Path, tmp_path: Path) -> None:
    """Of each fold's network on the rows that it does not learn from, over the last batches."""
    run = ChunkLevelOfflineRL(**settings(data, tmp_path / "run", value_updates=3))
    values = run.algorithm.values
    assert values.held_out_rank_correlation() is None
    batch = run.dataset.batch(np.arange(8))
    values.fit = replace(values.fit, noise=0.0)
    values.update(batch)
    (told,) = values._recent
    assert told.shape == (2, 8)  # every row once: by the network of its fold
    assert sorted(told[1].tolist()) == sorted(batch.labels["outcome"].tolist())
    values._recent.clear()
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(RECENT_BATCHES + 3, 2, 4)).astype(np.float32)
    values._recent.extend(torch.from_numpy(part) for part in parts)
    value, outcome = np.concatenate(list(parts[3:]), axis=1)
    assert values.held_out_rank_correlation() == spearman(value, outcome)


def test_the_note_beside_a_bar() -> None:
    now, found = [0.0], [0.5]
    note = LiveNote(lambda: found[0], lambda: now[0])
    history = {"value/rank_correlation_held_out": [(3, 0.25)], "loss/policy": [(3, 2.0)]}
    assert note.text("value", {"loss/value": 3.0, "x": 1.0}, {"loss/value": 2, "x": 2}, {}) == (
        "loss 1.5, held-out rank correlation 0.50"
    )
    found[0] = 0.75  # looked at now and then
    assert note.text("value", {}, {}, {}) == "held-out rank correlation 0.50"
    now[0] += EVERY_S
    assert note.text("value", {}, {}, {}) == "held-out rank correlation 0.75"
    assert note.text("policy", {}, {}, history) == "loss 2, held-out rank correlation 0.25"
    assert note.text("joint", {"loss/q": 1.0}, {"loss/q": 1}, {}) == "loss 1"


def test_bars_show_place_and_note(capsys: pytest.CaptureFixture[str]) -> None:
    bars = ProgressBars()
    for done in (1, 2):
        bars.describe("value", "phase 1 of 2", f"loss {done}")
        bars("value", done, 2)
    shown = capsys.readouterr().err
    assert "phase 1 of 2: value: 100%" in shown and "loss 2" in shown.split("100%")[1]
    bars("other", 1, 1)
    assert f"{os.linesep}other: 100%" in f"{os.linesep}{capsys.readouterr().err}".replace("\r", os.linesep)
