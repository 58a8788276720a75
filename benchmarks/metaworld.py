"""Success on MetaWorld over training seeds, with controls: the project's main result.

    python -m benchmarks.metaworld                       # 2 tasks x 2 mixtures x 5 seeds, the main arms
    python -m benchmarks.metaworld --arms iql document_objective --seeds 0 1

Every seed has a data set of its own (collection seed 1100 + s), its own networks, and the same 100 initial
states for every arm and seed. Arms that are finished are kept as JSON, and in the results, and are not run again.
Prints Markdown.
"""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.kept import refuse_other_settings
from benchmarks.rabc import by_time, by_value
from benchmarks.speed_tables import speed_of, speed_table
from chunkrl.algorithms.registry import METHODS
from chunkrl.demo.arms import ALL_ARMS, APART, CHUNK_RL, FLOW_RL, SUCCESS_BC, TOGETHER, UNBALANCED, Arm
from chunkrl.demo.experiment import Job, JobResult
from chunkrl.demo.workers import run_jobs
from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.statistics import bootstrap_over_tasks

RABC_VALUE = Arm("rabc_on_value", "behaviour_cloning", sample_weights=by_value)
RABC_TIME = Arm("rabc_on_time", "behaviour_cloning", sample_weights=by_time)
FLOW_SC = replace(FLOW_RL, name="flow_success_cloning", objective="success_cloning")
FLOW_UNBALANCED = replace(FLOW_RL, name="flow_unbalanced", fit=UNBALANCED.fit, balance=UNBALANCED.balance)
FLOW_APART = replace(FLOW_RL, name="flow_failures_apart", balance=APART.balance)
FLOW_TOGETHER = replace(FLOW_RL, name="flow_failures_together", balance=TOGETHER.balance)
FLOWS = (FLOW_SC, FLOW_RL, FLOW_APART, FLOW_TOGETHER, FLOW_UNBALANCED)  # they execute the chunk of zero noise
SAMPLED = tuple(replace(arm, name=f"{arm.name}_sampled", mode="sample") for arm in FLOWS)  # of drawn noise
# Policies along a training. The learning rate is constant, so that a shorter one is the longer one's checkpoint.
PARTS = {"sixteenth": 1 / 16, "eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2}
ALONG = tuple(
    replace(arm, name=f"{arm.name}_{name}", updates_factor=part)
    for arm in (SUCCESS_BC, CHUNK_RL)
    for name, part in PARTS.items()
)
ARMS = (
    *ALL_ARMS,
    RABC_VALUE,
    RABC_TIME,
    FLOW_SC,
    FLOW_APART,
    FLOW_TOGETHER,
    FLOW_UNBALANCED,
    *SAMPLED,
    *ALONG,
)
MAIN_ARMS = (
    "behaviour_cloning",
    "success_cloning",
    "chunk_rl",
    "failures_apart",
    "failures_together",
    "scale_3",
    "unbalanced",
    "shuffled_advantages",
    "rabc_on_value",
    "rabc_on_time",
)
# records of arms that do not read them have the defaults of their time
_DEFAULTS = {"fit.advantage_scale": "fit.advantage_scale", "balance.failures": "balance"}
METHOD, BASELINES = "chunk_rl", ("behaviour_cloning", "success_cloning", "shuffled_advantages")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to run."""

    output_dir: str = "runs/benchmark"
    """Data, runs and one JSON a job."""
    results: str = "benchmarks/results/metaworld_balanced.json"
    """The summary."""
    tasks: tuple[str, ...] = ("push-v3", "pick-place-v3")
    mixtures: tuple[str, ...] = ("within", "episodes")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = MAIN_ARMS
    num_collect: int = 150
    num_eval: int = 100
    policy_updates: int = 4000
    batch_size: int = 256
    data_seed: int = 1100
    """Seed s collects with data_seed + s."""
    eval_seed: int = 20261120
    method: str = METHOD
    """The arm whose differences to all others are told, where it is asked for; of flows e.g. flow_chunk_rl."""
    num_workers: int = 2


def jobs(config: BenchmarkConfig, known: Sequence[Arm] = ARMS) -> list[Job]:
    """One job a task, mixture and seed."""
    arms = {arm.name: arm for arm in known}
    return [
        Job(
            env=task,
            mixture=mixture,  # type: ignore[arg-type]  # checked by MixtureConfig
            root=Path(config.output_dir),
            arms=tuple(arms[name] for name in config.arms),
            data_seed=config.data_seed + seed,
            train_seed=seed,
            eval_seed=config.eval_seed,
            num_collect=config.num_collect,
            num_eval=config.num_eval,
            policy_updates=config.policy_updates,
            batch_size=config.batch_size,
            share_values=True,
        )
        for seed in config.seeds
        for mixture in config.mixtures
        for task in config.tasks
    ]


def record_path(config: BenchmarkConfig, job: Job, arm: str) -> Path:
    """Where a finished arm's outcome is kept."""
    return Path(config.output_dir) / "jobs" / f"{job.task}-seed{job.train_seed}" / f"{arm}.json"


def to_records(result: JobResult) -> dict[str, dict[str, Any]]:
    """A job's outcome as JSON, a record per arm."""
    job = result.job
    common = {
        "task": job.task,
        "seed": job.train_seed,
        "data_seed": job.data_seed,
        "eval_seed": job.eval_seed,
        "batch_size": job.batch_size,
        "policy_updates": job.policy_updates,
        "dataset": result.dataset,
    }
    return {
        name: common
        | {
            "arm": name,
            "settings": arm_settings(outcome.arm),
            "diagnostics": result.diagnostics.get(name, {}),
            "success": "".join(str(int(s)) for s in outcome.success),
            "num_steps": None if outcome.num_steps is None else outcome.num_steps.tolist(),
            "error": outcome.error,
        }
        for name, outcome in result.outcomes.items()
    }


def arm_settings(arm: Arm) -> dict[str, Any]:
    """What an arm is, as JSON: what a name means may change with the defaults."""
    settings = asdict(replace(arm, sample_weights=None))
    return json.loads(json.dumps({k: v for k, v in settings.items() if k not in ("name", "sample_weights")}))


def _recorded_settings(record: Mapping[str, Any], made: Arm) -> dict[str, Any]:
    """What a record says that its arm was; before failures could be apart they were together."""
    settings = dict(record.get("settings", {}))
    balance = settings.get("balance", {})
    if METHODS[made.objective].weighs and balance.get("kind") == "strata" and "failures" not in balance:
        settings["balance"] = {**balance, "failures": "together"}
    return settings


def _changed(recorded: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of recorded settings that are others now; settings that came later are not asked about."""
    found = []
    for name, value in recorded.items():
        if isinstance(value, dict):
            found += _changed(value, now.get(name, {}), f"{prefix}{name}.")
        elif now.get(name) != value:
            found.append(f"{prefix}{name}")
    return found


def differs(record: Mapping[str, Any], made: Arm) -> list[str]:
    """Names of the settings with which a record's arm of the name was another one; those that nothing reads do not
    count."""
    changed = _changed(_recorded_settings(record, made), arm_settings(made))
    reads = METHODS[made.objective].reads_setting
    return [name for name in changed if name not in _DEFAULTS or reads(_DEFAULTS[name])]


def results_records(config: BenchmarkConfig) -> dict[tuple[str, int, str], dict[str, Any]]:
    """The records in the results file, by task, seed and arm."""
    results = Path(config.results)
    kept = json.loads(results.read_text()).get("records", []) if results.is_file() else []
    return {(record["task"], record["seed"], record["arm"]): record for record in kept}


def known_records(
    config: BenchmarkConfig, known: Sequence[Arm]
) -> dict[tuple[str, int, str], dict[str, Any]]:
    """What is finished, by task, seed and arm: in the output folder, or in the results file, so that a fresh clone
    goes on from results that were committed."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    of_results = results_records(config)
    for job in jobs(config, known):
        for made in job.arms:
            arm = made.name
            key = (job.task, job.train_seed, arm)
            path = record_path(config, job, arm)
            record = json.loads(path.read_text()) if path.exists() else of_results.get(key)
            if record is None:
                continue
            same = ("data_seed", "eval_seed", "batch_size", "policy_updates")
            wrong = [name for name in same if record[name] != getattr(job, name)]
            wrong += differs(record, made)
            wrong += ["initial states"] if len(record["success"]) != job.num_eval else []
            refuse_other_settings(f"{arm} on {job.task}, seed {job.train_seed},", wrong)
            found[key] = record
    return found


def by_job(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records of arms as records of jobs: success and steps by arm."""
    jobs: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records:
        key = record["task"], record["seed"]
        job = jobs.setdefault(key, {"task": key[0], "seed": key[1], "dataset": record["dataset"]})
        arm = record["arm"]
        job.setdefault("success", {})[arm] = [int(s) for s in record["success"]]
        job.setdefault("num_steps", {})[arm] = record.get("num_steps")  # not in records of before it was kept
        job.setdefault("diagnostics", {})[arm] = record["diagnostics"]
        job.setdefault("errors", {})
        if record["error"]:
            job["errors"][arm] = record["error"]
    return list(jobs.values())


def summarize(
    records: Sequence[Mapping[str, Any]], arms: Sequence[str], method: str = METHOD
) -> dict[str, Any]:
    """Success and speed by task and arm (mean and every seed), and the method's differences with intervals."""
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
            "speed": {arm: speed_of(list(rows.values()), arm) for arm in arms},
        }
    summary["speed_over_all_episodes"] = {arm: speed_of(records, arm) for arm in arms}
    summary["mean_over_tasks"]["success"] = {
        arm: float(np.mean([success[arm][task].mean() for task in by_task])) for arm in arms
    }
    if method in arms:
        for baseline in (b for b in arms if b != method):
            found = bootstrap_over_tasks(success[method], success[baseline])
            summary["mean_over_tasks"].setdefault("difference", {})[baseline] = {
                "difference": found.difference,
                "interval": [found.interval.low, found.interval.high],
            }
            for task in by_task:
                single = bootstrap_over_tasks({task: success[method][task]}, {task: success[baseline][task]})
                summary["tasks"][task].setdefault("difference", {})[baseline] = {
                    "difference": single.difference,
                    "interval": [single.interval.low, single.interval.high],
                }
    return summary


def markdown(summary: Mapping[str, Any], arms: Sequence[str], method: str = METHOD) -> str:
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
    places = {task: summary["tasks"][task]["speed"] for task in tasks}
    lines += ["", *speed_table(places | {"all episodes": summary["speed_over_all_episodes"]}, arms)]
    if "difference" in summary["mean_over_tasks"]:
        lines += [
            "",
            f"| {method} minus | {' | '.join(tasks)} | mean over tasks |",
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


def run(config: BenchmarkConfig, known: Sequence[Arm] = ARMS) -> None:
    """Runs what is missing, then prints and writes the summary. known: arms that may be asked for."""
    started = time.monotonic()
    unknown = set(config.arms) - {arm.name for arm in known}
    if unknown:
        raise ChunkRLError(f"unknown arms {sorted(unknown)}; there are {[arm.name for arm in known]}")
    finished = known_records(config, known)
    todo = []
    for job in jobs(config, known):
        arms = tuple(arm for arm in job.arms if (job.task, job.train_seed, arm.name) not in finished)
        if arms:
            todo.append(replace(job, arms=arms))

    def keep(result: JobResult) -> None:
        for name, record in to_records(result).items():
            finished[result.job.task, result.job.train_seed, name] = record
            write_text(record_path(config, result.job, name), json.dumps(record) + "\n")

    if todo:
        run_jobs(todo, config.num_workers, keep)
    order = [(job.task, job.train_seed, arm.name) for job in jobs(config, known) for arm in job.arms]
    finished = {key: finished[key] for key in order}  # not as they ended
    records = list(finished.values())
    summary = summarize(by_job(records), config.arms, config.method)
    summary["config"] = asdict(config)
    summary["machine"] = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    summary["seconds"] = time.monotonic() - started
    summary["records"] = list((results_records(config) | finished).values())  # also those not asked for now
    write_text(config.results, json.dumps(summary, indent=1) + "\n")
    print(markdown(summary, config.arms, config.method))


if __name__ == "__main__":
    run(tyro.cli(BenchmarkConfig))
