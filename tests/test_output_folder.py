"""What an earlier run left is never written over, by any command; a folder with parts of two runs is recognised."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chunk_data import random_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.cli import main
from chunkrl.config import load_config
from chunkrl.errors import CheckpointError, OutputFolderError
from chunkrl.files.output_folder import (
    begin_folder,
    begin_numbered,
    check_file,
    held,
    kind_of,
    numbered,
    set_aside,
    stem_of,
)
from chunkrl.progress import silent
from chunkrl.report.commands import report
from chunkrl.report.config import ReportCommand
from chunkrl.run.config import TrainConfig
from chunkrl.run.parts import check_one_run, check_one_run_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "arm", random_episodes(6))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flags(data: Path, *more: str) -> list[str]:
    text = f"--dataset-dir {data} --action-horizon 3 --action-dim 2 --batch-size 8 --num-updates 3 "
    text += "--network.hidden-dim 16 --device cpu"
    if "--objective" not in more:
        text += " --value-epochs 0.5 --num-folds 2 --fit.hidden-dim 16"
    return ["train", *text.split(), *more]


def test_a_finished_run_is_left_as_it_is(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(flags(data, "--output-dir", str(run)))
    before = contents(run)
    for more in ([], ["--gamma", "0.5"]):
        with pytest.raises(SystemExit) as stop:
            main(flags(data, "--output-dir", str(run), *more))
        assert stop.value.code == 2
        told = capsys.readouterr().err
        assert f"--resume {run}" in told and "--overwrite" in told
    with pytest.raises(OutputFolderError, match="never written over"):
        ChunkLevelOfflineRL(**settings(data, run)).train()
    assert contents(run) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "train.log").write_text("mine")  # what is none of a run's is in nobody's way
    main(flags(data, "--output-dir", str(tmp_path / "notes")))
    assert (tmp_path / "notes" / "train.log").read_text() == "mine"


def test_overwriting_keeps_the_old_folder_whole(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(flags(data, "--output-dir", str(run)))
    before = contents(run)
    main(flags(data, "--output-dir", str(run), "--gamma", "0.5", "--overwrite"))
    assert contents(tmp_path / "run.replaced-001") == before
    assert load_config(TrainConfig, run / "config.json").gamma == 0.5
    main(flags(data, "--output-dir", str(run), "--overwrite"))
    assert contents(tmp_path / "run.replaced-001") == before and (tmp_path / "run.replaced-002").is_dir()


def test_overwriting_replaces_runs_of_the_same_command_alone(tmp_path: Path) -> None:
    (tmp_path / "data" / "meta").mkdir(parents=True)
    (tmp_path / "data" / "meta" / "info.json").write_text("{}")
    for command in ("train", "evaluate", "learner", "demo", "iterate", "improve", "actor"):
        with pytest.raises(OutputFolderError, match=r"holds a data set .* another --output-dir"):
            begin_folder(tmp_path / "data", command, overwrite=True)
    assert kind_of(tmp_path / "data") == "collect"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    begin_folder(tmp_path / "mine", "train", overwrite=True)  # nothing of a run's: nothing makes place
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFolderError, match="is a file"):
        begin_folder(tmp_path / "file", "train", overwrite=True)


def test_the_folder_that_one_is_in_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path would mean the old one still."""
    (tmp_path / "run" / "policy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(OutputFolderError, match="the folder that you are in"):
        begin_folder(Path(), "train", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_cannot_be_written_into_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # whoever runs the tests may be allowed everything
    with (
        pytest.raises(OutputFolderError, match=r"cannot write into .*: Permission denied; name a folder"),
        held(tmp_path, "evaluate"),
    ):
        pass


def test_the_default_folder_is_new_each_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(flags(data))
    main(flags(data, "--objective", "behaviour_cloning"))
    main(flags(data))
    told = capsys.readouterr().out
    names = ["arm-behaviour_cloning-001", "arm-cross_fitted-001", "arm-cross_fitted-002"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == names
    assert "policy: runs/arm-cross_fitted-002/policy" in told
    config: dict[str, Any] = settings(data, tmp_path) | {"output_dir": ""}
    run = ChunkLevelOfflineRL(**config)
    run.train()
    assert (
        run.run_dir is not None
        and run.run_dir == Path("runs/arm-cross_fitted-003")
        and (run.run_dir / "policy").is_dir()
    )
    # what was set aside keeps its number
    set_aside(run.run_dir)
    assert numbered("arm-cross_fitted") == Path("runs/arm-cross_fitted-004")


def test_numbers_and_names(tmp_path: Path) -> None:
    assert [begin_numbered("a", tmp_path / "new").name for _ in range(3)] == ["a-001", "a-002", "a-003"]
    (tmp_path / "new" / "a-999").mkdir()
    (tmp_path / "new" / "a-b-5000").mkdir()
    assert numbered("a", tmp_path / "new").name == "a-1000"
    assert stem_of("lerobot/svla_so101", "iql") == "svla_so101-iql"
    assert stem_of("/x/my data/", "value") == "my-data-value"
    assert stem_of("", "learner") == "learner"


def test_single_files(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    check_file(file, overwrite=False)
    file.write_text("mine")
    with pytest.raises(OutputFolderError, match=r"page\.html is there already"):
        check_file(file, overwrite=False)
    check_file(file, overwrite=True)
    check_file(file, overwrite=False, is_same=lambda path: path.read_text() == "mine")


def two_runs(data: Path, folder: Path, **second: Any) -> Path:
    """What a release that let a run write into another one's folder left, where the second was killed."""
    ChunkLevelOfflineRL(**settings(data, folder / "first")).train()
    ChunkLevelOfflineRL(**settings(data, folder / "second", **second)).train()
    check_one_run(folder / "first")
    check_one_run(folder / "second")
    run = folder / "mixed"
    shutil.copytree(folder / "first", run)
    (run / "checkpoints" / "last").unlink()
    for name in ("config.json", "versions.json", "metrics.jsonl"):
        shutil.copy(folder / "second" / name, run / name)
    return run


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (
            {"objective": "behaviour_cloning"},
            "values.parquet was made with objective cross_fitted where config.json",
        ),
        ({"lr": 1e-3}, "lr 0.0003 where config.json has 0.001"),
        ({"seed": 5}, "seed 0 where config.json has 5"),
    ],
)
def test_a_folder_with_parts_of_two_runs_is_refused(
    data: Path, tmp_path: Path, second: dict[str, Any], told: str
) -> None:
    run = two_runs(data, tmp_path, **second)
    refusals = [
        lambda: report(ReportCommand(str(run)), silent),
        lambda: check_one_run_of(run / "policy"),
        lambda: ChunkLevelOfflineRL(
            **settings(data, run, **second, resume=str(next((run / "checkpoints").glob("0*"))))
        ).train(),
    ]
    for act in refusals:
        with pytest.raises(OutputFolderError, match=f"holds parts of two runs: .*{told}"):
            act()
    assert not (run / "report.html").exists()


def test_parts_of_two_runs_without_notes_of_their_settings(data: Path, tmp_path: Path) -> None:
    """Of releases before this one; without values and policy the records still differ."""
    run = two_runs(data, tmp_path, lr=1e-3)
    for name in ("values.parquet", "chunkrl_manifest.json"):
        (run / name).unlink()
    shutil.rmtree(run / "policy")
    with pytest.raises(
        OutputFolderError, match=r"parts of two runs: checkpoints/\d+ is of another run than metrics"
    ):
        check_one_run(run)
    shutil.rmtree(run / "checkpoints")
    check_one_run(run)
    (run / "settings.json").write_text(json.dumps({}))
    with pytest.raises(
        OutputFolderError, match=r"settings\.json is of an evaluation, beside a training run's"
    ):
        check_one_run(run)


def test_settings_that_nothing_reads_tell_no_runs_apart(data: Path, tmp_path: Path) -> None:
    """A run of values of when the scale of weights was 3: neither reads it, and its default is another one now."""

    def note(run: Path) -> None:
        file = run / "values.parquet"
        table = pq.read_table(file)
        header = json.loads(table.schema.metadata[b"chunkrl.sidecar"])
        header["metadata"]["settings"]["fit"]["advantage_scale"] = 3.0
        pq.write_table(table.replace_schema_metadata({b"chunkrl.sidecar": json.dumps(header)}), file)

    for objective in ("value", "cross_fitted"):
        run = tmp_path / objective
        ChunkLevelOfflineRL(**settings(data, run, objective=objective)).train()
        note(run)
    config = json.loads((tmp_path / "value" / "config.json").read_text())
    config["fit"]["advantage_scale"] = 3.0
    (tmp_path / "value" / "config.json").write_text(json.dumps(config))
    check_one_run(tmp_path / "value")
    with pytest.raises(
        OutputFolderError, match=r"made with fit\.advantage_scale 3\.0 where config\.json has 2\.0"
    ):
        check_one_run(tmp_path / "cross_fitted")


def test_a_run_that_goes_on_is_one_run(data: Path, tmp_path: Path) -> None:
    """Also from a checkpoint before its first record, whose numbers are made again."""
    often = {"save_updates": 1, "log_interval": 3}
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run", **often)).train()
    first = tmp_path / "run" / "checkpoints" / "0000001"
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run", **often, resume=str(first))).train()
    report(ReportCommand(str(tmp_path / "run")), silent)
    with pytest.raises(OutputFolderError, match=r"page\.html is there already"):
        (tmp_path / "page.html").write_text("mine")
        report(ReportCommand(str(tmp_path / "run"), output=str(tmp_path / "page.html")), silent)
    assert (tmp_path / "page.html").read_text() == "mine"
    report(ReportCommand(str(tmp_path / "run")), silent)  # its own page is made again


def test_one_process_at_a_time(data: Path, tmp_path: Path) -> None:
    """Also where the folder would make place."""
    run = tmp_path / "run"
    ChunkLevelOfflineRL(**settings(data, run)).train()
    before = contents(run)
    for own in ({"resume": str(run)}, {"overwrite": True}):
        other = ChunkLevelOfflineRL(**settings(data, run, **own))
        with held(run, "train"), pytest.raises(OutputFolderError, match="is in use by another chunkrl train"):
            other.train()
    assert contents(run) == before and not (tmp_path / "run.replaced-001").exists()
    ChunkLevelOfflineRL(resume=str(run)).train()
    assert not list(run.rglob(".*"))


def test_a_resumption_on_other_data_leaves_the_run_as_it_is(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ChunkLevelOfflineRL(**settings(data, run)).train()
    before = contents(run)
    other = write_dataset(tmp_path / "other", random_episodes(6, seed=1))
    with pytest.raises(CheckpointError, match="was made on other data"):
        ChunkLevelOfflineRL(resume=str(run), dataset_dir=str(other)).train()
    assert contents(run) == before
