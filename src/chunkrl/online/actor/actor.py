"""One actor: a policy drives an environment, a human corrects it, every step goes to a sink. No network in it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from chunkrl.envs.action_guard import ActionFault, ActionGuard, ActionSpace
from chunkrl.envs.protocol import Environment, EnvStep
from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.executor import ChunkExecutor, ControlRate, ExecutorStatistics, JitterStatistics
from chunkrl.online.actor.recorder import EpisodeRecorder, Executed, StepSink
from chunkrl.online.human.correctors import Handover
from chunkrl.online.human.intervention import Corrector, EpisodePhases, Phase
from chunkrl.online.human.keys import KeySource, NoKeys
from chunkrl.online.link.records import Outcome
from chunkrl.online.status import ActorStatus, silent
from chunkrl.signals import handled


def _how_it_ended(outcome: Outcome) -> str:
    """For people: neither time that ran out nor a session that ends is a verdict."""
    return "truncated" if outcome == "timeout" else outcome


@dataclass(frozen=True)
class ActorConfig:
    """How one actor works."""

    actor_id: str = "actor"
    """Its name in the records."""
    num_episodes: int | None = None
    """Episodes to record, those recorded again not counted; None: until somebody quits."""
    seed: int = 0
    """Determines initial states (of a simulator) and the policy's noise."""
    confirm: bool = True
    """Every episode waits for key `2`, and until then its outcome may be changed. False: nobody is there."""
    max_steps: int | None = None
    """Time limit, steps; None: the environment's own. A limit truncates, it is no failure."""
    success_reward: float = 1.0
    """Reward of the step after which a human says success."""
    keeps_cut: bool = True
    """An episode that is under way when the session ends is kept, truncated; False: it is discarded."""
    first_episode: int = 0
    """Number of the first episode, for the initial states: those of earlier sessions do not come again."""

    def __post_init__(self) -> None:
        for name in ("num_episodes", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ChunkRLError(f"{name} is {value}; it must be at least 1, or None")
        for name in ("seed", "first_episode"):
            if getattr(self, name) < 0:
                raise ChunkRLError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True)
class Human:
    """Who watches. keys: where keys come from. corrector: who acts in interventions; None: nobody. handover: keeps
    absolute targets from jumping where who acts changes; None for actions that are motions themselves."""

    keys: KeySource = field(default_factory=NoKeys)
    corrector: Corrector | None = None
    handover: Handover | None = None


@dataclass(frozen=True)
class ActorSummary:
    """A session. num_episodes, num_success: kept ones; num_discarded: to be recorded again. num_steps, num_human,
    num_interventions: of kept episodes. num_held, num_clipped, faults: of the action guard. execution: of chunks;
    jitter: of the control clock, None without one."""

    num_episodes: int
    num_success: int
    num_discarded: int
    num_steps: int
    num_human: int
    num_interventions: int
    num_held: int
    num_clipped: int
    faults: tuple[ActionFault, ...]
    execution: ExecutorStatistics
    jitter: JitterStatistics | None


class Actor:
    """Runs episodes and records them. It owns what it is given: `run` closes all of it, whatever happens."""

    def __init__(
        self,
        env: Environment,
        space: ActionSpace,
        executor: ChunkExecutor,
        sink: StepSink,
        config: ActorConfig,
        human: Human | None = None,
        rate: ControlRate | None = None,
        show: Callable[[ActorStatus], None] = silent,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            env: what acts; a real-time one waits for the ticks of `rate` in `step`.
            space: what its actions are.
            executor: the policy's chunks.
            sink: takes `StepRecord`s and, after an episode's last one, an `EpisodeSummary`. A step gets there when
                the next one is done; the last one when the outcome is final.
            human: None: nobody.
            rate: the environment's clock, None for a simulator that runs as fast as it can.
            show: gets the status every step.
            ready: whether an episode may begin; asked again until it says so, or somebody quits.

        Raises:
            ChunkRLError: actions do not fit, or absolute targets could jump at an intervention.
        """
        human = Human() if human is None else human
        if space.action_dim != env.action_dim:
            raise ChunkRLError(
                f"limits for {space.action_dim} action values, {env.name} takes {env.action_dim}"
            )
        if space.hold.control == "absolute" and human.corrector is not None and human.handover is None:
            raise ChunkRLError("absolute targets jump where a human takes over: give the actor a Handover")
        self._env, self._executor, self._sink, self._config = env, executor, sink, config
        self._keys, self._corrector, self._handover = human.keys, human.corrector, human.handover
        self._rate, self._show, self._ready = rate, show, ready
        self._guard = ActionGuard(space)
        self._phases = EpisodePhases(can_intervene=human.corrector is not None)
        self._human_acts = False
        self._stop = threading.Event()
        counted = ("episodes", "success", "discarded", "steps", "human", "interventions")
        self._counts: dict[str, int] = dict.fromkeys(counted, 0)
        self._last = ""  # how the episode before ended

    def stop(self) -> None:
        """The session ends after the current step, as with key `q`; from any thread or a signal handler."""
        self._stop.set()

    def run(self) -> ActorSummary:
        """Episodes until there are enough, somebody quits, or SIGINT, SIGTERM or SIGHUP arrives.

        An episode that is under way then is kept, truncated, or discarded (`keeps_cut`). After an exception the
        episode has no summary: whoever reads the sink finds it unfinished.
        """
        with contextlib.ExitStack() as resources:
            for resource in (self._env, self._executor, self._corrector, self._keys):
                if resource is not None:
                    resources.callback(resource.close)
            with handled(self.stop):
                self._run_episodes()
        statistics = None if self._rate is None else self._rate.statistics()
        counts = {f"num_{name}": count for name, count in self._counts.items()}
        return ActorSummary(
            **counts,
            num_held=self._guard.num_held,
            num_clipped=self._guard.num_clipped,
            faults=tuple(self._guard.faults),
            execution=self._executor.statistics(),
            jitter=statistics,
        )

    def _run_episodes(self) -> None:
        wanted = self._config.num_episodes
        go_on = self._wait_for_next(None, 0)
        while go_on and (wanted is None or self._counts["episodes"] < wanted) and self._wait_until_ready():
            number = self._config.first_episode + self._counts["episodes"]
            # an episode recorded again keeps its number, and so its initial state
            seed = int(np.random.default_rng([self._config.seed, number]).integers(2**31))
            step = self._reset(seed)
            if self._phases.quit:
                return
            recorder = EpisodeRecorder(self._sink, self._config.actor_id, self._env.task)
            last, confirmed = self._run_episode(step, seed, recorder)
            go_on = confirmed or self._wait_for_next(last, recorder.num_steps)
            self._finish(recorder)

    def _reset(self, seed: int) -> EnvStep:
        """The world at the beginning of an episode; on a robot that takes seconds. What is pressed meanwhile is no
        verdict on an episode that nobody has seen: it ends the session, or means nothing."""
        self._phases.prepare()
        self._report(0)
        step = self._env.reset(seed)
        self._obey_keys()
        return step

    def _run_episode(self, step: EnvStep, seed: int, recorder: EpisodeRecorder) -> tuple[EnvStep, bool]:
        """One episode from `step` up to its end. The world then, and whether a human has asked for the next one
        already."""
        self._phases.begin()
        self._guard.reset(step)
        self._human_acts = False
        if self._corrector is not None:
            self._corrector.begin_episode(step)
        if self._handover is not None:
            self._handover.begin(
                self._guard.last
            )  # the policy's first target may be far from the resting one
        self._executor.begin_episode(step, seed)
        if self._rate is not None:
            self._rate.start()
        confirmed = False
        while self._phases.running:
            executed = self._act(step)
            after = self._env.step(executed.action)
            if after.executed is not None:
                executed = replace(executed, action=after.executed)
            self._guard.executed(executed.action)
            recorder.add(step, executed, after)
            step = after
            confirmed = self._judge(step, recorder.num_steps)
            self._report(recorder.num_steps)
        if self._corrector is not None and self._human_acts:
            self._corrector.release(step)
        return step, confirmed

    def _act(self, step: EnvStep) -> Executed:
        """What is done on this step, checked."""
        self._change_who_acts(step)
        proposal = None
        if self._human_acts:
            assert self._corrector is not None
            wanted = self._corrector.act(step)
        else:
            if self._corrector is not None:
                self._corrector.follow(step)
            proposal = self._executor.next_action(step)
            wanted = None if proposal is None else proposal.action
        if wanted is not None and self._handover is not None:
            wanted = self._handover.limit(wanted)
        guarded = self._guard.check(wanted)
        # a proposal that cannot be sent, NaN, is none
        proposed = None if proposal is None or guarded.fault else proposal.action
        return Executed(
            proposed=proposed,
            action=guarded.action,
            human=self._human_acts and not guarded.held,
            held=guarded.held,
            policy_version=self._executor.version if proposal is None else proposal.version,
        )

    def _change_who_acts(self, step: EnvStep) -> None:
        """Hands over where keys or the corrector say so."""
        if self._corrector is None:
            return
        human = self._phases.phase is Phase.HUMAN
        wants = self._corrector.wants_control(step, human)
        if wants is not None and wants != human:
            self._phases.intervene(wants)
            human = wants
        if human == self._human_acts:
            return
        self._human_acts = human
        if human:
            self._executor.interrupt()
            self._corrector.take(step)
        else:
            self._corrector.release(step)
        if self._handover is not None:
            self._handover.begin(self._guard.last)

    def _judge(self, step: EnvStep, num_steps: int) -> bool:
        """Whether the episode is over: by the environment, the time limit, a key. True: and the next is asked for."""
        if step.terminated:
            self._phases.end("success" if step.success else "failure")
        elif step.truncated or num_steps == self._config.max_steps:
            self._phases.end("timeout")
        return self._obey_keys()

    def _obey_keys(self) -> bool:
        keys = self._keys.poll() + ("q" if self._stop.is_set() else "")
        if self._phases.running and not self._config.keeps_cut:
            keys = keys.lower().replace("q", "rq")
        return self._phases.apply(keys)

    def _wait_for_next(self, last: EnvStep | None, num_steps: int) -> bool:
        """Waits for `2`, while outcomes may change; False: somebody quit. last, num_steps: the world and the episode
        that ended, None and 0 at the start."""
        if not self._config.confirm:
            self._obey_keys()
            return not self._phases.quit
        while not self._phases.quit:
            self._report(num_steps)
            if self._obey_keys():
                return True
            if last is not None and self._corrector is not None:
                self._corrector.follow(last)
            time.sleep(
                1.0 / self._env.fps
            )  # a leader that still comes to the follower does so at the usual pace
        return False

    def _wait_until_ready(self) -> bool:
        """False: somebody quit."""
        while not self._phases.quit and not self._ready():
            self._phases.hold()
            self._report(0)
            self._obey_keys()
            time.sleep(1.0 / self._env.fps)
        return not self._phases.quit

    def _finish(self, recorder: EpisodeRecorder) -> None:
        """The outcome is final."""
        outcome = self._phases.outcome
        assert outcome is not None
        self._last = _how_it_ended(outcome)
        summary = recorder.finish(outcome, self._phases.num_interventions, self._config.success_reward)
        self._phases.confirm()
        if outcome == "discarded":
            self._counts["discarded"] += 1
            return
        for name, count in (
            ("episodes", 1),
            ("success", int(outcome == "success")),
            ("steps", summary.num_steps),
            ("human", recorder.num_human),
            ("interventions", summary.num_interventions),
        ):
            self._counts[name] += count

    def _report(self, num_steps: int) -> None:
        phases = self._phases
        ended = phases.outcome if phases.phase is Phase.ENDED else None
        phase = phases.phase.value if ended is None else f"ended: {_how_it_ended(ended)}"
        self._show(
            ActorStatus(
                episode=self._config.first_episode + self._counts["episodes"] + 1,
                step=num_steps,
                phase=phase,
                rate_hz=0.0 if self._rate is None else self._rate.rate_hz,
                policy_version=self._executor.version,
                num_interventions=phases.num_interventions,
                queue_length=self._executor.queue_length,
                hint="" if isinstance(self._keys, NoKeys) else phases.hint,
                num_done=self._counts["episodes"],
                num_success=self._counts["success"],
                last=self._last,
            )
        )
