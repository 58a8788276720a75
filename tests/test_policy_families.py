"""Families of policies: nobody else knows one by name, and one is added in one file and one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import random_episodes, settings, write_dataset
from test_methods import changed, leaves
from toy_env import ToyFamily as ToyEnvFamily
from toy_policy import ToyConfig, ToyFamily, ToyPolicy

import chunkrl
from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.cli import main
from chunkrl.cli.arguments import parse
from chunkrl.cli.commands import COMMANDS
from chunkrl.config import from_dict, load_config
from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.frames import FrameTable
from chunkrl.envs import registry as envs
from chunkrl.errors import CheckpointError, ChunkRLError, TrainingStopped
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.pi.actor import PiActor
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.online.link.records import WeightPush
from chunkrl.online.link.weights import (
    VersionCounter,
    WeightPublisher,
    policy_features,
    push_tensors,
    snapshot,
)
from chunkrl.policies import registry
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.run.checks import check_config
from chunkrl.run.parts import check_one_run
from chunkrl.run.policy_io import load_policy

SOURCES = Path(chunkrl.__file__).parent


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, ToyFamily()])  # the one line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


def tensors(folder: Path) -> bytes:
    return (folder / "policy" / "state.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"objective": "cross_fitted", "train_q": True}, {"objective": "success_cloning"}],
    ids=lambda changes: changes["objective"],
)
def test_a_family_is_one_file_and_one_line(
    toy: None, data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Trained, stopped and resumed to the same bits, saved and loaded, and pushed to what acts."""
    given = settings(data, tmp_path / "whole", **changes, policy=ToyConfig(width=16), save_updates=2)
    run = ChunkLevelOfflineRL(**given)
    run.save(tmp_path / "begun")
    run.train()
    assert isinstance(run.policy, ToyPolicy) and run.policy.config.width == 16
    assert run.trainer is not None and np.isfinite(run.trainer.history["loss/policy"][-1][1])

    at = run.trainer.num_updates - 3
    stopped = ChunkLevelOfflineRL(**{**given, "output_dir": str(tmp_path / "stopped")})
    stopped.progress = lambda *_, **__: (
        stopped.stop() if stopped.trainer is not None and stopped.trainer.update == at else None
    )
    with pytest.raises(TrainingStopped):
        stopped.train()
    resumed = ChunkLevelOfflineRL(resume=str(tmp_path / "stopped"))
    assert resumed.config.policy == ToyConfig(width=16)
    resumed.train()
    assert tensors(tmp_path / "stopped") == tensors(tmp_path / "whole")

    observation = run.dataset.batch(np.arange(3)).observation
    ours, loaded = run.chunk_policy(), load_policy(tmp_path / "whole/policy")
    assert isinstance(loaded, ChunkPolicy) and loaded.spec.policy == ToyConfig(width=16)
    for mode in ("mode", "sample", *(("best_of_n",) if "train_q" in changes else ())):
        drawn = [torch.Generator().manual_seed(7) for _ in range(3)]
        again = [torch.Generator().manual_seed(7) for _ in range(3)]
        chunks = loaded.act(observation, drawn, mode, 4)  # type: ignore[arg-type]
        assert chunks.shape == (3, 3, 2) and torch.equal(chunks, ours.act(observation, again, mode, 4))  # type: ignore[arg-type]
    check_one_run(tmp_path / "whole")
    main(["manifest", str(tmp_path / "whole")])

    begun = load_policy(tmp_path / "begun")
    assert policy_features(begun) == policy_features(loaded)
    pushed: list[WeightPush] = []
    publisher = WeightPublisher(VersionCounter(tmp_path / "version"), lambda push, _: pushed.append(push))
    publisher.publish(snapshot(run.algorithm), 10, {})
    publisher.flush()
    publisher.close()
    runner = PolicyRunner(begun, "push", "mode")
    runner.push(1, push_tensors(pushed[0]))
    runner.begin_episode()
    acting = dict(runner._active.policy.policy.named_parameters())
    for name, parameter in loaded.policy.named_parameters():
        assert torch.equal(acting[name], parameter.to(torch.bfloat16).float()), name


def test_commands_take_it(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """collect, train with its own flags, evaluate, act."""
    monkeypatch.setattr(envs, "FAMILIES", [ToyEnvFamily(), *envs.FAMILIES])
    folder, run, here = tmp_path / "data", tmp_path / "run", ["--env", "toy/line", "--num-workers", "0"]
    main(["collect", *here, "--num-episodes", "8", "--output-dir", str(folder)])
    flags = "--action-horizon 2 --batch-size 16 --num-updates 40 --objective behaviour_cloning --device cpu"
    own = (
        "--policy.kind act --policy.width 24 --policy.heads 3 --network.hidden-dim 16 --network.num-layers 1"
    )
    main(["train", "--dataset-dir", str(folder), "--output-dir", str(run), *flags.split(), *own.split()])
    assert load_config(TrainConfig, run / "config.json").policy == ToyConfig(width=24, heads=3)
    given = ["--policy", str(run / "policy"), "--num-episodes", "2"]
    main(["evaluate", *here, *given, "--videos", "0", "--output-dir", str(tmp_path / "evaluation")])
    assert "toy/line" in (tmp_path / "evaluation/result.json").read_text()
    acted = ["--env", "toy/line", "--offline", "--output-dir", str(tmp_path / "acted")]
    main(["actor", *given, *acted])
    assert FrameTable.open(tmp_path / "acted/data/shard-000000").num_episodes == 2


@pytest.mark.parametrize("flags", ["--config {file}", "--config {file} --policy.depth 2"])
def test_a_file_chooses_the_settings_of_its_kind(toy: None, tmp_path: Path, flags: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"dataset_dir": "d", "policy": {"kind": "act", "width": 8}}))
    depth = 2 if "depth" in flags else 1
    config = parse(COMMANDS["train"], flags.format(file=file).split())
    assert config.policy == ToyConfig(width=8, depth=depth)
    learner = parse(COMMANDS["learner"], ["--policy.kind", "act", "--policy.width", "8"])
    assert learner.train.policy == ToyConfig(width=8)
    nested = {"train": {"policy": {"kind": "act", "width": 8}}}
    assert from_dict(type(learner), nested).train.policy == ToyConfig(width=8)


def test_settings_of_another_family_are_errors(toy: None, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ChunkRLError, match=r"'act' has settings of its own: give ToyConfig"):
        PolicyConfig(kind="act")
    with pytest.raises(ChunkRLError, match=r"spread"):
        ChunkLevelOfflineRL(dataset_dir=str(data), policy={"kind": "act", "spread": "fixed"})
    with pytest.raises(ChunkRLError, match=r"unknown option --policy.spread"):
        parse(COMMANDS["train"], ["--policy.kind", "act", "--policy.spread", "fixed"])
    with pytest.raises(ChunkRLError, match=r"use one of gaussian, flow, pi, act"):
        parse(COMMANDS["train"], ["--policy.kind", "art"])
    with pytest.raises(
        ChunkRLError, match=r"--objective advantage_conditioned writes into the prompt of a pi"
    ):
        given = settings(
            data, tmp_path / "run", policy=ToyConfig(width=16), objective="advantage_conditioned"
        )
        ChunkLevelOfflineRL(**given)


def test_a_saved_policy_of_another_family_or_of_none_is_said(
    toy: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(
        data, tmp_path / "run", policy=ToyConfig(width=16), objective="success_cloning", num_updates=1
    )
    ChunkLevelOfflineRL(**given).train()
    config = load_config(TrainConfig, tmp_path / "run/config.json")
    assert registry.family_in(tmp_path / "run/policy") is config.family is registry.family_of("act")
    with pytest.raises(CheckpointError, match=r"another policy than these settings build: policy ToyConfig"):
        other = replace(config, policy=PolicyConfig(), init=str(tmp_path / "run/policy"), output_dir="")
        ChunkLevelOfflineRL(other)
    rounds = replace(config, policy=ToyConfig(), network=NetworkConfig(), init=str(tmp_path / "run/policy"))
    folder, fitted = config.family.pretrained(rounds, registry.family_in)
    assert folder == tmp_path / "run/policy" and fitted.policy == ToyConfig(width=16)
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES[:-1])
    with pytest.raises(
        CheckpointError, match=r"saved by another version .*expected one of gaussian, flow, pi"
    ):
        load_policy(tmp_path / "run/policy")
    with pytest.raises(CheckpointError, match=r"is a run, not a policy"):
        load_policy(tmp_path / "run")


def test_configurations_of_before_load() -> None:
    """A pi run noted the settings of small policies, at their defaults; a learner what its first data decided."""
    policy = {"kind": "pi", "spread": "state", "fixed_std": 0.3, "flow_steps": 10}
    config = from_dict(TrainConfig, {"policy": policy, "pi0_config": "p", "use_task": False})
    assert config.family.name == "pi" and config.unread_by_kind() == ("use_task",)
    check_config(replace(config, dataset_dir="d", resume="learner"))
    with pytest.raises(ChunkRLError, match=r"pi does not read --use-task: leave that out"):
        check_config(replace(config, dataset_dir="d"))
    assert from_dict(TrainConfig, {"policy": {"flow_steps": 3}}).policy == PolicyConfig(flow_steps=3)


@pytest.mark.parametrize("kind", registry.kinds())
def test_a_setting_that_no_network_of_the_kind_reads_is_refused(kind: str) -> None:
    """Every leaf: it is of every family, or of this one, or refused by its own name."""
    config = TrainConfig(dataset_dir="d", policy=PolicyConfig(kind=kind))
    family = config.family
    paths = leaves(config)
    for read in (*family.reads, *family.reads_of.get(kind, ()), *family.critic_settings):
        assert any(path == read or path.startswith(f"{read}.") for path in paths), read
    assert all(family.reads_setting(path, kind) for path in family.critic_settings)
    for path in set(paths) - {"policy.kind"}:
        able = [k for k in registry.kinds() if registry.family_of(k).reads_setting(path, k)]
        refused = (path,) if able and kind not in able else ()
        assert changed(config, path).unread_by_kind() == refused


def test_what_a_pi_policy_does_not_read_is_an_error(data: Path) -> None:
    given: dict[str, Any] = {
        "policy": PolicyConfig(kind="pi"),
        "pi0_config": "p",
        "dataset_dir": str(data),
    }
    encoding = ActionEncoding("delta", (0,))
    for name, value in {"use_task": True, "use_state": False, "encoding": encoding}.items():
        flag = name.replace("_", "-")
        with pytest.raises(
            ChunkRLError, match=rf"pi does not read --{flag}[a-z.-]*.*: leave th.* out, a pi policy"
        ):
            ChunkLevelOfflineRL(**{**given, name: value})


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (PolicyConfig("gaussian", flow_steps=3), r"does not read --policy.flow-steps: .*--policy.kind flow"),
        (PolicyConfig("flow", spread="fixed"), r"does not read --policy.spread: .*--policy.kind gaussian"),
        (PolicyConfig("gaussian", fixed_std=0.1), r"--policy.fixed-std is read with --policy.spread fixed"),
    ],
)
def test_what_one_kind_reads_is_no_setting_of_another(policy: PolicyConfig, message: str) -> None:
    with pytest.raises(ChunkRLError, match=message):
        check_config(TrainConfig(dataset_dir="d", policy=policy))


NAMED = re.compile(
    r"[\"']pi[\"']|\b(Pi[A-Z]\w+|(is|trains|uses|save|load|gather|build)_pi(_\w+)?|pi_(policy|model|networks|q_state))\b"
    r"|models\.pi\b|models import pi\b|kind\s*[!=]=\s*[\"'](gaussian|flow|pi)"
)
EXCEPTIONS = {
    "run/config.py": "its settings are flags of before families: --pi.*, --pi0.* and --pi0-config",
    "policies/registry.py": "the list",
    "policies/pi.py": "the family",
    "models/policy.py": "the small family's network, one for the Gaussian and the flow",
    "cli/doctor.py": "the extra of that name",
    "cli/hiserl.py": "translates another project's configuration of a pi policy",
    "cli/convert.py": "converts pi checkpoints",
    "renamed.py": "names of records",
}
"""Files that may name a family, and why; beside them `models/pi/`, and `integration/`, which is for pi alone."""


def test_nobody_else_names_a_family() -> None:
    """Whoever must tell families apart asks for a capability."""
    found = [
        f"{path.relative_to(SOURCES)}:{number}: {line.strip()}"
        for path in SOURCES.rglob("*.py")
        if path.relative_to(SOURCES).parts[:2] != ("models", "pi")
        and path.relative_to(SOURCES).parts[0] != "integration"
        and str(path.relative_to(SOURCES)) not in EXCEPTIONS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if NAMED.search(line)
    ]
    assert not found, "\n".join(found)


def test_both_families_act_by_one_protocol() -> None:
    """What `ActingPolicy` has, both classes have."""
    from chunkrl.models.acting_policy import ActingPolicy

    names = {name for name in vars(ActingPolicy) if not name.startswith("_")}
    assert {"act", "takes", "save", "identity", "ask_as"} <= names
    for cls in (ChunkPolicy, PiActor):
        assert names - {"policy", "takes"} <= set(dir(cls))
