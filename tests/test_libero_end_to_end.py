"""Both uses of the advantage on LIBERO at tiny size: collect, label, train on images, evaluate, compare."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import test_libero

pytest.importorskip("sentencepiece", reason="needs the extra chunkrl[pi]")

from chunkrl.cli import main
from chunkrl.data.frames import FrameTable
from chunkrl.envs.libero import ACTION_DIM, CAMERAS, PUBLIC_CAMERA_SIZE, STATE_DIM
from chunkrl.envs.offscreen import choose_backend
from chunkrl.evaluation.evaluation_result import Evaluation, read_evaluation
from chunkrl.models.pi import tiny
from chunkrl.progress import silent

pytestmark = test_libero.pytestmark  # pytest.mark.libero, and skipped without package or assets

TASKS = ("libero_spatial/0", "libero_spatial/4")
SIZE = "--camera-size 64 --rendering fast"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `data` (four labelled episodes of four tasks), `checkpoints/tiny` and, under `runs`, what is trained."""
    folder = tmp_path_factory.mktemp("libero")
    data = folder / "data"
    main(f"collect --env libero_spatial --num-episodes 4 --num-workers 2 {SIZE} --output-dir {data}".split())
    main(["label", str(data)])
    tiny.main(
        [
            str(data),
            str(folder / "checkpoints" / "tiny"),
            *["--horizon", "5", "--width", "16", "--depth", "1"],
        ]
    )
    return folder


def train(root: Path, name: str, *more: str) -> Path:
    """Two updates of a run; returns its policy."""
    common = f"--dataset-dir {root / 'data'} --action-horizon 5 --action-dim {ACTION_DIM} --batch-size 4 --device cpu"
    brief = "--num-updates 2 --value-epochs 0.1 --num-folds 2"
    small = "" if "--policy.kind" in more else "--network.hidden-dim 16 --fit.hidden-dim 16"
    run = root / "runs" / name
    main(["train", *common.split(), *brief.split(), *small.split(), "--output-dir", str(run), *more])
    return run / "policy"


def evaluate(policy: Path, *more: str) -> Evaluation:
    """Three chunks from the first official initial state of two tasks, one video."""
    brief = "--num-episodes 1 --max-steps 12 --num-workers 2 --videos 1 --rendering fast --device cpu"
    folder = policy.parent / "evaluation"
    arguments = f"--policy {policy} --env {' '.join(TASKS)} --output-dir {folder} {brief}"
    main(["evaluate", *arguments.split(), *more])
    found = read_evaluation(folder)
    assert [found.seeds(env) for env in TASKS] == [(0,), (0,)]
    assert all(episode.num_steps == 12 for env in TASKS for episode in found.episodes[env])
    assert (folder / found.videos[0].file).stat().st_size > 1000
    return found


def pi_flags(root: Path) -> list[str]:
    return ["--pi0-checkpoints-dir", str(root / "checkpoints"), "--pi0-config", "tiny"]


def test_the_data_are_what_liberos_sets_are(root: Path) -> None:
    table = FrameTable.open(root / "data", progress=silent)
    assert table.num_episodes == 4 and table.action.shape[1] == ACTION_DIM
    assert table.state is not None and table.state.shape[1] == STATE_DIM
    for camera in CAMERAS:
        assert table.images(camera, np.arange(1)).shape == (1, 3, 64, 64)
    texts = {table.task_text(int(row)) for row in table.episode_start}
    assert len(texts) == 4 and all(text.startswith("pick up the black bowl") for text in texts)


def test_both_uses_of_the_advantage(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weighted = evaluate(train(root, "weighted"), "--camera-size", "64")
    assert weighted.settings.camera_size == 64 and weighted.settings.condition is None
    assert weighted.settings.opengl == choose_backend()
    critic = "--pi.critic.depth 1 --pi.critic.num-queries 2 --pi.critic.head-width 16"
    policy = train(
        root, "conditioned", *pi_flags(root), "--policy.kind", "pi", *critic.split(),
        "--objective", "advantage_conditioned",
    )  # fmt: skip
    conditioned = evaluate(policy)  # its images: of the public data sets' size, scaled by the policy
    assert conditioned.settings.condition == "Advantage: positive"
    assert conditioned.settings.camera_size == PUBLIC_CAMERA_SIZE
    capsys.readouterr()
    folders = [str(root / "runs" / name / "evaluation") for name in ("conditioned", "weighted")]
    main(["compare", *folders, "--output-dir", str(root / "comparison")])
    assert re.search(r"McNemar p = 1\b", capsys.readouterr().out)
    comparison = json.loads((root / "comparison" / "comparison.json").read_text())
    assert set(comparison["tasks"]) == set(TASKS) and comparison["exec_steps"] == 5


def test_a_pi_policys_chunks_in_place_of_the_recorded_ones(root: Path) -> None:
    policy = train(root, "pi_actions", "--use-pi0-actions", *pi_flags(root))
    found = evaluate(policy, "--camera-size", "64", "--exec-steps", "3")
    assert (found.settings.exec_steps, found.settings.horizon) == (3, 5)
