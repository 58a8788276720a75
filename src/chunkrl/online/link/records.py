"""Records that cross process boundaries between actor and learner: NumPy only, checked where they are made.

An actor makes `StepRecord`s and ends each episode with one `EpisodeSummary`; its spool numbers both (`Entry`)
and the learner stores each number once. `chunkrl.online.link.wire` turns records into bytes and back.
"""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from chunkrl.errors import RecordError

PROTOCOL_VERSION = 1
MIN_PROTOCOL_VERSION = 1  # oldest version that this code still speaks

Outcome = Literal["success", "failure", "timeout", "discarded"]
"""How an episode ended. success, failure: the task ended (the environment or the human said so); timeout: the
limit of steps or time, or the human stopped it without a verdict; discarded: to be recorded again, the learner
does not store it."""

ITEM_SIZES = {
    **{"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4},
    **{"int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8},
}
"""Types of `TensorData` and their bytes per value."""

MAX_TASK_CHARACTERS = 4096
MAX_NDIM = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def new_id() -> str:
    """A new random identity (UUID 4) for an episode or a spool."""
    return str(uuid.uuid4())


def check_name(kind: str, name: str) -> None:
    """Raise RecordError unless `name` may stand in a file name and a column name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("."):
        raise RecordError(
            f"{kind} {name!r}: use 1 to 64 of letters, digits, '.', '_' and '-', a letter or digit first, no '.' last"
        )


def check_id(kind: str, value: str) -> None:
    """Raise RecordError unless `value` is a UUID in its usual form."""
    try:
        right = str(uuid.UUID(value)) == value
    except (ValueError, AttributeError, TypeError):
        right = False
    if not right:
        raise RecordError(f"{kind} {value!r}: make it with chunkrl.online.link.records.new_id()")


def _check_count(kind: str, value: int, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise RecordError(f"{kind} {value!r}: an integer from {least}")


def _check_flag(kind: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise RecordError(f"{kind} {value!r}: True or False")


def _check_vector(kind: str, value: np.ndarray) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1 or value.size == 0:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise RecordError(f"{kind}: {found}, expected a float32 NumPy array of one dimension")
    if not np.isfinite(value).all():
        raise RecordError(
            f"{kind}: NaN or inf at {int(np.argmin(np.isfinite(value)))}; hold position instead"
        )


@dataclass(frozen=True)
class StreamSpec:
    """What every step of an actor looks like; one learner's actors all have the same.

    fps: control steps per second. state_names, action_names: the dimensions' names, S and A of them.
    cameras: name -> (height, width); the data set's column is `observation.images.<name>`.
    robot_type: of robot or simulator, as LeRobot's `info.json` has it.
    """

    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    robot_type: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.fps, float) or not 0 < self.fps <= 10_000:
            raise RecordError(f"fps {self.fps!r}: a float above 0, at most 10000")
        for kind, names in (("state_names", self.state_names), ("action_names", self.action_names)):
            if not isinstance(names, tuple) or not 0 < len(names) <= 4096 or len(set(names)) < len(names):
                raise RecordError(f"{kind} {names!r}: a tuple of 1 to 4096 different names")
            if not all(isinstance(name, str) and 0 < len(name) <= 256 for name in names):
                raise RecordError(f"{kind} {names!r}: texts of 1 to 256 characters")
        if not isinstance(self.robot_type, str) or len(self.robot_type) > 256:
            raise RecordError(f"robot_type {self.robot_type!r}: a text of at most 256 characters")
        if len(self.cameras) > 64:
            raise RecordError(f"{len(self.cameras)} cameras: at most 64")
        for name, size in self.cameras.items():
            check_name("camera", name)
            if len(size) != 2 or not all(isinstance(n, int) and 0 < n <= 16384 for n in size):
                raise RecordError(f"camera {name!r}: size {size!r}, expected (height, width) in pixels")

    def check(self, step: StepRecord) -> None:
        """Raise RecordError where `step` has other dimensions or cameras than this."""
        sizes = {name: picture.shape[:2] for name, picture in step.images.items()}
        found = (step.state.size, step.executed_action.size, sizes)
        expected = (
            len(self.state_names),
            len(self.action_names),
            {k: tuple(v) for k, v in self.cameras.items()},
        )
        for kind, ours, theirs in zip(("state", "action", "cameras"), expected, found, strict=True):
            if ours != theirs:
                raise RecordError(
                    f"episode {step.episode_id}, step {step.step_index}: {kind} {theirs}, but the stream has "
                    f"{ours}: give every step what the StreamSpec says"
                )


@dataclass(frozen=True)
class StepRecord:
    """One control step: what was seen, what was done, and what came of it.

    actor_id: who recorded it. episode_id: UUID (`new_id`). step_index: 0, 1, 2, ... in its episode, no gaps.
    task: the task's text.
    state: float32 [S], seen before the action, in the robot's units. images: camera -> uint8 [height, width, 3].
    proposed_action: float32 [A], of the policy; the executed one where it proposed nothing (no chunk ready,
        NaN, a human from the start).
    executed_action: float32 [A], what the robot was sent, after limits.
    human: a person chose the executed action. held: position was held because there was nothing to execute;
        such a step is no choice of the policy.
    policy_version: of the weights that made the chunk of the proposed action (0: those the actor began with).
    reward, success, terminated, truncated: followed this action. success implies terminated. terminated: the
        task ended. truncated: the episode was stopped. Only an episode's last step may have one of them.
    """

    actor_id: str
    episode_id: str
    step_index: int
    task: str
    state: np.ndarray
    images: Mapping[str, np.ndarray]
    proposed_action: np.ndarray
    executed_action: np.ndarray
    human: bool
    policy_version: int
    reward: float
    success: bool
    terminated: bool
    truncated: bool
    held: bool = False

    def __post_init__(self) -> None:
        check_name("actor_id", self.actor_id)
        check_id("episode_id", self.episode_id)
        _check_count("step_index", self.step_index)
        _check_count("policy_version", self.policy_version)
        if not isinstance(self.task, str) or not 0 < len(self.task.strip()) <= MAX_TASK_CHARACTERS:
            raise RecordError(f"task: a text of 1 to {MAX_TASK_CHARACTERS} characters that says what to do")
        for kind in ("state", "proposed_action", "executed_action"):
            _check_vector(kind, getattr(self, kind))
        if self.proposed_action.shape != self.executed_action.shape:
            raise RecordError(
                f"proposed_action {self.proposed_action.shape} and executed_action {self.executed_action.shape}: "
                "give both the robot's dimensions"
            )
        for kind in ("human", "success", "terminated", "truncated", "held"):
            _check_flag(kind, getattr(self, kind))
        if not isinstance(self.reward, float) or not np.isfinite(self.reward):
            raise RecordError(f"reward {self.reward!r}: a finite float")
        if self.success and not self.terminated:
            raise RecordError("success without terminated: a success ends the task, set both")
        if self.terminated and self.truncated:
            raise RecordError("terminated and truncated: a task that ended was not stopped, set one")
        for name, picture in self.images.items():
            check_name("camera", name)
            if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3:
                raise RecordError(f"camera {name!r}: expected a uint8 NumPy array [height, width, 3]")
            if picture.shape[2] != 3 or 0 in picture.shape:
                raise RecordError(f"camera {name!r}: shape {picture.shape}, expected [height, width, 3]")

    @property
    def done(self) -> bool:
        """The episode's last step."""
        return self.terminated or self.truncated


@dataclass(frozen=True)
class EpisodeSummary:
    """The end of an episode; spooled after its last step. Without it an episode is unfinished.

    num_steps: how many `StepRecord`s it has. outcome: see `Outcome`. total_reward: sum of their rewards.
    num_interventions: how often a human took over.
    """

    actor_id: str
    episode_id: str
    num_steps: int
    outcome: Outcome
    total_reward: float
    num_interventions: int = 0

    def __post_init__(self) -> None:
        check_name("actor_id", self.actor_id)
        check_id("episode_id", self.episode_id)
        _check_count("num_steps", self.num_steps)
        _check_count("num_interventions", self.num_interventions)
        if self.outcome not in get_args(Outcome):
            raise RecordError(f"outcome {self.outcome!r}: use one of {', '.join(get_args(Outcome))}")
        if self.num_steps == 0 and self.outcome != "discarded":
            raise RecordError("num_steps 0: an episode without steps can only be 'discarded'")
        if not isinstance(self.total_reward, float) or not np.isfinite(self.total_reward):
            raise RecordError(f"total_reward {self.total_reward!r}: a finite float")


Item = StepRecord | EpisodeSummary
"""What a spool holds."""


@dataclass(frozen=True)
class Entry:
    """An item with the number that its actor's spool gave it: 0, 1, 2, ... over all episodes and restarts."""

    sequence: int
    item: Item

    def __post_init__(self) -> None:
        _check_count("sequence", self.sequence)


@dataclass(frozen=True)
class Hello:
    """An actor's first message. spool_id: UUID of its spool folder, so that two actors of one name, or a new
    folder under an old name, are refused instead of taken for one. features: optional abilities it knows."""

    actor_id: str
    spool_id: str
    spec: StreamSpec
    min_protocol: int = MIN_PROTOCOL_VERSION
    max_protocol: int = PROTOCOL_VERSION
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("actor_id", self.actor_id)
        check_id("spool_id", self.spool_id)
        _check_protocols(self.min_protocol, self.max_protocol)
        for name in self.features:
            check_name("feature", name)


@dataclass(frozen=True)
class Welcome:
    """The learner's answer. protocol: the version to speak. next_sequence: the first number that it lacks (all
    below are stored). weights_version: the newest weights on offer (0: none). features: those both know."""

    protocol: int
    next_sequence: int
    weights_version: int = 0
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_count("protocol", self.protocol, 1)
        _check_count("next_sequence", self.next_sequence)
        _check_count("weights_version", self.weights_version)
        for name in self.features:
            check_name("feature", name)


def _check_protocols(oldest: int, newest: int) -> None:
    _check_count("min_protocol", oldest, 1)
    _check_count("max_protocol", newest, oldest)


@dataclass(frozen=True)
class TensorData:
    """A tensor as bytes: dtype a key of `ITEM_SIZES`, little-endian, C order. NumPy has no bfloat16: its bits
    are here, `chunkrl.online.link.weights` makes torch tensors of them."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_SIZES:
            raise RecordError(f"tensor of type {self.dtype!r}: use one of {', '.join(ITEM_SIZES)}")
        if len(self.shape) > MAX_NDIM:
            raise RecordError(f"tensor with {len(self.shape)} dimensions: at most {MAX_NDIM}")
        size = room = ITEM_SIZES[self.dtype]
        for n in self.shape:
            _check_count("tensor dimension", n)
            size *= n
            room *= max(n, 1)
        if room >= 2**62:  # NumPy refuses such a shape, even with a 0 in it
            raise RecordError(f"tensor of shape {list(self.shape)}: too large")
        if size != len(self.data):
            raise RecordError(
                f"tensor {self.dtype} {list(self.shape)} with {len(self.data)} bytes, expected {size}"
            )


@dataclass(frozen=True)
class WeightPush:
    """Trained parameters, and nothing else, of one version.

    version: 1, 2, ...; later is newer. tensors: parameter name -> values. checksum: `checksum_of` the rest,
    verified here: what was corrupted on its way cannot be made into a WeightPush. num_steps: steps that actors had
    recorded, of kept episodes, for which the learner has made all the updates that it owes them. own_steps: at least
    so many of these are the receiving actor's; None where that is not known. The checksum leaves it out.
    """

    version: int
    tensors: Mapping[str, TensorData]
    checksum: str
    num_steps: int = 0
    own_steps: int | None = None

    def __post_init__(self) -> None:
        _check_count("version", self.version, 1)
        _check_count("num_steps", self.num_steps)
        if self.own_steps is not None:
            _check_count("own_steps", self.own_steps)
            if self.own_steps > self.num_steps:
                raise RecordError(
                    f"weights version {self.version}: {self.own_steps} steps of one actor among {self.num_steps}"
                )
        if not self.tensors:
            raise RecordError(f"weights version {self.version}: no tensors")
        for name in self.tensors:
            if not isinstance(name, str) or not 0 < len(name) <= 1024:
                raise RecordError(
                    f"weights version {self.version}: a parameter's name has 1 to 1024 characters"
                )
        found = self.checksum_of(self.version, self.tensors, self.num_steps)
        if found != self.checksum:
            raise RecordError(
                f"weights version {self.version}: checksum {found[:12]} instead of {self.checksum[:12]}: damaged on "
                "the way; they are refused, the actor keeps its own and asks again"
            )

    @classmethod
    def make(cls, version: int, tensors: Mapping[str, TensorData], num_steps: int = 0) -> WeightPush:
        """Makes a push with the right checksum."""
        return cls(version, tensors, cls.checksum_of(version, tensors, num_steps), num_steps)

    @staticmethod
    def checksum_of(version: int, tensors: Mapping[str, TensorData], num_steps: int = 0) -> str:
        """SHA-256 (hexadecimal) of version, steps, names, types, shapes and values, names in sorted order."""
        digest = hashlib.sha256(struct.pack("<QQ", version, num_steps))
        for name in sorted(tensors):
            tensor = tensors[name]
            head = repr((name, tensor.dtype, tuple(tensor.shape), len(tensor.data))).encode()
            digest.update(struct.pack("<Q", len(head)) + head)
            digest.update(tensor.data)
        return digest.hexdigest()
