"""Settings by name: one name in Python, in JSON, in YAML and on the command line; clear refusals for others."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.cli import COMMANDS
from chunkrl.cli.arguments import as_flags, parse
from chunkrl.config import load_config, save_config
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.errors import ChunkRLError
from chunkrl.files.yaml_files import read_yaml
from chunkrl.iterate.plan import load_actor
from chunkrl.models.config import PolicyConfig
from chunkrl.online.actor.station import RobotFile
from chunkrl.online.learner.config import LearnerConfig
from chunkrl.run.config import TrainCommand
from chunkrl.settings import Settings

TRAIN = Settings(TrainConfig())


def test_every_setting_is_a_field_a_flag_and_a_key_by_one_name() -> None:
    for command in COMMANDS.values():
        settings = Settings(command.options_class()())
        assert len({s.key for s in settings.all}) == len(settings.all)
        for setting in settings.all:
            assert settings.find(setting.key) is setting
            if setting.flag:  # the flag is the place, without the prefixes that flags leave out
                assert settings.matches(setting.flag) == [setting]
                name = setting.flag.removeprefix("--").replace("-", "_")
                assert setting.key == name or setting.key.endswith(f".{name}")
                value = [] if setting.is_switch else [(*setting.choices, "1")[0]]
                assert as_flags(settings, command.name, [f"--{setting.key}", *value])[0] == setting.flag
        for name in command.common:
            assert [s.flag for s in settings.matches(name)] == [f"--{name}"]


@pytest.mark.parametrize(
    "values",
    [
        {"frames": {"resize": [96, 96]}, "fit": {"lam": 0.5}},
        {"frames.resize": [96, 96], "fit.lam": 0.5},
        {"resize": [96, 96], "lam": 0.5},
        {"frames": {"resize": [96, 96]}, "fit.lam": 0.5},
    ],
)
def test_files_take_nested_dotted_and_short_names(values: dict[str, Any], tmp_path: Path) -> None:
    expected = dataclasses.replace(
        TrainCommand(),
        frames=FrameSettings(resize=(96, 96)),
        fit=dataclasses.replace(TrainConfig().fit, lam=0.5),
    )
    (tmp_path / "c.json").write_text(json.dumps(values))
    yaml = "# as JSON\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    (tmp_path / "c.yaml").write_text(yaml)
    for name in ("c.json", "c.yaml"):
        assert parse(COMMANDS["train"], ["--config", str(tmp_path / name)]) == expected


def test_flags_take_the_same_names() -> None:
    for flags in (
        "--resize 96 96 --lam .5",
        "--frames.resize 96 96 --fit.lam .5",
        "--frames.resize 96 96 --lam=.5",
    ):
        config = parse(COMMANDS["train"], flags.split())
        assert config.frames.resize == (96, 96) and config.fit.lam == 0.5
    config = parse(COMMANDS["learner"], ["--train.gamma", "0.5", "--capacity-steps", "7"])
    assert config.train.gamma == 0.5 and config.replay.capacity_steps == 7


def test_a_file_stands_on_top_of_the_commands_own_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"gamma": 0.5, "push_s": 3}')
    config = parse(COMMANDS["learner"], ["--config", str(tmp_path / "c.json")])
    assert config.train.gamma == 0.5 and config.online.push_s == 3
    assert config.train.save_updates == LearnerConfig().train.save_updates == 1000


def test_a_whole_record_reads_back(tmp_path: Path) -> None:
    config = LearnerConfig()
    save_config(config, tmp_path / "c.json")
    assert Settings(LearnerConfig()).of_file(tmp_path / "c.json") == config
    assert load_config(LearnerConfig, tmp_path / "c.json") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_sise": 3}, "unknown configuration key: batch_sise \\(did you mean batch_size"),
        ({"frames": {"resise": None}}, "resise \\(did you mean resize"),
        ({"frames.resise": None}, "frames.resise \\(did you mean frames.resize"),
        (
            {"num_candidates": 3},
            "num_candidates is the name of several settings: write distil.num_candidates or",
        ),
        ({"num_steps": 3}, "num_steps is called fit.n_step or pi0.flow_steps now: write that"),
        ({"fit": {"num_steps": 3}}, "num_steps is called fit.n_step now"),
        ({"critic_updates": 3}, "critic_updates is called value_updates_per_update now"),
        ({"rank": "high"}, "pi.lora.rank is 'high', expected|rank.*high"),
        ({"resize": [9, 9], "frames": {"resize": None}}, "resize and frames.resize are the same setting"),
        ({"gamma": "0.9"}, "gamma"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ChunkRLError, match=message):
        TRAIN.of_values(values)


def test_python_takes_the_same_names() -> None:
    config = TRAIN.replaced(
        {"resize": (96, 96), "gamma": 0.5, "success": "episodes", "success_episodes": (1,)}
    )
    assert (config.frames.resize, config.gamma, config.labels.success_episodes) == ((96, 96), 0.5, (1,))
    frames = FrameSettings(cache=False)
    assert TRAIN.replaced({"frames": frames}).frames == frames
    with pytest.raises(ChunkRLError, match="resise \\(did you mean resize"):
        TRAIN.replaced({"resise": (96, 96)})
    asked = {
        "policy": {"kind": "flow"},
        "fit": {"head": {"num_bins": 51}},
        "batch_size": np.int64(3),
        "lr": 1,
    }
    config = TRAIN.replaced({**asked, "output_dir": Path("runs/x"), "resize": np.array([4, 5])})
    assert isinstance(config.policy, PolicyConfig)
    assert (config.policy.kind, config.policy.flow_steps, config.fit.head.num_bins) == ("flow", 10, 51)
    assert (config.batch_size, config.lr, config.output_dir) == (3, 1.0, "runs/x")
    assert config.frames.resize == (4, 5) and type(config.batch_size) is int
    assert TRAIN.replaced({"cameras": "front"}).cameras == ("front",)  # no list of letters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"action_horizon": "ten"}, "action_horizon"),
        ({"lr": "1e-3"}, "lr"),
        ({"num_updates": 2.5}, "num_updates"),
        ({"gamma": None}, "gamma"),
        ({"use_state": "no"}, "use_state"),
        ({"resize": 96}, "resize is 96, expected a list"),
        (
            {"policy.kind": "flowy"},
            r"policy.kind is 'flowy', expected one of gaussian, flow, pi \(did you mean flow\?\)",
        ),
        ({"objective": "behavior_cloning"}, "expected one of cross_fitted, .*did you mean behaviour_cloning"),
        ({"policy": {"kin": "flow"}}, "kin .*did you mean kind"),
        ({"policy": "flow"}, "policy is 'flow': give a PolicyConfig, or a dictionary of its settings"),
        ({"policy": FrameSettings()}, "policy is FrameSettings.*: give a PolicyConfig"),
    ],
)
def test_python_refuses_what_a_file_would(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ChunkRLError, match=message):
        TRAIN.replaced(values)


def test_a_path_is_no_configuration() -> None:
    with pytest.raises(ChunkRLError, match="'data' is no TrainConfig: give settings by name, dataset_dir="):
        ChunkLevelOfflineRL("data", action_horizon=3)  # type: ignore[arg-type]


def read(text: str, folder: Path) -> dict[str, Any]:
    file = folder / "c.yaml"
    file.write_text(text)
    return read_yaml(file, ChunkRLError, "correct it")


def test_yaml_is_json_with_comments(tmp_path: Path) -> None:
    text = "# a comment\nlr: 3e-4\nname: no\nflag: true\nnone: null\nlist: [1, 2.5, .5]\ndeep:\n  date: 2026-01-01\n"
    assert read(text, tmp_path) == {
        "lr": 3e-4,
        "name": "no",
        "flag": True,
        "none": None,
        "list": [1, 2.5, 0.5],
        "deep": {"date": "2026-01-01"},
    }


def test_robots_and_actors_are_read_from_yaml_too(tmp_path: Path) -> None:
    (tmp_path / "robot.yaml").write_text(
        "robot: {type: fake, num_joints: 2}\ntask: lift\nlow: [-1]\nhigh: [1e0]\n"
    )
    robot = load_config(RobotFile, tmp_path / "robot.yaml")
    assert (robot.task, robot.low, robot.high) == ("lift", (-1.0,), (1.0,))
    (tmp_path / "actor.yml").write_text("env: push-v3\nbudget: 3  # of the scripted corrector\n")
    assert load_actor(str(tmp_path / "actor.yml")).correction.budget == 3
    (tmp_path / "robot.yaml").write_text("rate: 3\n")
    with pytest.raises(ChunkRLError, match=r"rate.*did you mean rate_hz"):
        load_config(RobotFile, tmp_path / "robot.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' occurs twice"),
        ("a: &x [1]\nb: *x\n", "an anchor .* in line 2"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: [1\n", r"not valid YAML: while parsing a flow sequence, expected .*\(line 2, column 1\)"),
        ("- 1\n", "holds a list .* expected an object"),
        ("1: a\n", "the key 1 in line 1 is no text"),
        ("", "holds null"),
    ],
)
def test_yaml_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ChunkRLError, match=message) as error:
        read(text, tmp_path)
    assert re.search(r"c\.yaml.*correct it", str(error.value))
