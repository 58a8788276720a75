"""What an actor records: steps, how many ever, its spool, and its metrics.

How much an actor recorded, ever: noted beside its spool, so that it holds over restarts, kills and run folders.

The actor's spool as its loop sees it: records in, nothing out that the learner would refuse.

Turns control steps into records, one step late: the last one's flags are known when its outcome is.

An actor's metrics: one record per episode, written alongside the control loop, over the steps recorded so far.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from chunkrl.config import record_of
from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.envs.robot import CAMERA_PREFIX
from chunkrl.errors import ChunkRLError, DatasetError, RecordError, SpoolError, SpoolWriteError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.files.regular_files import is_there
from chunkrl.online.link.records import EpisodeSummary, Item, Outcome, StepRecord, StreamSpec, new_id
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.wire import decode_item, encode_item
from chunkrl.training.metrics import METRICS_FILE, MetricWriter, Record, read_records

KEPT_FILE = "kept.json"
_READ_BYTES = 16 * 2**20
_CURE = "delete it: episodes that were sent are then counted no more"


@dataclass(frozen=True)
class Kept:
    """num_episodes, num_steps: of the kept episodes among the spool's entries below next_sequence."""

    next_sequence: int = 0
    num_episodes: int = 0
    num_steps: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise SpoolError(f"{name} is {value}, below 0")

    def after(self, item: Item, next_sequence: int) -> Kept:
        """What is kept with `item`, after which the spool continues with `next_sequence`."""
        counted = replace(self, next_sequence=next_sequence)
        if not isinstance(item, EpisodeSummary) or item.outcome == "discarded":
            return counted
        return replace(counted, num_episodes=self.num_episodes + 1, num_steps=self.num_steps + item.num_steps)


def read_kept(spool: Spool) -> Kept:
    """What is noted, and what the spool has beyond it: a kill came before it was noted, or it is a spool of before.

    Raises:
        SpoolError: the note is damaged, or is not of this spool.
    """
    path = spool.root / KEPT_FILE
    kept = Kept()
    if path.exists():
        kept = record_of(Kept, read_json(path, dict, SpoolError, _CURE), str(path), SpoolError, _CURE)
    if kept.next_sequence > spool.next_sequence:
        raise SpoolError(
            f"{path} counts {kept.next_sequence} entries, and the spool has {spool.next_sequence}: {_CURE}"
        )
    position = max(kept.next_sequence, spool.acknowledged)
    while payloads := spool.read(position, _READ_BYTES):
        for payload in payloads:
            position += 1
            kept = kept.after(decode_item(payload), position)
    return kept


def note_kept(spool: Spool, kept: Kept) -> None:
    """Writes what is kept, and what it counts before that; it is on the disk when this returns. Raises SpoolError
    where that fails."""
    spool.sync()
    try:
        write_text(Path(spool.root) / KEPT_FILE, json.dumps(asdict(kept)) + "\n")
    except DatasetError as error:
        raise SpoolWriteError(str(error)) from error


_LOG = logging.getLogger(__name__)


class ItemSpool:
    """Appends one actor's records to `spool`; every step must look as `spec` says.

    Attributes:
        kept: how much of it counts, ever; on the disk after each episode.
    """

    def __init__(self, spool: Spool, actor_id: str, spec: StreamSpec) -> None:
        """Raises SpoolError where what is noted of the spool is damaged."""
        self._spool, self._actor_id, self._spec = spool, actor_id, spec
        self.kept = read_kept(spool)

    def learn(self, num_steps: int) -> None:
        """At least `num_steps` were kept: the learner has them. A spool of before had not noted them."""
        if num_steps > self.kept.num_steps:
            self.kept = replace(self.kept, num_steps=num_steps)

    def append(self, item: Item) -> int:
        """Writes the record (see `Spool` for when it is on the disk) and returns its number.

        Raises:
            RecordError: of another actor, or of another shape than `spec`; nothing was written.
            SpoolError: the disk is full or read-only; nothing was written, a later call may succeed.
        """
        if item.actor_id != self._actor_id:
            raise RecordError(f"item of actor {item.actor_id} for the spool of {self._actor_id}")
        if isinstance(item, StepRecord):
            self._spec.check(item)
        number = self._spool.append(encode_item(item))
        if isinstance(item, EpisodeSummary):
            self.kept = self.kept.after(item, number + 1)
            try:
                note_kept(self._spool, self.kept)
            except SpoolError as error:  # the record itself is written: who appends must not do so again
                _LOG.warning("the count of kept episodes is noted after the next one: %s", error)
        return number


class StepSink(Protocol):
    """Where records go: the actor's spool, or a list."""

    def append(self, item: Item, /) -> object:
        """Takes the next record over; what it returns is not looked at."""
        ...


def stream_spec(
    env: Environment,
    step: EnvStep,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    robot_type: str = "",
) -> StreamSpec:
    """What all steps of an actor on `env` look like. step: any of them. Names: None for state_0, action_0, ..."""
    return StreamSpec(
        fps=float(env.fps),
        state_names=tuple(state_names or (f"state_{i}" for i in range(env.state_dim))),
        action_names=tuple(action_names or (f"action_{i}" for i in range(env.action_dim))),
        cameras={
            name.removeprefix(CAMERA_PREFIX): (picture.shape[0], picture.shape[1])
            for name, picture in step.images.items()
        },
        robot_type=robot_type or env.name,
    )


@dataclass(frozen=True)
class Executed:
    """What one control step did. proposed: float32 [A], the policy's, or None. action: float32 [A], executed.
    human, held, policy_version: as in `StepRecord`."""

    proposed: np.ndarray | None
    action: np.ndarray
    human: bool
    held: bool
    policy_version: int


class EpisodeRecorder:
    """Records of one episode.

    Attributes:
        num_steps: steps so far; num_human: of these, chosen by a human.
    """

    def __init__(self, sink: StepSink, actor_id: str, task: str) -> None:
        self._sink, self._actor_id, self._task = sink, actor_id, task
        self._episode_id = new_id()
        self._last: StepRecord | None = None  # not in the sink yet
        self._env_success = False
        self._total_reward = 0.0
        self.num_steps = self.num_human = 0

    def add(self, before: EnvStep, executed: Executed, after: EnvStep) -> None:
        """One step: the world before, what was done, the world after. The step before it goes to the sink."""
        record = StepRecord(
            actor_id=self._actor_id,
            episode_id=self._episode_id,
            step_index=self.num_steps,
            task=self._task,
            state=np.asarray(before.state, dtype=np.float32),
            images={name.removeprefix(CAMERA_PREFIX): image for name, image in before.images.items()},
            proposed_action=executed.action if executed.proposed is None else executed.proposed,
            executed_action=executed.action,
            human=executed.human,
            policy_version=executed.policy_version,
            reward=float(after.reward),
            success=False,
            terminated=False,
            truncated=False,
            held=executed.held,
        )
        self._emit_last()
        self._last, self._env_success = record, after.success
        self.num_steps += 1
        self.num_human += executed.human

    def finish(self, outcome: Outcome, num_interventions: int, success_reward: float) -> EpisodeSummary:
        """The episode is over. The reward of a success that a human declared is `success_reward`; one that the
        environment declared has the environment's, and none if a human says that it was no success."""
        assert self._last is not None, "an episode has at least one step"
        reward = self._last.reward
        if outcome == "success" and not self._env_success:
            reward = success_reward
        elif self._env_success and outcome in ("failure", "timeout"):
            reward = 0.0
        self._last = replace(
            self._last,
            reward=reward,
            success=outcome == "success",
            terminated=outcome in ("success", "failure"),
            truncated=outcome in ("timeout", "discarded"),
        )
        self._emit_last()
        summary = EpisodeSummary(
            self._actor_id, self._episode_id, self.num_steps, outcome, self._total_reward, num_interventions
        )
        self._sink.append(summary)
        return summary

    def _emit_last(self) -> None:
        if self._last is not None:
            self._sink.append(self._last)
            self._total_reward += self._last.reward
            self._last = None


_RECENT = 20
_STEPS, _EPISODES = "actor/steps", "actor/episodes"


class ActorLog:
    """A sink that passes records on to another and counts them; `metrics.jsonl` and TensorBoard in `run_dir`.

    A record's `update` is the number of steps in kept episodes so far, over all starts in `run_dir`: curves have
    environment steps on their axis.

    Attributes:
        num_steps, num_episodes: of kept episodes, over all starts in `run_dir` or with the same spool.
        num_success, num_human: of kept episodes since this start; num_human: steps.
    """

    def __init__(
        self,
        sink: StepSink,
        run_dir: Path,
        facts: Callable[[], dict[str, float]] | None = None,
        kept: Kept = Kept(),
    ) -> None:
        """facts: more numbers for an episode's record. kept: of the spool before; a kill may have kept the last
        episode from the metrics. Raises ChunkRLError where the metrics there are damaged.
        """
        path = run_dir / METRICS_FILE
        past = read_records(path) if is_there(path, ChunkRLError, "move it away") else []
        self._sink, self._facts = sink, facts
        last = past[-1].scalars if past else {}
        self.num_steps = max(int(last.get(_STEPS, 0)), kept.num_steps)
        self.num_episodes = max(int(last.get(_EPISODES, 0)), kept.num_episodes)
        self.num_success = self.num_human = 0
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._human = self._held = 0
        self._writer = MetricWriter(run_dir, past=past)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="actor-log")

    def append(self, item: Item) -> object:
        """See `StepSink`."""
        result = self._sink.append(item)
        if isinstance(item, StepRecord):
            self._human += item.human
            self._held += item.held
            return result
        human, held, self._human, self._held = self._human, self._held, 0, 0
        if item.outcome != "discarded":
            self._kept(item, human, held)
        return result

    def _kept(self, summary: EpisodeSummary, human: int, held: int) -> None:
        success = summary.outcome == "success"
        self.num_steps += summary.num_steps
        self.num_episodes += 1
        self.num_success += success
        self.num_human += human
        self._recent.append(success)
        scalars = {
            _STEPS: self.num_steps,
            _EPISODES: self.num_episodes,
            "episode/success": float(success),
            "episode/failure": float(summary.outcome == "failure"),
            "episode/steps": summary.num_steps,
            "episode/reward": summary.total_reward,
            "episode/interventions": summary.num_interventions,
            "episode/human_fraction": human / summary.num_steps,
            "episode/held_fraction": held / summary.num_steps,
            f"actor/success_of_last_{_RECENT}": sum(self._recent) / len(self._recent),
            **(self._facts() if self._facts else {}),
        }
        record = Record(self.num_steps, "actor", time.time(), {k: float(v) for k, v in scalars.items()})
        self._worker.submit(self._writer.write, record)

    def close(self) -> None:
        """Everything is written when this returns."""
        self._worker.shutdown(wait=True)
        self._writer.close()
