"""The tiny pi0.5 benchmark goes on from what is there: in its output folder, or in results that were committed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pi_tiny import tiny_policy, tiny_recipe

from benchmarks.pi_arms import ARMS, CANDIDATES, HIGH, LOW, by_question
from benchmarks.pi_metaworld import BenchmarkConfig, Cell, _record_path, _settings, cells, known_records
from benchmarks.pi_tables import ALL, markdown, summarize
from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.actor import PiActor

ASKED = by_question(ARMS)


def record(config: BenchmarkConfig, cell: Cell, name: str, success: str) -> dict[str, Any]:
    return {
        "mixture": cell.mixture,
        "seed": cell.seed,
        "name": name,
        "settings": _settings(config, cell, ASKED[name]),
        "dataset": {"sha256": "0"},
        "success": {"sample": success, "mode": success},
        "num_steps": {mode: [50] * len(success) for mode in ("sample", "mode")},
    }


def test_names_are_of_their_own_arm() -> None:
    """One name begins with another."""
    assert ASKED["weighted, drawn by weight"].draw == "weight" and ASKED["weighted"].draw == "uniform"
    assert len(ASKED) == 1 + sum(len(arm.asked) for arm in ARMS.values())


def test_every_arm_may_be_asked_as_it_says() -> None:
    for arm in (ARMS | CANDIDATES).values():
        settings = tiny_recipe("pi05").settings
        if "condition" in arm.objective:
            settings = replace(settings, condition=HIGH, conditions=(LOW, HIGH))
        for condition, guidance, away in arm.asked.values():
            recipe = replace(tiny_recipe("pi05"), settings=replace(settings, guidance_from=away))
            assert PiActor(tiny_policy("pi05", recipe), 2, condition, guidance).condition == condition


def test_a_fresh_clone_goes_on_from_committed_results(tmp_path: Path) -> None:
    config = BenchmarkConfig(
        output_dir=str(tmp_path / "runs"), results=str(tmp_path / "results.json"), seeds=(0, 1), num_eval=4
    )
    names = list(ASKED)
    for cell in cells(config):
        for name, success in (("success_cloning", "1100"), ("weighted", "1110")):
            path = _record_path(config, cell, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record(config, cell, name, success)))
    found = known_records(config)
    assert len(found) == 8
    summary = summarize(config, list(found.values()), names)
    assert summary["success"]["within"]["sample"] == {"success_cloning": [0.5, 0.5], "weighted": [0.75, 0.75]}
    assert summary["differences"][ALL]["weighted"]["success_cloning"][0] == pytest.approx(0.25)
    assert "| weighted | **0.750** | 0.75 0.75 |" in markdown(summary)
    Path(config.results).write_text(json.dumps(summary))
    elsewhere = BenchmarkConfig(
        output_dir=str(tmp_path / "none"), results=config.results, seeds=(0, 1), num_eval=4
    )
    assert known_records(elsewhere) == found
    with pytest.raises(ChunkRLError, match=r"other settings \(updates"):
        known_records(BenchmarkConfig(results=config.results, output_dir="none", num_eval=4, updates=7))
