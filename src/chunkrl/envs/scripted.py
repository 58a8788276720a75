"""Mixed-quality behaviour in a simulator: the frozen data recipe of the demo and the benchmarks.

Two mixtures. `within`: the controller is drawn again every 8 to 15 steps, so quality changes within an
episode, failures hold useful pieces and successes hold detours. `episodes`: one controller for a whole
episode, so episodes are good or bad as a whole. The recipe was fixed before any learning result was seen.
A learned policy may take a share of the segments or episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from chunkrl.envs.protocol import EnvStep
from chunkrl.errors import ChunkRLError

Mixture = Literal["within", "episodes"]
CONTROLLERS = ("expert", "shifted_target", "early_release", "random_bursts")
EXPERT, SHIFTED, RELEASE, BURSTS = range(4)
POLICY = len(CONTROLLERS)  # the number of a learned policy in the data's column of controllers


class ScriptedExpert(Protocol):
    """A privileged controller bound to one environment.

    release: the action [A] that opens the gripper and lifts.
    """

    release: np.ndarray

    def reset(self) -> None:
        """An episode begins."""
        ...

    def act(self, shift: np.ndarray) -> np.ndarray:
        """The next action [A], possibly beyond [-1, 1]; the target is misplaced by shift [3], metres."""
        ...


class LearnedController(Protocol):
    """A learned policy that acts step by step."""

    def begin(self, rng: np.random.Generator) -> None:
        """Its turn begins: what is left of an earlier chunk is dropped; `rng` gives its noise."""
        ...

    def act(self, step: EnvStep) -> np.ndarray:
        """The next action [A]."""
        ...


@dataclass(frozen=True)
class MixtureConfig:
    """How a mixture draws its controllers.

    mixture: `within` (re-drawn every `segment_steps`) or `episodes` (one a whole episode).
    expert_probability: `within` draws one of these for each episode; a segment is the expert with it.
    bad_within: relative weights of the controllers in the other segments.
    episode_controllers: `episodes`: probability of each controller of `CONTROLLERS`.
    segment_steps: lowest and highest length of a segment, steps.
    shift_m: lowest and highest length of the horizontal shift of the target, metres.
    noise_std: lowest and highest action noise of the scripts (Gaussian, action units), drawn for each episode.
    policy_share: probability that a learned policy acts in a segment (`within`) or an episode (`episodes`).
    """

    mixture: Mixture = "within"
    expert_probability: tuple[float, ...] = (0.2, 0.4, 0.6)
    bad_within: tuple[float, ...] = (0.0, 0.65, 0.35, 0.0)
    episode_controllers: tuple[float, ...] = (0.35, 0.35, 0.15, 0.15)
    segment_steps: tuple[int, int] = (8, 15)
    shift_m: tuple[float, float] = (0.12, 0.15)
    noise_std: tuple[float, float] = (0.05, 0.2)
    policy_share: float = 0.0

    def __post_init__(self) -> None:
        if self.mixture not in get_args(Mixture):
            raise ChunkRLError(f"mixture is {self.mixture!r}; it must be one of {get_args(Mixture)}")
        for name in ("bad_within", "episode_controllers"):
            weights = getattr(self, name)
            if len(weights) != len(CONTROLLERS) or not (min(weights) >= 0 and 0 < sum(weights) < np.inf):
                raise ChunkRLError(
                    f"{name} is {weights}; it must hold a weight for each of {CONTROLLERS}, not all of them 0"
                )
        if not self.expert_probability or not all(0 <= value <= 1 for value in self.expert_probability):
            raise ChunkRLError(
                f"expert_probability is {self.expert_probability}; it must hold one value at least, all in [0, 1]"
            )
        for name in ("shift_m", "noise_std"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < np.inf:
                raise ChunkRLError(f"{name} is {(low, high)}; it must be 0 <= lowest <= highest")
        if not 1 <= self.segment_steps[0] <= self.segment_steps[1]:
            raise ChunkRLError(f"segment_steps is {self.segment_steps}; it must be 1 <= lowest <= highest")
        if not 0.0 <= self.policy_share <= 1.0:
            raise ChunkRLError(f"policy_share is {self.policy_share}; it must lie in [0, 1]")


class MixtureController:
    """Acts for one episode. `act` returns the executed action [A] in [-1, 1] and the controller's number."""

    def __init__(
        self,
        expert: ScriptedExpert | None,
        config: MixtureConfig,
        rng: np.random.Generator,
        policy: LearnedController | None = None,
    ) -> None:
        """rng: gives everything that is drawn. expert: None only where a policy has the whole share; policy: acts in
        its share, None only where that is 0."""
        assert policy is not None or config.policy_share == 0
        assert expert is not None or config.policy_share == 1
        self._expert, self._config, self._rng, self._policy = expert, config, rng, policy
        self._expert_probability = rng.choice(config.expert_probability)
        self._noise_std = rng.uniform(*config.noise_std)
        self._steps_left = 0  # of a segment
        self._controller = EXPERT
        self._shift = np.zeros(3)
        if config.mixture == "episodes" and not self._policy_begins():
            self._draw(config.episode_controllers)

    def _policy_begins(self) -> bool:
        """Whether the learned policy takes the segment or episode that begins; draws nothing without a share."""
        if self._policy is None or self._rng.random() >= self._config.policy_share:
            return False
        self._controller = POLICY
        self._policy.begin(self._rng)
        return True

    def _draw(self, probabilities: tuple[float, ...]) -> None:
        weights = np.asarray(probabilities) / np.sum(probabilities)
        self._controller = int(self._rng.choice(len(CONTROLLERS), p=weights))
        angle = self._rng.uniform(0, 2 * np.pi)
        length = self._rng.uniform(*self._config.shift_m)
        self._shift = length * np.array([np.cos(angle), np.sin(angle), 0.0])
        self._release_step = int(self._rng.integers(15, 45))  # `episodes`: when an early release begins
        self._steps = 0
        self._burst_steps_left = 0

    def _redraw(self) -> None:
        low, high = self._config.segment_steps
        self._steps_left = int(self._rng.integers(low, high + 1))
        if self._policy_begins():
            return
        if self._rng.random() < self._expert_probability:
            self._controller = EXPERT
        else:
            self._draw(self._config.bad_within)

    def act(self, step: EnvStep) -> tuple[np.ndarray, int]:
        """step: what a learned policy sees; scripts read the environment."""
        if self._config.mixture == "within":
            if self._steps_left == 0:
                self._redraw()
            self._steps_left -= 1
        if self._controller == POLICY:
            assert self._policy is not None
            return np.clip(self._policy.act(step), -1.0, 1.0).astype(np.float32), POLICY
        action = self._scripted_action()
        noise = self._noise_std * self._rng.standard_normal(action.shape)
        return np.clip(action + noise, -1.0, 1.0).astype(np.float32), self._controller

    def _scripted_action(self) -> np.ndarray:
        assert self._expert is not None
        shift = self._shift if self._controller == SHIFTED else np.zeros(3)
        action = np.clip(self._expert.act(shift), -1.0, 1.0)
        if self._controller == RELEASE:
            self._steps += 1
            whole_episode = self._config.mixture == "episodes"
            if not whole_episode or self._steps > self._release_step:
                return self._expert.release
        if self._controller == BURSTS and self._burst(len(action)):
            return self._burst_action
        return action

    def _burst(self, action_dim: int) -> bool:
        """Random bursts: for 8 to 15 steps each, with probability one half, a constant random action."""
        if self._burst_steps_left == 0:
            self._burst_steps_left = int(self._rng.integers(*self._config.segment_steps, endpoint=True))
            self._bursting = self._rng.random() < 0.5
            self._burst_action = self._rng.uniform(-1.0, 1.0, size=action_dim)
        self._burst_steps_left -= 1
        return bool(self._bursting)
