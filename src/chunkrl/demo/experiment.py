"""One controlled comparison: collect, train every arm on the same data and updates, evaluate on the same states.

The demo and the benchmark are both lists of jobs of this module.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chunkrl.algorithms.config import BalanceConfig, DistilConfig
from chunkrl.algorithms.registry import METHODS
from chunkrl.algorithms.values_io import values_file
from chunkrl.algorithms.weight_spread import THIRDS
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.frames import FrameTable
from chunkrl.demo.arms import DEMO_ARMS, Arm
from chunkrl.envs.metaworld import ACTION_DIM, MetaWorldEnv
from chunkrl.envs.scripted import CONTROLLERS, Mixture, MixtureConfig
from chunkrl.evaluation.rollout import evaluate, initial_seeds
from chunkrl.files.atomic import replace_file
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.config import PolicyConfig
from chunkrl.progress import Progress, silent
from chunkrl.run.command import train_until_stopped
from chunkrl.run.config import TrainConfig
from chunkrl.run.offline import ChunkLevelOfflineRL
from chunkrl.run.policy_io import load_policy
from chunkrl.statistics import auc
from chunkrl.training.trainer import NonFiniteLossError

NUM_ENVS = 10  # simulators a process steps together


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
    """Resuming the training in its folder, or in its place."""
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
