"""`chunkrl verdict`: the estimate in closed form, what is claimed of it, and which episodes it may be made from."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import episode, open_chunks, random_episodes, settings, write_dataset
from hypothesis import given
from hypothesis import strategies as st
from pages import Page

from chunkrl import ChunkLevelOfflineRL
from chunkrl.cli import main
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.hold_out import held_out_places
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError, OutputFolderError
from chunkrl.evaluation.held_out import JudgedRun, given_held_out
from chunkrl.evaluation.verdict import (
    Judged,
    closeness,
    coverage,
    distances,
    judge,
    judged_starts,
    policy_chunks,
    resampled_medians,
)
from chunkrl.evaluation.verdict_config import VerdictCommand
from chunkrl.progress import silent
from chunkrl.report.numbers import short_names
from chunkrl.report.verdict import verdict


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=15), st.integers(0, 99))
def test_medians_count_every_value_as_often_as_its_episode_was_drawn(values: list[float], seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 3, (4, len(values)))
    counts[:, 0] += 1
    found = resampled_medians(np.array(values), counts)
    for row, median in zip(counts, found, strict=True):
        repeated = np.sort(np.repeat(values, row))
        assert median == repeated[(len(repeated) - 1) // 2]


def test_distances_are_of_real_steps_in_deviations() -> None:
    recorded = np.array([[[1.0, 0.0], [2.0, 0.0]]], np.float32)  # the second value never changes
    chunk = recorded + np.array([[[3.0, 0.0], [100.0, 0.0]]], np.float32)
    mask = np.array([[True, False]])
    assert distances(chunk, recorded, mask).tolist() == [3.0]
    assert distances(chunk, recorded, ~mask).tolist() == [100.0]


@pytest.mark.parametrize(("mode", "num_generators"), [("mode", 0), ("sample", 8), ("best_of_n", 8)])
def test_what_draws_has_noise_of_its_own_at_every_start(
    tmp_path: Path, mode: Any, num_generators: int
) -> None:
    episodes = [episode(8, True, np.random.default_rng(0))] * 8
    data = ChunkCollection([open_chunks(write_dataset(tmp_path / "d", episodes))])
    judged = judged_starts(data, 8, 3)
    asked: list[Any] = []

    def act(observation: Any, generators: Any, mode: str) -> torch.Tensor:
        asked.append((len(generators), mode, {generator.initial_seed() for generator in generators}))
        return torch.zeros(8, 3, 2)

    policy_chunks(SimpleNamespace(act=act), data, judged, mode, 8, 0)  # type: ignore[arg-type]
    ((number, asked_for, seeds),) = asked
    assert (number, asked_for) == (num_generators, mode) and len(seeds) == num_generators


def test_closeness_is_the_mean_over_tasks_of_the_logarithm_of_medians() -> None:
    episode, task = np.repeat(np.arange(16), 3), np.repeat([0, 1], 24)
    first = np.where(task == 0, 1.0, 2.0)
    second = np.where(task == 0, 2.0, 1.0) * math.e
    found, interval = closeness(first, second, episode, task, 200, 0)
    assert found == pytest.approx(1.0)  # the factors 2 and 1 / 2 of the tasks cancel
    assert interval.low == pytest.approx(1.0) and interval.high == pytest.approx(1.0)


def test_the_interval_of_tasks_with_few_episodes_is_over_tasks_too() -> None:
    """The other policy is two or four times as far, by task: with one episode of each, nothing but that is known."""
    factor = np.repeat([2.0, 4.0], 5)  # of ten tasks
    for per_task in (1, 8):
        episode = np.arange(10 * per_task)
        task = episode // per_task
        found, interval = closeness(np.ones(len(task)), factor[task], episode, task, 2000, 0)
        assert found == pytest.approx(math.log(8) / 2)
        # one: means of ten draws of log 2 and log 4, and the ends of a binomial(10, 1/2) are 2 and 8
        low, high = (2, 8) if per_task == 1 else (5, 5)
        ends = (math.log(2) * (1 + number / 10) for number in (low, high))
        assert (interval.low, interval.high) == pytest.approx(tuple(ends))


def judged_of(num_episodes: int, length: int, rng: np.random.Generator) -> tuple[Judged, np.ndarray]:
    """Recorded chunks that the state alone decides, and the states."""
    state = rng.uniform(-1, 1, (num_episodes * length, 1)).astype(np.float32)
    chunk = np.repeat(state[:, None], 2, axis=1)
    number = np.repeat(np.arange(num_episodes), length)
    mask = np.ones(chunk.shape[:2], bool)
    return Judged(np.arange(len(state)), number, 0 * number, chunk, mask, np.ones(1, np.float32)), state


@pytest.mark.parametrize(
    ("noises", "claim"), [((0.1, 0.2), "better"), ((0.2, 0.1), "worse"), ((0.1, 0.1), "cannot tell")]
)
def test_the_nearer_policy_is_better(noises: tuple[float, float], claim: str) -> None:
    rng = np.random.default_rng(0)
    judged, state = judged_of(20, 30, rng)
    found = judge(
        [judged.chunk + rng.normal(0, n, judged.chunk.shape) for n in noises], judged, state, 300, 0
    )
    assert found.claim == claim
    assert found.closer == pytest.approx(math.log(noises[1] / noises[0]), abs=0.1)
    assert bool(found.reason) == (claim == "cannot tell")


def test_a_policy_that_leaves_mistakes_out_is_not_worse() -> None:
    """A third of the successful chunks are detours: who clones them is nearer on average, and not in the median."""
    rng = np.random.default_rng(1)
    judged, state = judged_of(20, 30, rng)
    detour = rng.random(len(state)) < 1 / 3
    recorded = (
        judged.chunk + np.where(detour, 3.0, 0.0)[:, None, None] + rng.normal(0, 0.1, judged.chunk.shape)
    )
    judged = Judged(judged.position, judged.episode, judged.task, recorded, judged.mask, judged.deviation)
    clean, cloned = judged.chunk * 0 + state[:, None], judged.chunk * 0 + state[:, None] + 0.2
    found = judge([clean, cloned], judged, state, 300, 0)
    assert found.claim == "better"
    means = [float((distances(c, judged.chunk, judged.mask) ** 2).mean()) for c in (clean, cloned)]
    assert means[0] > means[1]


def test_a_small_difference_is_no_claim_however_sure() -> None:
    rng = np.random.default_rng(2)
    judged, state = judged_of(40, 50, rng)
    chunks = [judged.chunk + noise for noise in (0.10, 0.105)]
    found = judge(chunks, judged, state, 300, 0)
    assert found.interval.low > 0 and found.claim == "cannot tell" and "below 15%" in found.reason


def test_chunks_that_nobody_recorded_are_not_covered() -> None:
    rng = np.random.default_rng(3)
    judged, state = judged_of(20, 30, rng)
    assert coverage(judged.chunk, judged, state) >= 0.95
    assert coverage(judged.chunk + 1.0, judged, state) == 0.0
    found = judge([judged.chunk, judged.chunk + 1.0], judged, state, 300, 0)
    assert found.claim == "cannot tell" and "0% of the chunks of the other policy" in found.reason


def test_where_coverage_is_not_known_nothing_is_claimed() -> None:
    judged, state = judged_of(12, 30, np.random.default_rng(0))
    alone = replace(judged, task=judged.episode)  # one episode of each task
    assert math.isnan(coverage(judged.chunk, alone, state))
    chunks = [judged.chunk, judged.chunk + 0.1]
    assert judge(chunks, judged, state, 300, 0).claim == "better"
    found = judge(chunks, alone, state, 300, 0)
    assert found.claim == "cannot tell" and "nobody knows whether the data cover" in found.reason


# ---- runs


def learnable(num_episodes: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Every second episode succeeds; there the action is the state, elsewhere its opposite."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_episodes):
        columns = episode(12, number % 2 == 0, rng)
        sign = 1 if number % 2 == 0 else -1
        found.append(columns | {"action": sign * columns["observation.state"][:, :2]})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good` clones the successes, `bad` everything, both with a part held out; `other` is of other data."""
    root = tmp_path_factory.mktemp("verdict")
    data, more = (
        write_dataset(root / name, learnable(60, seed)) for seed, name in enumerate(("data", "more"))
    )
    common: dict[str, Any] = {"num_updates": 60, "lr": 2e-2, "batch_size": 64}
    held: dict[str, Any] = common | {"held_out": 0.5}
    for name, of, objective, changes in (
        ("good", data, "success_cloning", held),
        ("bad", data, "behaviour_cloning", held),
        ("other", more, "behaviour_cloning", held | {"num_updates": 1}),
        ("less", data, "behaviour_cloning", held | {"held_out": 0.2, "num_updates": 1}),
        ("all", data, "behaviour_cloning", common | {"num_updates": 1}),
    ):
        ChunkLevelOfflineRL(**settings(of, root / name, objective=objective, **changes)).train()
    return root


def of(folder: Path, run: str, against: str, **changes: Any) -> VerdictCommand:
    return VerdictCommand(str(folder / run), str(folder / against), num_resamples=200, **changes)


def test_cloning_the_successes_is_better_here(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verdict(of(folder, "good", "bad", output_dir=str(tmp_path / "out")), silent)
    assert found.claim == "better" and 8 <= found.num_episodes <= 22
    shown = capsys.readouterr().out
    assert (
        "good is better than" in shown and f"{found.num_episodes} successful of 30 held-out episodes" in shown
    )
    stored = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert stored["verdict"]["claim"] == "better" and stored["verdict"]["closer"] == found.closer
    assert "better" in (tmp_path / "out" / "verdict.html").read_text()
    assert verdict(of(folder, "bad", "good"), silent).claim == "worse"
    with pytest.raises(ChunkRLError, match="overwrite"):
        verdict(of(folder, "bad", "good", output_dir=str(tmp_path / "out")), silent)


def test_runs_of_one_name_are_told_apart(folder: Path, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        shutil.copytree(folder / name, tmp_path / name / "run")
    assert short_names([tmp_path / "good/run", tmp_path / "bad/run", "x/other"]) == [
        "good/run",
        "bad/run",
        "other",
    ]
    verdict(of(tmp_path, "good/run", "bad/run", output_dir=str(tmp_path / "out")), silent)
    text = Page((tmp_path / "out" / "verdict.html").read_text()).text
    assert "chunkrl verdict: good/run against bad/run" in text
    assert "good/run is nearer by +" in text and "against bad/run" in text
    assert "covered, good/run" in text and "covered, bad/run" in text


def test_episodes_may_be_named(folder: Path) -> None:
    found = verdict(of(folder, "good", "bad", dataset_dir=(str(folder / "more"),)), silent)
    assert found.claim == "better" and found.num_episodes == 30


def test_named_episodes_are_read_as_the_first_run_reads_its_own(tmp_path: Path) -> None:
    """Not by a column that the run was told not to read; what is of its own data alone stays behind."""
    flags = [{"ok": np.full(12, number % 3 == 0)} for number in range(12)]
    roots = [
        write_dataset(
            tmp_path / name,
            [row | more for row, more in zip(learnable(12, seed), flags, strict=True)],
        )
        for seed, name in enumerate(("data", "more"))
    ]
    by_flag: dict[str, Any] = {"objective": "success_cloning", "success": "episode_flag", "success_key": "ok"}
    listed: dict[str, Any] = {"objective": "success_cloning", "success": "episodes", "success_episodes": (1,)}
    for name, rule in (("flag", by_flag), ("list", listed)):
        ChunkLevelOfflineRL(**settings(roots[0], tmp_path / name, **rule)).train()
    flag, by_list = (JudgedRun.read(str(tmp_path / name), "RUN") for name in ("flag", "list"))
    for runs, rule, successes in (
        ((flag, by_list), LabelRule(), [0, 3, 6, 9]),
        ((by_list, flag), LabelRule(), [0, 2, 4, 6, 8, 10]),
        ((flag, by_list), LabelRule(success="all"), list(range(12))),
    ):
        found = given_held_out(runs, [str(roots[1])], rule, silent)
        for data in found.data:
            assert np.flatnonzero(data.datasets[0].frame_labels.success).tolist() == successes


def test_the_command_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verdict", str(folder / "good"), "--against", str(folder / "bad"), "--num-starts", "50"])
    assert "50 starts of" in capsys.readouterr().out


def test_where_nothing_can_be_written_it_is_said_before(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, told in (
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file" / "below", "cannot make .*file/below: Not a directory"),
        (folder / "good", "holds a training run .*would mix its own files"),
    ):
        with pytest.raises(OutputFolderError, match=told):
            verdict(of(folder, "good", "bad", output_dir=str(place)), silent)


@pytest.mark.parametrize(
    ("run", "against", "changes", "told"),
    [
        ("good", "all", {}, r"all was trained on all of its episodes: name others with --dataset-dir"),
        ("good", "other", {}, r"good was trained on .*/data, and .*/other on other data \(.*/more\)"),
        ("good", "less", {}, r"held other episodes out \(--held-out 0.5 and 0.2\)"),
        ("good", "other", {"dataset_dir": ("more",)}, r"other was trained on 30 of 60 episodes of .*/more"),
        ("good", "good", {}, "name two runs"),
        ("good", "nothing", {}, "is no run's folder: name the --output-dir"),
        ("good/policy", "bad", {}, "good/policy is no run's folder: its run is .*good"),
    ],
)
def test_what_cannot_be_compared_is_said(
    folder: Path, run: str, against: str, changes: dict[str, Any], told: str
) -> None:
    changes = {name: tuple(str(folder / path) for path in paths) for name, paths in changes.items()}
    with pytest.raises(ChunkRLError, match=told):
        verdict(of(folder, run, against, **changes), silent)


def test_too_few_successes_are_no_evidence(folder: Path, tmp_path: Path) -> None:
    few = write_dataset(tmp_path / "few", random_episodes(10))
    with pytest.raises(ChunkRLError, match="5 of the 10 held-out episodes succeeded, and a verdict needs 8"):
        verdict(of(folder, "good", "bad", dataset_dir=(str(few),)), silent)


def test_a_run_whose_data_are_gone_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "good", tmp_path / "moved")
    config = json.loads((tmp_path / "moved" / "config.json").read_text())
    config["dataset_dir"] = str(tmp_path / "gone")
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config))
    command = VerdictCommand(
        str(tmp_path / "moved"), str(folder / "bad"), (str(folder / "more"),), num_resamples=200
    )
    assert verdict(command, silent).claim == "better"  # the run itself says what it was trained on
    (tmp_path / "moved" / "trained_on.json").unlink()
    with pytest.raises(ChunkRLError, match="nothing tells whether it has seen these episodes"):
        verdict(command, silent)


def test_what_a_run_was_trained_on_is_known_wherever_it_stands(tmp_path: Path) -> None:
    """An episode is taken out in front, as LeRobot does it: all others are numbered again, and those that are held
    out by their number now were trained on."""
    rng = np.random.default_rng(0)
    episodes, more = ([episode(6, True, rng) for _ in range(num)] for num in (20, 4))
    data, runs = tmp_path / "data", [tmp_path / name for name in ("new", "old")]
    write_dataset(data, episodes)
    for run, objective in zip(runs, ("success_cloning", "behaviour_cloning"), strict=True):
        ChunkLevelOfflineRL(
            **settings(data, run, objective=objective, num_updates=1, held_out=0.5, batch_size=64)
        ).train()
    command = VerdictCommand(str(runs[0]), str(runs[1]), num_resamples=200)
    before = verdict(command, silent)
    shutil.rmtree(data)
    write_dataset(data, [*episodes, *more])  # it grew: those that are held out stay so
    grown = verdict(command, silent)
    assert grown.num_episodes > before.num_episodes
    shutil.rmtree(data)
    write_dataset(data, episodes[1:])
    held = len(held_out_places(19, 0.5))
    seen = len({*held_out_places(19, 0.5) + 1} - {*held_out_places(20, 0.5)})
    with pytest.raises(
        ChunkRLError, match=f"new was trained on {seen} of {held} episodes of .*they stood elsewhere"
    ):
        verdict(command, silent)


def test_what_a_run_began_with_is_asked_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder / "data"
    for name, init in (("first", "all/policy"), ("second", "all"), ("third", "good/policy")):
        given = {"num_updates": 1, "held_out": 0.5, "batch_size": 64, "init": str(folder / init)}
        ChunkLevelOfflineRL(**settings(data, tmp_path / name, objective="behaviour_cloning", **given)).train()
    runs = {name: str(tmp_path / name) for name in ("first", "second", "third")}
    with pytest.raises(
        ChunkRLError, match=r"first began with .*/all, which was trained on 30 of these 30 episodes"
    ):
        verdict(VerdictCommand(runs["first"], str(folder / "bad")), silent)
    capsys.readouterr()
    verdict(VerdictCommand(runs["first"], runs["second"], num_resamples=100), silent)
    assert f"note: Both runs began with {folder / 'all'}" in capsys.readouterr().out
    verdict(VerdictCommand(runs["third"], str(folder / "bad"), num_resamples=100), silent)
    assert "note:" not in capsys.readouterr().out  # that run held the same episodes out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mode": "best_of_n"}, "no policy's own chunk"),
        ({"num_starts": 0}, "at least 1"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ChunkRLError, match=told):
        VerdictCommand("a", "b", **changes)


def test_starts_of_a_few_episodes_are_no_evidence(folder: Path) -> None:
    with pytest.raises(ChunkRLError, match="--num-starts 7 are of 7 episodes, and a verdict needs 8"):
        verdict(of(folder, "good", "bad", num_starts=7), silent)


def test_starts_are_of_successes_and_evenly_spaced(folder: Path) -> None:
    data = ChunkCollection([open_chunks(folder / "data")])
    judged = judged_starts(data, 60, 2)
    assert len(judged.position) == 60 and data.success[judged.position].all()
    assert judged.num_episodes == 30 and np.bincount(judged.episode)[::2].tolist() == [2] * 30
    actions = data.datasets[0].table.action
    last = judged.position[~judged.mask[:, 1]]
    assert (data.frame_labels.terminated[last]).all()  # a chunk ends where its episode does
    np.testing.assert_allclose(judged.chunk[:, 0] * judged.deviation, actions[judged.position], rtol=1e-6)
