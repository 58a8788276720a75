"""`chunkrl config import`: LeRobot's HIL-SERL configuration, as the advantage-conditioned document's, into ours."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from chunkrl.cli import COMMANDS, config_import, main
from chunkrl.cli.arguments import parse
from chunkrl.cli.hiserl import UNKNOWN, import_hiserl
from chunkrl.config import load_config
from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.station import RobotFile
from chunkrl.run.checks import check_config
from chunkrl.settings import Settings

CONFIG: dict[str, Any] = {
    "output_dir": "outputs/pi05",
    "job_name": "default",
    "resume": False,
    "seed": 7,
    "num_workers": 4,
    "batch_size": 10,
    "steps": 8000,
    "log_freq": 50,
    "save_checkpoint": True,
    "save_freq": 2000,
    "wandb": {"enable": False, "project": "pi05", "disable_artifact": True, "mode": "offline"},
    "dataset": {
        "repo_id": "me/demos",
        "root": None,
        "use_imagenet_stats": False,
        "additional_offline_dataset_paths": ["runs/a/buffer", "runs/b/buffer"],
    },
    "policy": {
        "type": "pi05_rl",
        "pretrained_path": "lerobot/pi05_base",
        "device": "cuda",
        "chunk_size": 50,
        "n_action_steps": 25,
        "gradient_accumulation_steps": 6,
        "actor_lr": 5e-5,
        "critic_lr": 1e-4,
        "discount": 0.97,
        "grad_clip_norm": 2.0,
        "utd_ratio": 2,
        "critic_target_update_weight": 0.005,
        "online_buffer_capacity": 30000,
        "online_step_before_learning": 100,
        "train_expert_only": True,
        "input_features": {
            "observation.images.front": {"type": "VISUAL", "shape": [3, 224, 224]},
            "observation.images.wrist": {"type": "VISUAL", "shape": [3, 224, 224]},
            "observation.state": {"type": "STATE", "shape": [6]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [6]}},
        "actor_learner_config": {
            "learner_host": "127.0.0.1",
            "learner_port": 50051,
            "policy_parameters_push_frequency": 120,
            "queue_get_timeout": 2,
        },
        "concurrency": {"actor": "threads", "learner": "threads"},
        "trainable_params": {"language_from_layer": 16},
    },
    "episode_logging_freq": 2,
    "env": {
        "type": "gym_manipulator",
        "task": "pick the cube",
        "fps": 30,
        "robot": {"type": "so101_follower", "port": "/dev/ttyACM0", "id": "follower"},
        "teleop": {"type": "so101_leader", "port": "/dev/ttyACM1", "id": "leader"},
        "processor": {
            "image_preprocessing": {"crop_params_dict": {"front": [0, 0, 9, 9]}, "resize_size": [128, 128]},
            "reset": {"control_time_s": 20.0, "terminate_on_success": True},
        },
    },
    "strange": 3,
}


def test_the_documents_configuration_becomes_files_of_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config-hiserl.json"
    file.write_text(json.dumps(CONFIG))
    main(["config", "import", str(file), "--output-dir", str(tmp_path / "ours")])
    shown = capsys.readouterr().out
    for command in ("train", "learner", "actor"):
        assert f"chunkrl {command} --config {tmp_path / 'ours' / command}.json" in shown

    train = parse(COMMANDS["train"], ["--config", str(tmp_path / "ours" / "train.json")])
    assert (train.dataset_dir, train.labels.success, train.additional_success) == ("me/demos", "all", "auto")
    assert train.additional_offline_dataset_paths == ("runs/a/buffer", "runs/b/buffer")
    assert (train.batch_size, train.microbatch_size) == (60, 10)  # 10 rows, 6 times before an update
    assert (train.lr, train.value_lr, train.grad_clip, train.num_updates) == (5e-5, 1e-4, 2.0, 8000)
    assert train.gamma == pytest.approx(math.exp(math.log(0.97) / 50))  # there a chunk, here a step
    assert (train.policy.kind, train.objective, train.pi.train) == ("pi", "advantage_conditioned", "expert")
    assert (train.pi0_config, train.action_horizon, train.action_dim) == ("pi05_base", 50, 6)
    assert train.cameras == ("observation.images.front", "observation.images.wrist")
    assert (train.frames.resize, train.save_updates, train.log_interval) == ((128, 128), 2000, 50)
    assert (train.tracking.wandb, train.tracking.project, train.tracking.mode) == (False, "pi05", "offline")

    learner = parse(COMMANDS["learner"], ["--config", str(tmp_path / "ours" / "learner.json")])
    assert learner.listen.address == "127.0.0.1:50051" and learner.online.push_s == 120
    assert (learner.replay.capacity_steps, learner.online.start_steps) == (30000, 100)
    assert learner.train.value_videos.every_episodes == 2 and learner.train.batch_size == 60
    assert learner.train.num_updates is None and learner.train.output_dir != train.output_dir

    actor = parse(COMMANDS["actor"], ["--config", str(tmp_path / "ours" / "actor.json")])
    assert (actor.exec_steps, actor.connect.address, actor.seed) == (25, "127.0.0.1:50051", 7)
    assert (actor.corrector, actor.max_steps) == ("leader", 600)  # 20 s at 30 Hz

    assert actor.robot == str(tmp_path / "ours" / "robot.json")
    for command in (learner, actor):
        command.check()
    check_config(train)
    robot = json.loads((tmp_path / "ours" / "robot.json").read_text())
    assert robot["robot"] == CONFIG["env"]["robot"] and robot["leader"] == CONFIG["env"]["teleop"]
    added = robot | {"low": [-100.0], "high": [100.0], "handover": {"max_step": 2.0, "tolerance": 1.0}}
    (tmp_path / "robot.json").write_text(json.dumps(added))
    assert load_config(RobotFile, tmp_path / "robot.json").rate_hz == 30


def test_every_key_is_told_with_what_it_became_or_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    found = import_hiserl(CONFIG)
    told = {read.key: read for read in found.keys}
    assert told["policy.chunk_size"].here == "train.json action_horizon 50"
    ignored = {key for key, read in told.items() if not read.is_mapped}
    assert ignored == {
        *("job_name", "resume", "num_workers", "save_checkpoint", "wandb.disable_artifact", "dataset.root"),
        *("dataset.use_imagenet_stats", "policy.utd_ratio", "policy.critic_target_update_weight"),
        *(
            "policy.actor_learner_config.queue_get_timeout",
            "policy.concurrency.actor",
            "policy.concurrency.learner",
        ),
        *("policy.trainable_params.language_from_layer", "env.type", "strange"),
        "env.processor.image_preprocessing.crop_params_dict.front",
        "env.processor.reset.terminate_on_success",
    }
    assert all(read.here for read in found.keys)
    assert "--pi.trainable" in told["policy.trainable_params.language_from_layer"].here
    assert told["strange"].here == UNKNOWN
    shown = config_import.told(found)
    assert f"ignored: {len(ignored) - 1} of {len(told)} keys" in shown
    assert (
        shown.index("not known: 1 of") > shown.index("ignored:")
        and "  strange " in shown.split("not known")[1]
    )
    assert "not known" not in config_import.told(
        import_hiserl({k: v for k, v in CONFIG.items() if k != "strange"})
    )


def changed(**parts: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    for place, value in parts.items():
        *parents, last = place.split("__")
        target = config
        for parent in parents:
            target = target[parent]
        target[last] = value
    return config


def test_other_values() -> None:
    found = import_hiserl(changed(policy__type="sac", policy__pretrained_path="/models/pi05/mine"))
    assert "policy" not in found.train and found.train["pi0_checkpoints_dir"] == "/models/pi05"
    found = import_hiserl(
        changed(policy__actor_learner_config={"learner_host": "10.0.0.5", "learner_port": 5})
    )
    told = {read.key: read for read in found.keys}["policy.actor_learner_config.learner_host"]
    assert not told.is_mapped and "TLS" in told.here and "connect" not in found.actor
    found = import_hiserl(changed(env__teleop={"type": "gamepad"}))
    assert "leader" not in found.robot and "corrector" not in found.actor
    # newer releases have the method's settings in `algorithm`
    newer = {"policy": {"type": "gaussian_actor"}, "algorithm": {"actor_lr": 1e-4, "utd_ratio": 2}}
    assert import_hiserl(newer).train == {"lr": 1e-4}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": 1}, "not a configuration of LeRobot's HIL-SERL"),
        (changed(batch_size="ten"), "batch_size is 'ten'; it must be a number of at least 1"),
        (changed(save_freq="often"), "save_updates"),
        (changed(wandb__enable="yes"), "tracking.wandb"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ChunkRLError, match=message):
        import_hiserl(config)


def test_files_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"policy": {"actor_lr": 1e-4}}))
    arguments = ["config", "import", str(file), "--output-dir", str(tmp_path / "ours")]
    main(arguments)
    with pytest.raises(SystemExit):
        main(arguments)
    assert "train.json is there already" in capsys.readouterr().err
    main([*arguments, "--overwrite"])
    assert json.loads((tmp_path / "ours" / "train.json").read_text()) == {"lr": 1e-4}
    with pytest.raises(SystemExit):
        main(["config", "export"])
    assert "chunkrl config import FILE" in capsys.readouterr().err


def test_settings_that_it_names_are_there() -> None:
    from chunkrl.cli import hiserl

    files = {name: Settings(COMMANDS[name].options_class()()) for name in ("train", "learner", "actor")}
    for places in hiserl._SAME.values():
        for place in places:
            file, key = place.split(":")
            if file in files:
                assert files[file].find(key).key.endswith(key)
