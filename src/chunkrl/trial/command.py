"""What `chunkrl trial` does: opens policies and robot, lets an actor run the episodes blind, and says what came of
it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.observed import fit_policy
from chunkrl.files.output_folder import LOCK, check_folder, hold
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.online.actor.actor import Actor, ActorConfig, Human
from chunkrl.online.actor.executor import ChunkExecutor, ExecutionConfig
from chunkrl.online.actor.policy_runner import PolicyRunner
from chunkrl.online.actor.recorder import ItemSpool
from chunkrl.online.actor.session import fine_switching, open_spool
from chunkrl.online.actor.station import Station, check_fit, open_station
from chunkrl.online.human.keys import key_source
from chunkrl.online.learner.intake import Stored, store_recordings
from chunkrl.online.status import ActorStatus, LiveView, StatusLine, session_log
from chunkrl.online.status import silent as silent_status
from chunkrl.progress import Progress, silent
from chunkrl.run.build import choose_device
from chunkrl.run.parts import check_one_run_of
from chunkrl.run.policy_io import load_policy
from chunkrl.signals import handled
from chunkrl.trial.acting import BlindSource, PairedEnvironment, TrialKeys, TrialSink, hidden
from chunkrl.trial.config import ACTOR_ID, TrialCommand
from chunkrl.trial.page import write_page
from chunkrl.trial.records import PolicyEntry, TrialFolder, TrialSettings
from chunkrl.trial.result import TrialResult, format_result, write_result, write_sidecar
from chunkrl.trial.standing import Standing

LOG_FILE, SPOOL, DATA = "trial.log", "spool", "data"


def run_trial(command: TrialCommand, progress: Progress, say: Callable[[str], None] = print) -> TrialResult:
    """Makes trials until it is decided which policy is better, there are enough, or somebody quits; then says how it
    stands, and writes result and page. The same command resumes it."""
    command.check()
    folders = command.named()
    for name, folder in folders.items():
        if not Path(folder).is_dir():
            raise ChunkRLError(f"the policy {name} is no folder: {folder}; give a run's `policy`")
        check_one_run_of(Path(folder))
    root = Path(command.output_dir)
    # before policies load, and before anything moves that another trial is using
    check_folder(root, "trial", resumes=not command.overwrite, overwrite=command.overwrite)
    if (root / LOCK).exists():
        hold(root, "trial").release()
    entries = tuple(
        PolicyEntry(name, folder, fingerprint((Path(folder),), progress)) for name, folder in folders.items()
    )
    policies = _load(command, entries)
    with contextlib.ExitStack() as resources:
        station = open_station(command.as_actor(entries[0].folder), *policies, names=list(folders))
        opened = resources.enter_context(contextlib.ExitStack())
        opened.callback(station.close)
        _check_station(command, station, entries, policies)
        settings = _settings(command, entries, policies, station)
        folder = TrialFolder(root, settings, command.order_seed, command.overwrite)
        resources.callback(folder.close)
        resources.enter_context(session_log(root, LOG_FILE))
        standing = Standing(settings, folder.order_seed, folder.attempts)
        for note in _notes(settings):
            say(note)
        if folder.attempts:
            say(f"{root}: {len(standing.trials)} trials are there, going on")
        if _goes_on(standing, command):
            opened.pop_all()  # the actor closes it
            _act(command, settings, station, policies, folder, standing, progress)
        else:
            opened.close()
        stored = _store(root)
        result = TrialResult.of(settings, standing, folder.attempts)
        if stored.num_episodes:
            write_sidecar(stored.folder, result)
        say(format_result(result))
        say(f"\nresult: {write_result(root, result)}\npage:   {write_page(root, result)}")
        if stored.num_episodes:
            say(f"data:   {stored.folder}, {stored.num_episodes} episodes, {stored.num_steps} steps")
        if not standing.decided:
            say(_how_to_go_on(standing, command))
        return result


def _goes_on(standing: Standing, command: TrialCommand) -> bool:
    return not standing.decided and standing.num_pairs < command.max_pairs


def _how_to_go_on(standing: Standing, command: TrialCommand) -> str:
    more = "" if standing.num_pairs < command.max_pairs else " with a larger --max-pairs"
    return f"not decided: the same command{more} goes on, and may be stopped to look at any time"


def _load(command: TrialCommand, entries: Sequence[PolicyEntry]) -> list[ActingPolicy]:
    """The policies; one that is given twice is loaded once.

    Raises:
        ChunkRLError: they do not take the same actions, or see different things in the simulator.
    """
    device, needs_q = choose_device(command.device), command.mode == "best_of_n"
    loaded: dict[str, ActingPolicy] = {}
    for entry in entries:
        if entry.fingerprint not in loaded:
            policy = load_policy(entry.folder, device, needs_q)
            policy.ask_as(command.as_actor(entry.folder))
            loaded[entry.fingerprint] = policy
    policies = [loaded[entry.fingerprint] for entry in entries]
    dims = {entry.name: policy.action_dim for entry, policy in zip(entries, policies, strict=True)}
    if len(set(dims.values())) > 1:
        told = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise ChunkRLError(
            f"the policies' actions differ in their number of values ({told}): they were trained for different "
            "robots, and one trial has one"
        )
    if command.env is not None:
        _check_alike(command, command.env, entries, policies)
    return policies


def _check_alike(
    command: TrialCommand, env: str, entries: Sequence[PolicyEntry], policies: Sequence[ActingPolicy]
) -> None:
    """Raises ChunkRLError where the simulator would have to show policies different things."""
    first, *others = (
        fit_policy(
            policy, [env], command.max_steps, command.camera_size if policy.cameras else None, command.rename
        )
        for policy in policies
    )
    for entry, request in zip(entries[1:], others, strict=True):
        if (request.options, request.rename) != (first.options, first.rename):
            raise ChunkRLError(
                f"{entries[0].name} and {entry.name} see different things of {env} ({first.options.state} state and "
                f"cameras {dict(first.rename)}, {request.options.state} state and cameras {dict(request.rename)}): a "
                "trial has one simulator for all; evaluate both (chunkrl evaluate) and compare them (chunkrl compare)"
            )


def _check_station(
    command: TrialCommand, station: Station, entries: Sequence[PolicyEntry], policies: Sequence[ActingPolicy]
) -> None:
    """Raises ChunkRLError where one of the policies may not act on the robot."""
    if command.robot is None:
        return
    for entry, policy in zip(entries, policies, strict=True):
        try:
            check_fit(
                policy, station.env.name, station.env.action_dim, station.env.state_dim, station.spec.cameras
            )
        except ChunkRLError as error:
            raise ChunkRLError(f"{entry.name}: {error}") from error


def _settings(
    command: TrialCommand,
    entries: tuple[PolicyEntry, ...],
    policies: Sequence[ActingPolicy],
    station: Station,
) -> TrialSettings:
    horizons = {entry.name: policy.action_horizon for entry, policy in zip(entries, policies, strict=True)}
    exec_steps = command.exec_steps
    if exec_steps is None:
        if len(set(horizons.values())) > 1:
            raise ChunkRLError(
                f"the policies' chunks have different lengths ({horizons}): say with --exec-steps how many actions "
                "of each are executed"
            )
        exec_steps = policies[0].action_horizon - command.prefetch_steps
    if exec_steps + command.prefetch_steps > min(horizons.values()):
        raise ChunkRLError(
            f"exec_steps {exec_steps} + prefetch_steps {command.prefetch_steps} is more than a policy's chunk "
            f"({horizons}): lower one of them"
        )
    robot = ""
    if command.robot is not None:
        robot = fingerprint((Path(command.robot),), silent)
    return TrialSettings(
        policies=entries,
        where=str(command.env or command.robot),
        robot=robot,
        error=command.error,
        seed=command.seed,
        max_steps=command.max_steps or station.env.max_steps,
        fps=float(station.env.fps),
        exec_steps=exec_steps,
        prefetch_steps=command.prefetch_steps,
        mode=command.mode,
        condition=command.condition,
        guidance=command.guidance,
        guidance_from=command.guidance_from,
        flow_steps=command.flow_steps,
        camera_size=command.camera_size,
        rate_hz=command.rate_hz,
        device=choose_device(command.device).type,
    )


def _notes(settings: TrialSettings) -> list[str]:
    """What a person should know before it begins."""
    by_contents: dict[str, list[str]] = {}
    for entry in settings.policies:
        by_contents.setdefault(entry.fingerprint, []).append(entry.name)
    return [
        f"{' and '.join(names)} are the same policy: an A/A trial, in which nothing should be found"
        for names in by_contents.values()
        if len(names) > 1
    ]


def _act(
    command: TrialCommand,
    settings: TrialSettings,
    station: Station,
    policies: Sequence[ActingPolicy],
    folder: TrialFolder,
    standing: Standing,
    progress: Progress,
) -> None:
    """Episodes until nothing is left to decide, or somebody quits."""
    as_actor = command.as_actor("")
    with contextlib.ExitStack() as resources:
        opened = resources.enter_context(contextlib.ExitStack())
        opened.callback(station.close)
        spool = resources.enter_context(open_spool(folder.root / SPOOL, ACTOR_ID, station.spec))
        runners = [PolicyRunner(policy, station.env.task, command.mode) for policy in policies]
        num_actions = settings.exec_steps + settings.prefetch_steps
        source = BlindSource(runners, num_actions, lambda: standing.upcoming.policy)
        executor = ChunkExecutor(
            source, ExecutionConfig(settings.exec_steps, settings.prefetch_steps, station.when_dry)
        )
        opened.callback(executor.close)
        keys = TrialKeys(station.keys or key_source(as_actor.key_source), source)
        opened.callback(keys.close)
        names = [entry.name for entry in settings.policies]
        sink = TrialSink(ItemSpool(spool, ACTOR_ID, station.spec), folder, standing, source, keys, names)
        show = (
            _view(command, station, standing, resources) if as_actor.key_source != "none" else silent_status
        )
        env = PairedEnvironment(station.env, lambda: standing.upcoming.seed)
        config = ActorConfig(
            actor_id=ACTOR_ID,
            seed=command.seed,
            confirm=as_actor.confirms,
            max_steps=command.max_steps,
            keeps_cut=False,
            first_episode=len(standing.trials),
        )
        resources.enter_context(fine_switching())

        def ready() -> bool:
            progress(f"trial: pairs on {settings.where}", standing.num_pairs, command.max_pairs)
            if not _goes_on(standing, command):
                actor.stop()
                return False
            return keys.asked or not as_actor.confirms

        opened.pop_all()  # the actor closes them
        human = Human(keys, handover=station.handover)
        actor = Actor(
            *(env, station.space, executor, sink, config, human, station.rate), show=show, ready=ready
        )
        actor.run()


def _view(
    command: TrialCommand, station: Station, standing: Standing, resources: contextlib.ExitStack
) -> Callable[[ActorStatus], None]:
    """Shows the actor's status, without what tells who acts."""

    def note() -> list[tuple[str, str]]:
        if standing.decided:
            return []
        upcoming = standing.upcoming
        return [("pair", f"{upcoming.pair + 1}, episode {upcoming.place + 1} of {upcoming.num_places}")]

    live = command.live and sys.stderr.isatty()
    title = f"chunkrl trial: {station.env.name}"
    view = LiveView(title, note) if live else StatusLine(note=note)
    resources.callback(view.close)
    return lambda status: view(hidden(status, standing))


def _store(root: Path) -> Stored:
    """The episodes that are finished become the data set; SIGINT and SIGTERM leave the rest to the next session."""
    stopped: list[bool] = []
    with handled(lambda: stopped.append(True)):
        return store_recordings(root / SPOOL, root / DATA, stopped=lambda: bool(stopped))
