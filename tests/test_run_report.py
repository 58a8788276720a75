"""`chunkrl report`: one page of a training run, with images, with rows, and without values."""

import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import image_episodes, random_episodes, settings, write_dataset
from pages import Page, check_loads_nothing

import chunkrl
from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.config import ConditioningConfig
from chunkrl.algorithms.value_quality import calibration, value_quality
from chunkrl.cli import main
from chunkrl.config import load_config, save_config
from chunkrl.data.sidecar import save_sidecar
from chunkrl.errors import ChunkRLError
from chunkrl.manifest import write_manifest
from chunkrl.report import distributions
from chunkrl.report.load_run import load_run
from chunkrl.report.numbers import compact, percent
from chunkrl.report.run import render_run
from chunkrl.report.run_frames import NUM_FRAMES, ExtremeFrame, extreme_frames
from chunkrl.report.training_run import TrainingRun
from chunkrl.run.config import TrainConfig
from chunkrl.run.parts import SETTINGS, settings_of
from chunkrl.training.algorithm import Histogram
from chunkrl.training.metrics import METRICS_FILE

EVIL = "push <script>alert('&')</script>"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    data = write_dataset(folder / "d", random_episodes(6), tasks=(EVIL,))
    ChunkLevelOfflineRL(**settings(data, folder / "run")).train()
    return folder / "run"


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictured")
    data = write_dataset(folder / "d", image_episodes(4, size=16))
    ChunkLevelOfflineRL(**settings(data, folder / "run", cameras=())).train()
    return folder / "run"


def check_page(page: str) -> None:
    """It loads nothing, and its charts are well formed."""
    check_loads_nothing(page)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert charts
    for chart in charts:
        assert "nan" not in re.sub(r"<title>.*?</title>|aria-label=\".*?\"", "", chart)
        ET.fromstring(chart)


def extremes(run: TrainingRun) -> list[ExtremeFrame]:
    """The frames of both tables, in their order."""
    return [one for highest in (True, False) for one in extreme_frames(run.data, NUM_FRAMES, highest)]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_a_run_on_states(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(plain)])
    assert "report.html" in capsys.readouterr().out
    page = (plain / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert headings(page) == [
        "What the values are worth",
        "What became of the advantages",
        "What the critic sees",
        "Frames with the highest and lowest advantages",
        "Training",
        "Data and settings",
    ]
    assert "<img" not in page  # rows in place of images
    strata, highest, lowest, data = Page(page).tables
    run = load_run(plain)
    sizes = [float(row["effective sample size"].removesuffix("%")) for row in strata]
    assert 0 < len(sizes) <= 5 and sizes == sorted(sizes) and sizes[-1] <= 100
    for row, one in zip((*highest, *lowest), extremes(run), strict=True):
        assert row == {
            "episode": f"episode {one.episode.index}",
            "frame": str(one.frame),
            "task": EVIL,
            "outcome": "success" if one.episode.success else "failure",
            "value": f"{one.value:.3f}",
            "advantage": f"{one.advantage:+.3f}".replace("-", "−"),
        }
    (told,) = data
    table = run.data[0].dataset
    assert (told["task"], told["episodes"], told["frames"]) == (EVIL, "6", str(table.num_frames))
    assert (told["frames per second"], told["made by a human"]) == (f"{table.fps:g}", "0 %")
    assert "push &lt;script&gt;" in page
    run = load_run(plain)
    recorded = run.last("value/rank_correlation_held_out")
    assert recorded is not None
    assert f"{recorded:.2f}".replace("-", "−") in page  # the log and the page say the same
    assert len(re.findall(r"<h3>push .*?episode \d+ <span", page)) == 6
    for panel in ("loss: policy", "gradient norms", "learning rates", "peak memory, GB"):
        assert f"<h3>{panel}</h3>" in page


def test_a_run_on_pictures(pictured: Path, tmp_path: Path) -> None:
    main(["report", str(pictured), "--output", str(tmp_path / "page.html"), "--videos", "1"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    check_page(page)
    assert (
        page.count('<img src="data:image/jpeg;base64,') == 2 * 4 * 2
    )  # two ends, four episodes, two cameras
    assert page.count("<video ") == 1 and "Episodes with their values" in page
    # the trace of the episode and its frames among the extreme ones lead to its video
    assert Page(page).targets() == {"#video-0": "div"} and page.count('href="#video-0"') == 3
    assert "A title leads to" in page
    without_videos = render_run(load_run(pictured))
    assert Page(without_videos).targets() == {} and "chunkrl report --videos N" in without_videos


def test_videos_need_cameras(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(plain), "--videos", "1"])
    assert "has no cameras" in capsys.readouterr().err


def test_a_run_without_values(plain: Path, tmp_path: Path) -> None:
    data = load_run(plain).config.dataset_dir
    ChunkLevelOfflineRL(**settings(Path(data), tmp_path / "run", objective="behaviour_cloning")).train()
    page = render_run(load_run(tmp_path / "run"))
    check_page(page)
    assert headings(page) == ["Training", "Data and settings"]


def test_a_short_run_shows_its_losses_and_a_stopped_one_how_it_goes_on(plain: Path, tmp_path: Path) -> None:
    data = load_run(plain).config.dataset_dir
    own = settings(Path(data), tmp_path / "run", objective="behaviour_cloning", log_interval=100)
    ChunkLevelOfflineRL(**own).train()
    run = load_run(tmp_path / "run")
    (loss,) = run.points("loss/policy")[1]
    page = render_run(run)
    assert re.search(rf"<dt>loss: policy</dt><dd>{re.escape(compact(loss, 4))}</dd>", page)
    assert f"The same once more, in a new folder: chunkrl train --config {run.folder}/config.json." in page
    assert "recorded once" not in render_run(load_run(plain))
    shutil.rmtree(run.folder / "policy")  # as a stopped run has none
    assert f"It is not finished: chunkrl train --resume {run.folder} goes on." in render_run(run)


def labelled(run: TrainingRun, folder: Path, config: TrainConfig, **labels: np.ndarray) -> TrainingRun:
    """The run with other labels of its frames and other settings, in a folder of its own."""
    folder.mkdir()
    save_config(config, folder / "config.json")
    (folder / METRICS_FILE).write_bytes((run.folder / METRICS_FILE).read_bytes())
    part = run.data[0]
    rule = {**part.rule, SETTINGS: settings_of(config)}
    save_sidecar(folder / "values.parquet", part.dataset.table, {**part.labels, **labels}, rule)
    return load_run(folder)


def test_bins_stand_with_their_shares(plain: Path, tmp_path: Path) -> None:
    run = load_run(plain)
    num = len(run.column("advantage"))
    raw = np.arange(num) % 4 // 3  # a quarter positive
    bins = np.maximum(raw, np.arange(num) < num // 10)
    config = replace(run.config, conditioning=ConditioningConfig(num_bins=2))
    page = render_run(labelled(run, tmp_path / "run", config, advantage_bin=bins, advantage_bin_raw=raw))
    check_page(page)
    share = round(float(np.mean(bins == 1)), 3)
    assert f"<title>Advantage: positive: {percent(share)} · mean" in page
    assert "used as text in the prompt, 2 bins" in page
    assert f"chosen data): {percent(round(float(np.mean(bins != raw)), 3))}." in page


def test_memorised_values_are_warned_of(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(plain)
    returns = run.column("return")
    noise = np.random.default_rng(0).normal(size=len(returns)).astype(np.float32)
    folder = labelled(run, tmp_path / "a", run.config, value=noise, value_seen=returns).folder
    main(["report", str(folder)])
    assert "The values memorise" in capsys.readouterr().err
    assert "The values memorise" in (folder / "report.html").read_text(encoding="utf-8")
    config = replace(run.config, num_folds=1)
    page = render_run(labelled(run, tmp_path / "b", config, value=returns, value_seen=returns))
    assert "Cross-fitting was off" in page


def test_extreme_frames_are_one_an_episode(plain: Path) -> None:
    (part,) = load_run(plain).data
    advantage = part.labels["advantage"]
    highest, lowest = (extreme_frames([part], 4, high) for high in (True, False))
    assert highest[0].advantage == advantage.max() and lowest[0].advantage == advantage.min()
    for found in (highest, lowest):
        assert len({one.episode.index for one in found}) == 4
        assert [one.advantage for one in found] == [float(advantage[one.row]) for one in found]
    assert [one.advantage for one in highest] == sorted((o.advantage for o in highest), reverse=True)
    assert extreme_frames([part], 99, True)[-1].frame >= 0


def test_episodes_are_chosen_in_turn(plain: Path) -> None:
    (part,) = load_run(plain).data
    assert [e.success for e in part.choose_episodes(4)] == [True, False, True, False]
    assert len(part.choose_episodes(99)) == part.dataset.num_episodes


def test_quality_is_that_of_the_log(plain: Path) -> None:
    run = load_run(plain)
    found = value_quality(run.column("value"), run.column("value_seen"), run.column("return"))
    for name, value in found.scalars().items():
        assert run.last(name) == pytest.approx(value, abs=1e-6)
    (histogram,) = [r.histograms["advantage/value"] for r in run.records if r.histograms]
    assert histogram == Histogram.of(run.column("advantage"))


def link_to_nothing(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("nowhere")


def lose_values(run: Path) -> None:
    write_manifest(run, ["values.parquet"])
    (run / "values.parquet").unlink()


def name_absent_data(folder: Path) -> None:
    config = load_config(TrainConfig, folder / "config.json")
    save_config(replace(config, dataset_dir=str(folder / "absent")), folder / "config.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / METRICS_FILE).unlink(), "is no folder of a training run"),
        (lambda run: (run / METRICS_FILE).write_text("{}\n"), "line 1 is no record"),
        (name_absent_data, "start the command in the same folder"),
        (lambda run: (run / "values.parquet").write_bytes(b"x"), "cannot be read"),
        (lambda run: link_to_nothing(run / "values.parquet"), r"values\.parquet is missing"),
        (lose_values, r"values\.parquet is missing"),
        (lambda run: link_to_nothing(run / "versions.json"), r"versions\.json is missing"),
    ],
)
def test_damaged_runs_are_named(plain: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    run = load_run(plain)
    folder = labelled(run, tmp_path / "run", run.config).folder
    spoil(folder)
    with pytest.raises(ChunkRLError, match=message):
        load_run(folder)


def test_what_the_command_line_refuses(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["report"], "name the run's folder"),
        (["report", "x", "--videos=-1"], "negative"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_charts_of_distributions() -> None:
    histogram = Histogram((3, 0, 1), (-1.0, 0.0, 1.0, 2.0))
    chart = ET.fromstring(distributions.histogram_chart(histogram, "x", "s", by_sign=True))
    bars = list(chart.iter("rect"))
    assert [rect.get("class") for rect in bars] == ["bar bad", "bar good"]
    heights = [float(rect.get("height") or "nan") for rect in bars]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.01)
    found = calibration([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], num_bins=3)
    chart = ET.fromstring(distributions.calibration_chart(found, "s"))
    for circle in chart.iter("circle"):  # on the diagonal of its square-ish axes: equal fractions of both
        x, y = float(circle.get("cx") or "nan"), float(circle.get("cy") or "nan")
        assert (x - 46) / (360 - 14 - 46) == pytest.approx((250 - y) / 240, abs=1e-3)
    shares = [distributions.Share("a", 0.5), distributions.Share("b", 0.25)]
    chart = ET.fromstring(distributions.share_chart(shares, "s"))
    widths = [float(r.get("width") or "nan") for r in chart.iter("rect") if r.get("class") == "bar strong"]
    assert widths == [180, 90]


def test_every_run_says_with_which_versions_it_was_trained(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(4))
    run = tmp_path / "run"
    ChunkLevelOfflineRL(**settings(data, run, objective="behaviour_cloning")).train()
    for name, version in (("chunkrl", chunkrl.__version__), ("torch", torch.__version__)):
        assert f"<dt>{name}</dt><dd>{version}</dd>" in render_run(load_run(run))
    (run / "versions.json").write_text("[")
    with pytest.raises(ChunkRLError, match=r"versions\.json is damaged"):
        load_run(run)
    (run / "versions.json").unlink()
    assert "not recorded" in render_run(load_run(run))
