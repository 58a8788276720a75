"""A trained policy of any kind in simulators, from fixed initial states: `chunkrl evaluate` without its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from chunkrl.envs.pool import EnvPool
from chunkrl.envs.registry import asset_fingerprint, opengl_library
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.config import EvaluateCommand
from chunkrl.evaluation.evaluation_folder import EvaluationFolder
from chunkrl.evaluation.evaluation_result import (
    EpisodeOutcome,
    Evaluation,
    EvaluationSettings,
    Rate,
    suite_rate,
    task_rate,
    told_condition,
    told_mode,
    write_evaluation,
)
from chunkrl.evaluation.evaluation_videos import choose_episodes, record_videos, videos_there
from chunkrl.evaluation.observed import EnvRequest, fit_policy, make_pool, plan_episodes, renamed
from chunkrl.evaluation.rollout import Actor, Episode, EpisodeResult, RolloutConfig, run_episodes
from chunkrl.evaluation.speed import MEDIAN, PER_1000, PER_HOUR, speed_cells
from chunkrl.files.output_folder import check_folder
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.progress import Progress
from chunkrl.run.build import choose_device
from chunkrl.run.parts import check_one_run_of
from chunkrl.run.policy_io import load_policy

WritePage = Callable[[Path, Evaluation], Path]
"""Writes the page of an evaluation into its folder and returns its path (`report/evaluation.py:write_page`)."""


def run_evaluation(
    command: EvaluateCommand, progress: Progress, say: Callable[[str], None], write_page: WritePage
) -> Evaluation:
    """Says success rates with Wilson intervals; with `output_dir`, keeps every episode and writes result and page."""
    if not command.policy:
        raise ChunkRLError("name the policy: chunkrl evaluate --policy RUN/policy")
    if command.output_dir is not None:  # before minutes of loading
        check_folder(Path(command.output_dir), "evaluate", resumes=True, overwrite=command.overwrite)
    device, needs_q = choose_device(command.device), command.mode == "best_of_n"
    check_one_run_of(Path(command.policy))
    policy = load_policy(command.policy, device, needs_q)
    asked = policy.ask_as(command)
    request = fit_policy(
        policy,
        command.env,
        command.max_steps,
        command.camera_size,
        command.rename,
        command.rendering,
        command.initial,
    )
    settings = _settings(policy, command, request, asked | {"device": device.type}, progress)
    episodes = plan_episodes(settings, request.info.num_initial_states)
    act = partial(policy.act, mode=command.mode, num_candidates=command.num_candidates)
    actor = renamed(act, request.rename)
    if command.output_dir is None:
        outcomes: dict[int, EpisodeOutcome] = {}
        with closing(_pool(request, command, len(episodes))) as pool:
            _run(actor, pool, episodes, settings, outcomes, outcomes.__setitem__, progress)
        evaluation = _evaluation(settings, episodes, outcomes, 0.0, pool.num_processes, request.info.fps)
        say(format_evaluation(evaluation))
        return evaluation
    with closing(EvaluationFolder(command.output_dir, settings, command.overwrite)) as folder:
        return _evaluate_in(folder, actor, settings, request, command, progress, say, write_page)


def _evaluate_in(
    folder: EvaluationFolder,
    actor: Actor,
    settings: EvaluationSettings,
    request: EnvRequest,
    command: EvaluateCommand,
    progress: Progress,
    say: Callable[[str], None],
    write_page: WritePage,
) -> Evaluation:
    """Runs what is missing in `folder`, writes result and page, and both again with the videos."""
    episodes = plan_episodes(settings, request.info.num_initial_states)
    outcomes = folder.load(episodes)
    clock = folder.clock()

    def keep(number: int, outcome: EpisodeOutcome) -> None:
        folder.save(episodes[number], outcome)
        clock.tick()

    if outcomes:
        say(f"{folder.root}: {len(outcomes)} of {len(episodes)} episodes are there, going on")
    num_missing = len(episodes) - len(outcomes)
    with closing(_pool(request, command, max(num_missing, command.videos, 1))) as pool:
        _run(actor, pool, episodes, settings, outcomes, keep, progress)
        clock.stop()
        fps = request.info.fps
        evaluation = _evaluation(settings, episodes, outcomes, clock.total, pool.num_processes, fps)
        chosen = [episodes[number] for number in choose_episodes(evaluation, episodes, command.videos)]
        evaluation = replace(evaluation, videos=videos_there(folder, chosen))
        say(format_evaluation(evaluation))
        result, page = write_evaluation(folder.root, evaluation), write_page(folder.root, evaluation)
        say(f"\nresult: {result}\npage:   {page}")
        if record_videos(folder, actor, pool, chosen, evaluation, request.info.fps, progress):
            evaluation = replace(evaluation, videos=videos_there(folder, chosen))
            write_evaluation(folder.root, evaluation)
            write_page(folder.root, evaluation)
            say(f"videos:  {len(chosen)}, in the page and in {folder.root / 'videos'}")
    return evaluation


def _pool(request: EnvRequest, command: EvaluateCommand, num_episodes: int) -> EnvPool:
    return make_pool(
        request,
        command.num_workers,
        command.batch_size,
        num_episodes,
        command.hang_s,
        videos=command.videos > 0,
    )


def _run(
    actor: Actor,
    pool: EnvPool,
    episodes: Sequence[Episode],
    settings: EvaluationSettings,
    outcomes: dict[int, EpisodeOutcome],
    keep: Callable[[int, EpisodeOutcome], None],
    progress: Progress,
) -> None:
    """Runs the episodes that `outcomes` lacks, and adds them."""
    missing = [number for number in range(len(episodes)) if number not in outcomes]
    few = len(settings.envs) < 3
    stage = f"evaluate {', '.join(settings.envs) if few else f'{len(settings.envs)} tasks'}"

    def finished(position: int, result: EpisodeResult) -> None:
        number = missing[position]
        outcome = EpisodeOutcome(episodes[number].seed, result.success, result.num_steps, result.num_restarts)
        keep(number, outcome)
        outcomes[number] = outcome
        progress(stage, len(outcomes), len(episodes))

    if missing:
        progress(stage, len(outcomes), len(episodes))
    execution = RolloutConfig(settings.exec_steps, settings.batch_size)
    run_episodes(actor, pool, [episodes[number] for number in missing], execution, finished)


def _settings(
    policy: ActingPolicy,
    command: EvaluateCommand,
    request: EnvRequest,
    asked: dict[str, Any],
    progress: Progress,
) -> EvaluationSettings:
    exec_steps = policy.action_horizon if command.exec_steps is None else command.exec_steps
    if exec_steps > policy.action_horizon:
        raise ChunkRLError(
            f"exec_steps {exec_steps} is longer than the policy's chunk {policy.action_horizon}"
        )
    return EvaluationSettings(
        policy=command.policy,
        fingerprint=fingerprint((Path(command.policy),), progress),
        envs=request.envs,
        num_episodes=request.info.default_episodes if command.num_episodes is None else command.num_episodes,
        seed=command.seed,
        max_steps=request.max_steps,
        exec_steps=exec_steps,
        horizon=policy.action_horizon,
        mode=command.mode,
        num_candidates=command.num_candidates if command.mode == "best_of_n" else 0,
        **asked,
        state=request.options.state,
        camera_size=request.options.camera_size,
        rendering=request.options.rendering,
        rename=request.rename,
        batch_size=command.batch_size,
        assets=asset_fingerprint(request.envs),
        opengl=opengl_library(request.envs) if request.options.camera_size else "",
        initial=request.options.initial,
    )


def _evaluation(
    settings: EvaluationSettings,
    episodes: Sequence[Episode],
    outcomes: dict[int, EpisodeOutcome],
    seconds: float,
    num_workers: int,
    fps: float,
) -> Evaluation:
    by_env: dict[str, list[EpisodeOutcome]] = {env: [] for env in settings.envs}
    for number, episode in enumerate(episodes):
        by_env[episode.env].append(outcomes[number])
    found = {env: tuple(outcomes) for env, outcomes in by_env.items()}
    return Evaluation(settings, found, seconds, num_workers, fps=fps)


def format_evaluation(evaluation: Evaluation) -> str:
    """One line per task, then the suite."""
    settings = evaluation.settings
    how = f"{settings.exec_steps} actions of each chunk executed, chosen by {told_mode(settings)}"
    if asked := told_condition(settings):
        how += f", asked for {asked}"
    if evaluation.num_restarts:
        how += f", {evaluation.num_restarts} simulators lost and their episodes begun again"

    def line(name: str, rate: Rate) -> str:
        low, high = rate.interval.low, rate.interval.high
        median, per_1000, per_hour = speed_cells(rate.speed)
        hourly = f", {PER_HOUR} {per_hour}" if per_hour else ""
        return (
            f"{name}: success {rate.num_success}/{rate.num_episodes} = {rate.rate:.2f}, "
            f"95 % interval [{low:.2f}, {high:.2f}], {MEDIAN} {median}, {PER_1000} {per_1000}{hourly}"
        )

    lines = [line(env, task_rate(evaluation, env)) for env in settings.envs]
    if len(lines) > 1:
        lines.append(line(f"all {len(lines)} tasks", suite_rate(evaluation)))
    lines[-1] += f", {how}"
    return "\n".join(lines)
