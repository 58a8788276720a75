"""Several simulators behind one interface: each executes whole stretches of actions, and reports when it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.errors import ChunkRLError


@dataclass(frozen=True)
class SlotReport:
    """What a slot has done since it was last told something.

    slot: which. step: the world now; None where the simulator was lost (crashed, hung, or raised), and `failure`
    says how: its episode must begin again. num_steps: actions executed. task: the task's text.
    frames: images uint8 [height, width, 3] that were drawn on the way, where the episode is recorded.
    """

    slot: int
    step: EnvStep | None
    num_steps: int = 0
    task: str = ""
    frames: tuple[np.ndarray, ...] = ()
    failure: str = ""


# the world now, number of actions executed, the task's text, images drawn on the way
SlotAnswer = tuple[EnvStep, int, str, tuple[np.ndarray, ...]]


class EnvPool(Protocol):
    """Slots that hold one environment each. `reset` and `execute` return at once; `wait` says what came of them."""

    num_slots: int

    @property
    def num_processes(self) -> int:
        """Simulator processes; 0: all environments are in this one."""
        ...

    @property
    def num_restarts(self) -> int:
        """Simulators that were lost."""
        ...

    def reset(self, slot: int, env: str, seed: int, record_every: int = 0) -> None:
        """Starts the episode of environment `env` from initial state `seed`; draws every n-th step, if n > 0."""
        ...

    def execute(self, slot: int, actions: np.ndarray) -> None:
        """Executes actions [k, A] one after the other, fewer where the episode ends."""
        ...

    def wait(self, block: bool = True) -> Sequence[SlotReport]:
        """The reports that are there; at least one, if `block`."""
        ...

    def close(self) -> None:
        """Frees the simulators."""
        ...


class CannotServeError(ChunkRLError):
    """What cannot be made is the user's to cure, and will not go away with a new process."""


class SlotEnvironment:
    """One slot's environment and its episode: what a process of a pool, and `LocalPool`, do in the same way."""

    def __init__(self, make: Callable[[str], Environment]) -> None:
        self._make = make
        self._name: str | None = None
        self._env: Environment | None = None
        self._record_every = self._num_steps = 0

    def hold(self, name: str) -> Environment:
        """Makes the environment where another one is held."""
        if self._env is None or self._name != name:
            self.close()  # before the next is made: one rendering context per process
            try:
                self._env, self._name = self._make(name), name
            except ChunkRLError as error:
                raise CannotServeError(str(error)) from error
        return self._env

    def reset(self, name: str, seed: int, record_every: int = 0) -> SlotAnswer:
        """(step, 0, task, frames) of a new episode."""
        env = self.hold(name)
        step = env.reset(seed)
        self._record_every, self._num_steps = record_every, 0
        return step, 0, env.task, self._draw(force=True)

    def execute(self, actions: np.ndarray) -> SlotAnswer:
        """(step, number of actions executed, task, frames).

        The step has images where the episode goes on: a policy sees nothing in between, and not the end.
        """
        env = self._env
        assert env is not None, "an episode must begin with reset"
        frames: list[np.ndarray] = []
        num_done, step = 0, None
        for index, action in enumerate(actions, start=1):
            step = env.step(action, draw=index == len(actions))
            num_done, self._num_steps = num_done + 1, self._num_steps + 1
            frames += self._draw(force=step.done)
            if step.done:
                break
        assert step is not None, "no action to execute"
        return step, num_done, env.task, tuple(frames)

    def _draw(self, force: bool) -> tuple[np.ndarray, ...]:
        if not self._record_every or not (force or self._num_steps % self._record_every == 0):
            return ()
        assert self._env is not None
        return (self._env.render(),)

    def close(self) -> None:
        """Frees the simulator."""
        if self._env is not None:
            self._env.close()
        self._env = self._name = None


class LocalPool:
    """Environments of this process, one after the other: no start-up, and errors come as they are."""

    num_processes = num_restarts = 0

    def __init__(self, num_slots: int, make: Callable[[int, str], Environment]) -> None:
        """make: (slot, name) -> the environment."""
        if num_slots < 1:
            raise ChunkRLError("evaluation needs at least one environment and one episode")
        self.num_slots = num_slots
        self._slots = [SlotEnvironment(lambda name, slot=slot: make(slot, name)) for slot in range(num_slots)]
        self._orders: list[tuple[int, Callable[[], SlotAnswer]]] = []

    def reset(self, slot: int, env: str, seed: int, record_every: int = 0) -> None:
        """See `EnvPool`."""
        self._orders.append((slot, lambda: self._slots[slot].reset(env, seed, record_every)))

    def execute(self, slot: int, actions: np.ndarray) -> None:
        """See `EnvPool`."""
        self._orders.append((slot, lambda: self._slots[slot].execute(actions)))

    def wait(self, block: bool = True) -> Sequence[SlotReport]:
        """Executes what was ordered."""
        orders, self._orders = self._orders, []
        return [SlotReport(slot, *order()) for slot, order in orders]

    def close(self) -> None:
        """Frees the simulators."""
        for slot in self._slots:
            slot.close()
