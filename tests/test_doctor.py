"""`chunkrl doctor`: what it says of memory, tokenizer and checkpoints."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from pi_tiny import tiny_policy

from chunkrl.cli import doctor, main
from chunkrl.install import install_command
from chunkrl.models.pi import save_pretrained


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The rows of the table, each as one line."""
    capsys.readouterr()
    main(["doctor", *arguments])
    return re.sub(r"\n +", " ", capsys.readouterr().out).splitlines()


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return {line[:12].strip(): line[12:] for line in lines(capsys)}


def test_the_table_fits_eighty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    *table, last = capsys.readouterr().out.splitlines()
    assert last.startswith("To complete one: pip install ")
    for line in table:
        assert len(line) <= 80 or " " not in line.strip()  # a path is not broken
        assert re.match(r"\S.{10} \S| {12}\S", line)


def test_rows_are_of_what_can_be_completed_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extras = {"pi": "pip>=1", "gcs": "no-such-package>=1", "keyboard": "none-either", "lerobot": "nor-this"}
    groups = {extra: [Requirement(text)] for extra, text in extras.items()} | {"": [Requirement("pip>=1")]}
    monkeypatch.setattr(doctor, "requirements", lambda: dict(groups))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    found = rows(capsys)
    assert found["pi"].endswith("installed") and "pip " in found["chunkrl"]
    assert found["gcs"].endswith("lacks no-such-package>=1")
    assert re.search(r"one: pip install .*\[EXTRA\]", found["To complete"])
    assert not {"keyboard", "lerobot"} & found.keys()
    assert re.search(r"keyboard \(no display.*; lerobot \(needs torch below 2\.11", found["not here"])
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    monkeypatch.setenv("DISPLAY", ":0")
    assert {"keyboard", "lerobot"} < rows(capsys).keys() and "not here" not in rows(capsys)


def test_every_extra_has_a_purpose() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    assert set(re.findall(r"^(\w+) = ", section, re.MULTILINE)) == doctor.PURPOSES.keys()


def test_install_commands_follow_how_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    monkeypatch.chdir(tmp_path)
    url = tmp_path.as_uri()
    editable = json.dumps({"url": url, "dir_info": {"editable": True}})
    assert install_command("pi,gcs", editable) == "pip install -c constraints.txt -e '.[pi,gcs]'"
    assert (
        install_command("", json.dumps({"url": url, "dir_info": {}})) == "pip install -c constraints.txt '.'"
    )
    monkeypatch.chdir(tmp_path.parent)
    elsewhere = f"pip install -c {tmp_path}/constraints.txt -e '{tmp_path}[pi]'"
    assert install_command("pi", editable) == elsewhere
    vcs = json.dumps({"url": "https://x.example/c", "vcs_info": {"vcs": "git", "commit_id": "ab12"}})
    assert install_command("pi", vcs) == "pip install 'chunkrl[pi] @ git+https://x.example/c@ab12'"
    assert "in a checkout" in install_command("pi", "{}")


def test_checkpoints_whole_unfinished_and_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    assert any("chunkrl download pi05_libero" in line for line in lines(capsys))
    root = tmp_path / "checkpoints" / "pi0"
    save_pretrained(tiny_policy("pi05"), root / "mine")
    for name in ("pi05_libero", "bare"):  # weights alone: the name may say the rest
        (root / name).mkdir()
        shutil.copy(root / "mine" / "model.safetensors", root / name)
    (root / ".pi0_base.partial").mkdir()
    (root / "notes").mkdir()
    shown = [line for line in lines(capsys) if line.startswith("checkpoint")]
    expected = [
        r"pi0_base: NOT WHOLE",
        r"bare: openpi PyTorch; .*give a recipe",
        r"mine: LeRobot, pi05, horizon 10, prompt format pi05_state",
        r"notes: NOT A CHECKPOINT: .*model\.safetensors",
        r"pi05_libero: openpi PyTorch, pi05, horizon 10, prompt format pi05_no_state",
    ]
    assert len(shown) == len(expected)
    assert all(re.search(pattern, line) for pattern, line in zip(expected, shown, strict=True)), shown


def test_the_tokenizer_is_found_or_its_cure_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path))
    (line,) = (line for line in lines(capsys) if line.startswith("tokenizer"))
    assert "MISSING" in line and "chunkrl download tokenizer" in line
    file = tmp_path / "tokenizer" / "paligemma_tokenizer.model"
    file.parent.mkdir()
    file.touch()
    (line,) = (line for line in lines(capsys) if line.startswith("tokenizer"))
    assert line.endswith(str(file))


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = (line for line in lines(capsys) if line.startswith("memory"))
    total, *available = map(float, re.findall(r"([\d.]+) GiB", line))
    assert total > 0
    assert all(0 < value <= total for value in available)
