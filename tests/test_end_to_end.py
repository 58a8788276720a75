"""The main job in small, through the real command line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")

from chunkrl.cli import main
from chunkrl.data.frames import FrameTable
from chunkrl.demo.arms import DEMO_ARMS
from chunkrl.demo.command import run_demo
from chunkrl.envs.scripted import POLICY
from chunkrl.errors import ChunkRLError, OutputFolderError
from chunkrl.options import DemoConfig
from chunkrl.progress import silent


def test_collect_train_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    collect = f"collect --output-dir {data} --num-episodes 6 --max-steps 60 --num-workers 0 --seed 1"
    main([*collect.split(), "--mixture.mixture", "episodes"])
    shown = re.search(r"6 episodes, (\d) successful", capsys.readouterr().out)
    assert shown is not None and 0 < int(shown[1]) < 6
    train = f"train --dataset-dir {data} --output-dir {run} --action-horizon 4 --action-dim 4 --device cpu "
    main([*train.split(), *["--num-updates", "30", "--value-epochs", "3", "--num-folds", "2", "--train-q"]])
    assert (run / "values.parquet").is_file()
    capsys.readouterr()
    for mode in ("mode", "best_of_n"):
        evaluate = f"evaluate --policy {run / 'policy'} --num-episodes 2 --max-steps 12 --num-workers 0 "
        main([*evaluate.split(), "--mode", mode, "--device", "cpu", "--output-dir", str(tmp_path / mode)])
        found = json.loads((tmp_path / mode / "result.json").read_text())
        assert found["num_episodes"] == len(found["tasks"]["push-v3"]["episodes"]) == 2
        assert 0 <= found["interval"][0] <= found["success"] <= found["interval"][1] <= 1
        assert found["exec_steps"] == 4
        assert re.search(r"success \d/2", capsys.readouterr().out)
    mixed = tmp_path / "mixed"  # the policy acts in data that are collected again
    more = (
        f"--num-episodes 2 --max-steps 60 --policy {run / 'policy'} --mixture.policy-share 0.5 --exec-steps 3"
    )
    main([*collect.replace(str(data), str(mixed)).split(), *more.split()])
    table = FrameTable.open(mixed, progress=silent)
    acted = set(np.unique(table.column("complementary_info.controller")))
    assert POLICY in acted and acted - {POLICY}
    for wrong, message in (
        ("--state compact", "takes the state 'full'.*--state full"),
        ("--exec-steps 9", "exec_steps 9 is longer than the policy's chunk 4"),
    ):
        with pytest.raises(SystemExit):
            main([*collect.replace(str(data), str(tmp_path / "no")).split(), *more.split(), *wrong.split()])
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """num_workers processes start, so that this takes half a minute on a busy machine."""
    config = DemoConfig(
        output_dir=str(tmp_path / "demo"),
        tasks=("push-v3",),
        mixtures=("episodes",),
        num_collect=8,
        num_eval=2,
        policy_updates=20,
        num_workers=1,
    )
    report = run_demo(config)
    with pytest.raises(OutputFolderError, match=r"holds a run of chunkrl demo .* --resume"):
        run_demo(config)
    with pytest.raises(ChunkRLError, match=r"holds a demo of other settings \(num_eval\)"):
        run_demo(replace(config, num_eval=3, resume=True))
    first = json.loads((tmp_path / "demo" / "results.json").read_text())
    runs = set((tmp_path / "demo" / "runs").rglob("0*"))
    run_demo(replace(config, resume=True))  # every training is there
    again = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert again["tasks"] == first["tasks"] and again["diagnostics"] == first["diagnostics"]
    assert set((tmp_path / "demo" / "runs").rglob("0*")) == runs
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    (task,) = results["tasks"].values()
    assert task["arms"].keys() == {arm.name for arm in DEMO_ARMS}
    for key in ("difference", "difference_interval"):
        assert task[key].keys() == {"behaviour_cloning", "success_cloning"}
    for arm in task["arms"].values():
        assert {"success", "interval", "num_episodes", "seed"} <= arm.keys()
        assert arm["num_episodes"] == 2
        assert 0 <= arm["interval"][0] <= arm["success"] <= arm["interval"][1] <= 1
    page = report.read_text()
    # self-contained: nothing is fetched from anywhere
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "url(http" not in page and "@import" not in page
    assert "chunk_rl minus" in capsys.readouterr().out
