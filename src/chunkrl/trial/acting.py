"""The parts that an actor is given for a blind trial: whose chunks act, where an episode begins, which keys count.

The actor itself runs the episodes as any others; nothing here tells the screen who acts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.policy_runner import PolicyChunk, PolicyRunner
from chunkrl.online.actor.recorder import ItemSpool
from chunkrl.online.human.keys import KeySource
from chunkrl.online.link.records import EpisodeSummary, Item
from chunkrl.online.status import ActorStatus
from chunkrl.trial.records import Attempt, Outcome, TrialFolder
from chunkrl.trial.standing import Standing

_MOST_CRASHES = 3  # of one policy in a row, from one initial state
_AGAIN, _NEXT = "r", "2"


class BlindSource:
    """Chunks of whichever policy's turn it is (`chunkrl.online.actor.policy_runner.ChunkSource`).

    An error of a policy ends nothing here: its chunk is NaN, which no robot is sent, and `failure` says what it was.

    Attributes:
        version: the number of the policy whose turn it is, which the records of its steps hold.
        failure: what the policy raised in this episode; "" where it did not.
    """

    def __init__(
        self, runners: Sequence[PolicyRunner], num_actions: int, whose_turn: Callable[[], int]
    ) -> None:
        """num_actions: of each chunk, as many as are executed or prefetched."""
        self._runners, self._whose_turn = runners, whose_turn
        self.action_horizon, self.action_dim = num_actions, runners[0].action_dim
        self.version, self.failure = 0, ""
        self._number, self._lock = 0, threading.Lock()  # of the episode: an executor asks in another thread

    def begin_episode(self) -> None:
        """An episode begins. What the policy before still raises, at a chunk that nobody waits for, is none of it."""
        with self._lock:
            self.version, self.failure = self._whose_turn(), ""
            self._number += 1
        self._runners[self.version].begin_episode()

    def act(self, step: EnvStep, seed: int) -> PolicyChunk:
        """The chunk for what is seen now; `seed` determines its noise."""
        with self._lock:
            number, version = self._number, self.version
        try:
            actions = self._runners[version].act(step, seed).actions[: self.action_horizon]
            if not np.isfinite(actions).all():
                raise ChunkRLError("the policy gives actions that are NaN or infinite")
        except Exception as error:  # whatever a policy raises: it is recorded, and told at the end
            with self._lock:
                if number == self._number:
                    self.failure = self.failure or f"{type(error).__name__}: {error}"
            actions = np.full((self.action_horizon, self.action_dim), np.nan, dtype=np.float32)
        return PolicyChunk(actions, version)


class PairedEnvironment:
    """An environment whose episodes begin where the trial says: all of a pair in the same state."""

    def __init__(self, env: Environment, seed: Callable[[], int]) -> None:
        """env: is used and closed from here."""
        self._env, self._seed = env, seed
        self.name, self.task = env.name, env.task
        self.state_dim, self.action_dim = env.state_dim, env.action_dim
        self.max_steps, self.fps = env.max_steps, env.fps

    def reset(self, seed: int) -> EnvStep:
        """Starts the upcoming episode of the trial, whatever the seed."""
        return self._env.reset(self._seed())

    def step(self, action: np.ndarray, draw: bool = True) -> EnvStep:
        """Does as the environment."""
        return self._env.step(action, draw)

    def render(self) -> np.ndarray:
        """Does as the environment."""
        return self._env.render()

    def close(self) -> None:
        """Frees it."""
        self._env.close()


class TrialKeys:
    """A person's keys, and those that end an episode whose policy failed.

    Attributes:
        asked: somebody pressed `2` since the last episode was recorded.
    """

    def __init__(self, keys: KeySource, source: BlindSource) -> None:
        self._keys, self._source = keys, source
        self._ended = False  # the failure at hand has ended its episode
        self.asked = False

    def poll(self) -> str:
        """Keys since the last poll."""
        keys = self._keys.poll()
        self.asked = self.asked or _NEXT in keys
        if not self._source.failure:
            self._ended = False
        elif not self._ended:
            self._ended = True
            return keys + _AGAIN + _NEXT
        return keys

    def close(self) -> None:
        """Gives back what the source of the keys took."""
        self._keys.close()


class TrialSink:
    """Passes records on to the spool, and notes each attempt at once: a kill costs the episode under way alone."""

    def __init__(
        self,
        spool: ItemSpool,
        folder: TrialFolder,
        standing: Standing,
        source: BlindSource,
        keys: TrialKeys,
        names: Sequence[str],
    ) -> None:
        self._spool, self._folder, self._standing = spool, folder, standing
        self._source, self._keys, self._names = source, keys, names

    def append(self, item: Item) -> object:
        """See `chunkrl.online.actor.recorder.StepSink`.

        Raises:
            ChunkRLError: a policy crashed `_MOST_CRASHES` times in a row (all of it is recorded).
        """
        number = self._spool.append(item)
        if isinstance(item, EpisodeSummary):
            self._note(item)
            self._keys.asked = False  # the key that confirmed this one does not start the next
        return number

    def _note(self, summary: EpisodeSummary) -> None:
        upcoming, failure = self._standing.upcoming, self._source.failure
        outcome: Outcome = summary.outcome
        if failure:
            outcome = "crashed"
        attempt = Attempt(
            upcoming.pair,
            upcoming.place,
            outcome,
            upcoming.seed,
            summary.num_steps,
            summary.episode_id,
            failure[:500],
        )
        self._folder.save(attempt)
        self._standing.add(attempt)
        if self._standing.num_crashes >= _MOST_CRASHES:
            raise ChunkRLError(
                f"the policy {self._names[upcoming.policy]} crashed {self._standing.num_crashes} times in a row in "
                f"pair {upcoming.pair + 1}, at last: {failure}. Nothing of it counts; mend what it sees and "
                "resume with the same command, or, with a mended policy, begin another trial (--output-dir)"
            )


def hidden(status: ActorStatus, standing: Standing) -> ActorStatus:
    """The status without what tells who acts, and with what the person is to do while the scene is set up."""
    if status.phase != "held":
        return replace(status, policy_version=0)
    place = standing.upcoming.place if not standing.decided else 0
    what = "set up another scene" if place == 0 else "set up the same scene again"
    return replace(status, policy_version=0, phase=what, hint="2 start, q quit")
