"""Success on MetaWorld over training seeds, with controls: the project's main result.

    python -m benchmarks.metaworld                       # 2 tasks x 2 mixtures x 5 seeds, the main arms
    python -m benchmarks.metaworld --arms iql document_objective --seeds 0 1

Every seed has a data set of its own (collection seed 1000 + s), its own networks, and the same 100 initial
states for every arm and seed. Finished jobs are kept as JSON and are not run again. Prints Markdown.
"""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from chunkrl.data.atomic import write_text
from chunkrl.evaluation.statistics import bootstrap_over_tasks
from chunkrl.experiment import ALL_ARMS, Job, JobResult, run_jobs

MAIN_ARMS = (
    "behaviour_cloning",
    "success_cloning",
    "chunk_rl",
    "shuffled_advantages",
    "not_cross_fitted",
)
METHOD, BASELINES = "chunk_rl", ("behaviour_cloning", "success_cloning", "shuffled_advantages")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to run."""

    output_dir: str = "runs/benchmark"
    """Data, runs and one JSON a job."""
    results: str = "benchmarks/results/metaworld.json"
    """The summary."""
    tasks: tuple[str, ...] = ("push-v3", "pick-place-v3")
    mixtures: tuple[str, ...] = ("within", "episodes")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = MAIN_ARMS
    num_collect: int = 150
    num_eval: int = 100
    policy_updates: int = 4000
    eval_seed: int = 20261120
    num_workers: int = 2


def jobs(config: BenchmarkConfig) -> list[Job]:
    """One job a task, mixture and seed."""
    known = {arm.name: arm for arm in ALL_ARMS}
    return [
        Job(
            env=task,
            mixture=mixture,  # type: ignore[arg-type]  # checked by MixtureConfig
            root=Path(config.output_dir),
            arms=tuple(known[name] for name in config.arms),
            data_seed=1000 + seed,
            train_seed=seed,
            eval_seed=config.eval_seed,
            num_collect=config.num_collect,
            num_eval=config.num_eval,
            policy_updates=config.policy_updates,
        )
        for seed in config.seeds
        for mixture in config.mixtures
        for task in config.tasks
    ]


def record_path(config: BenchmarkConfig, job: Job) -> Path:
    """Where a finished job's outcome is kept."""
    arms = "+".join(sorted(arm.name for arm in job.arms))
    return Path(config.output_dir) / "jobs" / f"{job.task}-seed{job.train_seed}" / f"{arms}.json"


def to_record(result: JobResult) -> dict[str, Any]:
    """A job's outcome as JSON."""
    job = result.job
    return {
        "task": job.task,
        "seed": job.train_seed,
        "data_seed": job.data_seed,
        "eval_seed": job.eval_seed,
        "dataset": result.dataset,
        "diagnostics": result.diagnostics,
        "success": {name: o.success.astype(int).tolist() for name, o in result.outcomes.items()},
        "errors": {name: o.error for name, o in result.outcomes.items() if o.error},
        "final_metrics": {
            name: {metric: points[-1][1] for metric, points in o.history.items() if points}
            for name, o in result.outcomes.items()
        },
    }


def summarize(records: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> dict[str, Any]:
    """Success by task and arm (mean and every seed), and the method's differences with intervals."""
    by_task: dict[str, dict[int, Any]] = defaultdict(dict)
    for record in records:
        by_task[record["task"]][record["seed"]] = record
    success = {
        arm: {
            task: np.array([rows[seed]["success"][arm] for seed in sorted(rows)], dtype=float)
            for task, rows in by_task.items()
        }
        for arm in arms
    }
    summary: dict[str, Any] = {"tasks": {}, "mean_over_tasks": {}}
    for task, rows in by_task.items():
        summary["tasks"][task] = {
            "seeds": sorted(rows),
            "data_success": [rows[seed]["dataset"]["success"] for seed in sorted(rows)],
            "data_sha256": [rows[seed]["dataset"]["sha256"] for seed in sorted(rows)],
            "diagnostics": [rows[seed]["diagnostics"] for seed in sorted(rows)],
            "errors": [rows[seed]["errors"] for seed in sorted(rows)],
            "success": {
                arm: {
                    "mean": float(success[arm][task].mean()),
                    "per_seed": success[arm][task].mean(1).tolist(),
                }
                for arm in arms
            },
        }
    summary["mean_over_tasks"]["success"] = {
        arm: float(np.mean([success[arm][task].mean() for task in by_task])) for arm in arms
    }
    if METHOD in arms:
        for baseline in (b for b in arms if b != METHOD):
            found = bootstrap_over_tasks(success[METHOD], success[baseline])
            summary["mean_over_tasks"].setdefault("difference", {})[baseline] = {
                "difference": found.difference,
                "interval": [found.interval.low, found.interval.high],
            }
            for task in by_task:
                single = bootstrap_over_tasks({task: success[METHOD][task]}, {task: success[baseline][task]})
                summary["tasks"][task].setdefault("difference", {})[baseline] = {
                    "difference": single.difference,
                    "interval": [single.interval.low, single.interval.high],
                }
    return summary


def markdown(summary: Mapping[str, Any], arms: Sequence[str]) -> str:
    """Tables for docs/results.md."""
    tasks = list(summary["tasks"])
    lines = [f"| policy | {' | '.join(tasks)} | mean |", "|---|" + "---|" * (len(tasks) + 1)]
    for arm in arms:
        cells = []
        for task in tasks:
            found = summary["tasks"][task]["success"][arm]
            seeds = " ".join(f"{rate:.2f}".lstrip("0") if rate < 1 else "1.0" for rate in found["per_seed"])
            cells.append(f"**{found['mean']:.2f}** ({seeds})")
        lines.append(
            f"| {arm} | {' | '.join(cells)} | **{summary['mean_over_tasks']['success'][arm]:.3f}** |"
        )
    if "difference" in summary["mean_over_tasks"]:
        lines += [
            "",
            f"| {METHOD} minus | {' | '.join(tasks)} | mean over tasks |",
            "|---|" + "---|" * (len(tasks) + 1),
        ]
        for baseline in summary["mean_over_tasks"]["difference"]:
            places = [*(summary["tasks"][task] for task in tasks), summary["mean_over_tasks"]]
            found = [place["difference"][baseline] for place in places]
            cells = [
                f"{100 * f['difference']:+.1f} [{100 * f['interval'][0]:+.1f}, {100 * f['interval'][1]:+.1f}]"
                for f in found
            ]
            lines.append(f"| {baseline} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(config: BenchmarkConfig) -> None:
    """Runs what is missing, then prints and writes the summary."""
    started = time.monotonic()
    todo = [job for job in jobs(config) if not record_path(config, job).exists()]

    def keep(result: JobResult) -> None:
        write_text(record_path(config, result.job), json.dumps(to_record(result)) + "\n")

    if todo:
        run_jobs(todo, config.num_workers, keep)
    records = [json.loads(record_path(config, job).read_text()) for job in jobs(config)]
    summary = summarize(records, config.arms)
    summary["config"] = asdict(config)
    summary["machine"] = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    summary["seconds"] = time.monotonic() - started
    write_text(config.results, json.dumps(summary, indent=1) + "\n")
    print(markdown(summary, config.arms))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
