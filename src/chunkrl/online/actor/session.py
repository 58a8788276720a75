"""What `chunkrl actor` does: puts policy, station, spool and learner together, and takes them apart in order."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from chunkrl.config import save_config
from chunkrl.errors import ChunkRLError, SpoolError
from chunkrl.files.atomic import write_text
from chunkrl.files.output_folder import begin_folder
from chunkrl.online.actor.actor import Actor, ActorConfig, ActorSummary, Human
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.actor.executor import ChunkExecutor, ExecutionConfig
from chunkrl.online.actor.link import (
    FETCH_EVERY_S,
    LearnerLink,
    LinkState,
    finish_sending,
    say_left,
    send_spool,
    store_spool,
    stream_file,
)
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.online.actor.recorder import ActorLog, ItemSpool
from chunkrl.online.actor.station import Station, open_station
from chunkrl.online.human.keys import key_source
from chunkrl.online.link.records import Hello, StreamSpec
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import STREAM_FILE, read_actor_stream
from chunkrl.online.link.weights import policy_features
from chunkrl.online.status import WARNING, LastWarning, LiveView, StatusLine, session_log
from chunkrl.run.build import choose_device
from chunkrl.run.policy_io import load_policy

_LOG = logging.getLogger(__name__)
LOG_FILE, CONFIG_FILE = "actor.log", "config.json"
_FIRST_WEIGHTS_S = 120.0
_SWITCH_S = 0.0005
_TELL_S = 10.0  # an episode waits before a warning says what for
_WAITED_FOR_S = 0.1  # between two questions for weights that an episode waits for


def run_actor(command: ActorCommand, stores: bool = True) -> None:
    """Records episodes until there are enough or somebody quits, sends them, and says what came of it.

    stores: what is recorded offline becomes a data set at once; False: who calls does that.
    """
    command.check()
    acts = not (command.send_only or command.export_only)
    if acts and not command.policy:
        raise ChunkRLError("name the policy that acts: chunkrl actor --policy RUN/policy")
    if acts and not Path(command.policy).exists():
        raise ChunkRLError(
            f"{command.policy} does not exist: a learner writes its run's `policy` folder before it says that it "
            "listens: start the actor then, or give another policy"
        )
    run_dir = Path(command.output_dir)
    spool_dir = Path(command.spool) if command.spool else run_dir / "spool"
    if not acts:
        stream_file(spool_dir)  # before a folder of a mistyped name is made
    begin_folder(run_dir, "actor", resumes=True)
    with contextlib.ExitStack() as resources:
        warnings = resources.enter_context(session_log(run_dir, LOG_FILE))
        if command.send_only:
            send_spool(command, spool_dir, resources)
        elif acts:
            save_config(command, run_dir / CONFIG_FILE)
            _Session(command, run_dir, spool_dir, warnings).run()
        if command.export_only or (command.offline and stores):
            store_spool(spool_dir, run_dir)


class _Session:
    """One start of the command."""

    def __init__(self, command: ActorCommand, run_dir: Path, spool_dir: Path, warnings: LastWarning) -> None:
        self._command, self._run_dir, self._spool_dir = command, run_dir, spool_dir
        self._warnings = warnings
        self._link: LearnerLink | None = None
        self._spool: Spool
        self._items: ItemSpool
        self._waits_for, self._waits_since, self._told = "", 0.0, False

    def run(self) -> None:
        """All of it."""
        command = self._command
        device, needs_q = choose_device(command.device), command.mode == "best_of_n"
        policy = load_policy(command.policy, device, needs_q)
        policy.ask_as(command)
        with contextlib.ExitStack() as resources:
            station = open_station(command, policy)
            opened = resources.enter_context(contextlib.ExitStack())
            opened.callback(station.close)
            spool = resources.enter_context(open_spool(self._spool_dir, command.actor_id, station.spec))
            self._spool = spool
            runner = PolicyRunner(
                policy,
                station.env.task,
                command.mode,
                command.swap_at,
                num_candidates=command.num_candidates,
            )
            executor = ChunkExecutor(runner, self._execution(runner.action_horizon, station))
            opened.callback(executor.close)
            if not command.offline:
                hello = Hello(
                    command.actor_id, spool.spool_id, station.spec, features=policy_features(policy)
                )
                every_s = FETCH_EVERY_S if command.max_ahead_steps is None else _WAITED_FOR_S
                self._link = LearnerLink(command.connect, hello, spool, runner.push, every_s)
                resources.callback(self._link.close)
                self._link.wait_first_weights(_FIRST_WEIGHTS_S)
            self._items = ItemSpool(spool, command.actor_id, station.spec)
            log = ActorLog(self._items, self._run_dir, self._facts(station), self._items.kept)
            resources.callback(log.close)
            opened.pop_all()  # the actor closes them
            summary = self._act(station, executor, log)
            print(_said(summary))
            left = finish_sending(self._link, command.finish_s) if self._link else spool.num_waiting
            say_left(left, command, self._spool_dir, self._link)

    def _execution(self, horizon: int, station: Station) -> ExecutionConfig:
        command = self._command
        n = horizon - command.prefetch_steps if command.exec_steps is None else command.exec_steps
        return ExecutionConfig(n, command.prefetch_steps, station.when_dry)

    def _act(self, station: Station, executor: ChunkExecutor, log: ActorLog) -> ActorSummary:
        command = self._command
        config = ActorConfig(
            actor_id=command.actor_id,
            num_episodes=command.num_episodes,
            seed=command.seed,
            confirm=command.confirms,
            max_steps=command.max_steps,
            success_reward=command.success_reward,
            first_episode=log.num_episodes,
        )
        with contextlib.ExitStack() as resources:
            resources.callback(station.close)
            resources.callback(executor.close)
            keys = station.keys or key_source(command.key_source)
            human = Human(keys, station.corrector, station.handover)
            resources.callback(human.keys.close)

            def note() -> list[tuple[str, str]]:
                return self._note(station, log)

            title = f"chunkrl actor {command.actor_id}: {station.env.name}"
            live = command.live and sys.stderr.isatty()
            view = LiveView(title, note) if live else StatusLine(note=note)
            resources.callback(view.close)
            resources.enter_context(fine_switching())
            resources.enter_context(self._warnings.quiet(live))
            actor = Actor(
                *(station.env, station.space, executor, log, config, human, station.rate),
                show=view,
                ready=self._ready,
            )
            return actor.run()

    def _behind(self, state: LinkState) -> int | None:
        """Kept steps of this actor that its weights do not account for; None where the learner does not say."""
        if state.own_steps is None:
            return None
        return max(self._items.kept.num_steps, state.own_steps) - state.own_steps

    def _ready(self) -> bool:
        """Whether the learner is not too far behind; where it is, `_waits_for` says what is waited for.

        Raises ChunkRLError where the learner is too old to say it.
        """
        allowed, state = self._command.max_ahead_steps, self._state()
        if allowed is None:
            return True
        self._items.learn(state.own_steps or 0)
        behind = self._behind(state)
        if behind is None:
            raise ChunkRLError(
                f"the learner at {state.address} does not say how many steps of this actor its weights account for: "
                "install this chunkrl version there, or leave --max-ahead-steps out"
            )
        if behind <= allowed:
            self._waits_for = ""
            return True
        wanted = self._items.kept.num_steps - allowed
        text = f"weights that account for {wanted} steps (--max-ahead-steps {allowed}); "
        if state.version:
            text += f"the newest, version {state.version}, account for {state.own_steps}"
        else:
            text += (
                "none came yet: the learner must be there and have networks from the start (chunkrl learner --init "
                "RUN or --dataset-dir DIR)"
            )
        if not self._waits_for:
            self._waits_since, self._told = time.monotonic(), False
        self._waits_for = text
        if not self._told and time.monotonic() - self._waits_since >= _TELL_S:
            self._told = True
            _LOG.warning("the next episode waits for %s; learner: %s", text, state)
        return False

    def _state(self) -> LinkState:
        return self._link.state() if self._link else LinkState(num_unsent=self._spool.num_waiting)

    def _facts(self, station: Station):
        """More numbers for an episode's record of metrics."""

        def facts() -> dict[str, float]:
            state = self._state()
            numbers: dict[str, float] = {"learner/unsent": state.num_unsent, "learner/version": state.version}
            if station.rate is not None:
                jitter = station.rate.recent()
                numbers |= {
                    "speed/rate_hz": jitter.rate_hz,
                    "speed/late_p99_ms": 1e3 * jitter.p99_s,
                    "speed/late_max_ms": 1e3 * jitter.max_s,
                    "speed/missed": jitter.num_missed,
                }
            return numbers

        return facts

    def _note(self, station: Station, log: ActorLog) -> list[tuple[str, str]]:
        """What is shown beside the actor's own status."""
        state, rows = self._state(), []
        if station.rate is not None:
            jitter = station.rate.recent()
            rows.append(
                (
                    "control",
                    f"{jitter.rate_hz:.1f} Hz, late p99 {1e3 * jitter.p99_s:.1f} ms, {jitter.num_missed} missed",
                )
            )
        rows.append(("steps", f"{log.num_steps} recorded, {log.num_human} by a human since the start"))
        rows.append(("learner", str(state)))
        if self._waits_for:
            rows.append(("waits for", self._waits_for))
        if state.version or state.num_refused:
            refused = f", {state.num_refused} refused" if state.num_refused else ""
            behind = self._behind(state)
            lag = (
                f", for {state.num_steps} steps of all actors"
                if behind is None
                else f", {behind} steps behind"
            )
            rows.append(("weights", f"version {state.version}{lag if state.version else ''}{refused}"))
        if problem := state.problem or self._warnings.recent():
            rows.append((WARNING, problem))
        return rows


def _said(summary: ActorSummary) -> str:
    """The session, for people."""
    text = (
        f"{summary.num_episodes} episodes, {summary.num_success} successful, {summary.num_steps} steps, "
        f"{summary.num_human} of them by a human in {summary.num_interventions} interventions"
    )
    if summary.num_discarded:
        text += f", {summary.num_discarded} discarded"
    if summary.num_held:
        text += f"; position held on {summary.num_held} steps"
        if summary.num_held > len(summary.faults):
            text += " (no action was ready: --prefetch-steps asks for chunks earlier)"
    if summary.faults:
        text += f"; {len(summary.faults)} actions refused, first: {summary.faults[0].message}"
    if jitter := summary.jitter:
        text += (
            f"\n{jitter.rate_hz:.2f} Hz, late p50 {1e3 * jitter.p50_s:.2f} ms, p99 {1e3 * jitter.p99_s:.2f} ms, max "
            f"{1e3 * jitter.max_s:.1f} ms, {jitter.num_missed} of {jitter.num_ticks} ticks missed"
        )
    return text


def open_spool(root: Path, actor_id: str, spec: StreamSpec) -> Spool:
    """The actor's spool. Raises SpoolError where it holds records of another actor or another kind."""
    with contextlib.ExitStack() as opened:
        spool = opened.enter_context(Spool(root, sync_interval_s=0.5))
        stream = root / STREAM_FILE
        if stream.is_file():
            found, theirs = read_actor_stream(stream)
            if found != actor_id:
                raise SpoolError(
                    f"{root} is the spool of actor {found!r}: use --actor-id {found}, or another --spool"
                )
            if theirs != spec and spool.num_waiting:
                raise SpoolError(
                    f"{root} holds {spool.num_waiting} unsent records of {theirs.robot_type} "
                    "that look different (state, cameras or rate): send them with --send-only, or use another "
                    "--spool and --actor-id"
                )
        write_text(stream, json.dumps({"actor_id": actor_id, **asdict(spec)}, indent=2))
        opened.pop_all()
        return spool


@contextlib.contextmanager
def fine_switching() -> Iterator[None]:
    """The control loop gets the interpreter back after half a millisecond, not after five."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
