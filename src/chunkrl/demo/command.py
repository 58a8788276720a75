"""`chunkrl demo`: the main job on MetaWorld, from scripted episodes to a report."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from chunkrl.algorithms.values_io import read_values_files
from chunkrl.config import load_config, save_config
from chunkrl.data.frames import FrameTable
from chunkrl.data.labels import label_frames
from chunkrl.demo.arms import BC, CHUNK_RL, SUCCESS_BC
from chunkrl.demo.experiment import Job, JobResult, saved_policy
from chunkrl.demo.workers import run_jobs
from chunkrl.envs.metaworld import MetaWorldEnv
from chunkrl.envs.registry import describe
from chunkrl.envs.scripted import CONTROLLERS
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.compare import format_comparison
from chunkrl.evaluation.record import record
from chunkrl.evaluation.results import ArmResult, compare_arms
from chunkrl.evaluation.results_file import results_json
from chunkrl.evaluation.rollout import initial_seeds
from chunkrl.evaluation.video import side_by_side
from chunkrl.files.atomic import write_text
from chunkrl.files.output_folder import begin_folder, begin_numbered
from chunkrl.options import DemoConfig
from chunkrl.report.comparison import render_report
from chunkrl.report.records import ClipPair, Curve, EpisodeTrace, Segment
from chunkrl.version import __version__

RECORD_EVERY, VIDEO_FPS = 4, 10.0  # every 4th of 80 steps per second, shown at half speed


def demo_jobs(config: DemoConfig, root: Path) -> list[Job]:
    """One job a task and mixture, in the folder `root`."""
    return [
        Job(
            env=task,
            mixture=mixture,  # type: ignore[arg-type]  # checked by MixtureConfig
            root=root,
            resume=config.resume,
            data_seed=config.seed,
            train_seed=config.seed,
            num_collect=config.num_collect,
            num_eval=config.num_eval,
            policy_updates=config.policy_updates,
        )
        for mixture in config.mixtures
        for task in config.tasks
    ]


def run_demo(config: DemoConfig) -> Path:
    """Runs the jobs, prints the table, writes results.json and report.html; returns the report's path."""
    if ((config.resume or config.overwrite) and not config.output_dir) or (
        config.resume and config.overwrite
    ):
        raise ChunkRLError(
            "--resume and --overwrite are of the demo in --output-dir: name it, and give one of them"
        )
    started = time.monotonic()
    if config.output_dir:
        output = Path(config.output_dir)
        begin_folder(output, "demo", resumes=config.resume, overwrite=config.overwrite)
    else:
        output = begin_numbered("demo")
    _begin(output, config)
    results: list[JobResult] = []
    jobs = demo_jobs(config, output)
    try:
        run_jobs(jobs, config.num_workers, results.append)
    except KeyboardInterrupt:
        told = f"\nstopped; resume with: chunkrl demo --resume --output-dir {output}, and the same settings"
        print(told, file=sys.stderr)
        raise KeyboardInterrupt from None
    results.sort(key=lambda result: jobs.index(result.job))
    arms = arm_results(results)
    differences = compare_arms(arms, CHUNK_RL.name, (BC.name, SUCCESS_BC.name))
    content = results_json(arms, differences)
    content["diagnostics"] = {r.job.task: _diagnostics(r) | r.dataset for r in results}
    content["seconds"] = time.monotonic() - started
    write_text(output / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    print("\n" + format_comparison(arms, differences))
    print(format_values(results))
    report = output / "report.html"
    render_report(
        report,
        title="chunkrl demo: chunk-level offline RL on MetaWorld",
        arms=arms,
        differences=differences,
        curves=_curves(results[0]),
        traces=[trace for result in results[: len(config.tasks)] for trace in _traces(result)],
        clips=[clip for result in results[: len(config.tasks)] for clip in _clips(result)],
        facts={
            "chunkrl": __version__,
            "data": f"{config.num_collect} scripted episodes per data set, LeRobot v3.0",
            "policy updates": str(config.policy_updates),
            "chunk": f"{results[0].job.horizon} actions, executed whole",
            "seed": str(config.seed),
            "minutes": f"{(time.monotonic() - started) / 60:.1f}",
        },
        notes=_notes(results),
    )
    print(f"\nresults: {output / 'results.json'}\nreport:  {report}")
    return report


def _begin(output: Path, config: DemoConfig) -> None:
    """Notes what the folder's demo is. Raises ChunkRLError where it resumes another one."""
    file, asked = output / "demo.json", replace(config, output_dir="", resume=False, overwrite=False)
    if config.resume and file.is_file():
        there = load_config(DemoConfig, file)
        free = {"num_workers": config.num_workers}
        differing = [
            f.name for f in fields(asked) if getattr(replace(there, **free), f.name) != getattr(asked, f.name)
        ]
        if differing:
            raise ChunkRLError(
                f"{output} holds a demo of other settings ({', '.join(differing)}): give the same, or another "
                "--output-dir"
            )
    save_config(asked, file)


def arm_results(results: list[JobResult]) -> list[ArmResult]:
    """Every arm of every job as the report takes it."""
    return [
        ArmResult(
            *(result.job.task, name, outcome.success, result.job.train_seed, outcome.num_steps),
            fps=describe([result.job.task]).fps,
        )
        for result in results
        for name, outcome in result.outcomes.items()
    ]


def format_values(results: list[JobResult]) -> str:
    """What the values of each job are worth."""
    lines = [f"\n{'value function':<24}{'rank correlation with the return':<34}"]
    lines += [
        f"{r.job.task:<24}held out {found['rank_correlation_held_out']:.2f}, "
        f"on its own episodes {found['rank_correlation_seen']:.2f}"
        for r in results
        if (found := _diagnostics(r))
    ]
    return "\n".join(lines)


def _diagnostics(result: JobResult) -> dict[str, float]:
    """The diagnostics of the values, where they were trained."""
    return result.diagnostics.get(CHUNK_RL.name, {})


def _notes(results: list[JobResult]) -> list[str]:
    notes = [
        "Data recipe and method were fixed on other data sets and other initial states than these.",
        "One training seed per task: docs/results.md has five, with controls.",
    ]
    for r in results:
        if found := _diagnostics(r):
            held_out, seen = (found[k] for k in ("rank_correlation_held_out", "rank_correlation_seen"))
            notes.append(
                f"{r.job.task}: the values' rank correlation with the return is {held_out:.2f} on episodes "
                f"that a network never saw and {seen:.2f} on those that it trained on."
            )
    return notes


def _curves(result: JobResult) -> list[Curve]:
    panels = {"loss/imitation": "imitation loss (policies)", "loss/value": "cross-entropy (value)"}
    curves = []
    for name, outcome in result.outcomes.items():
        if outcome.arm.mode != "mode":
            continue
        for metric, panel in panels.items():
            if points := outcome.history.get(metric):
                x, y = zip(*points, strict=True)
                curves.append(Curve(name, x, y, panel=f"{panel}, {result.job.task}"))
    for name, label in (("held_out", "held out"), ("seen", "on its own episodes")):
        if points := result.outcomes[CHUNK_RL.name].history.get(f"value/rank_correlation_{name}"):
            x, y = zip(*points, strict=True)
            curves.append(
                Curve(label, x, y, panel=f"rank correlation of V with the return, {result.job.task}")
            )
    return curves


def _traces(result: JobResult) -> list[EpisodeTrace]:
    """Value and advantage along the first successful and the first failed episode of the data."""
    job = result.job
    table = FrameTable.open(job.dataset_dir)
    (sidecar,) = read_values_files(job.run_dir(CHUNK_RL), [table])
    success = label_frames(table).success
    controller = table.column("complementary_info.controller").reshape(-1)
    traces = []
    for kind in (True, False):
        found = np.flatnonzero(success == kind)
        if len(found) == 0:
            continue
        episode = int(found[0])
        begin = int(table.episode_start[episode])
        rows = slice(begin, begin + int(table.episode_length[episode]))
        traces.append(
            EpisodeTrace(
                task=job.task,
                title=f"episode {table.episode_ids[episode]}, {'success' if kind else 'failure'}",
                success=kind,
                value=sidecar.arrays["value"][rows],
                advantage=sidecar.arrays["advantage"][rows],
                segments=_segments(controller[rows]),
                notes="The stretches name the scripted controller that acted; training never sees it.",
            )
        )
    return traces


def _segments(controller: np.ndarray) -> tuple[Segment, ...]:
    cuts = [0, *(np.flatnonzero(np.diff(controller)) + 1).tolist(), len(controller)]
    return tuple(Segment(a, b, CONTROLLERS[int(controller[a])].replace("_", " ")) for a, b in pairwise(cuts))


def _clips(result: JobResult) -> list[ClipPair]:
    """Both policies from the first reported state where RL succeeds and cloning fails (else the first state)."""
    job = result.job
    rl, cloning = (result.outcomes[name].success for name in (CHUNK_RL.name, BC.name))
    differing = np.flatnonzero(rl & ~cloning)
    number = int(differing[0]) if len(differing) else 0
    seed = initial_seeds(job.eval_seed, job.num_eval)[number]
    env = MetaWorldEnv(job.env, job.max_steps)
    clips = [
        record(partial(saved_policy(job, arm).act, mode=arm.mode), env, seed, job.horizon, RECORD_EVERY)
        for arm in (BC, CHUNK_RL)
    ]
    env.close()
    labels = ("behaviour cloning", "chunk-level RL")
    video, mime = side_by_side(
        clips[0].frames,
        clips[1].frames,
        labels,
        VIDEO_FPS,
        success=(clips[0].success, clips[1].success),
    )
    chosen = (
        "the first state where only RL succeeds"
        if len(differing)
        else "the first state (no state where only RL succeeds)"
    )
    title = f"initial state {number + 1} of {job.num_eval}, {chosen}; half speed"
    return [ClipPair(job.task, title, *labels, video, mime)]
