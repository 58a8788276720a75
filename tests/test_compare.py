"""`chunkrl compare`: closed-form comparisons, and evaluations that cannot be compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluations import SETTINGS, evaluation
from pages import Page

from chunkrl.cli import main
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation import aggregates
from chunkrl.evaluation.compare import group
from chunkrl.evaluation.evaluation_result import write_evaluation
from chunkrl.install import MissingExtraError

NEW = ((1, 1, 1, 1, 1, 1), (1, 0, 1, 0, 1, 1))
OLD = ((0, 0, 0, 0, 0, 1), (1, 0, 0, 0, 1, 1))


def folder(root: Path, name: str, *rows: tuple[int, ...], **changes) -> str:
    write_evaluation(root / name, evaluation(*rows, settings=replace(SETTINGS, **changes)))
    return str(root / name)


def test_two_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = folder(tmp_path, "new", *NEW), folder(tmp_path, "old", *OLD, fingerprint="g", mode="sample")
    main(["compare", f"better={new}", old, "--output-dir", str(tmp_path / "c")])
    shown = capsys.readouterr().out
    assert "McNemar p = 0.0625 (5 : 0)" in shown  # 2 / 32
    assert "McNemar p = 0.0312 (6 : 0)" in shown  # over both tasks: 2 / 64
    assert re.search(r"mean over tasks +better +0.83 +\[0.55, 0.95\]", shown)
    assert re.search(
        r"push-v3 +better .*\] +11 \[11, 11\] +90.9 \[90.9, 90.9\]\n", shown
    )  # successes have 11 steps, failures 10
    assert "+83.3" in shown and "+16.7" in shown
    thin = f"push-v3 ({old}: 5 of 6), reach-v3 ({old}: 1 of 6). Go by McNemar's p"  # of 6 : 0 the test can decide
    assert thin in shown
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert found["tasks"]["push-v3"]["difference"] == {old: pytest.approx(5 / 6)}
    assert found["mean_over_tasks"]["difference"] == {old: pytest.approx(0.5)}
    assert (found["mean_over_tasks"]["p_value"], found["mean_over_tasks"]["only_a"]) == (
        {old: 2 / 64},
        {old: 6},
    )
    assert found["mean_over_tasks"]["arms"][old]["success"] == pytest.approx(4 / 12)
    assert found["mean_over_tasks"]["arms"][old]["successes_per_1000_steps"] == 4000 / 124
    # reach-v3: of both 11 and 10 steps, 4 and 3 of 6 solved; no control rate is noted in these results
    speed = found["tasks"]["reach-v3"]["speed"][old]
    assert speed["per_1000_steps"]["difference"] == pytest.approx(4000 / 64 - 3000 / 63)
    assert speed["steps_where_both"] == {"difference": 0.0, "interval": [0.0, 0.0]}
    assert speed["per_hour"] is None and "successes per hour" not in shown
    assert found["exec_steps"] == 2 and "aggregates" not in found
    page = Page((tmp_path / "c" / "comparison.html").read_text())
    assert thin in page.text
    assert "+50 points better over" in page.text and "2 actions of each chunk" in page.text
    assert f"chunk chosen by better: mode, {old}: sample" in page.text


def test_several_training_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = [folder(tmp_path, f"new{i}", *NEW, fingerprint=f"n{i}") for i in range(3)]
    old = [folder(tmp_path, f"old{i}", *OLD, fingerprint=f"o{i}") for i in range(3)]
    named = [f"{name}={path}" for name, paths in (("new", new), ("old", old)) for path in paths]
    main(["compare", *named, "--no-aggregates", "--output-dir", str(tmp_path / "c")])
    shown = capsys.readouterr().out
    assert "McNemar" not in shown  # a test of two policies, not of two methods
    assert "Few states" not in shown
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    arm = found["tasks"]["reach-v3"]["arms"]["new"]
    assert (arm["success"], arm["num_episodes"], arm["seed"]) == (pytest.approx(4 / 6), 18, None)
    assert found["mean_over_tasks"]["arms"]["new"]["num_episodes"] == 36
    assert found["mean_over_tasks"]["p_value"] == {"old": None}
    assert "3 seeds" in Page((tmp_path / "c" / "comparison.html").read_text()).text


def test_other_devices_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = (
        folder(tmp_path, name, *NEW, device=d, fingerprint=d) for name, d in (("n", "cuda"), ("o", "cpu"))
    )
    main(["compare", f"new={new}", f"old={old}", "--output-dir", str(tmp_path / "c")])
    told = "new: cuda, old: cpu"
    assert told in capsys.readouterr().out
    assert f"device {told}" in Page((tmp_path / "c" / "comparison.html").read_text()).text
    content = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert content["evaluations"]["new"][0]["device"] == "cuda"


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    new = folder(tmp_path, "new", *NEW)
    for name, changes, message in (
        ("steps", {"exec_steps": 1}, "exec_steps 2 and 1"),
        ("tasks", {"envs": ("push-v3", "drawer-open-v3")}, "envs"),
        ("seed", {"seed": 5}, "seed 0 and 5"),
        ("limit", {"max_steps": (99, 99)}, "max_steps"),
    ):
        with pytest.raises(ChunkRLError, match=rf"cannot be compared: .*{message}.*same tasks"):
            group([new, folder(tmp_path, name, *OLD, **changes)])
    old = folder(tmp_path, "old", *OLD)
    seen = folder(tmp_path, "seen", *OLD, camera_size=64, assets="a1")
    others = folder(tmp_path, "others", *OLD, camera_size=64, assets="b2")
    told = r"seen \(assets a1\) and .*others \(assets b2\) cannot be compared: .*LIBERO_ASSETS"
    with pytest.raises(ChunkRLError, match=told):
        group([new, seen, others])
    older = folder(tmp_path, "older", *OLD, camera_size=64)
    with pytest.raises(ChunkRLError, match=r"is not known. Evaluate .*older \(assets not recorded\) again"):
        group([new, seen, older])
    egl = folder(tmp_path, "egl", *OLD, camera_size=64, assets="a1", opengl="egl")
    osmesa = folder(tmp_path, "osmesa", *OLD, camera_size=64, assets="a1", opengl="osmesa")
    told = r"egl \(opengl egl\) and .*osmesa \(opengl osmesa\) cannot be compared: .*same MUJOCO_GL"
    with pytest.raises(ChunkRLError, match=told):
        group([new, egl, osmesa])
    with pytest.raises(ChunkRLError, match=r"is not known. Evaluate .*seen \(opengl not recorded\) again"):
        group([seen, egl])
    blind = folder(tmp_path, "blind", *OLD, assets="b2")
    assert len(group([seen, blind])) == 2  # on states alone
    with pytest.raises(ChunkRLError, match="at least two methods"):
        group([new])
    other = folder(tmp_path, "other", *NEW, fingerprint="g")
    with pytest.raises(ChunkRLError, match="as many training seeds"):
        group([f"a={new}", f"a={other}", f"b={old}"])
    for again in (f"a={new}/", f"a={new}", f"b={new}"):  # an evaluation counted twice is no second seed
        with pytest.raises(
            ChunkRLError, match=r"a=.*new and .*new/? are the same evaluation: give each folder once"
        ):
            group([f"a={new}", again, f"b={old}"])
    told = r"a=.*new and a=.*copy are the same policy \(fingerprint f\), which is one training seed of a, not two"
    with pytest.raises(ChunkRLError, match=told):
        group([f"a={new}", f"a={folder(tmp_path, 'copy', *NEW)}", f"b={old}"])
    sampled = folder(tmp_path, "sampled", *OLD, mode="sample")
    assert len(group([new, sampled])) == 2  # one policy, asked in two ways
    with pytest.raises(ChunkRLError, match=r"does not exist.*resume one"):
        group([new, str(tmp_path / "nothing")])


def test_aggregates_need_their_extra_and_two_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"a": np.ones((2, 3)), "b": np.zeros((2, 3))}
    monkeypatch.setitem(__import__("sys").modules, "rliable", None)
    with pytest.raises(MissingExtraError, match=r"\[evaluation\]"):
        aggregates.aggregate(scores, "a")
    with pytest.raises(ChunkRLError, match="at least two seeds"):
        aggregates.aggregate({"a": np.ones((1, 3))}, "a")


def test_aggregates_in_closed_form() -> None:
    pytest.importorskip("rliable", reason="needs the extra chunkrl[evaluation]")
    # of 8 numbers the interquartile mean leaves out two at each end
    scores = {
        "a": np.array([[0.0, 0.5], [0.2, 0.6], [0.4, 0.7], [0.3, 1.0]]),
        "b": np.array([[0.1, 0.5], [0.1, 0.5], [0.1, 0.5], [0.1, 0.5]]),
    }
    found = aggregates.aggregate(scores, "a", num_resamples=100)
    a, b = found.methods["a"], found.methods["b"]
    assert a.mean.value == pytest.approx(3.7 / 8)
    assert a.iqm.value == pytest.approx((0.3 + 0.4 + 0.5 + 0.6) / 4)
    assert a.optimality_gap.value == pytest.approx(1 - 3.7 / 8)
    assert (b.mean.interval.low, b.mean.interval.high) == (
        pytest.approx(0.3),
        pytest.approx(0.3),
    )  # seeds agree
    # wins of a on the first task: 3 of 4; on the second 3 of 4 and a tie, which counts half
    assert found.improvement["b"].value == pytest.approx((0.75 + 0.875) / 2)
    assert a.mean.interval.low < a.mean.value < a.mean.interval.high
    assert found == aggregates.aggregate(scores, "a", num_resamples=100)
