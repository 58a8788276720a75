"""Results files of benchmarks are where a fresh clone goes on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.iterate import SUITES, IterateBenchmark, Part, _settings, is_done, keep, known_record
from benchmarks.iterate_tables import packed, unpacked
from benchmarks.kept import check_settings
from benchmarks.libero_records import Finished, Records
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.demo.arms import CHUNK_RL, SUCCESS_BC
from chunkrl.demo.workers import in_processes
from chunkrl.errors import ChunkRLError

DATA = {"sha256": "a" * 64, "frames": 10}
OUTCOMES = {"libero_spatial/0": [(True, 80), (False, 220)], "libero_spatial/5": [(False, 220), (True, 90)]}
SETTINGS = {"lr": 1e-3, "recipe": {"tasks": ["libero_spatial"]}}
ARMS = (CHUNK_RL, SUCCESS_BC)


def written(path: Path) -> Records:
    records = Records(path, "state", SETTINGS, ARMS)
    records.add(0, "chunk_rl", Finished(DATA, OUTCOMES))
    records.save({"mean": 0.5})
    return records


def test_libero_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "libero.json"
    path.write_text(json.dumps({"images": {"mean": 0.1}}))
    written(path)
    found = Records(path, "state", SETTINGS, ARMS)
    first = found.get(0, "chunk_rl")
    assert first == Finished(DATA, OUTCOMES)
    assert found.get(1, "chunk_rl") is None and found.get(0, "success_cloning") is None
    assert first is not None and first.covers(list(OUTCOMES), 2) and not first.covers(list(OUTCOMES), 3)
    assert not first.covers(["libero_spatial/1"], 1)
    found.add(0, "success_cloning", Finished(DATA, OUTCOMES))
    found.save({"mean": 0.6})
    whole = json.loads(path.read_text())
    assert whole["images"] == {"mean": 0.1} and whole["state"]["mean"] == 0.6
    assert [record["arm"] for record in whole["state"]["records"]] == ["chunk_rl", "success_cloning"]
    assert whole["state"]["records"][0]["success"]["libero_spatial/0"] == "10"


def test_libero_records_of_other_settings_arms_or_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "libero.json"
    kept = written(path)
    with pytest.raises(ChunkRLError, match=r"chunk_rl, seed 0, .*other settings \(lr\)"):
        Records(path, "state", SETTINGS | {"lr": 1e-4}, ARMS)
    changed = replace(CHUNK_RL, balance=BalanceConfig(time_bins=4))
    with pytest.raises(ChunkRLError, match=r"other settings \(balance.time_bins\)"):
        Records(path, "state", SETTINGS, (changed,))
    with pytest.raises(ChunkRLError, match=r"other settings \(arm\)"):
        Records(path, "state", SETTINGS, (SUCCESS_BC,))
    with pytest.raises(ChunkRLError, match="success_cloning has learned from other data than chunk_rl"):
        kept.add(0, "success_cloning", Finished(DATA | {"sha256": "b" * 64}, OUTCOMES))
    kept.add(1, "success_cloning", Finished(DATA | {"sha256": "b" * 64}, OUTCOMES))


def iterate_record(seed: int, success: int) -> dict[str, Any]:
    rounds = [
        {
            "round": number,
            "rollouts": None,
            "outcomes": {"push-v3": {"success": [success, 1], "steps": [70 + number, 150]}},
        }
        for number in range(2)
    ]
    return {
        "seed": seed,
        "cpu_seconds": 1.0,
        "notes": [],
        "arms": {"default": {"rounds": rounds, "chosen": 1}},
    }


def test_iterate_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    config = IterateBenchmark(
        arms=("default",), results=str(tmp_path / "iterate.json"), output_dir=str(tmp_path / "runs")
    )
    first, second = iterate_record(0, 1), iterate_record(1, 0)
    assert unpacked(json.loads(json.dumps(packed(first)))) == first
    parts = [Part(config, "metaworld", seed) for seed in range(3)]
    for part, record in zip(parts, (first, second), strict=False):
        part.record.parent.mkdir(parents=True)
        part.record.write_text(json.dumps(record))
        keep(config, "metaworld", [part, parts[2]])  # the third is not made
        part.record.unlink()
    assert [known_record(part) for part in parts] == [first, second, None]
    assert [is_done(part) for part in parts] == [True, True, False]
    both = replace(config, arms=("default", "success_cloning"))
    assert not is_done(Part(both, "metaworld", 0))


def test_iterate_records_of_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IterateBenchmark(
        arms=("default",), results=str(tmp_path / "iterate.json"), output_dir=str(tmp_path / "runs")
    )
    part = Part(config, "metaworld", 0)
    part.record.parent.mkdir(parents=True)
    part.record.write_text(json.dumps(iterate_record(0, 1)))
    keep(config, "metaworld", [part])
    part.record.unlink()
    assert _settings("metaworld")["suite"]["num_rollouts"] == 150
    monkeypatch.setitem(SUITES, "metaworld", replace(SUITES["metaworld"], num_rollouts=20))
    with pytest.raises(ChunkRLError, match=r"seed 0, .*other settings \(suite\)"):
        known_record(part)


def test_what_is_kept_of_other_settings_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    check_settings(folder, {"seeds": (0, 1), "lr": 1e-3}, "*.done")
    (folder / "data.done").write_text("{}")
    check_settings(folder, {"seeds": [0, 1], "lr": 1e-3}, "*.done")
    with pytest.raises(ChunkRLError, match=r"other settings \(gamma None, now 0.9, lr 0.001, now 0.0001\)"):
        check_settings(folder, {"seeds": (0, 1), "lr": 1e-4, "gamma": 0.9}, "*.done")
    (folder / "settings.json").unlink()
    with pytest.raises(ChunkRLError, match="does not say how"):
        check_settings(folder, {"lr": 1e-3}, "*.done")


def cell(folder: Path, number: int) -> int:
    if number == 1:
        raise ValueError("no data")
    (folder / str(number)).touch()
    return 10 * number


def test_a_job_that_fails_is_told_and_the_rest_do_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [(f"seed {number}", (tmp_path, number)) for number in range(6)]
    found = []
    with pytest.raises(ValueError, match="no data"):
        found.extend(in_processes(cell, jobs, num_workers=1))
    assert "seed 1 failed (ValueError: no data): those taken up" in capsys.readouterr().err
    assert not (tmp_path / "5").exists() and (tmp_path / "0").exists()
    assert dict(in_processes(cell, jobs[2:4], num_workers=2)) == {"seed 2": 20, "seed 3": 30}
