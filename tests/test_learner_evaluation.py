"""Snapshots that a learner evaluates alongside training; the evaluation itself is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from waiting import until

from chunkrl.online.learner import evaluation as learner_evaluation
from chunkrl.online.learner.config import OnlineEvaluation
from chunkrl.online.learner.evaluation import FOLDER, RESULTS, Evaluations, read_results

STAND_IN = """#!/bin/sh
for i in $(seq 3000); do [ -e {gate} ] && break; sleep 0.02; done
mkdir -p $4/policy $4/result
echo '{{"success": 0.5, "interval": [0.2, 0.8], "num_episodes": 4, '\
'"median_steps_to_success": null, "successes_per_1000_steps": 2.5}}' > $4/result/result.json
"""


def test_snapshots_wait_on_the_disk_and_outlive_the_learner(tmp_path: Path, monkeypatch) -> None:
    gate, program = tmp_path / "gate", tmp_path / "program"
    program.write_text(STAND_IN.format(gate=gate))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(learner_evaluation, "RESULT_FILE", "result.json")
    config = OnlineEvaluation(env=("push-v3",), every_updates=10)
    run = tmp_path / "run"

    first = Evaluations(config, run, tmp_path / "policy", "cpu")
    for update in (0, 10, 20):
        assert first.is_due(update, 5 * update)
        first.begin(update, 5 * update, {"w": torch.full((3,), float(update))})
        assert not first.is_due(update + 9, 5 * update)
    until(lambda: len(list((run / FOLDER).glob("*/parameters.safetensors"))) == 3)
    first.close(finish=False)  # one of them was under way
    assert read_results(run) == []

    (run / FOLDER / RESULTS).write_text('{"name": "cut o')
    gate.touch()
    second = Evaluations(config, run, tmp_path / "policy", "cpu")
    assert second.num_waiting == 3 and second.last is None
    second.close(finish=True)
    assert [(line["update"], line["num_steps"]) for line in read_results(run)] == [
        (0, 0),
        (10, 50),
        (20, 100),
    ]
    assert second.metrics() == {
        "online/evaluation_success": 0.5,
        "online/evaluation_update": 20.0,
        "online/evaluation_steps": 100.0,
        "online/evaluation_successes_per_1000_steps": 2.5,
    }
    third = Evaluations(config, run, tmp_path / "policy", "cpu")
    assert (third.last, third.num_waiting) == (0.5, 0)
    third.close(finish=True)
    left = {path.name for path in (run / FOLDER).glob("*/*")}
    assert left == {"job.json", "log.txt", "result"}
