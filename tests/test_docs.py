"""What the documents name is there: flags of the commands, and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chunkrl.cli import COMMANDS
from chunkrl.settings import Settings

ROOT = Path(__file__).parent.parent
FLAG = r"--[a-z0-9][a-z0-9.-]*[a-z0-9](?![a-z0-9_-]|\.[*a-z0-9])"  # and no group of flags, as --fit.*


def flags(command: str) -> set[str]:
    """All flags of a command, without those that turn one off."""
    return {setting.flag for setting in Settings(COMMANDS[command].options_class()()).all if setting.flag}


def test_every_setting_of_training_is_explained() -> None:
    shown = flags("train")
    assert len(shown) > 100
    text = (ROOT / "HYPERPARAMETERS.md").read_text()
    explained = set(re.findall(rf"`({FLAG})", text))
    assert shown <= explained
    spellings = {"--frames.resize", "--flag", "--no-flag", "--network.no-layer-norm"}
    assert explained - shown <= {"--config", "--help-all", *spellings}


TORCHRUN = ("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint")


# LeRobot's own
LEROBOT = (
    "--strategy.type",
    "--dataset.episodes",
    "--dataset.root",
    "--env.type",
    "--inference.type",
    "--robot.type",
)
LEROBOT += (
    "--policy.condition",
    "--policy.guidance",
    "--policy.guidance_from",
    "--policy.path",
    "--policy.type",
)
LIBERO_BENCHMARKS = ("--suites", "--num-states", "--datasets")


@pytest.mark.parametrize(
    ("guide", "commands", "others"),
    [
        # --horizon: of chunkrl.models.pi.tiny
        (
            "training",
            ("train", "evaluate", "collect", "manifest", "label", "report"),
            ("--config", "--horizon", *TORCHRUN),
        ),
        # --tasks: of the benchmark
        ("evaluation", ("evaluate", "compare", "verdict", "train", "trial"), ("--no-aggregates", "--tasks")),
        (
            "libero",
            ("collect", "label", "train", "evaluate"),
            ("--constraint", "--horizon", "--export", *LIBERO_BENCHMARKS),
        ),
        (
            "deploy",
            ("serve", "evaluate", "train", "export-values", "convert", "push", "pull", "download"),
            (
                *("--config", "--no-together", "--address", "--token-file", "--tls-certificate", "--tls-key"),
                *LEROBOT,
            ),
        ),
        (
            "iterate",
            ("iterate", "collect", "train", "label"),
            ("--config", "--export", "--stop.no-at-full-success"),
        ),
        ("improve", ("improve", "train"), ("--config",)),
    ],
)
def test_flags_of_the_guides_exist(guide: str, commands: tuple[str, ...], others: tuple[str, ...]) -> None:
    known = {flag for command in commands for flag in flags(command)}
    text = (ROOT / "docs" / f"{guide}.md").read_text()
    named = set(re.findall(rf"(?<![\w-])({FLAG})", text))
    assert named - known <= {"--help", "--help-all", *others}


def test_tests_that_the_guide_names_exist() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert len(named) > 25
    for module, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text(), (module, test)
    for module in re.findall(r"`(test_\w+)`", text):
        assert (ROOT / "tests" / f"{module}.py").is_file()


@pytest.mark.parametrize("guide", ["libero", "iterate", "improve"])
def test_tests_that_guides_name_exist(guide: str) -> None:
    text = (ROOT / "docs" / f"{guide}.md").read_text()
    defined = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 2
    for test in named:
        assert f"def {test}(" in defined, test
