"""Names of earlier releases: in files that chunkrl wrote they still load, and who types one is told the new one."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from chunkrl import renamed
from chunkrl.cli import main
from chunkrl.collect.config import CollectCommand
from chunkrl.config import from_dict, load_config
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.config import EvaluateCommand
from chunkrl.run.config import TrainConfig
from chunkrl.settings import Settings

PLACES = {
    "ActorCommand": "online.actor.command",
    "CollectConfig": "collect.config",
    "EvaluateConfig": "evaluation.config",
    "EvaluationSettings": "evaluation.evaluation_result",
    "PiChunkConfig": "integration.config",
    "TrainConfig": "run.config",
    "ValueFit": "algorithms.value_config",
}


def test_the_table_names_fields_that_are_there_and_none_of_before() -> None:
    assert renamed.RENAMED.keys() == PLACES.keys()
    for name, names in renamed.RENAMED.items():
        fields = getattr(import_module(f"chunkrl.{PLACES[name]}"), name).__dataclass_fields__
        assert {*names.values()} <= fields.keys() and not names.keys() & fields.keys()


def test_a_configuration_of_before_loads(tmp_path: Path) -> None:
    old = {"critic_updates": 2, "relabel_interval": 5, "fit": {"num_steps": 3}, "pi0": {"num_steps": 7}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = load_config(TrainConfig, tmp_path / "config.json")
    assert (config.value_updates_per_update, config.fit.n_step, config.pi0.flow_steps) == (2, 3, 7)
    new = {
        "value_updates_per_update": 2,
        "relabel_interval": 5,
        "fit": {"n_step": 3},
        "pi0": {"flow_steps": 7},
    }
    assert from_dict(TrainConfig, new) == config
    assert from_dict(EvaluateCommand, {"policy": "p", "env": ["push-v3"], "num_steps": 4}).flow_steps == 4
    assert from_dict(CollectCommand, {"policy_mode": "mode"}).mode == "mode"


def test_the_file_of_a_run_of_before_is_a_configuration_to_begin_with(tmp_path: Path) -> None:
    """As a report names it: train --config RUN/config.json."""
    (tmp_path / "config.json").write_text(json.dumps({"critic_updates": 2, "fit": {"num_steps": 3}}))
    config = Settings(TrainConfig()).of_file(tmp_path / "config.json")
    assert (config.value_updates_per_update, config.fit.n_step) == (2, 3)
    (tmp_path / "both.json").write_text(json.dumps({"critic_updates": 2, "value_updates_per_update": 3}))
    with pytest.raises(ChunkRLError, match="critic_updates is called value_updates_per_update now"):
        Settings(TrainConfig()).of_file(tmp_path / "both.json")


@pytest.mark.parametrize("values", [{"critic_updates": 2, "value_updates_per_update": 2}, {"num_steps": 2}])
def test_both_names_or_one_at_another_place_are_an_unknown_key(values: dict[str, Any]) -> None:
    with pytest.raises(ChunkRLError, match="unknown configuration key"):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "train --dataset-dir d --critic-updates 2",
            "--critic-updates is called --value-updates-per-update now",
        ),
        ("train --dataset-dir d --fit.num-steps 2", "--fit.num-steps is called --fit.n-step now"),
        ("evaluate p --env push-v3 --num-steps=2", "--num-steps is called --flow-steps now"),
        ("actor --n-action-steps 2", "--n-action-steps is called --exec-steps now"),
        ("collect d --policy-mode sample", "--policy-mode is called --mode now"),
    ],
)
def test_a_flag_of_before_names_the_new_one(arguments: str, told: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert told in " ".join(capsys.readouterr().err.split())
