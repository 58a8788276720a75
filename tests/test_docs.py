"""What the documents name is there: flags of the commands, and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chunkrl.cli import main

ROOT = Path(__file__).parent.parent
FLAG = r"--[a-z0-9][a-z0-9.-]*[a-z0-9](?![a-z0-9-]|\.[*a-z0-9])"  # and no group of flags, as --fit.*


def flags(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """All flags of a command's help, without those that turn one off."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([command, "--help"])
    found = set(re.findall(rf"^[│ ]*({FLAG})(?=[ ,\n])", capsys.readouterr().out, re.MULTILINE))
    return found - {"--help"}


def test_every_setting_of_training_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    shown = flags("train", capsys)
    assert len(shown) > 100
    text = (ROOT / "HYPERPARAMETERS.md").read_text()
    explained = set(re.findall(rf"`({FLAG})", text))
    assert shown <= explained
    assert explained - shown <= {"--config"}


def test_flags_of_the_guide_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = {flag for command in ("train", "evaluate", "collect") for flag in flags(command, capsys)}
    text = (ROOT / "docs" / "training.md").read_text()
    named = set(re.findall(rf"(?<![\w-])({FLAG})", text))
    torchruns = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}
    assert named - known <= {"--config", "--horizon", *torchruns}  # --horizon: of chunkrl.models.pi.tiny


def test_flags_of_the_evaluation_guide_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = {flag for command in ("evaluate", "compare") for flag in flags(command, capsys)}
    text = (ROOT / "docs" / "evaluation.md").read_text()
    named = set(re.findall(rf"(?<![\w-])({FLAG})", text))
    benchmarks = {"--tasks"}
    assert named - known <= {"--no-aggregates", *benchmarks}


def test_tests_that_the_guide_names_exist() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert len(named) > 25
    for module, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text(), (module, test)
    for module in re.findall(r"`(test_\w+)`", text):
        assert (ROOT / "tests" / f"{module}.py").is_file()
