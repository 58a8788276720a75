"""The README's Python is run as it stands, on small data under the names that it uses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from chunk_data import image_episodes, write_dataset
from pi_runs import config, write_checkpoints, write_root

import chunkrl
from chunkrl import ChunkLevelOfflineRL, evaluate, load_policy
from chunkrl.cli import main
from chunkrl.errors import ChunkRLError

README = Path(__file__).parents[1] / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_a_small_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data/lerobot/libero_spatial", image_episodes(6, ["image"]), ["open the drawer"])
    text = (
        snippets()[0]
        .replace("num_epochs=100", "num_epochs=1")
        .replace("action_horizon=10", "action_horizon=3")
    )
    image, state = np.zeros((3, 32, 32), np.uint8), np.zeros(3, np.float32)
    names = {"image": image, "state": state}
    exec(text, names)  # the README's own words
    assert names["chunk"].shape == (3, 2)
    assert (tmp_path / "runs/libero_spatial-cross_fitted-001/policy").is_dir()


def test_a_pi_policy(tmp_path: Path) -> None:
    """From `load_policy` on, of a pi policy's folder."""
    root, checkpoints = write_root(tmp_path / "d"), write_checkpoints(tmp_path / "checkpoints")
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path / "run", "behaviour_cloning"))
    run.train()
    _, _, acting = snippets()[0].partition("policy = load_policy")
    front = "observation.images.front"
    acting = acting.replace('{"observation.images.image": image}', "images")
    images = {name: np.zeros((3, 56, 56), np.uint8) for name in (front, front.replace("front", "wrist"))}
    state = np.zeros(run.dataset.state_dim, np.float32)
    names = {"trainer": run, "images": images, "state": state, "Observation": chunkrl.Observation}
    exec("policy = load_policy" + acting, names | {"load_policy": load_policy}, names)
    assert names["chunk"].shape == (3, run.dataset.action_dim)


def test_evaluating_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["collect", "--num-episodes", "2", "--output-dir", "d", "--num-workers", "0", "--max-steps", "20"])
    flags = (
        "--dataset-dir d --output-dir runs/push --num-updates 1 --objective behaviour_cloning --device cpu"
    )
    main(["train", *flags.split(), "--action-horizon", "5"])
    capsys.readouterr()
    brief = "num_episodes=2, max_steps=10, num_workers=0"
    names: dict[str, object] = {}
    exec(snippets()[1].replace("num_episodes=20", brief), names)
    assert re.fullmatch(r"[01]\.\d+\n", capsys.readouterr().out)  # nothing but what the snippet prints
    kept = evaluate(
        "runs/push/policy", ["push-v3"], num_episodes=2, max_steps=10, num_workers=0, output_dir="e"
    )
    assert (
        kept.episodes
        == evaluate("runs/push/policy", "push-v3", num_episodes=2, max_steps=10, num_workers=0).episodes
    )
    assert (tmp_path / "e" / "result.json").is_file()
    with pytest.raises(ChunkRLError, match="no task"):
        evaluate("runs/push/policy", "pusj-v3", num_episodes=1)
