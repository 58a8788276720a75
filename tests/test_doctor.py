"""`chunkrl doctor`: what it says of memory, tokenizer and checkpoints."""

import re
import shutil
from pathlib import Path

import pytest
from pi_tiny import tiny_policy

from chunkrl.cli import main
from chunkrl.models.pi import save_pretrained


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    main(["doctor", *arguments])
    return capsys.readouterr().out.splitlines()


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
