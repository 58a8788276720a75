"""Our files in LeRobot's own sample weighting: the same weights, and stock `lerobot-train` trains by them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chunk_data import image_episodes, settings, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.cli import main
from chunkrl.integration.rabc import encode_weights, rabc_weights

pytestmark = pytest.mark.lerobot
ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "plugins" / "lerobot_policy_chunkrl"
HORIZON, BATCH, UPDATES = 4, 12, 3


@pytest.fixture(autouse=True)
def _lerobot() -> None:
    pytest.importorskip("lerobot.policies.pretrained", reason="needs LeRobot (make test-lerobot)")


def weighter_class() -> Any:
    """LeRobot's own, of 0.6.1 or 0.4.4."""
    try:
        from lerobot.rewards.sarm.rabc import RABCWeights  # type: ignore[import-not-found]
    except ImportError:
        from lerobot.utils.rabc import RABCWeights  # type: ignore[import-not-found]
    return RABCWeights


def theirs(file: Path, progress: np.ndarray, episode: np.ndarray, horizon: int, kappa: float) -> np.ndarray:
    """The weight that LeRobot gives every row."""
    rows = {"index": np.arange(len(progress)), "episode_index": episode, "progress_sparse": progress}
    pq.write_table(pa.table(rows), file)
    weighter = weighter_class()(file, horizon, "sparse", kappa, device=torch.device("cpu"))
    rises = [weighter._compute_delta(row) for row in range(len(progress))]
    return weighter._compute_weights(np.array(rises, np.float32))


@pytest.mark.parametrize("horizon", [1, 4, 50])
def test_weights_in_closed_form_are_lerobots(horizon: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(5), [9, 3, 20, 1, 14])
    for progress in (rng.uniform(size=47), np.sort(rng.uniform(size=47))[::-1].copy()):
        own = rabc_weights(progress, episode, horizon, 0.2)
        np.testing.assert_allclose(
            theirs(tmp_path / "a.parquet", progress, episode, horizon, 0.2), own, atol=1e-6
        )
    weight = rng.exponential(size=47)
    encoded = encode_weights(weight, episode, horizon)
    progress = np.append(encoded.progress, encoded.others)
    whole = np.append(episode, np.full(len(encoded.others), 5))
    found = theirs(tmp_path / "b.parquet", progress, whole, horizon, 1.0)[:47]
    wanted = np.where(np.append(np.diff(episode) != 0, True), 0.0, weight)
    np.testing.assert_allclose(found, wanted / wanted.max(), atol=5e-6)


def lerobot_train(folder: Path, line: str, kind: str) -> subprocess.CompletedProcess[str]:
    """The command that `export-values` printed, with a tiny ACT for a few updates, in a process of its own."""
    words = [word for word in line.split()[1:] if not word.startswith("--policy.type")]
    words += [f"--policy.type={kind}", "--policy.device=cpu", "--policy.pretrained_backbone_weights=null"]
    words += ["--policy.dim_model=16", "--policy.n_heads=2", "--policy.dim_feedforward=16"]
    words += ["--policy.n_encoder_layers=1", "--policy.n_vae_encoder_layers=1", "--policy.latent_dim=4"]
    words += [f"--batch_size={BATCH}", f"--steps={UPDATES}", "--log_freq=1", "--num_workers=0"]
    words += ["--save_checkpoint=false", f"--output_dir={folder / kind}", "--wandb.enable=false", "--seed=3"]
    path = [str(PLUGIN), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, "-m", "lerobot.scripts.lerobot_train", *words],
        env=os.environ | more | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=900,
    )


def test_lerobot_train_weights_by_our_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lerobot.utils.sample_weighting", reason="0.4.4 has other flags")
    pytest.importorskip("accelerate", reason="lerobot-train needs it (make test-lerobot)")
    data = write_dataset(tmp_path / "data", image_episodes(6, size=64))
    run = settings(data, tmp_path / "run", objective="value", cameras=(), action_horizon=HORIZON)
    ChunkLevelOfflineRL(**run).train()
    main(["export-values", str(tmp_path / "run")])
    told = capsys.readouterr().out
    (line,) = re.findall(r"lerobot-train .*", told)
    assert f"--policy.chunk_size={HORIZON}" in line
    done = lerobot_train(tmp_path, line, "weighted_act")
    assert done.returncode == 0, done.stderr[-4000:]
    # a pass over the data, each frame once: the numbers of the batches are those of our own weights
    kappa = float(re.findall(r"sample_weighting.kappa=(\S+)", line)[0])
    stored = pq.read_table(tmp_path / "run" / "rabc.parquet")
    assert stored.num_rows == BATCH * UPDATES
    progress, index = (stored[name].to_numpy() for name in ("progress_sparse", "episode_index"))
    weight = rabc_weights(progress, index, HORIZON, kappa)
    logged = {
        name: [float(text) for text in re.findall(rf"sample_weight_{name}:([\d.]+)", done.stderr)]
        for name in ("mean_weight", "num_zero_weight", "num_full_weight")
    }
    assert len(logged["mean_weight"]) == UPDATES
    assert np.mean(logged["mean_weight"]) == pytest.approx(weight.mean(), abs=1e-3)
    assert sum(logged["num_zero_weight"]) == (weight == 0).sum() > 0
    assert sum(logged["num_full_weight"]) == (weight == 1).sum() > 0


def test_equal_weights_are_acts_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of LeRobot 0.6.1, with chunks that are padded unequally."""
    pytest.importorskip("lerobot.utils.sample_weighting", reason="0.4.4 divides by padded actions as well")
    monkeypatch.syspath_prepend(str(PLUGIN))
    import lerobot_policy_chunkrl.configuration_weighted_act as configuration  # type: ignore[import-not-found]
    import lerobot_policy_chunkrl.modeling_weighted_act as modeling  # type: ignore[import-not-found]
    from lerobot.configs.types import FeatureType, PolicyFeature  # type: ignore[import-not-found]

    config = configuration.WeightedACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (3,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        chunk_size=HORIZON,
        n_action_steps=HORIZON,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=4,
        dropout=0.0,
        device="cpu",
        pretrained_backbone_weights=None,
    )
    torch.manual_seed(0)
    policy = modeling.WeightedACTPolicy(config).train()
    batch = {
        "observation.state": torch.randn(5, 3),
        "observation.environment_state": torch.randn(5, 3),
        "action": torch.randn(5, HORIZON, 2),
        "action_is_pad": torch.arange(HORIZON) > torch.tensor([[3], [0], [2], [3], [1]]),
    }
    torch.manual_seed(1)
    whole, _ = policy.forward(batch)
    torch.manual_seed(1)
    each, _ = policy.forward(batch, reduction="none")
    assert each.shape == (5,)
    torch.testing.assert_close(each.mean(), whole)
    with pytest.raises(ValueError, match="use mean or none"):
        policy.forward(batch, reduction="sum")


def test_stock_act_has_no_loss_of_samples() -> None:
    """What the guide says of it: when this fails, ACT needs no plug-in any longer."""
    act = pytest.importorskip("lerobot.policies.act.modeling_act")
    with pytest.raises(TypeError, match="reduction"):
        act.ACTPolicy.forward(None, {}, reduction="none")
