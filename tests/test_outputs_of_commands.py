"""The rule of `chunkrl.files.output_folder` in each command that writes: no earlier run is written over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from chunk_data import policy_of_one_update, random_episodes, write_dataset
from test_compare import NEW, OLD, folder

from chunkrl.cli import main


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_labels_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "arm", random_episodes(4))
    file, export = tmp_path / "mine.parquet", tmp_path / "exported"
    label = ["label", str(data), "--output", str(file)]
    main([*label, "--export", str(export)])
    before, exported = file.read_bytes(), contents(export)
    main(label)  # the same rule's labels
    assert file.read_bytes() == before
    assert "is never written over" in refused([*label, "--gamma", "0.5"], capsys)
    assert "is not empty" in refused([*label, "--export", str(export)], capsys)
    (tmp_path / "letter.parquet").write_text("mine")
    assert "letter.parquet is there already" in refused(
        ["label", str(data), "--output", str(tmp_path / "letter.parquet")], capsys
    )
    assert file.read_bytes() == before and contents(export) == exported
    main([*label, "--gamma", "0.5", "--export", str(export), "--overwrite"])
    assert file.read_bytes() != before
    assert (
        contents(tmp_path / "exported.replaced-001") == exported and (export / "meta" / "info.json").is_file()
    )
    # neither the data itself nor what is no data set makes place
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "letter.txt").write_text("mine")
    for place in (data, tmp_path / "notes"):
        assert "is not empty" in refused(["label", str(data), "--export", str(place), "--overwrite"], capsys)


def test_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = folder(tmp_path, "new", *NEW), folder(tmp_path, "old", *OLD, fingerprint="g")
    third = folder(tmp_path, "third", *OLD, fingerprint="h")
    into = ["--output-dir", str(tmp_path / "c")]
    main(["compare", new, old, *into])
    before = contents(tmp_path / "c")
    main(["compare", new, old, *into])
    assert contents(tmp_path / "c") == before
    assert "comparison.json is there already" in refused(["compare", new, third, *into], capsys)
    assert contents(tmp_path / "c") == before
    main(["compare", new, third, *into, "--overwrite"])
    assert contents(tmp_path / "c") != before


def test_collected_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("metaworld", reason="needs chunkrl[sim]")
    collect = ["collect", "--num-episodes", "1", "--max-steps", "20", "--num-workers", "0"]
    collect += ["--output-dir", str(tmp_path / "push")]
    main(collect)
    before = contents(tmp_path / "push")
    for more in ([], ["--seed", "4"]):
        assert "--overwrite" in refused([*collect, *more], capsys)
    assert "state is 'odd'" in refused([*collect, "--state", "odd", "--overwrite"], capsys)
    assert contents(tmp_path / "push") == before  # nothing makes place for what cannot begin
    main([*collect, "--seed", "4", "--overwrite"])
    assert contents(tmp_path / "push.replaced-001") == before
    assert contents(tmp_path / "push") != before


def test_an_actor_does_not_write_into_a_training_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("grpc", reason="needs chunkrl[online]")
    data = write_dataset(tmp_path / "arm", random_episodes(4))
    policy = policy_of_one_update(data, tmp_path / "run", 2)
    before = contents(tmp_path / "run")
    act = [
        "actor",
        "--policy",
        str(policy),
        "--env",
        "push-v3",
        "--offline",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    assert "would mix its own files into it" in refused(act, capsys)
    assert "name the policy that acts" in refused(["actor", "--env", "push-v3", "--offline"], capsys)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("command", ["evaluate", "train", "learner", "iterate", "demo"])
def test_no_command_writes_into_another_ones_folder(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "arm", random_episodes(6))
    policy = policy_of_one_update(data, tmp_path / "run", 2)
    place = data if command in ("train", "demo") else tmp_path / "run"
    if command == "learner":
        pytest.importorskip("grpc", reason="needs chunkrl[online]")
    before = contents(place)
    small = ["--action-horizon", "3", "--action-dim", "2", "--device", "cpu"]
    arguments = {
        "evaluate": ["--policy", str(policy), "--device", "cpu"],
        "train": ["--dataset-dir", str(data), *small],
        "learner": ["--dataset-dir", str(data), *small],
        "iterate": ["--init", str(policy), "--device", "cpu"],
        "demo": [],
    }
    for more in ([], ["--overwrite"]):
        told = refused([command, *arguments[command], *more, "--output-dir", str(place)], capsys)
        assert "would mix its own files into it" in told
    assert contents(place) == before
    shutil.rmtree(place)
