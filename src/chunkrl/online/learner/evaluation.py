"""Evaluation alongside training: a process of its own for each snapshot of the policy, one after the other.

A snapshot waits on the disk until it is its turn, so none is left out or fills the memory, and those that a killed
learner left are evaluated by the next one. `results.jsonl` has a line for each that is done.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from chunkrl.config import record_of
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.evaluation_result import RESULT_FILE
from chunkrl.evaluation.speed import point_json
from chunkrl.files.atomic import replace_file, write_text
from chunkrl.files.json_files import json_lines, read_json
from chunkrl.online.learner.config import OnlineEvaluation

_LOG = logging.getLogger(__name__)
FOLDER, RESULTS = "evaluations", "results.jsonl"
_SPEED = tuple(point_json(None))  # names of results files
PARAMETERS_FILE, JOB_FILE, _LOG_FILE = "parameters.safetensors", "job.json", "log.txt"
PROGRAM = "chunkrl.report.beside_learner"  # by name: pages stand above the learner


class Evaluations:
    """Starts evaluations when they are due.

    run_dir: gets `evaluations/`. base: folder of a policy with the same frozen parameters, settings and statistics.
    device: of the evaluated policy.

    Attributes:
        last: the success rate of the newest one that is done, also by an earlier start; None before.
    """

    def __init__(self, config: OnlineEvaluation, run_dir: Path, base: Path, device: str) -> None:
        self._config, self._folder, self._base, self._device = config, run_dir / FOLDER, base, device
        self._done = {line["name"]: line for line in read_results(run_dir)}
        self.last: float | None = self._done[max(self._done)]["success"] if self._done else None
        self._snapshots: queue.Queue[tuple[Path, Mapping[str, Tensor]] | None] = queue.Queue()
        self._jobs: queue.Queue[Path | None] = queue.Queue()
        self._fresh: list[dict[str, Any]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._starting, self._stopped = threading.Lock(), False
        self._begun = {path.name for path in self._folder.glob("[0-9]*-[0-9]*")}
        for name in sorted(self._begun - self._done.keys()):
            if (self._folder / name / PARAMETERS_FILE).is_file():
                self._jobs.put(self._folder / name)
        self._keeper = threading.Thread(target=self._keep_all, daemon=True, name="evaluation-snapshots")
        self._thread = threading.Thread(target=self._run, daemon=True, name="evaluations")
        self._keeper.start()
        self._thread.start()

    def is_due(self, update: int, num_steps: int) -> bool:
        """Whether the policy of policy update `update`, which accounts for `num_steps` of actors, is to be evaluated;
        the first one always is."""
        config = self._config
        if not config.env:
            return False
        if not self._begun:
            return True
        last = max(self._begun)
        steps, updates = (int(part) for part in last.split("-"))
        if config.every_updates:
            return update // config.every_updates > updates // config.every_updates
        return num_steps // config.every_steps > steps // config.every_steps

    def begin(self, update: int, num_steps: int, parameters: Mapping[str, Tensor]) -> None:
        """Evaluates the base policy with these parameters, float32 on the CPU, when it is their turn."""
        name = f"{num_steps:09d}-{update:08d}"
        self._begun.add(name)
        self._snapshots.put((self._folder / name, parameters))

    def metrics(self) -> dict[str, float]:
        """The metrics of evaluations that ended since the last call; of several, of the newest."""
        found: dict[str, float] = {}
        while self._fresh:
            line = self._fresh.pop(0)
            self.last = line["success"]
            found = {
                "online/evaluation_success": line["success"],
                "online/evaluation_update": line["update"],
                "online/evaluation_steps": line["num_steps"],
            }
            speed = {f"online/evaluation_{name}": line.get(name) for name in _SPEED}
            found |= {name: value for name, value in speed.items() if value is not None}
        return found

    @property
    def num_waiting(self) -> int:
        """Snapshots that are not evaluated yet."""
        return len(self._begun - self._done.keys())

    def close(self, finish: bool) -> None:
        """finish: waits for those that wait; else they are left to the next start."""
        self._snapshots.put(None)
        self._keeper.join()
        if not finish:
            with self._starting:
                self._stopped = True
                if self._process is not None:
                    self._process.terminate()
        self._jobs.put(None)
        self._thread.join()

    def _keep_all(self) -> None:
        while (snapshot := self._snapshots.get()) is not None:
            folder, parameters = snapshot
            try:
                _keep(folder, parameters)
            except Exception as error:  # training goes on without
                _LOG.error("no evaluation in %s: %s", folder, error)
            else:
                self._jobs.put(folder)

    def _run(self) -> None:
        while (folder := self._jobs.get()) is not None:
            try:
                self._evaluate(folder)
            except Exception as error:  # training goes on without
                _LOG.error("no evaluation in %s: %s", folder, error)

    def _evaluate(self, folder: Path) -> None:
        settings = {"base": str(self._base), "device": self._device, "evaluation": vars(self._config)}
        write_text(folder / JOB_FILE, json.dumps(settings, indent=1) + "\n")
        command = [sys.executable, "-m", PROGRAM, "evaluation", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with (folder / _LOG_FILE).open("ab") as log:
            with self._starting:
                if self._stopped:
                    return
                self._process = process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
            code = process.wait()
            assert process.stdin is not None
            process.stdin.close()
            self._process = None
        if self._stopped:
            return
        if code:
            _LOG.error("the evaluation in %s ended with status %d: see %s there", folder, code, _LOG_FILE)
            return
        result = read_json(folder / "result" / RESULT_FILE, dict, ChunkRLError, "evaluate the snapshot again")
        steps, update = (int(part) for part in folder.name.split("-"))
        line = {"name": folder.name, "num_steps": steps, "update": update, "success": result["success"]}
        line |= {name: result[name] for name in ("interval", "num_episodes")}
        line |= {name: result.get(name) for name in _SPEED}
        _cut_torn_line(self._folder / RESULTS)
        with (self._folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        (folder / PARAMETERS_FILE).unlink()
        shutil.rmtree(folder / "policy")  # as large as the whole network
        self._done[folder.name] = line
        self._fresh.append(line)


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluations of a learner's run: name, num_steps (of actors), update (of the policy), success, interval,
    num_episodes, and median_steps_to_success and successes_per_1000_steps, which lines of before lack; a last
    line that a kill cut off is left out."""
    path = run_dir / FOLDER / RESULTS
    if not path.exists():
        return []
    cure = "delete the line: its snapshot is evaluated again where it is still there"
    lines = list(json_lines(path, ChunkRLError, cure, cut_end=True))
    for where, line in lines:
        record_of(_Line, line, where, ChunkRLError, cure)
    return [line for _, line in lines]


@dataclass(frozen=True)
class _Line:
    """A line of `results.jsonl`: what `read_results` gives, as a dict."""

    name: str
    num_steps: int
    update: int
    success: float
    interval: tuple[float, float]
    num_episodes: int
    median_steps_to_success: float | None = None
    successes_per_1000_steps: float | None = None


@dataclass(frozen=True)
class SnapshotJob:
    """What the process of its own is told: a policy's folder, a device, and how to evaluate."""

    base: str
    device: str
    evaluation: OnlineEvaluation


def _cut_torn_line(path: Path) -> None:
    """A kill may have cut off the last line: what is appended must not continue it."""
    if path.is_file() and not (found := path.read_bytes()).endswith(b"\n") and found:
        os.truncate(path, found.rfind(b"\n") + 1)


def _keep(folder: Path, parameters: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / PARAMETERS_FILE) as temporary:
        save_file(dict(parameters), temporary)
