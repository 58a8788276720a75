"""What the commands make of a damaged run: report, resume, train on its values, act with its policy; and compare."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkrl import ChunkLevelOfflineRL, __version__
from chunkrl.evaluation.evaluation_result import read_evaluation
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.report.load_run import load_run
from chunkrl.report.run import render_run
from chunkrl.run.policy_io import load_policy
from chunkrl.training.metrics import MEASURED
from chunkrl.types import Observation

from .damage import state_of
from .outcomes import Found, Outcome, difference, names_a_file, probe
from .run_folders import NUM_UPDATES, run_config
from .well_formed import only_other_values

Probes = Mapping[str, Callable[[Path, Path], Any]]
FREE_TEXT = (
    "project",
    "policy",
    "fingerprint",
    "output_dir",
    "pi0_checkpoints_dir",
    "state",
    "device",
    "opengl",
)
CHECKED = ("checkpoints", "policy", "values.parquet")  # in a run: what a manifest covers
VERSIONS = {"chunkrl": __version__, "torch": torch.__version__, "numpy": np.__version__}
"""What stands in versions.json, and for the page's word that none are recorded."""
READERS = {
    "checkpoints": ("resume",),
    "policy": ("policy",),
    "values.parquet": ("report", "values"),
    "metrics.jsonl": ("report",),
    "versions.json": ("report",),
    "trained_on.json": (),  # the verdict does
}
"""Of the entries of a run: the probes that read them; every probe reads what is not named here."""


def report(root: Path, scratch: Path) -> dict[str, Any]:
    """What the page is made of, and that it can be made."""
    run = load_run(root)
    render_run(run).encode()
    return {
        "config": asdict(run.config),
        "versions": VERSIONS if "versions" in run.versions else dict(run.versions),
        "records": [r.to_json() for r in run.records],
        "labels": [dict(part.labels) for part in run.data],
        "rules": [dict(part.rule) for part in run.data],
    }


def _trained(run: ChunkLevelOfflineRL) -> dict[str, Any]:
    run.train()
    assert run.trainer is not None
    records = [
        (r.update, r.phase, {k: v for k, v in r.scalars.items() if not k.startswith(MEASURED)})
        for r in run.trainer.records
    ]
    labels = {name: torch.from_numpy(values) for name, values in run.algorithm.labels.items()}
    return {"policy": run.policy.state_dict(), "records": records, "labels": labels}


def resume(name: str, truth: Path, root: Path, scratch: Path) -> dict[str, Any]:
    """The policy after two updates more; values, which end with their phase, as they are."""
    config = run_config(name, truth, scratch / "resumed", resume=str(root), num_updates=NUM_UPDATES + 2)
    return _trained(ChunkLevelOfflineRL(config))


def values(truth: Path, root: Path, scratch: Path) -> dict[str, Any]:
    """A policy of two updates by the run's values."""
    config = run_config(
        "value", truth, scratch / "valued", objective="cross_fitted", num_updates=2, values=str(root)
    )
    return _trained(ChunkLevelOfflineRL(config))


def policy(root: Path, scratch: Path) -> torch.Tensor:
    """Chunks of the run's policy, chosen by Q where it has one."""
    found = load_policy(root / "policy")
    assert isinstance(found, ChunkPolicy)
    state = torch.linspace(-1, 1, 5 * found.state_dim).reshape(5, -1)
    generators = [torch.Generator().manual_seed(i) for i in range(5)]
    mode = "mode" if found.q is None else "best_of_n"
    return found.act(Observation({}, state, ("push",) * 5), generators, mode, 4)


def run_probes(name: str, truth: Path) -> Probes:
    """Of the run of this name. truth: the undamaged one, beside its data."""
    probes: dict[str, Callable[[Path, Path], Any]] = {
        "report": report,
        "resume": partial(resume, name, truth),
    }
    if name == "value":
        return probes | {"values": partial(values, truth)}
    if name == "iql":  # nobody else may use its values
        return probes | {"policy": policy}
    return probes | {"policy": policy, "values": partial(values, truth)}


def evaluation_probes(name: str, truth: Path) -> Probes:
    """Of an evaluation."""
    return {"compare": lambda root, scratch: asdict(read_evaluation(root))}


def truth_of(probes: Callable[[str, Path], Probes], name: str, root: Path, scratch: Path) -> dict[str, Any]:
    """What a whole folder gives."""
    found = {}
    for key, function in probes(name, root).items():
        found[key] = function(root, _fresh(scratch / "probe"))
    return {"name": name, "root": root, "found": found}


def judge_by(
    probes: Callable[[str, Path], Probes],
    covered: Callable[[Path], bool],
    root: Path,
    whole: dict[str, Any],
    scratch: Path,
) -> Found:
    """What becomes of a damaged copy: the worst of all probes. covered: see `well_formed.only_other_values`."""
    refused, differs = "", ""
    functions = probes(whole["name"], whole["root"])
    readers = {
        reader for name in _differing(root, whole["root"]) for reader in READERS.get(name, tuple(functions))
    }
    for key, function in functions.items():
        if key not in readers:
            continue
        found = probe(partial(function, root, _fresh(scratch / "probe")))
        if found.error is not None:
            if not names_a_file(found.error, root):
                return Found(Outcome.UNCLEAR, f"{key}: {found.error}")
            refused = refused or f"{key}: {found.error}"
        elif other := difference(found.value, whole["found"][key]):
            differs = differs or f"{key}: {other}"
    if differs:
        why = only_other_values(root, whole["root"], covered, FREE_TEXT)
        return Found(Outcome.SILENT, f"{differs}; {why}") if why else Found(Outcome.UNDETECTABLE, differs)
    return Found(Outcome.REFUSED, refused) if refused else Found(Outcome.RIGHT)


def _differing(root: Path, truth: Path) -> set[str]:
    """Entries of two folders that are not the same."""
    one, other = (state_of(folder) for folder in (root, truth))
    return {Path(name).parts[0] for name in {*one, *other} if one.get(name) != other.get(name)}


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def in_a_manifest(file: Path) -> bool:
    """Whether a run notes a checksum of this file."""
    return file.parts[0] in CHECKED
