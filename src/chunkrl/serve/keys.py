"""Which keys of a client's observation are a policy's cameras, state and task: said at the start, then by name.

Nothing is guessed from what arrives: the keys that are taken for a camera are the names that the camera has in data
sets and openpi's transforms, where no other camera of the policy could be meant, or what --rename says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chunkrl.data.roles import SAME_CAMERA, STATE_NAMES
from chunkrl.envs.robot import CAMERA_PREFIX
from chunkrl.errors import ChunkRLError, ObservationError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.suggest import did_you_mean
from chunkrl.types import Observation

STATE, TASK, ACTION_DIM = "observation.state", "task", "action_dim"
_TASKS = ("prompt", TASK)
_ONLY_CAMERA = ("observation/image", "image")


@dataclass(frozen=True)
class KeyMap:
    """How observations of clients become the policy's.

    cameras: the policy's camera -> keys, of which a client sends one. state: keys, of which it sends one, or with
    `joins_state` all, which are joined. task: keys, of which it sends one or, with a `default_task`, none.
    state_dim: S; 0: the policy acts without. needs_task: whether it reads the task. ignored: keys that are left out.
    action_dim: A.
    """

    cameras: Mapping[str, tuple[str, ...]]
    state: tuple[str, ...]
    joins_state: bool
    task: tuple[str, ...]
    default_task: str
    state_dim: int
    needs_task: bool
    ignored: frozenset[str]
    action_dim: int

    def features(self) -> dict[str, tuple[str, ...]]:
        """The policy's name of each thing that it takes -> the clients' keys of it."""
        state = {STATE: self.state} if self.state_dim else {}
        return {**self.cameras, **state, **({TASK: self.task} if self.needs_task else {})}

    def observation(self, message: Any) -> Observation:
        """One observation, as `ActingPolicy.act` checks it further; arrays as they came.

        Raises:
            ObservationError: what is missing, unknown or there twice, by the client's keys.
        """
        if not isinstance(message, dict):
            raise ObservationError(f"the observation is {type(message).__name__}: send a map, key -> value")
        found = dict(_flat(message))
        self._check_keys(found)
        images = {camera: _picture(key, found[key]) for camera, key in self._cameras(found).items()}
        return Observation(images, self._state(found), self._task(found))  # type: ignore[arg-type]

    def _check_keys(self, found: Mapping[str, Any]) -> None:
        known = [
            *(key for keys in self.cameras.values() for key in keys),
            *self.state,
            *self.task,
            ACTION_DIM,
        ]
        for key in found:
            if key not in known and key not in self.ignored:
                near = did_you_mean(key, known)
                raise ObservationError(
                    f"the observation holds {key!r}, which the policy does not take{near}; it takes "
                    f"{self.told()}. Start the server with --rename {key}=POLICY'S or --ignore {key}"
                )
        takes = found.get(ACTION_DIM, self.action_dim)
        if not isinstance(takes, int | np.integer) or takes != self.action_dim:
            raise ObservationError(
                f"the client takes actions of {takes!r:.20} values ({ACTION_DIM}), and the policy's have "
                f"{self.action_dim}: it was trained for another robot"
            )

    def _cameras(self, found: Mapping[str, Any]) -> dict[str, str]:
        return {camera: self._one(camera, keys, found) for camera, keys in self.cameras.items()}

    def _one(self, feature: str, keys: Sequence[str], found: Mapping[str, Any]) -> str:
        there = [key for key in keys if key in found]
        if len(there) == 1:
            return there[0]
        if there:
            raise ObservationError(f"{' and '.join(there)} are both {feature}: send one of them")
        raise ObservationError(
            f"the observation has the keys {sorted(found)} and lacks the policy's {feature}: send "
            f"{' or '.join(keys)}, or start the server with --rename KEY={feature}"
        )

    def _state(self, found: Mapping[str, Any]) -> np.ndarray | None:
        there = [key for key in self.state if key in found]
        if not there and not self.state_dim:
            return None
        if not self.joins_state:
            key = self._one(STATE, self.state, found)
            return self._whole(key, _vector(key, found[key]))
        if missing := [key for key in self.state if key not in found]:
            raise ObservationError(
                f"the observation lacks {missing}, parts of the state: send {list(self.state)}"
            )
        state = np.concatenate([_vector(key, found[key]) for key in self.state])
        return self._whole(" and ".join(self.state), state)

    def _whole(self, keys: str, state: np.ndarray) -> np.ndarray:
        if self.state_dim and len(state) != self.state_dim:
            raise ObservationError(
                f"{keys}: {len(state)} values, and the policy's state has {self.state_dim}: it was trained for "
                f"another robot, or send [{self.state_dim}] in the data's order and units"
            )
        return state

    def _task(self, found: Mapping[str, Any]) -> str:
        if not any(key in found for key in self.task) and (self.default_task or not self.needs_task):
            return self.default_task
        key = self._one(TASK, self.task, found)
        text = found[key]
        if not isinstance(text, str) or (self.needs_task and not text.strip()):
            raise ObservationError(f"{key} is {text!r:.60}: send the task's text, as the data's are written")
        return text

    def told(self) -> str:
        """What the policy takes, for messages."""
        return ", ".join(
            f"{feature} as {' or '.join(repr(key) for key in keys)}"
            for feature, keys in self.features().items()
        )


def plan_keys(policy: ActingPolicy, rename: Sequence[str], ignore: Sequence[str], task: str) -> KeyMap:
    """The keys of observations for a policy.

    Args:
        rename: "CLIENT'S=POLICY'S" pairs; what has one goes by no other key. ignore: keys that are left out. task:
            where a client sends none.

    Raises:
        ChunkRLError: the policy has no such camera, or a key means two things.
    """
    given: dict[str, list[str]] = {}
    for pair in rename:
        theirs, _, ours = pair.partition("=")
        if not theirs or ours not in (*policy.cameras, STATE, TASK):
            raise ChunkRLError(
                f"--rename {pair}: give CLIENT'S=POLICY'S; the policy's are {[*policy.cameras, STATE, TASK]}"
            )
        given.setdefault(ours, []).append(theirs)
    twice = [key for key, n in Counter(k for keys in given.values() for k in keys).items() if n > 1]
    if twice or any(len(keys) > 1 for name, keys in given.items() if name != STATE):
        raise ChunkRLError(
            f"--rename {' '.join(rename)}: each key and each camera once; only a state is joined"
        )
    taken = {key for keys in given.values() for key in keys} | set(ignore)

    def free(keys: Sequence[str]) -> tuple[str, ...]:
        return tuple(key for key in keys if key not in taken)

    own = _camera_keys(policy.cameras)
    keys = KeyMap(
        cameras={name: tuple(given.get(name, ())) or free(own[name]) for name in policy.cameras},
        state=tuple(given.get(STATE, ())) or free(STATE_NAMES),
        joins_state=len(given.get(STATE, ())) > 1,
        task=tuple(given.get(TASK, ())) or free(_TASKS),
        default_task=task,
        state_dim=policy.state_dim,
        needs_task=policy.takes.reads_task,
        ignored=frozenset(ignore),
        action_dim=policy.action_dim,
    )
    if without := [feature for feature, names in keys.features().items() if not names]:
        raise ChunkRLError(f"no key is left for {without}: correct --rename and --ignore")
    return keys


def _camera_keys(cameras: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each camera's own name, and others by which no other camera of these goes."""
    found: dict[str, list[str]] = {}
    for camera in cameras:
        short = camera.removeprefix(CAMERA_PREFIX)
        same = next((names for names in SAME_CAMERA if camera in names), ())
        forms = ["observation/{}", "observation/images/{}", "images/{}", "{}"]
        if "image" not in short:
            forms += ["observation/{}_image", "{}_image"]
        short_names = (form.format(short) for form in forms)
        only = _ONLY_CAMERA if len(cameras) == 1 else ()
        found[camera] = list(dict.fromkeys((camera, *same, *short_names, *only)))
    count = Counter(name for names in found.values() for name in names)
    return {
        camera: tuple(n for n in names if n == camera or (count[n] == 1 and n not in cameras))
        for camera, names in found.items()
    }


def _flat(message: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values; of maps in it under `OUTER/INNER`."""
    for key, value in message.items():
        if not isinstance(key, str):
            raise ObservationError(f"the observation holds the key {key!r:.40}: send texts as keys")
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{key}/")
        else:
            yield f"{within}{key}", value


def _picture(key: str, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 3:
        told = list(value.shape) if isinstance(value, np.ndarray) else type(value).__name__
        raise ObservationError(
            f"{key} is {told}: send one image, a uint8 array [height, width, 3] or [3, height, width]"
        )
    return value


def _vector(key: str, value: Any) -> np.ndarray:
    """[n] of an array, of numbers, or of one."""
    array = np.asarray(value) if isinstance(value, list | float | int | np.generic) else value
    if not isinstance(array, np.ndarray) or array.ndim > 1 or array.dtype.kind not in "iuf":
        told = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(value).__name__
        raise ObservationError(f"{key} is {told}: send one state, an array of numbers [S]")
    return np.atleast_1d(array)
