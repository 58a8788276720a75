"""One controlled comparison: collect, train every arm on the same data and updates, evaluate on the same states.

The demo and the benchmark are both lists of jobs of this module.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from chunkrl.algorithms.config import BalanceConfig, DistilConfig
from chunkrl.algorithms.registry import METHODS
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.values_io import values_file
from chunkrl.algorithms.weights import THIRDS
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.frames import FrameTable
from chunkrl.envs.metaworld import ACTION_DIM, MetaWorldEnv
from chunkrl.envs.scripted import CONTROLLERS, Mixture, MixtureConfig
from chunkrl.evaluation.rollout import evaluate, initial_seeds
from chunkrl.files.atomic import replace_file
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.config import ActionMode, PolicyConfig
from chunkrl.progress import Progress, silent
from chunkrl.run.command import train_until_stopped
from chunkrl.run.config import Objective, TrainConfig
from chunkrl.run.offline import ChunkLevelOfflineRL
from chunkrl.run.policy_io import load_policy
from chunkrl.statistics import auc
from chunkrl.training.trainer import NonFiniteLossError

NUM_ENVS = 10  # simulators a process steps together


@dataclass(frozen=True)
class Arm:
    """One policy of a comparison. Arms that differ in `mode` alone share one training (`training`).

    updates_factor: of the job's policy updates; flow policies need more than Gaussian ones.
    sample_weights: (data set, folder of its values, seed) -> the weight of every frame, float32 [N], that
        behaviour_cloning clones with.
    """

    name: str
    objective: Objective
    mode: ActionMode = "mode"
    policy: PolicyConfig = PolicyConfig()
    num_folds: int = 5
    updates_factor: float = 1.0
    fit: ValueFit = ValueFit()
    balance: BalanceConfig = BalanceConfig()
    distil: DistilConfig = DistilConfig()
    sample_weights: Callable[[ChunkDataset, Path, int], np.ndarray] | None = None

    @property
    def training(self) -> tuple[Any, ...]:
        """Arms with equal keys share one training run."""
        settings = (self.fit, self.balance, self.distil, self.sample_weights)
        return (self.objective, self.policy, self.num_folds, self.updates_factor, *settings)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Arms with equal keys share one value phase; None: it needs none, or has one of its own."""
        if not METHODS[self.objective].reads_setting("values") and self.sample_weights is None:
            return None
        meaning = (self.fit.lam, self.fit.n_step, self.fit.target, self.fit.time_out)
        networks = (self.fit.hidden_dim, self.fit.num_layers, self.fit.dropout, self.fit.noise, self.fit.head)
        ensemble = (self.fit.num_critics, self.fit.aggregate, self.fit.quantile)
        # left out where there is none: values that lie in the folders of earlier runs keep their keys
        return (self.num_folds, *meaning, *networks, *(() if ensemble[:2] == (1, "mean") else ensemble))


BC = Arm("behaviour_cloning", "behaviour_cloning")
SUCCESS_BC = Arm("success_cloning", "success_cloning")
CHUNK_RL = Arm("chunk_rl", "cross_fitted")
SHUFFLED = Arm("shuffled_advantages", "shuffled_advantages")
UNBALANCED = Arm("unbalanced", "cross_fitted", balance=BalanceConfig("none"))  # the weights of before
NOT_CROSS_FITTED = Arm("not_cross_fitted", "cross_fitted", num_folds=1)
IQL = Arm("iql", "iql", num_folds=1)
DOCUMENT = Arm("document_objective", "document")
_FLOW = PolicyConfig(kind="flow")
FLOW_BC = Arm("flow_behaviour_cloning", "behaviour_cloning", policy=_FLOW, updates_factor=1.5)
FLOW_BC_SAMPLED = replace(FLOW_BC, name="flow_behaviour_cloning_sampled", mode="sample")
BEST_OF_16 = replace(FLOW_BC, name="best_of_16_by_q", mode="best_of_n")
FLOW_RL = replace(FLOW_BC, name="flow_chunk_rl", objective="cross_fitted")
# as many updates as chunk_rl, half of them of cloning, half on the best of 16
DISTILLED = replace(CHUNK_RL, name="distilled_best_of_16", updates_factor=0.5, distil=DistilConfig(16))
DEMO_ARMS = (BC, SUCCESS_BC, CHUNK_RL, BEST_OF_16)
ALL_ARMS = (
    *DEMO_ARMS,
    FLOW_BC,
    FLOW_BC_SAMPLED,
    FLOW_RL,
    DISTILLED,
    UNBALANCED,
    SHUFFLED,
    NOT_CROSS_FITTED,
    IQL,
    DOCUMENT,
)


@dataclass(frozen=True)
class Job:
    """One data set and every arm on it.

    data_seed, train_seed, eval_seed: of collection, training and the reported initial states.
    horizon: H, executed whole. policy_updates: of every arm. share_values: values are trained once for the arms that
    need the same, and kept.
    """

    env: str
    mixture: Mixture
    root: Path
    arms: tuple[Arm, ...] = DEMO_ARMS
    data_seed: int = 0
    train_seed: int = 0
    eval_seed: int = 2024
    num_collect: int = 150
    num_eval: int = 100
    horizon: int = 5
    max_steps: int = 150
    batch_size: int = 256
    policy_updates: int = 4000
    share_values: bool = False
    resume: bool = False

    @property
    def task(self) -> str:
        """The name results carry: the task, with the mixture where it is not the first."""
        return self.env if self.mixture == "within" else f"{self.env}-{self.mixture}"

    @property
    def dataset_dir(self) -> Path:
        """Where the episodes are."""
        return self.root / "data" / f"{self.task}-seed{self.data_seed}"

    def run_dir(self, arm: Arm) -> Path:
        """Where the arm's training is."""
        return self.root / "runs" / f"{self.task}-seed{self.train_seed}" / arm.name


@dataclass(frozen=True)
class ArmOutcome:
    """success: bool [n] over the job's initial states. history: metric -> [(update, value)].
    num_steps: int [n], environment steps of these episodes.
    error: why the training stopped (a divergence), then success is all False and num_steps None."""

    arm: Arm
    success: np.ndarray
    history: dict[str, list[tuple[int, float]]]
    num_steps: np.ndarray | None = None
    error: str | None = None


@dataclass(frozen=True)
class JobResult:
    """outcomes by arm name. dataset: fingerprint, episodes, frames, success rate of the data.
    diagnostics: by weighted arm: held-out and training rank correlation, AUC of the advantage of expert over other
    steps, effective sample size, and the share of the weight on each third of the successes."""

    job: Job
    outcomes: dict[str, ArmOutcome]
    dataset: dict[str, Any]
    diagnostics: dict[str, dict[str, float]] = field(default_factory=dict)


def run_job(job: Job, progress: Progress = silent) -> JobResult:
    """Collects (unless the data is there), trains and evaluates every arm of `job`; one thread."""
    torch.set_num_threads(1)
    if not job.dataset_dir.exists():
        collect = CollectConfig(
            env=job.env,
            mixture=MixtureConfig(mixture=job.mixture),
            num_episodes=job.num_collect,
            max_steps=job.max_steps,
            seed=job.data_seed,
            num_workers=0,
        )
        temporary = job.dataset_dir.with_name(f".{job.dataset_dir.name}.partial")
        collect_dataset(temporary, collect, progress, overwrite=True)
        temporary.rename(job.dataset_dir)
    envs = [MetaWorldEnv(job.env, job.max_steps) for _ in range(NUM_ENVS)]
    trained: dict[tuple[Any, ...], ChunkLevelOfflineRL | str] = {}
    outcomes: dict[str, ArmOutcome] = {}
    diagnostics: dict[str, dict[str, float]] = {}
    for arm in job.arms:
        if arm.training not in trained:
            trained[arm.training] = _train(job, arm, progress)
        run = trained[arm.training]
        if isinstance(run, str):
            outcomes[arm.name] = ArmOutcome(arm, np.zeros(job.num_eval, dtype=bool), {}, error=run)
            continue
        assert run.trainer is not None
        seeds = initial_seeds(job.eval_seed, job.num_eval)
        actor = partial(run.chunk_policy().act, mode=arm.mode)
        rollouts = evaluate(actor, envs, seeds, job.horizon, progress, f"evaluate {arm.name}")
        history = dict(run.trainer.history)
        outcomes[arm.name] = ArmOutcome(arm, rollouts.success, history, rollouts.num_steps)
        method = METHODS[arm.objective]
        if method.weighs and not (method.joint or method.is_control) and arm.num_folds > 1:
            diagnostics[arm.name] = _diagnostics(run)
    for env in envs:
        env.close()
    return JobResult(job, outcomes, _describe(trained), diagnostics)


def _train_values(job: Job, arm: Arm, progress: Progress) -> Path | None:
    """The folder of the values that the arm's advantages come from, which arms share; None: it needs none, or trains
    its own. Values that are there are not trained again."""
    if arm.values is None or not job.share_values:
        return None
    key = _short_hash((*arm.values, job.data_seed, job.batch_size))
    folder = job.root / "values" / f"{job.task}-seed{job.train_seed}-{key}"
    if not (folder / values_file(0)).exists():
        plain = {"balance": BalanceConfig(), "policy": PolicyConfig(), "distil": DistilConfig()}
        values = replace(arm, objective="value", **plain)
        config = replace(_train_config(job, values), num_updates=None, output_dir=str(folder))
        train_until_stopped(
            ChunkLevelOfflineRL(_continued(config, job), _named(progress, f"values of {arm.name}"))
        )
    return folder


def _continued(config: TrainConfig, job: Job) -> TrainConfig:
    """Going on with the training in its folder, or in its place."""
    if job.resume and (Path(config.output_dir) / "checkpoints" / "last").is_file():
        return replace(config, resume=config.output_dir)
    return replace(config, overwrite=True)


def _short_hash(key: tuple[Any, ...]) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:8]


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def _train(job: Job, arm: Arm, progress: Progress) -> ChunkLevelOfflineRL | str:
    """The trained run, or the message of a training that stopped on a non-finite loss."""
    values = _train_values(job, arm, progress)
    config = _train_config(job, arm)
    if arm.sample_weights is not None:
        assert values is not None, "arms with weights of their own need a job that shares values"
        config = replace(config, sample_weights=(str(_write_weights(job, arm, values)),))
    elif values is not None:
        config = replace(config, values=str(values))
    run = ChunkLevelOfflineRL(_continued(config, job), _named(progress, arm.name))
    try:
        train_until_stopped(run)
    except NonFiniteLossError as error:
        return str(error)
    return run


def _write_weights(job: Job, arm: Arm, values: Path) -> Path:
    """The arm's weights of its own, as the file that training reads."""
    assert arm.sample_weights is not None
    dataset = ChunkDataset(job.dataset_dir, _train_config(job, arm).chunk_settings(), progress=silent)
    weight = arm.sample_weights(dataset, values, job.train_seed)
    path = job.run_dir(arm).with_suffix(".weights.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        pq.write_table(pa.table({"index": np.arange(len(weight)), "weight": weight}), temporary)
    return path


def _train_config(job: Job, arm: Arm) -> TrainConfig:
    needs_q = any(a.training == arm.training and a.mode == "best_of_n" for a in job.arms)
    config = TrainConfig(
        dataset_dir=str(job.dataset_dir),
        action_horizon=job.horizon,
        action_dim=ACTION_DIM,
        batch_size=job.batch_size,
        num_updates=int(job.policy_updates * arm.updates_factor),
        objective=arm.objective,
        policy=arm.policy,
        num_folds=arm.num_folds,
        fit=arm.fit,
        balance=arm.balance,
        distil=arm.distil,
        train_q=needs_q,
        seed=job.train_seed,
        device="cpu",
        save_interval=0,
        output_dir=str(job.run_dir(arm)),
    )
    return config.with_objective(arm.objective)


def _diagnostics(run: ChunkLevelOfflineRL) -> dict[str, float]:
    assert run.trainer is not None
    history = run.trainer.history
    names = {
        "rank_correlation_held_out": "value/rank_correlation_held_out",
        "rank_correlation_seen": "value/rank_correlation_seen",
        "effective_sample_size": "weight/effective_sample_size",
    } | {f"{third}_third": f"weight/{third}_third" for third in THIRDS}
    found = {key: history[name][-1][1] for key, name in names.items()}
    (dataset,) = run.dataset.datasets
    expert = dataset.table.column("complementary_info.controller").reshape(-1) == 0
    advantage = dataset.labels["advantage"]
    return found | {"advantage_auc_expert": auc(advantage[expert], advantage[~expert])}


def _describe(trained: dict[tuple[Any, ...], ChunkLevelOfflineRL | str]) -> dict[str, Any]:
    for run in trained.values():
        if not isinstance(run, str):
            table = run.dataset.datasets[0].table
            return {
                "sha256": data_hash(table),
                "episodes": table.num_episodes,
                "frames": table.num_frames,
                "success": float(run.dataset.frame_labels.success.mean()),
                "controllers": list(CONTROLLERS),
            }
    return {}


def data_hash(table: FrameTable) -> str:
    """SHA-256 of all states and actions: equal data gives equal hashes on every machine."""
    digest = hashlib.sha256()
    for column in (table.column("observation.state"), table.action):
        digest.update(np.ascontiguousarray(column, dtype=np.float32).tobytes())
    return digest.hexdigest()


def saved_policy(job: Job, arm: Arm) -> ActingPolicy:
    """The saved policy of an arm of a finished job."""
    first = next(a for a in job.arms if a.training == arm.training)
    return load_policy(job.run_dir(first) / "policy")


def run_jobs(jobs: Sequence[Job], num_workers: int, on_result: Callable[[JobResult], None]) -> None:
    """Runs jobs in `num_workers` processes, with a bar and an ETA for each running job and for all.

    on_result: called in this process as each job ends.
    """
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    with ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(events,)
    ) as pool:
        board = _Board(jobs, events)
        futures = [pool.submit(_run_reporting, job, number) for number, job in enumerate(jobs)]
        try:
            for future in futures:
                on_result(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            board.close()


_EVENTS: list[Any] = []  # a worker's way to the board


def _start_worker(events: Any) -> None:
    """Keeps the way to the board, and ends with the parent: else a worker of a killed run trains on, unseen."""
    _EVENTS[:] = [events]
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_reporting(job: Job, number: int) -> JobResult:
    last = -1.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        step = done / total
        if done == total or step < last or step - last >= 0.02:
            last = 0.0 if done == total else step
            _EVENTS[0].put((number, stage, done, total))

    result = run_job(job, report)
    _EVENTS[0].put((number, "done", 1, 1))
    return result


class _Board:
    """Shows the jobs' progress: one bar over all stages of all jobs, the running stages beside it."""

    def __init__(self, jobs: Sequence[Job], events: Any) -> None:
        self._events, self._stop = events, threading.Event()
        self._jobs = jobs
        self._totals = [_num_stages(job) for job in jobs]
        self._done = [0.0] * len(jobs)
        self._finished_stages = [0] * len(jobs)
        interactive = sys.stderr.isatty()
        self._interval = 0.5 if interactive else 20.0  # seconds between drawings; a log wants few lines
        self._drawn = 0.0
        self._bar = tqdm(
            total=float(sum(self._totals)),
            desc="all",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left {postfix}",
            ncols=None if interactive else 120,
            miniters=float("inf"),  # drawn by _draw alone
        )
        self._running: dict[int, str] = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                number, stage, done, total = self._events.get(timeout=0.3)
            except queue.Empty:
                continue
            except (EOFError, OSError):
                return
            self._show(number, stage, done, total)

    def _show(self, number: int, stage: str, done: int, total: int) -> None:
        if stage == "done":
            self._done[number] = self._totals[number]
            self._running.pop(number, None)
        else:
            self._running[number] = f"{self._jobs[number].task} {stage}"
            if done == total:
                self._finished_stages[number] += 1
            part = 0.0 if done == total else done / total
            self._done[number] = min(self._finished_stages[number] + part, self._totals[number])
        self._bar.n = sum(self._done)
        self._draw()

    def _draw(self, now: bool = False) -> None:
        if now or time.monotonic() - self._drawn >= self._interval:
            self._drawn = time.monotonic()
            self._bar.set_postfix_str(" | ".join(self._running.values())[:100], refresh=False)
            self._bar.refresh()

    def close(self) -> None:
        """Draws the last state."""
        self._stop.set()
        self._thread.join(timeout=2)
        self._draw(now=True)
        self._bar.close()


def _num_stages(job: Job) -> int:
    """Stages that `run_job` reports: collecting, each training's phases, each arm's evaluation."""
    phases = len({arm.values for arm in job.arms} - {None}) if job.share_values else 0
    for training in {arm.training: arm for arm in job.arms}.values():
        distils = training.distil.num_candidates > 0
        with_q = distils or any(
            arm.training == training.training and arm.mode == "best_of_n" for arm in job.arms
        )
        with_values = with_q or (training.values is not None and not job.share_values)
        phases += 1 + with_values + with_q + distils
    return 1 + phases + len(job.arms)
