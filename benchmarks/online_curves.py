"""Success against environment steps: online with a scripted corrector, online without, and offline only.

    python -m benchmarks.online_curves      # prints Markdown, writes benchmarks/results/online_curves.{json,svg}

For each seed: scripted mixed-quality episodes (collection seed `data_seed` + s), a policy trained offline on them,
and from it three arms with equally many further updates:

- `online`: `chunkrl learner` and `chunkrl actor`, real processes; the actor's steps are `share` of every batch;
- `corrected`: the same, and MetaWorld's expert takes over by rule, `correction.budget` interventions in all;
- `offline`: `chunkrl train` on the offline episodes alone.

`updates_per_step` and the `--max-ahead-steps 0` of the actor keep the two in step, so that a curve does not depend
on what else the machine does. Every arm is evaluated after the same numbers of updates from the same initial states,
which nobody learns from. What is done is kept (one JSON an evaluation) and is not done again; an arm that was cut off
begins again beside its remains.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.kept import check_settings
from benchmarks.success_curves import SuccessCurve, picture, table
from chunkrl.algorithms.registry import METHODS
from chunkrl.files.atomic import write_text
from chunkrl.online.learner.evaluation import FOLDER, read_results
from chunkrl.online.link.config import CorrectionRule

ARMS = ("corrected", "online", "offline")
_NAMES = {
    "corrected": "online with interventions",
    "online": "online without",
    "offline": "offline only, as many updates",
}


@dataclass(frozen=True)
class CurvesConfig:
    """What to run."""

    output_dir: str = "runs/online_curves"
    """Data, runs and one JSON an evaluation."""
    results: str = "benchmarks/results/online_curves"
    """The summary: .json and .svg."""
    env: str = "pick-place-v3"
    """MetaWorld task."""
    mixture: str = "within"
    """Of the offline episodes."""
    num_collect: int = 40
    """Offline episodes: few, so that there is something to gain."""
    data_seed: int = 3000
    """Collection seed of training seed 0."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    arms: tuple[str, ...] = ARMS
    """Which of them."""
    offline_updates: int = 1500
    """Policy updates before an arm begins."""
    num_steps: int = 3000
    """Environment steps of an online arm."""
    updates_per_step: float = 1.0
    """Policy updates for each of them."""
    num_points: int = 3
    """Evaluations of an arm after its start."""
    correction: CorrectionRule = CorrectionRule(budget=30, stall_steps=15, correction_steps=100)
    """When the expert of `corrected` takes over, and how often in all; long enough to finish the task."""
    actor_mode: str = "mode"
    """How the actor acts: mode or sample."""
    objective: str = "cross_fitted"
    """Of every run."""
    value_updates_per_update: int = 0
    """Value updates before each policy update of an arm (0: the values of the start go on labelling). With 1 they
    memorised 40 episodes: rank correlation held out .25 to .05 over 1,125 updates."""
    relabel_interval: int = 0
    """Policy updates between two labellings by values that go on learning."""
    share: float = 0.5
    """Of every batch, from the actor's episodes."""
    start_episodes: int = 5
    """Of the actor before any is trained on."""
    num_eval: int = 100
    """Initial states."""
    eval_seed: int = 20261122
    """Determines them."""
    horizon: int = 5
    """H, executed whole."""
    batch_size: int = 256
    max_steps: int = 150
    """Time limit of an episode."""
    num_workers: int = 1
    """Seeds that run at a time; an online one is two to three processes."""

    @property
    def interval(self) -> int:
        """Updates between two evaluations."""
        return round(self.num_steps * self.updates_per_step / self.num_points)

    @property
    def updates(self) -> int:
        """Policy updates of an arm."""
        return self.interval * self.num_points

    @property
    def goes_on(self) -> list[str]:
        """Of an arm: it begins with the start's policy and values."""
        if not METHODS[self.objective].reads_setting("value_updates"):
            return []
        return [
            "--value-updates=0",
            f"--value-updates-per-update={self.value_updates_per_update}",
            f"--relabel-interval={self.relabel_interval}",
        ]

    def train_flags(self, seed: int, root: Path) -> list[str]:
        """What every run of a seed has in common."""
        return [
            *(f"--dataset-dir={root / 'data'}", f"--action-horizon={self.horizon}", "--action-dim=4"),
            *(f"--batch-size={self.batch_size}", f"--seed={seed}", "--device=cpu", "--log-interval=100"),
            f"--objective={self.objective}",
        ]


def chunkrl(log: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """A command in a process of its own; what it says goes to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "chunkrl.cli", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )


def run(log: Path, *arguments: object) -> None:
    """The same, to its end. Raises RuntimeError where it fails."""
    process = chunkrl(log, *arguments)
    try:
        code = process.wait()
    finally:
        process.kill()
    if code:
        raise RuntimeError(f"chunkrl {arguments[0]} ended with status {code}: see {log}")


def fresh(folder: Path) -> Path:
    """`folder`, new; what a cut-off run left there is kept under another name."""
    if folder.exists():
        number = sum(1 for _ in folder.parent.glob(f"{folder.name}.cut-*"))
        folder.rename(folder.with_name(f"{folder.name}.cut-{number}"))
    folder.mkdir(parents=True)
    return folder


class SeedRun:
    """Everything of one training seed, in `root`."""

    def __init__(self, config: CurvesConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self.root = Path(config.output_dir) / f"{config.env}-{config.mixture}-seed{seed}"
        self.root.mkdir(parents=True, exist_ok=True)

    def run(self, say: Callable[[str], None]) -> None:
        """What is not done yet."""
        self._step("data", self._collect, say)
        self._step("start", self._train_start, say)
        for arm in self._config.arms:
            self._step(arm, partial(self._arm, arm), say)

    def points(self, arm: str) -> list[dict[str, Any]]:
        """The evaluations of an arm, by updates."""
        files = (self.root / "points").glob(f"{arm}-*.json")
        return sorted((json.loads(path.read_text()) for path in files), key=lambda point: point["update"])

    def facts(self) -> dict[str, Any]:
        """What is known of each part that is done."""
        return {path.stem: json.loads(path.read_text()) for path in sorted(self.root.glob("*.done"))}

    def _step(self, name: str, work: Callable[[Path], dict[str, Any]], say: Callable[[str], None]) -> None:
        done = self.root / f"{name}.done"
        if done.exists():
            return
        began = time.time()
        facts = work(fresh(self.root / name))
        facts["wall_s"] = round(time.time() - began, 1)
        write_text(done, json.dumps(facts, indent=1) + "\n")
        say(f"seed {self._seed}: {name} done in {facts['wall_s']:.0f} s")

    def _collect(self, folder: Path) -> dict[str, Any]:
        config = self._config
        folder.rmdir()
        run(
            self.root / "data.log",
            *("collect", f"--env={config.env}", f"--mixture.mixture={config.mixture}"),
            *(f"--num-episodes={config.num_collect}", f"--max-steps={config.max_steps}"),
            *(f"--seed={config.data_seed + self._seed}", "--num-workers=1", f"--output-dir={folder}"),
        )
        return {"said": (self.root / "data.log").read_text().strip().splitlines()[-1]}

    def _train_start(self, folder: Path) -> dict[str, Any]:
        flags = self._config.train_flags(self._seed, self.root)
        run(
            self.root / "start.log",
            "train",
            *flags,
            f"--output-dir={folder}",
            f"--num-updates={self._config.offline_updates}",
        )
        return {}

    def _arm(self, arm: str, folder: Path) -> dict[str, Any]:
        return self._offline(folder) if arm == "offline" else self._online(arm, folder)

    def _offline(self, folder: Path) -> dict[str, Any]:
        """In stages, each the last one's resumption, with an evaluation after each."""
        config = self._config
        self._evaluate("offline", self.root / "start" / "policy", 0)
        common = (*config.train_flags(self._seed, self.root), *config.goes_on, f"--output-dir={folder}")
        common += (f"--init={self.root / 'start'}",)
        for update in range(config.interval, config.updates + 1, config.interval):
            further = () if update == config.interval else (f"--resume={folder}",)
            run(self.root / "offline.log", "train", *common, *further, f"--num-updates={update}")
            self._evaluate("offline", folder / "policy", update)
        return {}

    def _evaluate(self, arm: str, policy: Path, update: int) -> None:
        config, folder = self._config, self.root / f"evaluation-{arm}-{update}"
        run(
            self.root / f"{arm}.log",
            *("evaluate", f"--policy={policy}", f"--env={config.env}", f"--num-episodes={config.num_eval}"),
            *(
                f"--seed={config.eval_seed}",
                f"--max-steps={config.max_steps}",
                "--num-workers=0",
                "--mode=mode",
            ),
            *(f"--output-dir={folder}", "--device=cpu"),
        )
        self._keep(arm, update, 0, folder)

    def _keep(self, arm: str, update: int, num_steps: int, folder: Path) -> None:
        """A point of the curve, from an evaluation's result."""
        result = json.loads((folder / "result.json").read_text())
        episodes = result["tasks"][self._config.env]["episodes"]
        point = {
            **{"arm": arm, "seed": self._seed, "update": update, "num_steps": num_steps},
            **{"success": result["success"], "interval": result["interval"]},
            "solved": [bool(episode["success"]) for episode in episodes],
        }
        write_text(self.root / "points" / f"{arm}-{update:06d}.json", json.dumps(point) + "\n")

    def _online(self, arm: str, folder: Path) -> dict[str, Any]:
        config = self._config
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        log = self.root / f"{arm}.log"
        learner = chunkrl(
            log,
            *("learner", *config.train_flags(self._seed, self.root), *config.goes_on),
            *(f"--output-dir={folder / 'learner'}", f"--init={self.root / 'start'}"),
            *(f"--num-updates={config.updates}", f"--listen.address={address}", "--no-live"),
            *(f"--online.updates-per-step={config.updates_per_step}", f"--online.share={config.share}"),
            *(f"--online.start-episodes={config.start_episodes}", "--online.look-updates=1"),
            *(f"--evaluation.env={config.env}", f"--evaluation.every-updates={config.interval}"),
            *(f"--evaluation.num-episodes={config.num_eval}", f"--evaluation.seed={config.eval_seed}"),
            f"--evaluation.max-steps={config.max_steps}",
        )
        rule = (
            f"--correction.{key.replace('_', '-')}={value}"
            for key, value in asdict(config.correction).items()
        )
        corrected = ("--corrector=scripted", *rule)
        actor = chunkrl(
            self.root / f"{arm}-actor.log",
            *("actor", f"--policy={self.root / 'start' / 'policy'}", f"--env={config.env}"),
            *(f"--output-dir={folder / 'actor'}", f"--connect.address={address}", "--max-ahead-steps=0"),
            *("--swap-at=episode", f"--max-steps={config.max_steps}", f"--seed={1000 + self._seed}"),
            *("--no-live", "--finish-s=5", "--device=cpu", f"--mode={config.actor_mode}"),
            *(corrected if arm == "corrected" else ()),
        )
        try:
            while learner.poll() is None:
                if actor.poll() is not None:
                    raise RuntimeError(f"the actor ended before the learner: see {self.root}/{arm}-actor.log")
                time.sleep(0.5)
            if learner.returncode:
                raise RuntimeError(f"the learner ended with status {learner.returncode}: see {log}")
            actor.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                actor.wait(60)
        finally:
            for process in (learner, actor):
                process.kill()
                process.wait()
        for line in read_results(folder / "learner"):
            evaluation = folder / "learner" / FOLDER / line["name"] / "result"
            self._keep(arm, line["update"], line["num_steps"], evaluation)
        said = (self.root / f"{arm}-actor.log").read_text().splitlines()
        summary = next((line for line in reversed(said) if " episodes, " in line), "")
        shutil.rmtree(folder / "learner" / "cache", ignore_errors=True)
        return {"actor": summary}


def summarize(config: CurvesConfig, runs: Sequence[SeedRun]) -> str:
    """Writes the summary and returns it as Markdown."""
    curves = [curve for arm in config.arms if (curve := _curve(config, arm, runs)) is not None]
    results = Path(config.results)
    record = {
        "config": asdict(config),
        "machine": {"python": platform.python_version(), "cores": os.cpu_count()},
        "points": [point for run in runs for arm in config.arms for point in run.points(arm)],
        "facts": {run.root.name: run.facts() for run in runs},
    }
    write_text(results.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    if curves:
        title = f"{config.env}: success on {config.num_eval} initial states, {len(runs)} seeds"
        write_text(results.with_suffix(".svg"), picture(curves, title))
    return table(curves) if curves else "no arm is done"


def _curve(config: CurvesConfig, arm: str, runs: Sequence[SeedRun]) -> SuccessCurve | None:
    """None where the arm is not done for all seeds."""
    if not all((run.root / f"{arm}.done").exists() for run in runs):
        return None
    points = [run.points(arm) for run in runs]
    updates = [point["update"] for point in points[0]]
    if any([point["update"] for point in seed] != updates for seed in points):
        raise RuntimeError(f"{arm}: the seeds were evaluated after different updates: {points}")
    success = [np.array([seed[i]["solved"] for seed in points]) for i in range(len(updates))]
    return SuccessCurve(_NAMES[arm], [round(u / config.updates_per_step) for u in updates], success)


def main(config: CurvesConfig) -> None:
    """Runs what is not done and prints the table."""
    free = ("output_dir", "results", "seeds", "arms", "num_workers")  # of a call; what is kept has the others
    used = {name: value for name, value in asdict(config).items() if name not in free}
    check_settings(Path(config.output_dir), used, "*/*.done")
    runs = [SeedRun(config, seed) for seed in config.seeds]
    say = partial(print, flush=True)
    with ThreadPoolExecutor(config.num_workers) as pool:
        for done in [pool.submit(run.run, say) for run in runs]:
            done.result()
    print(summarize(config, runs))


if __name__ == "__main__":
    main(tyro.cli(CurvesConfig))
