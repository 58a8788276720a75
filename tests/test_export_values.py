"""`chunkrl export-values`: what LeRobot reads, in closed form, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunk_data import episode, open_chunks, random_episodes, settings, write_dataset
from lerobot_folder import edit_parquet

from chunkrl import ChunkLevelOfflineRL
from chunkrl.cli import main
from chunkrl.data.hold_out import held_out_episodes
from chunkrl.data.sample_weights import read_sample_weights
from chunkrl.integration.rabc import rabc_weights, rises

HORIZON = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, and runs on them: weighted (of both), values (of the first), clones."""
    root = tmp_path_factory.mktemp("export")
    first = write_dataset(root / "data", random_episodes(6))
    second = write_dataset(root / "more", random_episodes(4, seed=1))
    both = {"additional_offline_dataset_paths": (str(second),)}
    ChunkLevelOfflineRL(**settings(first, root / "weighted", **both)).train()
    ChunkLevelOfflineRL(**settings(first, root / "values", objective="value")).train()
    ChunkLevelOfflineRL(**settings(first, root / "clones", objective="behaviour_cloning")).train()
    return root


@pytest.fixture
def runs(folder: Path, tmp_path: Path) -> Path:
    """Copies of the runs, of the same data."""
    for name in ("weighted", "values", "clones"):
        shutil.copytree(folder / name, tmp_path / name)
    return tmp_path


def export(*arguments: str | Path) -> None:
    main(["export-values", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit):
        export(*arguments)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return re.sub(r"[\s│]+", " ", shown)


def test_progress_rises_as_values_do(runs: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(runs / "values")
    stored = pq.read_table(runs / "values" / "rabc.parquet")
    assert stored.schema.remove_metadata() == pa.schema(
        [
            ("index", pa.int64()),
            ("episode_index", pa.int64()),
            ("frame_index", pa.int64()),
            ("progress_sparse", pa.float32()),
        ]
    )
    value = pq.read_table(runs / "values" / "values.parquet")["value"].to_numpy()
    data = open_chunks(folder / "data")
    table = data.table
    ends = table.episode_start + table.episode_length - 1
    outcome = value.astype(np.float64)
    outcome[ends] = data.frame_labels.success  # what stands after the last action: 1 or, failed, 0
    progress = stored["progress_sparse"].to_numpy()
    expected = (outcome - outcome.min()) / np.ptp(outcome)
    np.testing.assert_allclose(progress, expected, atol=1e-6)
    assert (progress.min(), progress.max()) == (0.0, 1.0)
    assert stored["index"].to_pylist() == list(range(table.num_frames))
    assert stored["episode_index"].to_pylist() == data.episode.tolist()
    # over a chunk that earns nothing on its way progress rises by V's change, over the last ones by outcome - V
    rise = rises(progress, data.episode, HORIZON) * np.ptp(outcome)
    later = np.minimum(np.arange(len(value)) + HORIZON, ends[data.episode])
    np.testing.assert_allclose(rise, outcome[later] - outcome, atol=1e-6)
    told = capsys.readouterr().out
    kappa = float(re.findall(r"sample_weighting.kappa=(\S+)", told)[0])
    weight = rabc_weights(progress, data.episode, HORIZON, kappa)
    assert (weight == 1).mean() == pytest.approx(0.25, abs=1 / len(weight))
    assert f"weight 0 for {(weight == 0).mean():.0%} of the frames, 1 for {(weight == 1).mean():.0%}" in told
    assert f"--dataset.root={folder / 'data'}" in told and "--sample_weighting.head_mode=sparse" in told


def test_each_data_set_has_a_file(runs: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(runs / "weighted", "--kappa", "0.125")
    files = [runs / "weighted" / name for name in ("rabc.parquet", "rabc-1.parquet")]
    both = np.concatenate([pq.read_table(file)["progress_sparse"].to_numpy() for file in files])
    assert (both.min(), both.max()) == (0.0, 1.0)  # one meaning of progress in both
    assert capsys.readouterr().out.count("--sample_weighting.kappa=0.125") == 2
    for file in files:
        file.unlink()
    for name in ("1", str(folder / "more")):
        export(runs / "weighted", "--dataset", name, "--output", runs / f"{len(name)}.parquet")
        assert (
            pq.read_metadata(runs / f"{len(name)}.parquet").num_rows
            == open_chunks(folder / "more").num_frames
        )
    assert not any(file.exists() for file in files)


def test_weights_are_the_runs_and_train(runs: Path, folder: Path) -> None:
    export(runs / "weighted", "--format", "weights")
    stored = pq.read_table(runs / "weighted" / "weights.parquet")
    assert stored.schema.names == ["index", "episode_index", "frame_index", "weight"]
    own = pq.read_table(runs / "weighted" / "values.parquet")["weight"].to_numpy()
    np.testing.assert_array_equal(stored["weight"].to_numpy(), own)
    read = read_sample_weights(runs / "weighted" / "weights.parquet", open_chunks(folder / "data"))
    np.testing.assert_array_equal(read, own)


@pytest.mark.parametrize("size", [2, 5])
def test_weights_by_way_of_rabc(runs: Path, folder: Path, size: int) -> None:
    export(runs / "weighted", "--format", "rabc_weights", "--chunk-size", str(size), "--dataset", "0")
    stored = pq.read_table(runs / "weighted" / "rabc_weights.parquet")
    own = pq.read_table(runs / "weighted" / "values.parquet")["weight"].to_numpy()
    made = rabc_weights(stored["progress_sparse"].to_numpy(), stored["episode_index"].to_numpy(), size, 1.0)
    data = open_chunks(folder / "data")
    last = data.table.episode_start + data.table.episode_length - 1
    own = np.where(np.isin(np.arange(len(own)), last), 0.0, own)
    np.testing.assert_allclose(made[: len(own)], own / own.max(), atol=1e-5)
    further = stored.slice(len(own))
    assert min(further["index"].to_pylist()) == len(own)
    assert set(further["episode_index"].to_pylist()) == {data.table.num_episodes}


def test_what_was_recorded_after_a_success_is_no_progress(tmp_path: Path) -> None:
    """The outcome stands from the success on, and no later frame has a weight."""
    rng = np.random.default_rng(0)
    late = np.zeros(9, bool)
    late[4:] = True
    episodes = [*random_episodes(4), episode(9, True, rng, **{"next.success": late})]
    data = write_dataset(tmp_path / "data", episodes)
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run")).train()
    export(tmp_path / "run")
    export(tmp_path / "run", "--format", "weights")
    progress = pq.read_table(tmp_path / "run" / "rabc.parquet")["progress_sparse"].to_numpy()[-9:]
    assert (progress[4:] == 1.0).all() and (progress[:4] < 1.0).all()
    weight = pq.read_table(tmp_path / "run" / "weights.parquet")["weight"].to_numpy()[-9:]
    assert (weight[5:] == 0).all() and (weight[:5] > 0).all()


def test_a_persons_file_is_not_written_over(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "mine.parquet"
    file.write_bytes(b"a person's")
    assert "never written over" in refused(capsys, runs / "values", "--output", file)
    assert file.read_bytes() == b"a person's"
    export(runs / "values", "--output", file, "--overwrite")
    before = file.read_bytes()
    export(runs / "values", "--output", file)  # the same again
    assert file.read_bytes() == before
    assert "never written over" in refused(capsys, runs / "values", "--output", file, "--chunk-size", "2")
    record = json.loads(pq.read_schema(file).metadata[b"chunkrl.values"])
    assert (record["format"], record["chunk_size"]) == ("rabc", HORIZON)


def test_what_is_refused(runs: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name a run" in refused(capsys)
    assert "no folder of a training run" in refused(capsys, folder / "data")
    assert "has no values" in refused(capsys, runs / "clones")
    assert "choose one with --dataset" in refused(capsys, runs / "weighted", "--output", runs / "x.parquet")
    assert "no such data set; 0 is" in refused(capsys, runs / "weighted", "--dataset", "2")
    assert "at least 1 action" in refused(capsys, runs / "values", "--chunk-size", "0")
    assert "leave it out" in refused(capsys, runs / "weighted", "--format", "weights", "--chunk-size", "4")
    assert "leave it out" in refused(capsys, runs / "weighted", "--format", "rabc_weights", "--kappa", "1")
    assert "at least 0" in refused(capsys, runs / "values", "--kappa", "-1")
    assert not list(runs.rglob("rabc*.parquet"))


def test_changed_data_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "data", random_episodes(4))
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run", objective="value")).train()
    shutil.rmtree(data)
    write_dataset(tmp_path / "data", random_episodes(4, seed=7))
    assert "has changed since" in refused(capsys, tmp_path / "run")


def test_episodes_that_were_set_aside_are_left_out_in_lerobot_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LeRobot gives frames that the file does not name the weight 1."""
    episodes = random_episodes(5)
    data = write_dataset(tmp_path / "data", episodes)
    (file,) = (data / "data").rglob("*.parquet")
    action = np.concatenate([one["action"] for one in episodes])
    action[len(episodes[0]["action"]) + 2] = np.nan
    edit_parquet(file, action=action.tolist())
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run", objective="value", skip_bad_episodes=True)).train()
    export(tmp_path / "run")
    assert "--dataset.episodes=[0, 2, 3, 4]" in capsys.readouterr().out
    stored = pq.read_table(tmp_path / "run" / "rabc.parquet")
    lengths = [len(one["action"]) for one in episodes]
    kept = np.repeat(np.arange(5), lengths) != 1
    assert stored["index"].to_pylist() == np.flatnonzero(kept).tolist()


def test_held_out_episodes_are_left_out_in_lerobot_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data", random_episodes(10))
    ChunkLevelOfflineRL(**settings(data, tmp_path / "run", objective="value", held_out=0.2)).train()
    export(tmp_path / "run")
    held_out = held_out_episodes(open_chunks(data).table.description, 0.2)
    assert len(held_out) == 2
    kept = [number for number in range(10) if number not in held_out]
    assert f"--dataset.episodes={kept}" in capsys.readouterr().out
