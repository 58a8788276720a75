"""Help, completion and names of the command line: quick, whole, and with the nearest name for a misspelt one."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from chunkrl import TrainConfig
from chunkrl.cli import COMMANDS, main
from chunkrl.cli.arguments import as_flags
from chunkrl.cli.help import describe
from chunkrl.envs.registry import expand
from chunkrl.settings import Settings

HEAVY = ("torch", "pyarrow", "av", "mujoco", "grpc", "tensorboard", "huggingface_hub", "PIL", "safetensors")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_help_and_completion_import_nothing_heavy() -> None:
    code = f"""
import sys
from chunkrl.cli import COMMANDS, main
main(["--help"])
main(["completion", "bash"])  # reads the options of every command
for command in COMMANDS:
    main([command, "--help-all"])
print("LOADED", sorted(set(sys.modules) & set({HEAVY!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_is_short_and_help_all_is_whole(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    short = capsys.readouterr().out
    main([command, "-h", "--help-all"])
    whole = capsys.readouterr().out
    settings = [s for s in Settings(COMMANDS[command].options_class()()).all if s.flag]
    for shown in (short, whole):
        assert shown.startswith(f"usage: chunkrl {command}")
    assert {s.flag for s in settings} <= set(re.findall(r"^  (--[\w.-]+)", whole, re.MULTILINE))
    flags = re.findall(r"^  (--[\w.-]+)", short, re.MULTILINE)
    assert len(flags) <= 28
    assert all(
        any(s.flag == flag for s in settings) for flag in flags if flag not in ("--config", "--help-all")
    )
    assert ("--help-all" in short) == (len(settings) > len(flags) - 1)


def test_help_says_every_settings_text_and_default() -> None:
    settings = {s.key: s for s in Settings(TrainConfig()).all}
    assert describe(settings["action_horizon"]) == "Action chunk length H."
    # from docstrings of classes, where values of a setting are described below it
    assert describe(settings["labels.success_key"]) == 'The column of success="episode_flag".'
    assert describe(settings["labels.subgoal"]).endswith("(columns episode_index, frame_index).")
    assert describe(settings["hold.control"]).startswith("`delta` (zero motion")
    without = [key for key, setting in settings.items() if not describe(setting)]
    assert without == []


def test_help_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["train", "--help-all"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_did_you_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'trian' (did you mean trial or train?)" in refused(["trian"], capsys)
    said = refused(["train", "--batch-sise", "8"], capsys)
    assert "unknown option --batch-sise (did you mean --batch-size" in said and "--help-all" in said
    said = refused(["train", "--learning-rate", "1e-3"], capsys)
    assert "--learning-rate (did you mean --lr or --schedule or --value-lr?)" in said
    assert "did you mean zsh" in refused(["completion", "zhs"], capsys)
    said = refused(["evaluate", "--policy", "nowhere", "--env", "puhs-v3"], capsys)
    assert "holds no policy" in said or "did you mean push-v3" in said


def test_did_you_mean_an_environment(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    with pytest.raises(ValueError, match=r"no task 'puhs-v3' \(did you mean push-v3"):
        expand(["puhs-v3"])
    with pytest.raises(ValueError, match=r"no suite 'libero_spatiel' \(did you mean libero_spatial"):
        expand(["libero_spatiel"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


@dataclass(frozen=True)
class Inner:
    cache: bool = True
    kind: Literal["a", "b"] = "a"
    size: int = 3


@dataclass(frozen=True)
class Other:
    kind: str = ""


@dataclass(frozen=True)
class Options:
    fast: bool = False
    use_task: bool | None = None
    lr: float = 0.1
    picks: tuple[Literal["red", "blue"], ...] | None = None
    inner: Inner = field(default_factory=Inner)
    other: Other = field(default_factory=Other)


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ("--fast", "--fast"),
        ("--no-fast", "--no-fast"),
        ("--use-task", "--use-task True"),
        ("--no-use-task", "--use-task False"),
        ("--inner.no-cache", "--inner.no-cache"),
        ("--no-cache", "--inner.no-cache"),
        ("--size 4 --lr=1", "--inner.size 4 --lr 1"),
        ("--inner.kind b", "--inner.kind b"),
        ("--picks red blue --fast", "--picks red blue --fast"),
        ("--picks None", "--picks None"),
    ],
)
def test_names_of_flags(given: str, flags: str) -> None:
    assert as_flags(Settings(Options()), "train", given.split()) == flags.split()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--fast true", "--fast true: a switch has no value; write --fast or --no-fast"),
        ("--fast=1", "--fast 1: a switch has no value"),
        ("--use-task False", "write --use-task or --no-use-task"),
        ("--no-inner.cache", "--no-inner.cache is written --inner.no-cache"),
        ("--kind b", "--kind is the name of several options: write --inner.kind or --other.kind"),
        ("--no-lr", "unknown option --no-lr"),
        ("--inner.kind zz", "--inner.kind zz: use one of a, b"),
        ("--picks reed", "--picks reed (did you mean red?): use one of red, blue"),
        ("--inner.kind=c --lr 1", "--inner.kind c: use one of a, b"),
        ("--inner.sise 4", "unknown option --inner.sise (did you mean --inner.size"),
    ],
)
def test_one_spelling_of_switches_and_clear_refusals(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        as_flags(Settings(Options()), "train", given.split())


def complete(line: str, tmp_path: Path) -> list[str]:
    """What bash offers at the end of `line`."""
    done = subprocess.run(
        [sys.executable, "-m", "chunkrl.cli", "completion", "bash"],
        check=True,
        capture_output=True,
        text=True,
    )
    words = line.split(" ")
    script = (
        f"{done.stdout}\nCOMP_WORDS=({' '.join(w or repr('') for w in words)}); COMP_CWORD={len(words) - 1}\n"
        '_chunkrl; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    file = tmp_path / "try.sh"
    file.write_text(script)
    shown = subprocess.run(
        ["bash", "--norc", str(file)], check=True, capture_output=True, text=True, timeout=60
    )
    return shown.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_completes_commands_flags_and_choices(tmp_path: Path) -> None:
    assert complete("chunkrl tr", tmp_path) == ["train", "trial"]
    assert complete("chunkrl train --batch", tmp_path) == ["--batch-size"]
    assert complete("chunkrl train --no-use-t", tmp_path) == ["--no-use-task"]
    assert complete("chunkrl train --policy.kind ", tmp_path) == ["gaussian", "flow", "pi"]
    assert complete("chunkrl completion ", tmp_path) == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_script(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["completion", shell])
    script = capsys.readouterr().out
    for word in ("train", "batch-size", "gaussian"):
        assert word in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=240)
