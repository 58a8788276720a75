"""Rounds on a policy's own roll-outs over seeds, with controls: `chunkrl iterate` from a cloned policy.

    python -m benchmarks.iterate                           # push-v3, 3 seeds, 3 rounds, three arms
    python -m benchmarks.iterate --suites libero           # two tasks of libero_spatial on states; extra `libero`
    python -m benchmarks.iterate --pretrained-only         # what the policies to begin with are worth, and no more

Every seed has scripted mixed-quality episodes of its own (collection seed 1000 + s), which its pretrained policy
clones. From there on there are roll-outs alone. The reported initial states (LIBERO: the first 25 official ones of
each task) are the same for all rounds, arms and seeds; policies are chosen by other states. What is finished is kept,
in the output folder and in the results, and the same command goes on after a kill, or on a fresh clone from results
that were committed. Prints Markdown.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.iterate_tables import markdown, packed, summarize, unpacked
from benchmarks.kept import refuse_other_settings
from chunkrl.collect.command import CollectConfig, collect_dataset
from chunkrl.demo.workers import in_processes
from chunkrl.envs.libero_tasks import InitialStates
from chunkrl.envs.registry import asset_fingerprint, expand
from chunkrl.envs.scripted import MixtureConfig
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.config import EvaluateCommand, EvaluateConfig
from chunkrl.evaluation.evaluation_result import Evaluation, read_evaluation
from chunkrl.files.atomic import write_text
from chunkrl.iterate.command import CONFIG_FILE, iterate
from chunkrl.iterate.config import ArmName, IterateConfig, SelectionRule, StopRule
from chunkrl.models.config import ActionMode
from chunkrl.progress import silent
from chunkrl.report.commands import evaluate_policy
from chunkrl.run.config import TrainConfig
from chunkrl.run.offline import ChunkLevelOfflineRL

EVALUATION_SEED = 20261205  # MetaWorld's reported states
ROUNDS = 3
_MODES: tuple[ActionMode, ...] = ("mode", "sample")


@dataclass(frozen=True)
class Suite:
    """Tasks, the policy to begin with, and what a round is.

    num_scripted, controllers: of the episodes that are cloned (`MixtureConfig.episode_controllers`).
    pretraining, training: settings of `chunkrl train`. num_reported, num_selected: initial states per task.
    """

    env: str
    state: str
    num_scripted: int
    controllers: tuple[float, float, float, float]
    pretraining: TrainConfig
    training: TrainConfig
    num_rollouts: int = 150
    num_reported: int = 100
    num_selected: int = 50


_PUSH = TrainConfig(action_horizon=5, action_dim=4, batch_size=256, num_updates=4000)
_LIBERO = TrainConfig(
    action_horizon=10,
    action_dim=7,
    batch_size=256,
    num_updates=3000,
    lr=1e-3,
    schedule="cosine",
    gamma=0.998,
    value_epochs=5.0,
)
# The experts' shares: so that the pretrained policy succeeds in .2 to .5 of development states (seeds 7770 and 7771,
# LIBERO 7770 alone).
SUITES: dict[str, Suite] = {
    "metaworld": Suite("push-v3", "full", 150, (0.5, 0.27, 0.115, 0.115), _PUSH, _PUSH),
    "libero": Suite(
        "libero_spatial/0+libero_spatial/5",
        "privileged",
        60,
        (0.5, 0.27, 0.115, 0.115),
        _LIBERO,
        _LIBERO,
        num_rollouts=80,
        num_reported=25,
        num_selected=15,
    ),
}
ARMS: tuple[ArmName, ...] = ("default", "success_cloning", "no_new_data")


@dataclass(frozen=True)
class IterateBenchmark:
    """What to run."""

    suites: tuple[str, ...] = ("metaworld",)
    """metaworld, libero."""
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[ArmName, ...] = ARMS
    output_dir: str = "runs/iterate-benchmark"
    """Data, runs and one JSON a suite and seed."""
    results: str = "benchmarks/results/iterate.json"
    """The summary; each suite has its own entry."""
    num_workers: int = 2
    """Seeds that run at once, one process each."""
    pretrained_only: bool = False
    """Ends when the pretrained policies are evaluated, on development states, and writes no summary."""
    tiny: bool = False
    """A trial of minutes: one round of few episodes and updates, in a folder of its own, without a summary."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.suites) - SUITES.keys()):
            raise ChunkRLError(f"no such suite: {', '.join(unknown)}; there are {', '.join(SUITES)}")


@dataclass(frozen=True)
class Part:
    """One seed of one suite."""

    config: IterateBenchmark
    name: str
    seed: int

    @property
    def suite(self) -> Suite:
        suite = SUITES[self.name]
        if not self.config.tiny:
            return suite
        return replace(
            suite,
            pretraining=replace(suite.pretraining, num_updates=1200, batch_size=64),
            training=replace(suite.training, num_updates=100, batch_size=64, value_epochs=2.0),
            num_scripted=60,
            controllers=(0.8, 0.1, 0.05, 0.05),
            num_rollouts=20,
            num_reported=6,
            num_selected=4,
        )

    @property
    def root(self) -> Path:
        folder = Path(self.config.output_dir) / ("tiny" if self.config.tiny else "")
        return folder / f"{self.name}-seed{self.seed}"

    @property
    def record(self) -> Path:
        return self.root / "record.json"

    @property
    def policy(self) -> Path:
        return self.root / "pretraining" / "policy"

    def iteration(self) -> IterateConfig:
        """From the cloned policy, on its roll-outs alone."""
        suite, output = self.suite, self.root / "iterate"
        resume = str(output) if (output / CONFIG_FILE).is_file() else None
        return IterateConfig(
            replace(
                suite.training,
                init=str(self.policy),
                output_dir=str(output),
                resume=resume,
                seed=self.seed,
                device="cpu",
                save_interval=0,
                save_updates=1000,
                keep_checkpoints=1,
            ),
            rounds=1 if self.config.tiny else ROUNDS,
            arms=self.config.arms,
            collect=CollectConfig(
                env=suite.env,
                num_episodes=suite.num_rollouts,
                seed=50_000 + 100 * self.seed,  # none of the scripted data's
                num_workers=0,
                state=suite.state,
            ),
            evaluation=self.evaluation(),
            selection=SelectionRule(num_episodes=suite.num_selected),
            stop=StopRule(at_full_success=False),  # every arm makes every round
        )

    def evaluation(self) -> EvaluateConfig:
        """The reported states."""
        tasks = tuple(self.suite.env.split("+"))
        return EvaluateConfig(tasks, self.suite.num_reported, EVALUATION_SEED, num_workers=0, device="cpu")


def pretrain(part: Part) -> None:
    """Scripted episodes, cloned; nothing where that is done."""
    suite, run = part.suite, part.policy.parent
    mixture = MixtureConfig(mixture="episodes", episode_controllers=suite.controllers)
    collection = CollectConfig(
        env=suite.env,
        mixture=mixture,
        num_episodes=suite.num_scripted,
        seed=1000 + part.seed,
        num_workers=0,
        state=suite.state,
    )
    data = part.root / "scripted"
    collect_dataset(data, collection, accept_complete=True)
    if part.policy.is_dir():
        return
    settings = replace(
        suite.pretraining.with_objective("behaviour_cloning"),
        dataset_dir=str(data),
        seed=part.seed,
        device="cpu",
        save_interval=0,
        output_dir=str(run),
        overwrite=True,  # it has no policy
    )
    ChunkLevelOfflineRL(settings).train()


def look(part: Part) -> None:
    """Success of the pretrained policy, as it acts in roll-outs and as it is reported, on states of neither."""
    initial: InitialStates = "sampled" if part.name == "libero" else "official"
    for mode in _MODES:
        command = EvaluateCommand(
            env=part.evaluation().env,
            num_episodes=25,
            seed=777,
            initial=initial,
            mode=mode,
            num_workers=0,
            device="cpu",
            policy=str(part.policy),
            output_dir=str(part.root / f"look-{mode}"),
        )
        evaluate_policy(command, silent)


def run_part(part: Part) -> None:
    """One seed; what it prints goes to a file of its own. Leaves `record`."""
    torch.set_num_threads(1)
    part.root.mkdir(parents=True, exist_ok=True)
    with (
        (part.root / "log.txt").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        started = time.process_time()
        pretrain(part)
        if part.config.pretrained_only:
            look(part)
            return
        iterate(part.iteration())
        write_text(part.record, json.dumps(to_record(part, time.process_time() - started)) + "\n")


def to_record(part: Part, cpu_seconds: float) -> dict[str, Any]:
    """Every episode of the reported states, and what rounds and choices were: as JSON. cpu_seconds: of this call."""
    found = json.loads((part.root / "iterate" / "results.json").read_text())
    for arm, run in found["arms"].items():
        for one in run["rounds"]:
            folder = part.root / "iterate" / ("" if one["round"] == 0 else arm) / f"round-{one['round']:03d}"
            one["outcomes"] = _outcomes(read_evaluation(folder / "evaluation"))
            one["policy"] = os.path.relpath(one["policy"])  # results name no place of a machine
    return {"seed": part.seed, "cpu_seconds": cpu_seconds, "arms": found["arms"], "notes": found["notes"]}


def _outcomes(evaluation: Evaluation) -> dict[str, dict[str, list[int]]]:
    return {
        env: {
            "success": evaluation.success(env).astype(int).tolist(),
            "steps": evaluation.num_steps(env).tolist(),
        }
        for env in evaluation.settings.envs
    }


def known_record(part: Part) -> dict[str, Any] | None:
    """What is finished of one seed: in the output folder, or in the results.

    Raises:
        ChunkRLError: the results' records are of other settings.
    """
    if part.record.is_file():
        return json.loads(part.record.read_text())
    path = Path(part.config.results)
    if part.config.tiny or not path.is_file():
        return None
    entry = json.loads(path.read_text()).get(part.name, {})
    for record in entry.get("records", []):
        if record["seed"] == part.seed:
            now = _settings(part.name)
            wrong = [name for name in now if entry.get(name) != now[name]]
            refuse_other_settings(f"{part.name}, seed {part.seed}, in {path}", wrong)
            return unpacked(record)
    return None


def is_done(part: Part) -> bool:
    """Whether its record has all arms of today's call."""
    if part.config.pretrained_only:
        return False
    record = known_record(part)
    return record is not None and set(part.config.arms) <= record["arms"].keys()


def main(config: IterateBenchmark) -> None:
    """Runs what is missing, then prints and writes the summary."""
    for name in config.suites:
        parts = [Part(config, name, seed) for seed in config.seeds]
        jobs = [(str(part.root), (part,)) for part in parts if not is_done(part)]
        for done, _ in in_processes(run_part, jobs, config.num_workers):
            print(f"{done} is done", flush=True)
            if not config.pretrained_only:
                keep(config, name, parts)  # what is there can be committed, and a fresh clone goes on from it
        if config.pretrained_only:
            for part in parts:
                told = {mode: read_evaluation(part.root / f"look-{mode}") for mode in _MODES}
                rates = {
                    mode: {env: float(np.mean(found.success(env))) for env in found.settings.envs}
                    for mode, found in told.items()
                }
                print(f"{name}, seed {part.seed}: {rates}")
        else:
            print(markdown(keep(config, name, parts)))


def _settings(name: str) -> dict[str, Any]:
    """What all records of a suite have in common, as JSON has it."""
    settings = {"suite": asdict(SUITES[name]), "rounds": ROUNDS, "evaluation_seed": EVALUATION_SEED}
    return json.loads(json.dumps(settings))


def keep(config: IterateBenchmark, name: str, parts: Sequence[Part]) -> dict[str, Any]:
    """Writes the suite's entry of the summary, with the records of all arms of today's call that there are; those of
    seeds that were not asked for stay. Returns the summary; a tiny run keeps nothing else."""
    records = [record for part in parts if is_done(part) and (record := known_record(part))]
    summary = summarize(records, config.arms)
    if config.tiny:
        return summary
    path = Path(config.results)
    known = json.loads(path.read_text()) if path.is_file() else {}
    seeds = [record["seed"] for record in records]
    others = [record for record in known.get(name, {}).get("records", []) if record["seed"] not in seeds]
    entry = summary | _settings(name)
    entry |= {
        "seeds": seeds,
        "assets": asset_fingerprint(expand(SUITES[name].env.split("+"))),
        "records": others + [packed(record) for record in records],
    }
    write_text(path, json.dumps(known | {name: entry}, indent=1) + "\n")
    return summary


if __name__ == "__main__":
    main(tyro.cli(IterateBenchmark))
