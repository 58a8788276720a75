"""Methods: what each reads is what it declares, nobody else knows them by name, and one is added in one file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_method
from chunk_data import random_episodes, settings, write_dataset

import chunkrl
from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.base import MethodInputs
from chunkrl.algorithms.registry import CRITICS, METHODS, Method
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.config import changed_settings, with_defaults
from chunkrl.errors import ChunkRLError
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.run.config import is_of, is_read
from chunkrl.run.folder import run_config
from chunkrl.run.policy_io import load_policy
from chunkrl.run.switches import SWITCHES, switched_off
from chunkrl.settings import Settings

SOURCES = Path(chunkrl.__file__).parent
ALL = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
OUTSIDE = {
    "gamma",
    "reward",
    "critic_horizon",
    "value_epochs",
    "value_updates",
    "value_videos",
    "values",
    CRITICS,
}
OUTSIDE |= {"value_lr", "sample_weights", "train_q"}
"""What is read around the method: by the data, the phases' lengths, networks, videos."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", random_episodes(6))


def leaves(config: Any, prefix: str = "") -> list[str]:
    """Paths of all settings."""
    found = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        is_part = dataclasses.is_dataclass(value) and not isinstance(value, type)
        found += leaves(value, f"{prefix}{f.name}.") if is_part else [prefix + f.name]
    return found


class Other:
    """A value that no setting has."""


def changed(config: Any, path: str) -> Any:
    """The configuration with another value at `path`, whatever that would mean."""
    name, _, rest = path.partition(".")
    copied = object.__new__(type(config))
    for f in dataclasses.fields(config):
        object.__setattr__(copied, f.name, getattr(config, f.name))
    object.__setattr__(copied, name, changed(getattr(config, name), rest) if rest else Other())
    return copied


@ALL
def test_a_setting_that_is_not_read_is_refused_with_the_cure(method: Method) -> None:
    """Every leaf: it is every run's, or read by the method, or refused by its own name."""
    config = TrainConfig(dataset_dir="d", objective=method.name)
    paths = leaves(config)
    assert len(paths) > 140
    for path in paths:
        other = changed(config, path)
        if path == "objective":
            continue
        assert path in changed_settings(other)
        someone = any(is_read(m, path, train_q=True) for m in METHODS.values())
        assert other.unread() == ((path,) if someone and not is_read(method, path) else ())
        assert not with_defaults(other, other.unread()).unread()


@ALL
def test_what_nobody_reads_is_no_setting_of_a_method(method: Method) -> None:
    paths = leaves(TrainConfig())
    for read in {*method.reads, *method.reads_for_q} - {CRITICS}:
        assert any(path == read or path.startswith(f"{read}.") for path in paths), read


@pytest.mark.parametrize(
    ("objective", "change", "message"),
    [
        (
            "iql",
            {"value_epochs": 3.0},
            r"iql does not read --value-epochs: leave that out, or use --objective cross",
        ),
        ("success_cloning", {"beta": 2.0}, r"success_cloning does not read --beta"),
        ("document", {"num_folds": 3}, r"document does not read --num-folds"),
        ("cross_fitted", {"lambda_v": 3.0}, r"does not read --lambda-v: .*--objective iql or document"),
        ("behaviour_cloning", {"gamma": 0.9}, r"does not read --gamma"),
        ("value", {"beta": 2.0, "human_chunks": "critic"}, r"value does not read --beta, --human-chunks"),
    ],
)
def test_the_command_refuses_it(data: Path, objective: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ChunkRLError, match=message):
        ChunkLevelOfflineRL(dataset_dir=str(data), action_dim=2, objective=objective, **change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "pi",
            {"fit": ValueFit(dropout=0.1)},
            r"pi does not read --fit\.dropout: leave that out.*--pi\.critic\.",
        ),
        (
            "pi",
            {"network": NetworkConfig(hidden_dim=64), "fit": ValueFit(noise=0.1)},
            r"pi does not read --network\.hidden-dim, --fit\.noise: leave those out",
        ),
        (
            "flow",
            {"pi": PiTrainingConfig(train="lora")},
            r"flow does not read --pi\.train: .*--policy\.kind pi",
        ),
    ],
)
def test_settings_of_the_other_kind_of_networks_are_refused(
    data: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    checkpoint = {"pi0_config": "pi05_base"} if kind == "pi" else {}
    with pytest.raises(ChunkRLError, match=message):
        ChunkLevelOfflineRL(
            dataset_dir=str(data), action_dim=2, policy=PolicyConfig(kind=kind), **checkpoint, **change
        )


SWITCHED = [path for switch in SWITCHES for path in leaves(TrainConfig()) if is_of(path, switch.settings)]
OF_NETWORKS = next(switch.settings for switch in SWITCHES if "num_folds" in switch.settings)
"""What a file of progress, which has none, switches off."""
ON: dict[str, dict[str, Any]] = {
    "fit.quantile": {"fit": {"aggregate": "quantile", "num_critics": 3}},
    "fit.target_rate": {"fit": {"target": "bootstrap"}},
    "fit.head.num_bins": {"fit": {"head": {"kind": "hl_gauss"}}},
    "final_lr_ratio": {"schedule": "cosine"},
    "value_videos.every_saves": {"value_videos": {"num_episodes": 2}},
    "frames.antialias": {"frames": {"resize": (8, 8)}},
    "labels.failure_penalty": {"labels": {"step_reward": "cost"}},
    "labels.success_key": {"additional_success": "episode_flag"},
    "labels.gripper_index": {"labels": {"subgoal": "gripper"}},
    "labels.pick_place.lift_m": {"labels": {"subgoal": "pick_place"}},
}
"""What switches a setting on that is off by default."""


def test_a_setting_that_another_one_switches_off_is_refused_with_what_reads_it() -> None:
    """Every one of the table, at a value that is not its default; and none of them where it is read."""
    known = {"fit.quantile", "fit.lam", "fit.head.sigma", "final_lr_ratio", "labels.gripper_index"}
    assert known | {"num_folds", "value_epochs", "pi.critic.depth", "fit.dropout"} <= set(SWITCHED)
    for path in SWITCHED:
        off = TrainConfig(
            dataset_dir="d",
            fit=ValueFit(n_step=5 if path == "fit.lam" else None),
            values="progress.parquet" if is_of(path, OF_NETWORKS) else None,
        )
        assert set(switched_off(changed(off, path))) == {path}
        assert not switched_off(off)
    for path, on in ON.items():
        assert path in SWITCHED
        assert not switched_off(changed(Settings(TrainConfig(dataset_dir="d")).replaced(on), path)), path
    assert not switched_off(changed(TrainConfig(dataset_dir="d"), "fit.lam"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fit": ValueFit(quantile=0.4)},
            r"--fit\.quantile is read only with --fit\.aggregate quantile: leave",
        ),
        (
            {"fit": ValueFit(lam=0.9, n_step=20)},
            r"--fit\.lam is read only without --fit\.n-step: leave that out",
        ),
        ({"failure_penalty": 7.0}, r"--failure-penalty is read only with --step-reward cost"),
        (
            {"final_lr_ratio": 0.5, "antialias": False},
            r"--final-lr-ratio is .* --schedule cosine; --antialias is .* --resize: leave those out",
        ),
    ],
)
def test_the_command_says_what_reads_it(data: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ChunkRLError, match=message):
        ChunkLevelOfflineRL(dataset_dir=str(data), action_dim=2, **change)


def test_a_run_of_before_that_noted_such_a_setting_is_read_and_goes_on(data: Path, tmp_path: Path) -> None:
    trained = ChunkLevelOfflineRL(**settings(data, tmp_path / "run"))
    trained.train()
    assert trained.trainer is not None
    noted = tmp_path / "run" / "config.json"
    values = json.loads(noted.read_text())
    values["fit"]["quantile"] = 0.4
    noted.write_text(json.dumps(values))
    assert run_config(noted).fit.quantile == ValueFit().quantile
    ChunkLevelOfflineRL(resume=str(tmp_path / "run"), num_updates=trained.trainer.num_updates + 2).train()


def test_with_q_a_cloning_run_reads_what_values_read(data: Path, tmp_path: Path) -> None:
    own = settings(data, tmp_path, objective="behaviour_cloning", train_q=True, num_folds=3, gamma=0.9)
    ChunkLevelOfflineRL(**own).train()
    assert not TrainConfig(**own).with_objective("success_cloning").unread()


class Recording:
    """Settings that remember which of them were read."""

    def __init__(self, of: Any) -> None:
        self._of, self.read = of, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._of, name)


@ALL
def test_a_method_is_built_of_what_it_declares(data: Path, tmp_path: Path, method: Method) -> None:
    if method.conditions:
        method = METHODS["cross_fitted"]  # as it, but on a pi policy: declared alike
    inputs: list[MethodInputs] = []
    original = type(method).build

    def kept(self: Method, given: MethodInputs) -> Any:
        inputs.append(dataclasses.replace(given, settings=Recording(given.settings)))
        return original(self, inputs[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "build", kept)
        ChunkLevelOfflineRL(**settings(data, tmp_path, objective=method.name))
    assert len(inputs) == 1
    declared = {read.partition(".")[0] for read in (*method.reads, *method.reads_for_q)}
    someone = {read.partition(".")[0] for m in METHODS.values() for read in (*m.reads, *m.reads_for_q)}
    read = inputs[0].settings.read
    # fit and the settings of Q are read as a whole, and refused before where nothing reads them
    whole = {
        "fit",
        "num_folds",
        "train_q",
        "value_updates_per_update",
        "relabel_interval",
        "ema_decay",
        "microbatch_size",
        "distil",
    }
    assert (read & someone) - declared - whole == set()
    assert declared - read - OUTSIDE - whole == set()


def test_nobody_else_compares_an_objectives_name() -> None:
    """Whoever must tell methods apart asks for a capability."""
    names = "|".join(set(METHODS) - {"value"})  # a phase, too
    compared = re.compile(rf"objective\s*(==|!=|in|not in)\s|[=!]=\s*[\"']({names})[\"']")
    found = [
        f"{path.relative_to(SOURCES)}:{number}: {line.strip()}"
        for path in SOURCES.rglob("*.py")
        if "algorithms" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if compared.search(line) and "METHODS" not in line
    ]
    assert not found, found


def test_a_method_is_one_file_and_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, toy_method.METHOD.name, toy_method.METHOD)  # type: ignore[arg-type]  # the one line
    config = settings(data, tmp_path / "run", objective="long_cloning")
    run = ChunkLevelOfflineRL(TrainConfig(**config))  # no name of the choices of `objective`, which are typed
    run.train()
    (phase,) = run.algorithm.phases()
    lengths = np.bincount(run.dataset.episode)
    assert phase.subset is not None
    assert len(phase.subset) == lengths[lengths >= np.median(lengths)].sum() < len(run.dataset)
    observation = run.dataset.batch(np.arange(2)).observation
    assert load_policy(tmp_path / "run" / "policy").act(observation, [], "mode").shape == (2, 3, 2)
    with pytest.raises(ChunkRLError, match="long_cloning does not read --beta"):
        ChunkLevelOfflineRL(TrainConfig(**config, beta=2.0))
