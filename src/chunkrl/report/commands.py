"""What `chunkrl evaluate`, `compare` and `report` do, and `chunkrl.evaluate` in Python: the work, then its page."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chunkrl.data.notes import file_notes
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.compare import (
    COMPARISON_FILE,
    aggregates_of,
    arm_results,
    compared_settings,
    few_states,
    format_comparison,
    group,
    told_aggregates,
    told_setting,
)
from chunkrl.evaluation.config import CompareCommand, EvaluateCommand
from chunkrl.evaluation.evaluate import run_evaluation
from chunkrl.evaluation.evaluation_result import Evaluation
from chunkrl.evaluation.results import compare_arms
from chunkrl.evaluation.results_file import results_json
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json
from chunkrl.files.output_folder import check_file
from chunkrl.progress import Progress, silent
from chunkrl.report.comparison import render_report
from chunkrl.report.config import ReportCommand
from chunkrl.report.evaluation import write_page
from chunkrl.report.load_run import load_run
from chunkrl.report.run import render_run, run_warnings, value_quality_of


def evaluate(
    policy: str | Path, env: str | Sequence[str], progress: Progress = silent, **settings: Any
) -> Evaluation:
    """Success of a saved policy in simulators, from Python: what `chunkrl evaluate` does, without a word.

    policy: its folder. env: tasks or suites ("push-v3", "libero_spatial"). settings: further ones of
    `EvaluateCommand`, such as num_episodes=20, seed=0, mode="sample", num_workers=0, output_dir="evaluations/new".

    Raises:
        ChunkRLError: as the command does: the policy does not fit the tasks, a task does not exist.
    """
    tasks = (env,) if isinstance(env, str) else tuple(env)
    command = EvaluateCommand(policy=str(policy), env=tasks, **settings)
    return evaluate_policy(command, progress, lambda text: None)


def evaluate_policy(
    command: EvaluateCommand, progress: Progress, say: Callable[[str], None] = print
) -> Evaluation:
    """`chunkrl evaluate`: says success rates with intervals; with `output_dir`, keeps episodes, result and page."""
    return run_evaluation(command, progress, say, write_page)


def compare(command: CompareCommand) -> None:
    """Prints the comparison, and writes it where asked."""
    methods = group(command.evaluations)
    if command.output_dir is not None:
        check_file(
            Path(command.output_dir) / COMPARISON_FILE,
            command.overwrite,
            lambda file: (
                read_json(file, dict, ChunkRLError, "delete it").get("evaluations")
                == compared_settings(methods)
            ),
        )
    arms = arm_results(methods)
    method, *baselines = methods
    differences = compare_arms(arms, method, baselines)
    num_seeds = len(methods[method])
    print(format_comparison(arms, differences))
    aggregates = aggregates_of(arms, method) if command.aggregates and num_seeds > 1 else None
    numbers = {} if aggregates is None else told_aggregates(aggregates, method)
    if numbers:
        print("\n" + "\n".join(f"{name}: {number}" for name, number in numbers.items()))
    devices = told_setting(methods, "device")
    if ": " in devices:
        print(f"\nThe policies ran on different devices, which round otherwise: {devices}")
    thin = few_states(differences)
    if thin:
        print("\n" + "\n".join(thin))
    if command.output_dir is None:
        return
    folder = Path(command.output_dir)
    settings = methods[method][0].settings
    content = results_json(arms, differences)
    content["exec_steps"] = settings.exec_steps
    content["evaluations"] = compared_settings(methods)
    if aggregates is not None:
        content["aggregates"] = asdict(aggregates)
    write_text(folder / COMPARISON_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    facts = {
        "tasks": ", ".join(settings.envs),
        "initial states": f"{settings.num_episodes} per task, seed {settings.seed}",
        "executed": f"{settings.exec_steps} actions of each chunk",
        "chunk chosen by": told_setting(methods, "mode"),
        "training seeds": f"{num_seeds} a method",
    }
    if settings.assets:
        facts["meshes and textures"] = settings.assets
    if devices:
        facts["device"] = devices
    notes = ["One policy a method: the intervals say nothing about another training seed."]
    if num_seeds > 1:
        notes = [
            "A bootstrap of few training seeds is narrow; aggregates over tasks and seeds are rliable's."
        ]
    render_report(
        folder / "comparison.html",
        title="chunkrl compare: " + " against ".join(methods),
        arms=arms,
        differences=differences,
        facts=facts | numbers,
        notes=[*notes, *thin],
    )
    print(f"\n{folder / 'comparison.json'}\n{folder / 'comparison.html'}")


def report(command: ReportCommand, progress: Progress) -> None:
    """Writes the page and says where it is; warnings about the values go to stderr as well."""
    if not command.run:
        raise ChunkRLError("name the run's folder: chunkrl report runs/NAME")
    if command.videos < 0:
        raise ChunkRLError(f"videos is {command.videos}; it must not be negative")
    own = Path(command.run) / "report.html"
    output = own if command.output is None else Path(command.output)
    check_file(output, command.overwrite or output.resolve() == own.resolve())
    run = load_run(command.run, progress)
    write_text(output, render_run(run, command.videos))
    for note in (*run.notes, *(note for part in run.data for note in file_notes(part.dataset.frame_labels))):
        print(f"note: {note}")
    for warning in run_warnings(run, value_quality_of(run)):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"report: {output}")
