"""A few damaged folders of every sort, and that the harness itself sees every fault."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from chunkrl.data.frames import FrameTable
from chunkrl.errors import DatasetError

from . import campaign, data_probes
from .campaign import Tried, table, try_all, variants
from .damage import KINDS, damage, sorts_for, state_of
from .data_folders import write_data_folder
from .outcomes import Found, Outcome, difference
from .run_folders import write_evaluation_folder
from .workers import run_jobs

LIMIT_S = 120.0  # of a variant that takes less than one: for a machine that is busy
FOLDERS = ("v2.1-video", "v3.0-png", "v3.0-state", "iql", "evaluation", "pi05", "lerobot")


def test_a_few_of_every_sort(tmp_path: Path) -> None:
    jobs = [variant for variant in variants(7, 200) if variant.folder in FOLDERS][:25]
    tried = list(try_all(jobs, 1, LIMIT_S, tmp_path))
    faults = [(one.variant.number, one.damage, one.found) for one in tried if one.found.outcome.is_fault]
    assert len(tried) == 25 and not faults
    assert {one.found.outcome for one in tried} >= {Outcome.RIGHT, Outcome.REFUSED, Outcome.LISTED}


def test_variants_are_functions_of_their_seed(tmp_path: Path) -> None:
    whole = write_data_folder("v3.0-state", tmp_path / "whole")
    found = []
    for name in ("a", "b"):
        write_data_folder("v3.0-state", tmp_path / name)
        found.append(damage(tmp_path / name, "json/another number", random.Random(3), state_of(whole)))
    assert found[0] is not None and found[0] == found[1]
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b") != state_of(whole)
    assert list(variants(0, 20)) == list(variants(0, 30))[:20] != list(variants(1, 20))


def test_every_kind_finds_something_to_damage(tmp_path: Path) -> None:
    wholes = [write_data_folder(name, tmp_path / name) for name in ("v2.1-video", "v3.0-png", "v3.0-video")]
    wholes += [write_evaluation_folder("evaluation", tmp_path / "evaluation")]
    wholes += [tmp_path / "tensors"]
    wholes[-1].mkdir()
    save_file({"a": torch.ones(2, 3), "b": torch.arange(6.0).reshape(2, 3)}, wholes[-1] / "x.safetensors")
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"key": "{}"}), wholes[-1] / "x.parquet")
    copies = [shutil.copytree(whole, whole.with_name(f"{whole.name}-copy")) for whole in wholes]
    states, sorts = [state_of(whole) for whole in wholes], [sorts_for(whole) for whole in wholes]
    for kind in KINDS:
        for seed, place in itertools.product(range(30), range(len(wholes))):
            if kind.split("/")[0] not in sorts[place]:
                continue
            if damage(copies[place], kind, random.Random(seed), states[place]):
                shutil.rmtree(copies[place])
                shutil.copytree(wholes[place], copies[place])
                break
        else:
            pytest.fail(f"{kind} damages nothing")


def _job(what: str, folder: Path, note: Any) -> str:
    note(f"begun: {what}")
    if what == "hangs":
        time.sleep(3600)
    elif what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "faults":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "takes all memory":
        return str(len(bytearray(2**40)))
    assert not list(folder.iterdir())
    (folder / "left behind").touch()
    return what


def test_jobs_that_hang_or_die_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = ["one", "hangs", "two", "dies", "three", "takes all memory", "faults", "four"]
    answers = {a.job: a for a in run_jobs(_job, jobs, 2, 1.5, tmp_path)}
    assert {a.value for a in answers.values() if a.value} == {"one", "two", "three", "four"}
    assert answers["hangs"].died == "hang" and answers["hangs"].note == "begun: hangs"
    assert (
        answers["faults"].died.startswith("ended with -11\nFatal Python error")
        and "_job" in answers["faults"].died
    )
    assert answers["dies"].died == "ended with -9" and "MemoryError" in answers["takes all memory"].died


def test_faults_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_data_folder("v2.1-state", tmp_path / "d")
    (tmp_path / "scratch").mkdir()
    truth = data_probes.truth("v2.1-state", root, tmp_path / "scratch")

    def judged(number: int) -> Found:
        return data_probes.judge(root, truth, tmp_path / str(number))

    assert judged(0) == Found(Outcome.RIGHT, "")
    with monkeypatch.context() as patch:
        patch.setattr(FrameTable, "task_text", lambda self, row: "another task")
        assert judged(1).outcome is Outcome.SILENT  # the plain reader says otherwise
    for number, (message, outcome) in enumerate(
        ((f"{root}/meta: no", Outcome.UNLISTED), ("no", Outcome.UNCLEAR)), start=2
    ):

        def refuse(*_: Any, message: str = message) -> None:
            raise DatasetError(message)

        with monkeypatch.context() as patch:
            patch.setattr(data_probes, "read", refuse)
            assert judged(number).outcome is outcome


def test_differences_are_exact() -> None:
    one = {"a": [np.array([1.0, np.nan])], "b": 1}
    assert difference(one, {"a": [np.array([1.0, np.nan])], "b": 1}) is None
    for other in (
        {"a": [np.array([1.0, 2.0])], "b": 1},
        {"a": [np.array([1.0, np.nan], np.float32)], "b": 1},
        {"a": [], "b": 1},
        {"a": [np.array([1.0, np.nan])], "c": 1},
        {"a": [np.array([1.0, np.nan])], "b": 2},
    ):
        assert difference(one, other) is not None


def test_the_table_counts_every_variant() -> None:
    [variant] = variants(0, 1)
    tried = [
        Tried(variant, campaign.Damage("bytes/empty", "x", "empty"), Found(outcome))
        for outcome in (Outcome.RIGHT, Outcome.RIGHT, Outcome.SILENT)
    ]
    assert table(tried).splitlines()[-1].replace(" ", "") == "|**all**|3|2|0|0|0|0|0|0|0|1|"
