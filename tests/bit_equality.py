"""What every objective makes of every kind of policy, as digests: equal to the bit before and after a refactor.

    PYTHONPATH=tests:. python -m bit_equality    # writes this machine's digests into tests/bit_equality.json

Another processor or build of torch rounds differently, so that each has digests of its own; a machine that has none
skips the test. Record before a refactor, on the code as it was; `pytest tests/test_bit_equality.py` after each move.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from chunk_data import episode, settings, write_dataset
from pi_runs import config, write_checkpoints, write_root

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.config import BalanceConfig
from chunkrl.files.atomic import write_text
from chunkrl.models.policy import PolicyConfig
from chunkrl.run.config import Objective, TrainConfig

RECORDED = Path(__file__).with_name("bit_equality.json")
KINDS = ("gaussian", "flow", "pi0", "pi05")
ONLY_PI = ("advantage_conditioned", "shuffled_conditioning")
ONLY_GAUSSIAN = ("document",)
UNSTEADY = ("speed/", "memory/")
"""Metrics that the machine decides."""


def combinations() -> Iterator[tuple[str, str]]:
    """(objective, kind of policy), all that exist."""
    for objective in get_args(Objective):
        for kind in KINDS:
            is_pi = kind.startswith("pi")
            if (objective in ONLY_PI and not is_pi) or (objective in ONLY_GAUSSIAN and kind != "gaussian"):
                continue
            yield objective, kind


def machine() -> str:
    """What rounding depends on."""
    info = Path("/proc/cpuinfo")
    names = (
        {n.split(":")[1].strip() for n in info.read_text().splitlines() if n.startswith("model name")}
        if (info.exists())
        else set()
    )
    return ", ".join(
        [
            *(sorted(names) or [platform.machine()]),
            torch.backends.cpu.get_cpu_capability(),
            f"torch {torch.__version__}",
            f"numpy {np.__version__}",
        ]
    )


def folders(scratch: Path) -> dict[str, Path]:
    """The data sets, and the tiny checkpoints."""
    rng = np.random.default_rng(0)
    episodes = [
        episode(int(rng.integers(5, 12)), i % 4 < 2, rng) for i in range(8)
    ]  # both tasks end both ways
    return {
        "small": write_dataset(scratch / "small", episodes, ("push", "pull")),
        "pi": write_root(scratch / "pi"),
        "checkpoints": write_checkpoints(scratch / "checkpoints"),
    }


def digest(objective: str, kind: str, data: dict[str, Path], output: Path) -> str:
    """Of the metrics and the policy's tensors after a few updates."""
    torch.set_num_threads(1)
    run = ChunkLevelOfflineRL(_config(objective, kind, data, output))
    actor = run.train()
    found = hashlib.sha256()
    for line in (output / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        scalars = {k: v for k, v in record["scalars"].items() if not k.startswith(UNSTEADY)}
        found.update(json.dumps([record["phase"], record["update"], scalars], sort_keys=True).encode())
    policy: Any = getattr(actor, "policy", actor)
    # in the order of their contents: a move may rename them
    tensors = [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in _tensors(policy)]
    for part in sorted(hashlib.sha256(t).digest() for t in tensors):
        found.update(part)
    assert tensors
    return found.hexdigest()[:16]


def _tensors(policy: Any) -> list[torch.Tensor]:
    module = getattr(policy, "model", policy)
    return [t if t.ndim else t[None] for t in module.state_dict().values()]


def _config(objective: str, kind: str, data: dict[str, Path], output: Path) -> TrainConfig:
    """With the defaults of when the digests were recorded."""
    made = _default_config(objective, kind, data, output)
    if made.method.weighs:
        made = replace(made, balance=BalanceConfig(failures="together"))
    then = replace(made, fit=replace(made.fit, advantage_scale=3.0))
    return made if then.unread() else then


def _default_config(objective: str, kind: str, data: dict[str, Path], output: Path) -> TrainConfig:
    if kind.startswith("pi"):
        return config(data["pi"], data["checkpoints"], output, objective, pi0_config=kind)
    policy = PolicyConfig(kind=kind)  # type: ignore[arg-type]
    changes = {"objective": objective, "policy": policy, "log_interval": 1}
    return TrainConfig(**settings(data["small"], output, **changes))


def main() -> None:
    """Records this machine's digests."""
    with tempfile.TemporaryDirectory() as scratch:
        data = folders(Path(scratch))
        own = {
            f"{objective} {kind}": digest(objective, kind, data, Path(scratch) / f"{objective}-{kind}")
            for objective, kind in combinations()
        }
    known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    write_text(RECORDED, json.dumps(known | {machine(): own}, indent=1) + "\n")


if __name__ == "__main__":
    main()
