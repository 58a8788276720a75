"""LeRobot's HIL-SERL configuration (`config-hiserl.json` of the advantage-conditioned document) as chunkrl's own.

One file there configures learner, offline learner, actor and robot; here each command has its own. Every key of the
file is either mapped or ignored, with the reason. docs/training.md has the same table for people.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.learner.config import LearnerConfig
from chunkrl.run.config import TrainConfig
from chunkrl.settings import Settings

UNKNOWN = "nothing was taken of it; docs/training.md has a table of what is set where"
_CAMERA = "observation.images."
_LOCAL_HOSTS = ("localhost",)
_OFFLINE = ("num_updates", "output_dir")  # of the run that the learner begins with, and of no other


@dataclass(frozen=True)
class KeyRead:
    """What became of a key: here, what it is now, or where `is_mapped` is false why it is ignored."""

    key: str
    value: Any
    here: str
    is_mapped: bool


@dataclass
class Imported:
    """train, learner, actor, robot: what the files of these commands hold, nested. keys: every key, in its order."""

    train: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    actor: dict[str, Any] = field(default_factory=dict)
    robot: dict[str, Any] = field(default_factory=dict)
    keys: list[KeyRead] = field(default_factory=list)

    def files(self) -> dict[str, dict[str, Any]]:
        """Name -> contents of the files that are worth writing."""
        shared = {name: value for name, value in self.train.items() if name not in _OFFLINE}
        both = ({"train": shared} if shared else {}) | self.learner
        found = {
            "train.json": self.train,
            "learner.json": both,
            "actor.json": self.actor,
            "robot.json": self.robot,
        }
        return {name: values for name, values in found.items() if values}


def import_hiserl(values: Mapping[str, Any]) -> Imported:
    """Reads the configuration of a learner or actor of LeRobot's HIL-SERL and of the pi0.5 fork of it.

    Raises:
        ChunkRLError: it is none, or holds a value that no setting here can have (names the setting).
    """
    if not {"policy", "dataset", "env"} & values.keys():
        raise ChunkRLError("it has no policy, dataset or env: not a configuration of LeRobot's HIL-SERL")
    found = Imported()
    flat = dict(_flat(values))
    for key, value in flat.items():
        found.keys.append(_read(key, value, flat, found))
    Settings(TrainConfig()).of_values(found.train)
    Settings(LearnerConfig()).of_values(found.files().get("learner.json", {}))
    Settings(ActorCommand()).of_values(found.actor)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key not in _WHOLE:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _read(key: str, value: Any, flat: Mapping[str, Any], found: Imported) -> KeyRead:
    if value is None:
        return KeyRead(key, value, "not set there", False)
    name = key.removeprefix("algorithm.") if key.startswith("algorithm.") else key.removeprefix("policy.")
    for table_key in (key, name):
        if table_key in _SAME:
            return KeyRead(key, value, _put(found, _SAME[table_key], value), True)
        if table_key in _MAPPED:
            here = _MAPPED[table_key](value, flat, found)
            is_mapped = not here.startswith("!")
            return KeyRead(key, value, here.removeprefix("!"), is_mapped)
    for part, reason in _IGNORED.items():
        if part in (key, name) or key.startswith(f"{part}.") or name.startswith(f"{part}."):
            return KeyRead(key, value, reason, False)
    return KeyRead(key, value, UNKNOWN, False)


def _put(found: Imported, places: tuple[str, ...], value: Any) -> str:
    """Sets `FILE:KEY` places to a value; returns them in words."""
    for place in places:
        file, _, key = place.partition(":")
        *parents, last = key.split(".")
        target = getattr(found, file)
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return ", ".join(f"{place.replace(':', '.json ')} {shown}" for place in places)


_Rule = Callable[[Any, Mapping[str, Any], Imported], str]  # the text begins with ! where the key is ignored


def _either(flat: Mapping[str, Any], name: str, default: Any) -> Any:
    """A setting that may stand in the file itself, in policy or in algorithm."""
    found = [flat[key] for key in (name, f"policy.{name}", f"algorithm.{name}") if flat.get(key) is not None]
    return found[0] if found else default


def _batch(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    size, steps = flat.get("batch_size", 1), _either(flat, "gradient_accumulation_steps", 1)
    for name, number in (("batch_size", size), ("gradient_accumulation_steps", steps)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ChunkRLError(f"{name} is {number!r}; it must be a number of at least 1")
    text = _put(found, ("train:batch_size",), size * steps)
    if steps > 1:
        text += f" (rows x gradient_accumulation_steps), {_put(found, ('train:microbatch_size',), size)}"
    return text


def _dataset(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    text = _put(found, ("train:dataset_dir",), flat.get("dataset.root") or value)
    return f"{text}, {_put(found, ('train:labels.success',), 'all')} (the document's holds successes alone)"


def _additional(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    if not value:
        return "!an empty list"
    text = _put(found, ("train:additional_offline_dataset_paths",), value)
    return f"{text}, {_put(found, ('train:additional_success',), 'auto')}"


def _kind(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    if "pi0" not in str(value):
        return "!no policy of this kind is here; a small one is trained (--policy.kind gaussian or flow)"
    text = _put(found, ("train:policy.kind",), "pi")
    return f"{text}, {_put(found, ('train:objective',), 'advantage_conditioned')}"


def _pretrained(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    path = PurePosixPath(str(value))
    text = _put(found, ("train:pi0_config",), path.name)
    if len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in (".", "..", "~"):
        return f"{text} (a Hub repository: chunkrl download --repo-id {value} puts it there)"
    return f"{text}, {_put(found, ('train:pi0_checkpoints_dir',), str(path.parent))}"


def _discount(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    steps = flat.get("policy.chunk_size", 1)
    gamma = float(value) ** (1 / steps)
    return f"{_put(found, ('train:gamma',), gamma)} (per step: {value} per chunk of {steps})"


def _address(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    prefix = "policy.actor_learner_config."
    host, port = (
        flat.get(f"{prefix}learner_{part}", d) for part, d in (("host", "127.0.0.1"), ("port", 50051))
    )
    if not _is_local(str(host)):
        return (
            "!other machines need TLS and a token here (docs/online.md): --listen.address, --connect.address"
        )
    return _put(found, ("learner:listen.address", "actor:connect.address"), f"{host}:{port}")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOCAL_HOSTS


def _inputs(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    cameras = [key for key in value if key.startswith((_CAMERA, "observation.image"))]
    text = _put(found, ("train:cameras",), cameras)
    return f"{text}, {_put(found, ('train:use_state',), any('state' in key for key in value))}"


def _outputs(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    shape = value.get("action", {}).get("shape", [])
    if not shape:
        return "!it names no action"
    return _put(found, ("train:action_dim",), shape[0])


def _wandb_mode(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    if value not in ("online", "offline"):
        return f"!{value}: Weights & Biases is on with --tracking.wandb alone"
    return _put(found, ("train:tracking.mode",), value)


def _robot(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    text = _put(found, ("robot:robot",), value)
    _put(found, ("actor:robot",), "robot.json")
    return f"{text.split(' ')[0]} robot (its joint limits low and high must be added: docs/online.md)"


def _teleop(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    if "leader" not in str(value.get("type")):
        return "!people correct with a leader arm (or, in gym-hil, keys) here"
    _put(found, ("robot:leader",), value)
    _put(found, ("actor:corrector",), "leader")
    return "robot.json leader, actor.json corrector leader (`handover` must be added: docs/online.md)"


def _seconds(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    fps = flat.get("env.fps")
    if not fps:
        return "!seconds; without env.fps they are no number of steps"
    return (
        f"{_put(found, ('robot:max_steps', 'actor:max_steps'), round(value * fps))} ({value} s at {fps} Hz)"
    )


def _trained(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    if not value:
        return "!off there, as here by default"
    return _put(found, ("train:pi.train",), "expert")


def _frozen_vision(value: Any, flat: Mapping[str, Any], found: Imported) -> str:
    if not value or flat.get("policy.train_expert_only"):
        return "!off there, or less than train_expert_only"
    return _put(found, ("train:pi.train",), "language_and_expert")


_WHOLE = {"policy.input_features", "policy.output_features", "env.robot", "env.teleop"}  # read as they are
_SAME: dict[str, tuple[str, ...]] = {
    "seed": ("train:seed", "actor:seed"),
    "output_dir": ("train:output_dir",),
    "steps": ("train:num_updates",),
    "save_freq": ("train:save_updates",),
    "log_freq": ("train:log_interval",),
    "dataset.revision": ("train:revision",),
    "wandb.enable": ("train:tracking.wandb",),
    "wandb.project": ("train:tracking.project",),
    "online_ratio": ("learner:online.share",),
    "episode_logging_freq": ("learner:value_videos.every_episodes",),
    "device": ("train:device", "actor:device"),
    "chunk_size": ("train:action_horizon",),
    "n_action_steps": ("actor:exec_steps",),
    "num_inference_steps": ("actor:flow_steps",),
    "gradient_checkpointing": ("train:pi.gradient_checkpointing",),
    "actor_lr": ("train:lr",),
    "optimizer_lr": ("train:lr",),
    "critic_lr": ("train:value_lr",),
    "optimizer_betas": ("train:betas",),
    "optimizer_weight_decay": ("train:weight_decay",),
    "grad_clip_norm": ("train:grad_clip",),
    "optimizer_grad_clip_norm": ("train:grad_clip",),
    "scheduler_warmup_steps": ("train:warmup_updates",),
    "online_buffer_capacity": ("learner:replay.capacity_steps",),
    "online_step_before_learning": ("learner:online.start_steps",),
    "actor_learner_config.policy_parameters_push_frequency": ("learner:online.push_s",),
    "env.fps": ("robot:rate_hz",),
    "env.task": ("robot:task",),
    "env.processor.image_preprocessing.resize_size": ("train:frames.resize",),
}
_MAPPED: dict[str, _Rule] = {
    "batch_size": _batch,
    "gradient_accumulation_steps": _batch,
    "dataset.repo_id": _dataset,
    "dataset.root": _dataset,
    "additional_offline_dataset_paths": _additional,
    "dataset.additional_offline_dataset_paths": _additional,
    "policy.type": _kind,
    "policy.path": _pretrained,
    "policy.pretrained_path": _pretrained,
    "policy.input_features": _inputs,
    "policy.output_features": _outputs,
    "discount": _discount,
    "train_expert_only": _trained,
    "freeze_vision_encoder": _frozen_vision,
    "wandb.mode": _wandb_mode,
    "actor_learner_config.learner_host": _address,
    "actor_learner_config.learner_port": _address,
    "env.robot": _robot,
    "env.teleop": _teleop,
    "env.processor.reset.control_time_s": _seconds,
}
_IGNORED = {
    "job_name": "a run's folder is its name (output_dir)",
    "resume": "a run resumes with --resume RUN",
    "num_workers": "data are memory-mapped and read ahead",
    "save_checkpoint": "checkpoints are always written; how often: --save-updates",
    "use_policy_training_preset": "there are no presets",
    "eval": "chunkrl evaluate, or --evaluation.* of the learner",
    "eval_freq": "--evaluation.every-updates of the learner",
    "optimizer": "AdamW: --lr, --betas, --weight-decay",
    "scheduler": "--schedule, --warmup-updates",
    "wandb": "of Weights & Biases only project and mode are set here",
    "dataset.episodes": "whole data sets are read; make one of these episodes",
    "dataset.use_imagenet_stats": "the pretrained policy normalises its own images",
    "dataset.image_transforms": "no such augmentation; small policies have --network.image-shift",
    "dataset": "how LeRobot loads videos; here --cache and --resize",
    "policy_update_freq": "values train before the policy; --value-updates-per-update trains them on",
    "utd_ratio": "--value-updates-per-update with --relabel-interval; --online.updates-per-step for the learner",
    "critic_target_update_weight": "values regress returns; with --fit.target bootstrap it is --fit.target-rate",
    "offline_buffer_capacity": "data on disk are memory-mapped, all of them",
    "online_steps": "the learner ends with --num-updates, the actor with --num-episodes",
    "online_env_seed": "the actor's --seed",
    "async_prefetch": "batches are always read ahead",
    "storage_device": "steps wait on disk",
    "actor_learner_config": "waiting is the transport's own",
    "concurrency": "actor and learner are processes",
    "normalization_mapping": "the checkpoint says how it normalises; of small policies means and deviations",
    "dataset_stats": "statistics come from the data or the checkpoint (--pi.norm-stats)",
    "dtype": "trained weights are float32 under bfloat16 autocast, frozen ones bfloat16 on a GPU",
    "use_amp": "bfloat16 autocast on a GPU, always",
    "compile_model": "no compilation",
    "compile_mode": "no compilation",
    "use_torch_compile": "no compilation",
    "push_to_hub": "nothing is published",
    "repo_id": "nothing is published",
    "private": "nothing is published",
    "tags": "nothing is published",
    "license": "nothing is published",
    "paligemma_variant": "the checkpoint's recipe says it (--pi0.recipe)",
    "action_expert_variant": "the checkpoint's recipe says it (--pi0.recipe)",
    "max_state_dim": "the checkpoint's recipe says it (--pi0.recipe)",
    "max_action_dim": "the checkpoint's recipe says it (--pi0.recipe)",
    "tokenizer_max_length": "the checkpoint's recipe says it; what does not fit is refused, not cut",
    "image_resolution": "the checkpoint's recipe says it (--pi0.recipe)",
    "empty_cameras": "the checkpoint's recipe says it (--pi0.recipe)",
    "n_obs_steps": "one observation",
    "time_sampling": "the checkpoint's recipe says it (--pi0.recipe)",
    "min_period": "the checkpoint's recipe says it (--pi0.recipe)",
    "max_period": "the checkpoint's recipe says it (--pi0.recipe)",
    "scheduler_decay_steps": "--schedule cosine decays over the whole run",
    "scheduler_decay_lr": "--schedule cosine with --final-lr-ratio",
    "optimizer_eps": "AdamW's 1e-8",
    "trainable_params": "--pi.train expert_and_last_layers:N, or --pi.trainable with patterns of names",
    "critic": "--pi.critic.*, --fit.head.*: other networks than there",
    "temperature_init": "of SAC",
    "temperature_lr": "of SAC",
    "target_entropy": "of SAC",
    "use_backup_entropy": "of SAC",
    "num_critics": "of SAC; ensembles of values are --fit.num-critics",
    "num_subsample_critics": "of SAC",
    "num_discrete_actions": "of SAC; a gripper's command is a value of the action",
    "critic_network_kwargs": "of SAC",
    "actor_network_kwargs": "of SAC",
    "discrete_critic_network_kwargs": "of SAC",
    "policy_kwargs": "of SAC",
    "latent_dim": "of SAC; small policies have --network.*",
    "shared_encoder": "of SAC",
    "vision_encoder_name": "of SAC; small policies have --network.*",
    "image_encoder_hidden_dim": "of SAC; small policies have --network.*",
    "image_embedding_pooling_dim": "of SAC; small policies have --network.*",
    "state_encoder_hidden_dim": "of SAC; small policies have --network.*",
    "env.type": "chunkrl actor --robot or --env says what acts",
    "env.name": "chunkrl actor --robot or --env says what acts",
    "env.features": "the data say what they hold",
    "env.features_map": "the data say what they hold",
    "env.processor.image_preprocessing.crop_params_dict": "no cropping: crop when you record",
    "env.processor.reset": "the robot's file says where an episode begins (`home`), a verdict or its limit ends it",
    "env.processor": "processors of LeRobot go into `processors` of the robot's file (docs/online.md)",
    "env.wrapper": "processors of LeRobot go into `processors` of the robot's file (docs/online.md)",
    "env": "what acts is said to chunkrl actor",
    "reward_model": "success is said by keys, or by the data",
    "reward_classifier": "success is said by keys, or by the data",
    "type": "chunkrl has a method for each --objective",
}
