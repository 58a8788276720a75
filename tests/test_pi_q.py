"""Q on pi policies: what an update computes, what is saved beside the policy, best-of-N."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pi_runs as pi
import pytest
import torch
from pi_runs import config
from pi_tiny import TOKENIZER, observation, tiny_policy
from torch import Tensor

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.config import DistilConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.cli import main
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.integration.pi_saving import Q_FOLDER
from chunkrl.manifest import MANIFEST_FILE, write_manifest
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.flow import PiModel
from chunkrl.models.value_head import ValueHead
from chunkrl.run.policy_io import load_policy
from chunkrl.training.checkpoint import load_state, save_state

root, checkpoints = pi.root, pi.checkpoints
EXPERT = PiTrainingConfig(train="expert", num_noise=2, critic=pi.CRITIC)
WITH_Q: dict[str, dict[str, Any]] = {
    "cross_fitted": {"train_q": True, "pi": EXPERT},
    "advantage_conditioned": {"train_q": True, "pi": EXPERT},
    "iql": {"ema_decay": 0.5},
    "distributional": {
        "objective": "cross_fitted",
        "train_q": True,
        "pi": EXPERT,
        "fit": ValueFit(head=ValueHead("hl_gauss")),
    },
}


def generators(number: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that the vision tower is shown from now on, a number each pass."""
    shown: list[int] = []
    original = PiModel.embed_images

    def counted(self: PiModel, images: Tensor) -> Tensor:
        shown.append(len(images))
        return original(self, images)

    monkeypatch.setattr(PiModel, "embed_images", counted)
    return shown


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_an_update_of_iql_sees_each_picture_once_and_asks_the_target_once(
    root: Path, checkpoints: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "iql", pi0_config=kind, num_folds=3))
    target = run.algorithm.target.networks[0]
    asked: list[tuple[int, ...]] = []
    original = target.forward_prepared

    def recorded(prepared: Any, actions: Tensor) -> Tensor:
        asked.append(tuple(actions.shape))
        return original(prepared, actions)

    monkeypatch.setattr(target, "forward_prepared", recorded)
    shown = passes(monkeypatch)
    metrics = run.algorithm.update("joint", run.dataset.batch(np.arange(6)))
    assert shown == [12, 12]  # two cameras of six observations, and of the six that follow
    assert asked == [(6, pi.HORIZON, pi.ACTION_DIM)]
    assert {"loss/value_held_out", "loss/imitation", "grad_norm/joint"} <= set(metrics)
    levels = [key for key in metrics if key.startswith("flow_loss/time_")]
    assert 1 <= len(levels) <= 4


def test_sharing_the_vision_tokens_changes_no_number(
    root: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients reach the vision tower through the policy's loss, and from nowhere else."""
    found, before = [], load_pretrained(checkpoints / "pi05").model.vision.parameters()
    for shares in (True, False):
        run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "iql"))
        if not shares:
            monkeypatch.setattr(run.policy, "with_vision", lambda observation: observation)
        torch.manual_seed(0)
        metrics = run.algorithm.update("joint", run.dataset.batch(np.arange(6)))
        found.append((metrics, [p.detach() for p in run.policy.policy.model.vision.parameters()]))
    (ours, parameters), (theirs, others) = found
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for one, other, start in zip(parameters, others, before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
        assert not torch.equal(one, start)


def test_no_gradient_of_critics_reaches_the_policy(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "iql", lambda_pi=0.0))
    before = [p.detach().clone() for p in run.policy.parameters()]
    run.algorithm.update("joint", run.dataset.batch(np.arange(6)))
    assert all(torch.equal(p, start) for p, start in zip(run.policy.parameters(), before, strict=True))


def test_iqls_critics_learn_at_a_rate_of_their_own(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    """AdamW's first step is the rate, whatever the gradient."""
    for folds in (1, 2):
        settings = config(root, checkpoints, tmp_path, "iql", lr=1e-5, value_lr=1e-3, num_folds=folds)
        run = ChunkLevelOfflineRL(settings)
        algorithm = run.algorithm
        moved = {"policy": algorithm.policy, "value": algorithm.value, "critic": algorithm.critic}
        before = {name: [p.detach().clone() for p in part.parameters()] for name, part in moved.items()}
        algorithm.update("joint", run.dataset.batch(np.arange(6)))
        steps = {
            name: max(
                float((p.detach() - b).abs().max())
                for p, b in zip(part.parameters(), before[name], strict=True)
            )
            for name, part in moved.items()
        }
        assert steps == pytest.approx({"policy": 1e-5, "value": 1e-3, "critic": 1e-3}, rel=0.05)


def test_q_and_its_target_are_float32_whatever_the_checkpoint_holds(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """Steps of .005 of a difference are lost below one unit in the last place of bfloat16."""
    half = load_pretrained(checkpoints / "pi05", dtype=torch.bfloat16, tokenizer=TOKENIZER)
    save_pretrained(half, tmp_path / "half")
    run = ChunkLevelOfflineRL(config(root, tmp_path, tmp_path / "run", "iql", pi0_config="half", pi=EXPERT))
    algorithm = run.algorithm
    before = [p.clone() for p in algorithm.target.parameters()]
    algorithm.update("joint", run.dataset.batch(np.arange(6)))
    for part in (algorithm.value, algorithm.critic, algorithm.target):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    for old, new, online in zip(
        before, algorithm.target.parameters(), algorithm.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.995 * old + 0.005 * online.detach(), rtol=1e-6, atol=1e-7)


def test_iql_says_what_its_values_are_worth(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(
        config(root, checkpoints, tmp_path, "iql", relabel_interval=2, num_updates=3, num_folds=2)
    )
    run.train()
    assert run.trainer is not None
    held_out, seen = (run.trainer.history[f"value/rank_correlation_{name}"] for name in ("held_out", "seen"))
    assert [update for update, _ in held_out] == [update for update, _ in seen] == [3, 3]
    assert all(-1 <= value <= 1 for _, value in held_out + seen)
    assert {"value/overfit_gap", "value/calibration_error"} <= set(run.trainer.history)
    labels = run.algorithm.labels
    assert len(labels["value"]) == len(run.dataset) and (labels["value"] != labels["value_seen"]).all()
    assert (tmp_path / "values.parquet").is_file()
    main(["report", str(tmp_path)])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{held_out[-1][1]:.2f}".replace("-", "−") in page


@pytest.mark.parametrize("objective", WITH_Q)
def test_q_is_saved_beside_the_policy_and_chooses(
    root: Path, checkpoints: Path, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"objective": objective} | WITH_Q[objective]
    values = replace(config(root, checkpoints, tmp_path, "value"), **settings)
    run = ChunkLevelOfflineRL(values.with_objective(settings["objective"]))
    ours = run.train()
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(ours, PiActor) and isinstance(loaded, PiActor)
    assert ours.q is not None and loaded.q is not None
    without = load_policy(tmp_path / "policy", with_q=False)
    assert isinstance(without, PiActor) and without.q is None
    seen = run.dataset.batch(np.arange(3), next_observation=False).observation
    torch.testing.assert_close(without.act(seen, ()), loaded.act(seen, ()))
    shown = passes(monkeypatch)
    best = loaded.act(seen, generators(3), "best_of_n", 5)
    assert shown == [6]  # one pass for five candidates of three rows, and for Q
    shape = (5, pi.HORIZON, loaded.policy.recipe.config.action_dim)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators(3)])
    candidates = loaded.policy.sample(seen, 5, noise=noise)
    scores = loaded.q(seen, candidates)  # type: ignore[operator]
    assert scores.shape == (3, 5) and bool((scores.std(dim=1) > 0).all())
    for row in range(3):
        torch.testing.assert_close(best[row], candidates[row, int(scores[row].argmax())])
    if objective != "iql":  # its deployed policy is the average
        torch.testing.assert_close(ours.act(seen, generators(3), "best_of_n", 5), best)


def test_the_folder_with_q_is_lerobots(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    """What stands beside Q is what a run without Q writes, file for file, and it says how Q was built."""
    plain = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path / "plain", "cross_fitted", pi=EXPERT))
    plain.train()
    run = ChunkLevelOfflineRL(
        config(root, checkpoints, tmp_path / "q", "cross_fitted", train_q=True, pi=EXPERT)
    )
    run.train()
    with_q, without = tmp_path / "q" / "policy", tmp_path / "plain" / "policy"
    assert {f.name for f in with_q.iterdir()} == {f.name for f in without.iterdir()} | {Q_FOLDER}
    assert {f.name for f in (with_q / Q_FOLDER).iterdir()} == {
        "state.safetensors",
        "state.json",
        MANIFEST_FILE,
    }
    assert (with_q / "config.json").read_bytes() == (without / "config.json").read_bytes()
    spec = json.loads((with_q / Q_FOLDER / "state.json").read_text())
    assert spec["spec_json|num_folds"] == 2 and spec["spec_json|critic|depth"] == pi.CRITIC.depth
    load_pretrained(with_q)
    assert isinstance(load_policy(without), PiActor)
    assert not any(f.name.startswith(".") for f in with_q.parent.iterdir())


def test_a_damaged_q_is_refused_by_name(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "iql"))
    run.train()
    folder = tmp_path / "policy" / Q_FOLDER
    whole = load_state(folder)
    for broken in (
        {key: value for key, value in whole.items() if key != "spec_json"},
        {**whole, "q": {}},
        {**whole, "spec_json": {**whole["spec_json"], "num_critics": 3}},
    ):
        save_state(folder, broken)
        with pytest.raises(CheckpointError, match=rf"{Q_FOLDER}/{MANIFEST_FILE} has changed"):
            load_policy(tmp_path / "policy")
        write_manifest(tmp_path / "policy")
        with pytest.raises(CheckpointError, match=rf"{Q_FOLDER} (is not a saved Q|does not fit)"):
            load_policy(tmp_path / "policy")
    (folder / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{Q_FOLDER}/state.safetensors is missing"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_the_best_of_n_is_distilled(root: Path, checkpoints: Path, tmp_path: Path, kind: str) -> None:
    """The pretrained policy's own chunks, by Q on its features; what they cost is one pass of the vision tower."""
    settings = config(
        *(root, checkpoints, tmp_path, "cross_fitted"),
        pi0_config=kind,
        pi=EXPERT,
        num_updates=0,
        distil=DistilConfig(3, updates=2, share=1.0),
    )
    run = ChunkLevelOfflineRL(settings)
    assert [phase.name for phase in run.algorithm.phases()] == ["value", "critic", "distil"]
    learner, dataset = run.policy, run.dataset
    noise = np.random.default_rng([settings.seed, 0xBE57, 4]).standard_normal(
        (3, *learner.noise_shape), dtype=np.float32
    )
    observation = dataset.batch(np.array([4]), next_observation=False).observation
    candidates = learner.policy.sample(observation, 3, condition="", noise=torch.from_numpy(noise)[None])
    run.train()
    best, history = run.algorithm.labels["best_chunk"], run.trainer.history  # type: ignore[union-attr]
    distances = np.abs(candidates[0].numpy() - best[4]).max(axis=(1, 2))
    assert distances.min() < 1e-4
    assert history["distil/replaced_fraction"][0][1] > 0 and len(history["loss/policy"]) > 0
    assert not (tmp_path / "policy" / Q_FOLDER).exists()


def test_best_of_n_without_q_is_refused() -> None:
    actor = PiActor(tiny_policy("pi05"))
    with pytest.raises(ChunkRLError, match="--train-q or --objective iql"):
        actor.act(observation(), generators(2), "best_of_n", 2)


def test_q_needs_features_that_stay(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    """Trained before the policy, Q would read vision tokens that the policy's training changes behind it."""
    full = replace(EXPERT, train="full")
    for objective in ("cross_fitted", "behaviour_cloning"):
        with pytest.raises(ChunkRLError, match="freeze them"):
            ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, objective, train_q=True, pi=full))
    assert ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "iql", pi=full)).policy.trains_features
    still = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "cross_fitted", train_q=True, pi=EXPERT))
    assert not still.policy.trains_features


def test_the_policys_training_does_not_pay_for_what_has_learned(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """V goes before Q learns, and Q's moments before the policy does; a resumed run knows both."""
    settings = config(root, checkpoints, tmp_path, "cross_fitted", train_q=True, pi=EXPERT, save_updates=1)
    run = ChunkLevelOfflineRL(settings)
    run.train()
    held = {}
    for folder in sorted((tmp_path / "checkpoints").glob("0*")):
        algorithm = load_state(folder)["algorithm"]
        held[int(folder.name)] = ("training" in algorithm["values"], "optimizer" in algorithm["critic"])
    assert held == {1: (True, True), 2: (True, True), 3: (False, True), 4: (False, True)} | dict.fromkeys(
        (5, 6, 7), (False, False)
    )
    whole = (tmp_path / "policy" / Q_FOLDER / "state.safetensors").read_bytes()
    for name in ("0000003", "0000006"):
        resumed = replace(settings, resume=str(tmp_path / "checkpoints" / name))
        ChunkLevelOfflineRL(resumed).train()
        assert (tmp_path / "policy" / Q_FOLDER / "state.safetensors").read_bytes() == whole


def test_q_accumulates_to_the_whole_batchs_gradient(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    found = []
    for microbatch in (None, 4):
        run = ChunkLevelOfflineRL(
            config(
                *(root, checkpoints, tmp_path, "cross_fitted"),
                train_q=True,
                pi=EXPERT,
                microbatch_size=microbatch,
            )
        )
        run.algorithm.start_phase("critic")
        metrics = run.algorithm.update("critic", run.dataset.batch(np.arange(10), next_observation=False))
        found.append((metrics, [p.detach().clone() for p in run.algorithm.critic.networks.parameters()]))
    (whole, parameters), (parts, others) = found
    assert parts == pytest.approx(whole, rel=1e-4)
    for one, other in zip(parameters, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_evaluate_takes_the_best_of_n(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    from chunkrl.models.pi import tiny

    short = "--num-episodes 4 --max-steps 8 --num-workers 0 --state compact"
    main(["collect", "--output-dir", str(tmp_path / "data"), *short.split()])
    small = "--horizon 3 --no-cameras --width 16 --depth 1"
    tiny.main([str(tmp_path / "data"), str(tmp_path / "pi0" / "tiny"), *small.split()])
    train = (
        f"--dataset-dir {tmp_path / 'data'} --output-dir {tmp_path / 'run'} --action-horizon 3 --action-dim 4"
    )
    pi_flags = f"--policy.kind pi --pi0-config tiny --pi0-checkpoints-dir {tmp_path / 'pi0'} --success all"
    few = "--objective iql --num-folds 2 --num-updates 2 --batch-size 4 --device cpu"
    critic = "--pi.critic.depth 1 --pi.critic.num-queries 2 --pi.critic.head-width 8"
    main(["train", *train.split(), *pi_flags.split(), *few.split(), *critic.split()])
    asked = (
        f"--policy {tmp_path / 'run' / 'policy'} --num-episodes 2 --max-steps 6 --device cpu --flow-steps 2"
    )
    capsys.readouterr()
    main(["evaluate", *asked.split(), "--mode", "best_of_n", "--num-candidates", "3"])
    assert "push-v3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        other = asked.replace(str(tmp_path / "run" / "policy"), str(tmp_path / "pi0" / "tiny"))
        main(["evaluate", *other.split(), "--mode", "best_of_n"])
    assert stop.value.code == 2 and "--train-q" in capsys.readouterr().err
