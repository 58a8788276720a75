"""Policies, checkpoints and values are what was written, or the file that is not is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import open_chunks, random_episodes, write_dataset
from pi_tiny import tiny_policy
from safetensors.torch import load_file, save_file

from chunkrl import manifest
from chunkrl.algorithms.values_io import load_values, save_values
from chunkrl.cli import main
from chunkrl.errors import CheckpointError
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.manifest import (
    MANIFEST_FILE,
    MARK,
    file_sums,
    read_manifest,
    verify,
    whole_files,
    write_manifest,
)
from chunkrl.models.pi import find_recipe, load_pretrained, save_pretrained
from chunkrl.progress import silent
from chunkrl.run.policy_io import load_policy
from chunkrl.training.checkpoint import TENSORS, VALUES, load_state, save_state

TREE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": {"c": torch.arange(3), "d": [1, "x"]},
    "e": torch.ones(2, 3),
}


def flip(file: Path, position: int = -1) -> None:
    """One bit."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def write_small(folder: Path) -> None:
    save_state(folder, TREE)


def write_pi(folder: Path) -> None:
    save_pretrained(tiny_policy("pi05"), folder)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings about manifests since the last call."""
    found = [record.getMessage() for record in caplog.records if record.name == "chunkrl.manifest"]
    caplog.clear()
    return found


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "small": (write_small, load_state),
    "pi": (write_pi, load_pretrained),
}
both = pytest.mark.parametrize(("write", "load"), KINDS.values(), ids=KINDS.keys())


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 95])
def test_sums_are_those_of_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 10)
    monkeypatch.setattr(manifest, "_READ_BYTES", 4)
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "x").write_bytes(content)
    blocks = [content[begin : begin + 10] for begin in range(0, size, 10)]
    expected = tuple(hashlib.sha256(block).hexdigest() for block in blocks)
    assert file_sums(tmp_path / "x") == manifest.FileSums(size, expected)
    write_manifest(tmp_path)
    verify(tmp_path, marked=True)
    for position in range(size):
        flip(tmp_path / "x", position)
        with pytest.raises(CheckpointError, match="x has changed since it was written"):
            verify(tmp_path, marked=True)
        flip(tmp_path / "x", position)


def test_processes_share_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they see all of them, and each one only its own."""
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 10)
    (tmp_path / "x").write_bytes(bytes(50))
    (tmp_path / "y").write_bytes(bytes(25))
    write_manifest(tmp_path)
    for name, position in [("x", p) for p in range(0, 50, 10)] + [("y", p) for p in (0, 10, 20)]:
        flip(tmp_path / name, position)
        found = []
        for rank in range(3):
            try:
                verify(tmp_path, marked=True, share=(rank, 3))
            except CheckpointError as error:
                found.append(str(error))
        assert len(found) == 1 and f"{name} has changed" in found[0]
        flip(tmp_path / name, position)


@both
def test_a_change_in_any_file_is_named(
    tmp_path: Path,
    write: Callable[[Path], None],
    load: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Refused by name; of files that LeRobot alone reads, warned of by name."""
    folder = tmp_path / "f"
    write(folder)

    def is_named(name: str) -> None:
        if not name.startswith("policy_"):
            with pytest.raises(CheckpointError, match=name):
                load(folder)
            return
        caplog.clear()
        load(folder)
        said = [
            record.getMessage() for record in caplog.records if "LeRobot does read it" in record.getMessage()
        ]
        assert len(said) == 1 and name in said[0]

    listed = read_manifest(folder)
    assert listed is not None
    names = {f.name for f in folder.iterdir()} - {MANIFEST_FILE}
    assert listed.files.keys() == names and len(names) >= 2
    load(folder)
    for name in names:
        whole = (folder / name).read_bytes()
        flip(folder / name)
        is_named(name)
        (folder / name).write_bytes(whole + b" ")
        is_named(name)
        (folder / name).unlink()
        is_named(name)
        os.mkfifo(folder / name)
        is_named(name)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)
    load(folder)


@both
def test_swapped_and_transposed_tensors_are_found(
    tmp_path: Path, write: Callable[[Path], None], load: Callable[[Path], Any]
) -> None:
    """Names, shapes and types as they were: only the sums tell."""
    write(tmp_path / "f")
    file = next(f for f in (tmp_path / "f").iterdir() if f.name in (TENSORS, "model.safetensors"))
    tensors = load_file(file)
    shapes: dict[tuple[torch.Size, torch.dtype], list[str]] = {}
    for name, tensor in tensors.items():
        shapes.setdefault((tensor.shape, tensor.dtype), []).append(name)
    first, second = next(names for names in shapes.values() if len(names) > 1)[:2]
    save_file(tensors | {first: tensors[second], second: tensors[first]}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{file.name} has changed since it was written .*--renew"):
        load(tmp_path / "f")


@both
def test_folders_that_people_copy(
    tmp_path: Path,
    write: Callable[[Path], None],
    load: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Copies, links as in the Hub's cache, another place, and files that somebody added: all right, and silent."""
    write(tmp_path / "f")
    shutil.copytree(tmp_path / "f", tmp_path / "copy")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "hub" / "snapshot").mkdir(parents=True)
    for number, file in enumerate(sorted((tmp_path / "f").iterdir())):
        shutil.copy(file, tmp_path / "blobs" / str(number))
        (tmp_path / "hub" / "snapshot" / file.name).symlink_to(Path("../../blobs") / str(number))
    for name in ("README.md", ".gitattributes", "notes.json"):
        (tmp_path / "copy" / name).write_text("mine")
    (tmp_path / "copy" / "pictures").mkdir()
    (tmp_path / "copy" / "pictures" / "a.png").write_bytes(b"x")
    for folder in (tmp_path / "copy", tmp_path / "hub" / "snapshot"):
        load(folder)
    assert not told(caplog)


@both
def test_a_lost_manifest_is_missed_and_one_of_before_warns(
    tmp_path: Path,
    write: Callable[[Path], None],
    load: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "f"
    write(folder)
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match=rf"{MANIFEST_FILE} is missing.*copy the folder again.*--renew"):
        load(folder)
    said = next(f for f in folder.iterdir() if f.name in (VALUES, "chunkrl_pi.json"))
    said.write_text(json.dumps({k: v for k, v in json.loads(said.read_text()).items() if k != MARK}))
    load(folder)
    assert [f"chunkrl manifest {folder}" in message for message in told(caplog)] == [True]
    before = fingerprint((folder,), silent)
    main(["manifest", str(folder)])
    assert "looked through" in capsys.readouterr().out
    load(folder)
    assert not told(caplog) and fingerprint((folder,), silent) == before
    main(["manifest", str(folder)])
    assert "as it was written" in capsys.readouterr().out


@both
def test_the_command_accepts_only_what_is_whole(
    tmp_path: Path,
    write: Callable[[Path], None],
    load: Callable[[Path], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "f"
    write(folder)
    (folder / "README.md").write_text("mine")
    file = next(f for f in folder.iterdir() if f.name in (TENSORS, "model.safetensors"))
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit):
        main(["manifest", str(folder)])
    assert f"{file.name} has changed" in capsys.readouterr().err
    main(["manifest", str(folder), "--renew"])
    load(folder)
    listed = read_manifest(folder)
    assert listed is not None and "README.md" not in listed.files
    renewed = (folder / MANIFEST_FILE).read_bytes()
    save_file(tensors | {name: tensors[name] * float("nan")}, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit):
        main(["manifest", str(folder), "--renew"])
    assert f"{name} holds NaN or infinity" in capsys.readouterr().err
    assert (folder / MANIFEST_FILE).read_bytes() == renewed


@pytest.mark.parametrize("name", ["shards.json", "state.json"])
def test_an_added_file_that_would_be_read_is_refused(tmp_path: Path, name: str) -> None:
    save_state(tmp_path / "f", TREE)
    listed = json.loads((tmp_path / "f" / MANIFEST_FILE).read_text())
    listed["files"].pop(name, None)
    (tmp_path / "f" / MANIFEST_FILE).write_text(json.dumps(listed))
    if name == "shards.json":
        (tmp_path / "f" / name).write_text('{"num_ranks": 1, "shapes": {}}')
    with pytest.raises(CheckpointError, match=rf"{name} is not among the files of {MANIFEST_FILE}"):
        load_state(tmp_path / "f")


def test_added_statistics_are_refused(tmp_path: Path) -> None:
    write_pi(tmp_path / "f")
    for added in ("assets/arm/norm_stats.json", "model.safetensors.index.json"):
        (tmp_path / "f" / added).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / added).write_text("{}")
        with pytest.raises(CheckpointError, match=rf"{added} is not among the files"):
            load_pretrained(tmp_path / "f")
        (tmp_path / "f" / added).unlink()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"files": []},
        {"files": {"../x": {"size": 0, "sha256": []}}},
        {"files": {"/etc/passwd": {"size": 0, "sha256": []}}},
        {"files": {VALUES: {"size": -1, "sha256": []}}},
        {"files": {VALUES: {"size": 1, "sha256": []}}},
        {"files": {VALUES: {"size": "1", "sha256": ["a"]}}},
        {"files": {VALUES: {"size": 1, "sha256": "a"}}},
        {"files": {VALUES: None}},
        {"more": 1},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save_state(tmp_path / "f", TREE)
    file = tmp_path / "f" / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=MANIFEST_FILE):
        load_state(tmp_path / "f")


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_by_name(tmp_path: Path, damage: float) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        spoiled = torch.ones(5, dtype=dtype)
        spoiled[3] = damage
        save_state(tmp_path / "f", {"a": torch.ones(2), "b": {"c": spoiled}})
        with pytest.raises(CheckpointError, match=r"state\.safetensors: b\|c holds NaN or infinity"):
            load_state(tmp_path / "f")
        found = load_state(tmp_path / "f", finite=False)["b"]["c"]
        assert torch.equal(torch.nan_to_num(found), torch.nan_to_num(spoiled))


def test_values_are_what_was_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_chunks(write_dataset(tmp_path / "d", random_episodes(3)))
    rng = np.random.default_rng(0)
    names = ("value", "value_seen", "return", "advantage", "weight")
    labels = {name: rng.random(dataset.num_frames).astype(np.float32) for name in names}
    run = tmp_path / "run"
    save_values(run, dataset, labels, {"objective": "value"})
    found = load_values(run, dataset)
    assert np.array_equal(found.value, labels["value"])
    whole = (run / "values.parquet").read_bytes()
    other = labels | {"value": labels["value"][::-1].copy()}
    save_values(tmp_path / "other", dataset, other, {"objective": "value"})
    shutil.copy(tmp_path / "other" / "values.parquet", run)  # of the same data, but not of this run
    with pytest.raises(CheckpointError, match=r"values\.parquet has changed since it was written"):
        load_values(run, dataset)
    (run / "values.parquet").write_bytes(whole)
    (run / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"{MANIFEST_FILE} is missing"):
        load_values(run, dataset)
    main(["manifest", str(run)])
    assert np.array_equal(load_values(run, dataset).value, labels["value"])
    assert not told(caplog)


def test_a_run_is_looked_through_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for name in ("policy", "checkpoints/0000003", "checkpoints/0000006"):
        save_state(run / name, TREE)
    (run / "checkpoints" / "last").write_text("0000006\n")
    main(["manifest", str(run)])
    assert capsys.readouterr().out.count("as it was written") == 3
    flip(run / "checkpoints" / "0000003" / TENSORS)
    with pytest.raises(SystemExit):
        main(["manifest", str(run)])
    assert "0000003/state.safetensors has changed" in capsys.readouterr().err
    for folder in ("", str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(SystemExit):
            main(["manifest", *([folder] if folder else [])])


def test_settings_that_are_asked_for_alone_are_verified(tmp_path: Path) -> None:
    save_pretrained(tiny_policy("pi05"), tmp_path / "f")
    recipe = find_recipe(tmp_path / "f")
    file = tmp_path / "f" / "chunkrl_pi.json"
    text = file.read_text()
    file.write_text(text.replace('"depth": 3', '"depth": 2', 1))
    assert file.read_text() != text
    with pytest.raises(CheckpointError, match=r"chunkrl_pi\.json has changed"):
        find_recipe(tmp_path / "f")
    file.write_text(text)
    assert find_recipe(tmp_path / "f") == recipe


def test_q_of_another_policy_is_refused(tmp_path: Path) -> None:
    """A folder inside that has sums of its own is listed by the sum of those."""
    write_pi(tmp_path / "f")
    save_state(tmp_path / "f" / "chunkrl_q", TREE)
    with pytest.raises(CheckpointError, match=rf"chunkrl_q/{MANIFEST_FILE} is not among the files"):
        load_policy(tmp_path / "f")
    write_manifest(tmp_path / "f")
    listed = read_manifest(tmp_path / "f")
    assert listed is not None and [n for n in listed.files if "/" in n] == [f"chunkrl_q/{MANIFEST_FILE}"]
    load_policy(tmp_path / "f", with_q=False)
    save_state(tmp_path / "f" / "chunkrl_q", TREE | {"e": torch.zeros(2, 3)})
    with pytest.raises(CheckpointError, match=rf"chunkrl_q/{MANIFEST_FILE} has changed"):
        load_policy(tmp_path / "f")


def test_whole_files_are_those_of_inner_manifests_too(tmp_path: Path) -> None:
    save_state(tmp_path / "p" / "inner", TREE)
    (tmp_path / "p" / "a").write_text("a")
    write_manifest(tmp_path / "p")
    (tmp_path / "p" / "README.md").write_text("added")
    inner = [f"inner/{name}" for name in (MANIFEST_FILE, VALUES, TENSORS)]
    assert whole_files(tmp_path / "p") == sorted(["a", MANIFEST_FILE, *inner])
    flip(tmp_path / "p" / "inner" / VALUES)
    with pytest.raises(CheckpointError, match=f"inner/{VALUES} has changed"):
        whole_files(tmp_path / "p")
    (tmp_path / "p" / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match="looks it through and writes one"):
        whole_files(tmp_path / "p")
