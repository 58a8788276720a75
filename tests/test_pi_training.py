"""Offline RL on pi policies: every objective, through files, and what must not depend on what."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pi_runs
import pyarrow.parquet as pq
import pytest
import torch
from chunk_data import open_chunks
from pi_runs import CAMERAS, CRITIC, HORIZON, config
from pi_tiny import ACTION_DIM

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.config import ConditioningConfig
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.cli import main
from chunkrl.config import save_config
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import CheckpointError, ChunkRLError, LabelError
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.models.condition import condition_text
from chunkrl.models.config import PolicyConfig
from chunkrl.models.pi import load_pretrained
from chunkrl.models.pi import policy as policy_module
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.config import PiCriticConfig
from chunkrl.models.value_head import ValueHead
from chunkrl.policies import registry
from chunkrl.run.policy_io import load_policy
from chunkrl.training.metrics import read_records

OBJECTIVES = (
    *("behaviour_cloning", "success_cloning", "cross_fitted", "shuffled_advantages"),
    *("advantage_conditioned", "shuffled_conditioning", "iql"),
)

root, checkpoints = pi_runs.root, pi_runs.checkpoints


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_gives_a_policy_that_loads_and_acts(
    root: Path, checkpoints: Path, tmp_path: Path, kind: str, objective: str
) -> None:
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, objective, pi0_config=kind))
    before = {name: p.detach().clone() for name, p in run.policy.policy.model.named_parameters()}
    ours = run.train()
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(ours, PiActor) and isinstance(loaded, PiActor)
    changed = [n for n, p in ours.policy.model.named_parameters() if not torch.equal(p.detach(), before[n])]
    trained = [n for n, p in ours.policy.model.named_parameters() if p.requires_grad]
    assert set(changed) <= set(trained) and len(changed) > 0.9 * len(trained)
    settings = loaded.policy.recipe.settings
    conditioned = objective in ("advantage_conditioned", "shuffled_conditioning")
    assert settings.condition == ("Advantage: positive" if conditioned else "")
    assert settings.conditions == (("Advantage: negative", "Advantage: positive") if conditioned else ())
    observation = run.dataset.batch(np.arange(4), next_observation=False).observation
    for mode in ("mode", "sample"):
        draws = [[torch.Generator().manual_seed(seed) for seed in range(4)] for _ in range(2)]
        first, second = (a.act(observation, d, mode) for a, d in zip((ours, loaded), draws, strict=True))
        assert first.shape == (4, HORIZON, ACTION_DIM)
        assert torch.equal(first, second)


def test_the_prompt_of_training_is_that_of_inference(
    root: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words at the same place, made by the one function; and V's prompts hold no advantage."""
    seen: list[tuple[str, str]] = []
    original = policy_module.build_prompt

    def recorded(*args: Any) -> Any:
        prompt = original(*args)
        seen.append((prompt.head + prompt.task + prompt.tail, args[4]))
        return prompt

    # in each task, whatever its episodes came to
    labels = ConditioningConfig(edges="quantiles", success="free")
    run = ChunkLevelOfflineRL(
        config(root, checkpoints, tmp_path, "advantage_conditioned", conditioning=labels)
    )
    monkeypatch.setattr(policy_module, "build_prompt", recorded)
    actor = run.train()
    asked = {condition for _, condition in seen}
    assert asked == {"", "Advantage: negative", "Advantage: positive"}
    trained = {text for text, condition in seen if condition == "Advantage: positive"}
    seen.clear()
    for row in range(len(run.dataset)):
        actor.act(run.dataset.batch(np.array([row])).observation, [], "mode")
    assert {condition for _, condition in seen} == {"Advantage: positive"}
    assert trained <= {text for text, _ in seen}
    values = ChunkLevelOfflineRL(
        config(root, checkpoints, tmp_path, "advantage_conditioned")
    ).algorithm.values
    seen.clear()
    values.frame_values()
    assert seen and not any("Advantage" in text for text, _ in seen)


def test_human_chunks_are_high_and_mixed_ones_lose_the_robots_steps(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    found = {}
    for rule in ("high", "high_and_mask", "critic"):
        run = ChunkLevelOfflineRL(
            config(root, checkpoints, tmp_path, "advantage_conditioned", human_chunks=rule)
        )
        metrics = run.algorithm.start_phase("policy")
        found[rule] = (run.algorithm.labels, metrics)
        assert metrics["advantage/forced_fraction"] == np.mean(
            run.algorithm.labels["advantage_bin"] != run.algorithm.labels["advantage_bin_raw"]
        )
    labels, _ = found["high"]
    human = [*range(5, 10), 12, 13, 14]  # all of episode 1; in episode 2, chunks from the third frame on
    assert (labels["advantage_bin"][human] == 1).all()
    others = np.setdiff1d(np.arange(30), human)
    assert np.array_equal(labels["advantage_bin"][others], labels["advantage_bin_raw"][others])
    assert "loss_steps" not in labels
    labels, _ = found["critic"]
    assert np.array_equal(labels["advantage_bin"], labels["advantage_bin_raw"])
    labels, _ = found["high_and_mask"]
    mixed_chunks = [10, 11]  # frames 0 and 1 of episode 2 reach into the human's part
    assert (labels["advantage_bin"][[*human, *mixed_chunks]] == 1).all()
    assert labels["loss_steps"][10].tolist() == [False, False, True]
    assert labels["loss_steps"][11].tolist() == [False, True, True]
    assert labels["loss_steps"][np.setdiff1d(np.arange(30), mixed_chunks)].all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_policy_is_trained_on_labels_of_which_a_share_is_dropped(
    root: Path, checkpoints: Path, tmp_path: Path, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without, a policy never learns what it does unasked, and guidance subtracts noise."""
    conditioning = ConditioningConfig(dropout=dropout)
    run = ChunkLevelOfflineRL(
        config(root, checkpoints, tmp_path, "advantage_conditioned", conditioning=conditioning)
    )
    run.algorithm.start_phase("policy")
    rows = np.arange(30)
    batch = run.dataset.batch(rows, next_observation=False)
    texts = [condition_text(label, 2) for label in batch.labels["advantage_bin"].tolist()]
    heard: list[str] = []
    original = run.policy.imitation_loss

    def recorded(observation: Any, actions: Any, mask: Any, condition: list[str]) -> Any:
        heard.extend(condition)
        return original(observation, actions, mask, condition)

    monkeypatch.setattr(run.policy, "imitation_loss", recorded)
    torch.manual_seed(0)
    for _ in range(4):
        run.algorithm.update("policy", batch)
    kept = np.array([text != "" for text in heard])
    assert len(heard) == 120 and all(np.array(heard)[kept] == np.array(texts * 4)[kept])
    assert kept.mean() == pytest.approx(1 - dropout, abs=0.15 if dropout else 0.0)  # three deviations
    assert dropout == 0 or len({tuple(part) for part in np.split(kept, 4)}) == 4  # drawn again each update


def test_the_loss_is_the_weighted_flow_loss(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "cross_fitted"))
    run.algorithm.start_phase("policy")
    weight = np.linspace(0, 2, len(run.dataset)).astype(np.float32)
    run.dataset.attach("weight", weight)
    batch = run.dataset.batch(np.arange(6), next_observation=False)
    torch.manual_seed(1)
    lost = run.policy.imitation_loss(batch.observation, batch.actions, batch.action_mask)
    expected = float((lost.per_chunk.detach() * torch.from_numpy(weight[:6])).mean())
    torch.manual_seed(1)
    metrics = run.algorithm.update("policy", batch)
    assert metrics["loss/policy"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss/imitation"] == pytest.approx(float(lost.per_chunk.detach().mean()), rel=1e-5)
    levels = {key: value for key, value in metrics.items() if key.startswith("flow_loss/time_")}
    sums = sum(total for total, _ in lost.parts.values())
    counts = sum(count for _, count in lost.parts.values())
    assert counts == 12 and sums / counts == pytest.approx(metrics["loss/imitation"], rel=1e-4)
    assert 1 <= len(levels) <= 4


def test_what_stands_in_the_padding_changes_nothing(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "behaviour_cloning"))
    batch = run.dataset.batch(np.array([3, 4, 9]), next_observation=False)
    assert not bool(batch.action_mask.all())
    losses = []
    for filler in (0.0, 5.0):
        actions = torch.where(batch.action_mask[..., None], batch.actions, filler)
        torch.manual_seed(0)
        losses.append(run.policy.imitation_loss(batch.observation, actions, batch.action_mask).per_chunk)
    assert torch.allclose(losses[0], losses[1], atol=1e-6)


def test_a_policy_resizes_pictures_as_its_training_did(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    """First as the data path did, then as the model does; stock LeRobot knows only the second."""
    seen: dict[str, Any] = {"frames": FrameSettings(resize=(28, 28), antialias=False)}
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "behaviour_cloning", **seen))
    run.train()
    differences = registry.family_in(tmp_path / "policy").stock_differences(tmp_path / "policy")
    assert any("does not resize images to 28x28-bilinear first" in difference for difference in differences)
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, PiActor) and loaded.fps == run.dataset.fps
    by_data = run.dataset.batch(np.arange(3), next_observation=False).observation
    recorded = open_chunks(root, HORIZON).batch(np.arange(3), next_observation=False).observation
    assert recorded.images[CAMERAS[0]].shape[-1] == 56 and by_data.images[CAMERAS[0]].shape[-1] == 28
    chunks = loaded.act(recorded)
    assert torch.equal(chunks, loaded.act(by_data))
    first = recorded.map(lambda tensor: tensor[0].numpy())  # type: ignore[arg-type,return-value]
    torch.testing.assert_close(loaded.act(replace(first, task=recorded.task[0])), chunks[0])


def test_values_trained_alone_are_used_by_other_objectives(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    alone = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path / "v", "value"))
    assert not any(p.requires_grad for p in alone.policy.parameters())
    alone.train()
    assert not (tmp_path / "v" / "policy").exists()
    other = config(root, checkpoints, tmp_path / "o", "cross_fitted", values=str(tmp_path / "v"))
    for changes, message in (
        ({"gamma": 0.9}, r"gamma 0\.99 there and 0\.9 here.*\(--gamma 0\.99\)"),
        ({"num_folds": 3}, r"num_folds 2 there and 3 here.*--num-folds 2"),
        ({"fit": ValueFit(lam=0.5)}, r"fit\.lam 0\.98 there and 0\.5 here.*--fit\.lam 0\.98"),
        ({"fit": ValueFit(n_step=2)}, r"leave --fit\.n-step out"),
        ({"fit": ValueFit(time_out="bootstrap")}, r"--fit\.time-out failure"),
        ({"fit": ValueFit(target="bootstrap"), "reward": "sum"}, r"--reward any, --fit\.target monte_carlo"),
        ({"labels": LabelRule(success="all")}, "values of other returns"),
    ):
        with pytest.raises(ChunkRLError, match=message):
            ChunkLevelOfflineRL(replace(other, **changes))
    for objective in ("cross_fitted", "advantage_conditioned"):
        settings = config(root, checkpoints, tmp_path / objective, objective, values=str(tmp_path / "v"))
        run = ChunkLevelOfflineRL(settings)
        assert [phase.name for phase in run.algorithm.phases()] == ["policy"]
        run.train()
        for name in ("value", "advantage", "return", "value_seen"):
            assert np.array_equal(run.algorithm.labels[name], alone.algorithm.labels[name])


def test_critics_trained_one_by_one_are_those_of_together(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    runs = []
    for order in ("together", "one_by_one"):
        fit = ValueFit(fold_order=order)  # type: ignore[arg-type]
        settings = config(root, checkpoints, tmp_path / order, "value", fit=fit, microbatch_size=4)
        runs.append(ChunkLevelOfflineRL(settings))
        runs[-1].train()
    together, alone = (run.algorithm.labels for run in runs)
    for name in ("value", "value_seen", "advantage"):
        assert np.array_equal(together[name], alone[name]), name
    assert together["value"].std() > 0


def test_distributional_values_that_bootstrap(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    fit = ValueFit(head=ValueHead("hl_gauss"), target="bootstrap", n_step=2)
    settings = config(root, checkpoints, tmp_path, "cross_fitted", fit=fit, reward="sum", critic_horizon=2)
    run = ChunkLevelOfflineRL(settings)
    run.train()
    value = run.algorithm.labels["value"]
    assert np.isfinite(value).all() and value.min() >= -0.05 and value.max() <= 1.05
    with pytest.raises(ChunkRLError, match="--reward sum"):
        ChunkLevelOfflineRL(replace(settings, reward="any"))
    cost = replace(settings, labels=LabelRule(step_reward="cost", failure_penalty=20))
    with pytest.raises(ChunkRLError, match="--failure-terminal"):
        ChunkLevelOfflineRL(cost)
    ChunkLevelOfflineRL(replace(cost, labels=replace(cost.labels, failure_terminal=True)))


def test_empty_bins_are_found_before_the_policy_trains_and_the_values_serve_again(
    root: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command that the message gives."""
    monkeypatch.chdir(tmp_path)
    beyond = ConditioningConfig(edges="fixed", cuts=(0.999,), success="free", positive_share=None)
    settings = config(root, checkpoints, tmp_path / "run", "advantage_conditioned", conditioning=beyond)
    run = ChunkLevelOfflineRL(settings)
    with pytest.raises(LabelError, match="no chunk of a task got") as refused:
        run.train()
    assert run.trainer is not None and "policy" not in {record.phase for record in run.trainer.records}
    command = re.search(
        r"chunkrl (train --config \S+ --values \S+), with the settings changed", str(refused.value)
    )
    assert command is not None, refused.value
    main([*command[1].split(), "--conditioning.edges", "quantiles", "--conditioning.cuts", "0.5"])
    again = tmp_path / "runs" / f"{root.name}-advantage_conditioned-001"
    assert (again / "policy").is_dir()
    before, after = (
        pq.read_table(folder / "values.parquet")["value"] for folder in (tmp_path / "run", again)
    )
    assert before.equals(after)
    assert {record.phase for record in read_records(again / "metrics.jsonl")} == {"policy"}


@pytest.mark.parametrize("objective", ["advantage_conditioned", "cross_fitted"])
def test_the_plan_of_a_pi_policy(
    root: Path, checkpoints: Path, tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tried out where nothing follows: then it need not be built twice."""
    own = {"train_q": True, "pi": replace(PiTrainingConfig(num_noise=2, critic=CRITIC), train="expert")}
    own = own if objective == "cross_fitted" else {}
    settings = config(root, checkpoints, tmp_path / "run", objective, **own)
    save_config(settings, tmp_path / "own.json")
    main(["train", "--config", str(tmp_path / "own.json"), "--dry-run"])
    told = capsys.readouterr().out
    assert (
        "this machine (cpu), measured on the first updates" in told
        and "policy, 3 updates of 6 chunks" in told
    )
    assert ("critic, " in told) == (objective == "cross_fitted")
    assert not (tmp_path / "run").exists()
    run = ChunkLevelOfflineRL(settings)
    trained = sum(p.numel() for p in run.policy.parameters() if p.requires_grad)
    assert f"policy: {trained:,} parameters train" in told
    assert run.plan().seconds is None


def test_cloning_from_a_conditioned_policy_asks_for_nothing(
    root: Path, checkpoints: Path, tmp_path: Path
) -> None:
    conditioning = ConditioningConfig(guidance=2.0)
    settings = config(root, checkpoints, tmp_path / "a", "advantage_conditioned", conditioning=conditioning)
    ChunkLevelOfflineRL(settings).train()
    asked = load_pretrained(tmp_path / "a" / "policy").recipe.settings
    assert (asked.condition, asked.guidance) == ("Advantage: positive", 2.0)
    assert asked.guidance_from == "Advantage: negative"
    again = config(root, tmp_path / "a", tmp_path / "b", "behaviour_cloning", pi0_config="policy")
    ChunkLevelOfflineRL(again).train()
    plain = load_pretrained(tmp_path / "b" / "policy").recipe.settings
    assert (plain.condition, plain.guidance, plain.guidance_from) == ("", 1.0, "")


def test_values_that_go_on_learning_label_anew(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    settings = config(
        *(root, checkpoints, tmp_path, "advantage_conditioned"),
        value_updates_per_update=2,
        relabel_interval=2,
        batch_size=4,
        num_updates=4,
    )
    run = ChunkLevelOfflineRL(settings)
    labels = []
    original = run.algorithm._label

    def recorded(progress: Any) -> Any:
        metrics = original(progress)
        labels.append(run.algorithm.labels["value"])
        return metrics

    run.algorithm._label = recorded
    run.train()
    assert len(labels) == 3 and not np.array_equal(labels[0], labels[1])
    with pytest.raises(ChunkRLError, match="go together"):
        ChunkLevelOfflineRL(replace(settings, relabel_interval=0))


def test_statistics_of_the_data(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    pi = PiTrainingConfig(norm_stats="data", num_noise=1, critic=CRITIC)
    run = ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "behaviour_cloning", pi=pi))
    ours = run.train()
    assert isinstance(ours, PiActor)
    expected = run.dataset.action_statistics()
    assert ours.policy.stats().action["q99"].tolist() == pytest.approx(expected.q99.tolist())
    assert load_pretrained(tmp_path / "policy").stats().action["q99"].tolist() == pytest.approx(
        expected.q99.tolist()
    )


def test_successes_alone_come_with_a_warning(
    root: Path, checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ChunkLevelOfflineRL(config(root, checkpoints, tmp_path, "cross_fitted", labels=LabelRule(success="all")))
    assert "V can learn how long success takes and not what leads to failure" in caplog.text


def test_settings_that_cannot_be_used(root: Path, checkpoints: Path, tmp_path: Path) -> None:
    base = config(root, checkpoints, tmp_path, "advantage_conditioned")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"policy": PolicyConfig()}, "belongs to --use-pi0-actions and --policy.kind pi"),
        ({"policy": PolicyConfig(), "pi0_config": None}, "--policy.kind pi"),
        ({"pi0_config": "pi05_base"}, "chunkrl download pi05_base"),
        ({"pi": PiTrainingConfig(trainable=("experts.*",))}, "experts"),
        ({"pi": PiTrainingConfig(trainable=("*", "-*"))}, "freezes everything|nothing"),
        ({"pi": PiTrainingConfig(train="head")}, "no selection 'head'"),
        ({"pi": PiTrainingConfig(critic=PiCriticConfig(depth=9))}, "the policy has 3"),
        ({"labels": LabelRule(success="next.reward")}, "next.reward"),
        ({"objective": "document"}, "document does not read --num-folds"),
        (
            {"objective": "iql", "train_q": True, "microbatch_size": 2},
            "does not read .*--train-q, --microbatch-size",
        ),
        (
            {"value_updates_per_update": 1, "relabel_interval": 1, "objective": "behaviour_cloning"},
            "does not read .*--value-updates-per-update",
        ),
        ({"values": str(tmp_path / "none")}, "values.parquet: name the folder of a run"),
        ({"conditioning": ConditioningConfig(force_high=(1,))}, "force-high names the data sets"),
        ({"num_updates": 1, "schedule": "cosine", "warmup_updates": 5}, "warmup_updates"),
    ]
    for changes, message in cases:
        with pytest.raises((ChunkRLError, CheckpointError), match=message):
            run = ChunkLevelOfflineRL(replace(base, **changes))
            run.train()
