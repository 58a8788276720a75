"""Initial states of MetaWorld tasks, stored: a reset simulates 50 steps, and evaluations begin where others began.

What a reset leaves behind: the simulator's state, two arrays of its model (where bodies and sites are), and fields of
the environment, some of which look into the simulator's arrays. All of it depends on task and seed alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from chunkrl.envs.software_geometry import import_mujoco

MAX_STATES = 1024  # some 5 kB each
_MODEL_ARRAYS = ("body_pos", "site_pos")
_PLAIN = (bool, int, float, str, np.generic, type(None))


@dataclass(frozen=True)
class _View:
    """A field that looks into an array of the simulator: entries [start, start + size) of `array`, and its shape."""

    array: str
    start: int
    shape: tuple[int, ...]

    def of(self, data: Any) -> np.ndarray:
        size = int(np.prod(self.shape))
        return getattr(data, self.array).reshape(-1)[self.start : self.start + size].reshape(self.shape)


@dataclass(frozen=True)
class InitialState:
    """What a reset leaves behind, and its observation [39]."""

    observation: np.ndarray
    physics: np.ndarray
    model: tuple[np.ndarray, ...]
    fields: dict[str, Any]

    @classmethod
    def of(cls, env: Any, observation: np.ndarray) -> InitialState:
        """What MetaWorld's own environment `env` holds right after its reset."""
        mujoco = import_mujoco()
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(env.model, kind))
        mujoco.mj_getState(env.model, env.data, physics, kind)
        return cls(
            observation.copy(),
            physics,
            tuple(getattr(env.model, name).copy() for name in _MODEL_ARRAYS),
            {
                name: _stored(value, env.data)
                for name, value in vars(env).items()
                if isinstance(value, (np.ndarray, *_PLAIN))
            },
        )

    def restore(self, env: Any) -> np.ndarray:
        """Puts `env`, of the same task, into this state; returns the observation [39]."""
        mujoco = import_mujoco()
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        for name, values in zip(_MODEL_ARRAYS, self.model, strict=True):
            getattr(env.model, name)[:] = values
        mujoco.mj_resetData(env.model, env.data)
        mujoco.mj_setState(env.model, env.data, self.physics, kind)
        mujoco.mj_forward(env.model, env.data)
        mujoco.mj_setState(env.model, env.data, self.physics, kind)  # the solver's start is part of it
        for name, value in self.fields.items():
            setattr(env, name, _field(value, env.data))
        return self.observation.copy()


def _stored(value: Any, data: Any) -> Any:
    """A field as it is kept."""
    if not isinstance(value, np.ndarray):
        return value
    if not value.flags.owndata:
        for name in ("xpos", *dir(data)):  # mostly bodies' positions
            array = None if name.startswith("_") else getattr(data, name)
            if isinstance(array, np.ndarray) and np.may_share_memory(value, array):
                assert value.flags.c_contiguous and value.dtype == array.dtype, name
                distance = value.__array_interface__["data"][0] - array.__array_interface__["data"][0]
                return _View(name, distance // array.itemsize, value.shape)
    return value.copy()


def _field(stored: Any, data: Any) -> Any:
    """The field of an environment with these simulator's arrays."""
    if isinstance(stored, _View):
        return stored.of(data)
    return stored.copy() if isinstance(stored, np.ndarray) else stored


class InitialStates:
    """The states that were last begun from, at most `MAX_STATES`, for all environments of this process."""

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[str, int], InitialState] = OrderedDict()
        self._lock = Lock()  # a learner evaluates beside an actor

    def reset(self, env: Any, task: str, seed: int, reset: Callable[[], np.ndarray]) -> np.ndarray:
        """Puts `env` into initial state `seed` of `task`, by `reset` where the state is not stored; observation [39].

        reset: resets `env` itself and returns the observation.
        """
        with self._lock:
            state = self._states.get((task, seed))
            if state is not None:
                self._states.move_to_end((task, seed))
        if state is not None:
            return state.restore(env)
        state = InitialState.of(env, reset())
        with self._lock:
            self._states[task, seed] = state
            if len(self._states) > MAX_STATES:
                self._states.popitem(last=False)
        return state.observation.copy()


def touches(env: Any, geom: int) -> bool:
    """Whether both fingers press on `geom`: what MetaWorld's `touching_object` says, from arrays and not contact by
    contact."""
    data = env.data
    geoms, addresses = data.contact.geom, data.contact.efc_address
    of_geom = (geoms == geom).any(axis=1)
    if not of_geom.any():
        return False
    for pad in ("leftpad_geom", "rightpad_geom"):
        hits = of_geom & (geoms == data.geom(pad).id).any(axis=1)
        if not sum(data.efc_force[addresses[hits]]) > 0:
            return False
    return True
