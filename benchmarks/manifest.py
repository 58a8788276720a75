"""What verifying a policy's manifest costs beside reading the policy.

    python -m benchmarks.manifest [--folder FOLDER] [--width 512]

Writes a pi0.5 policy of random bfloat16 weights (with `--width` of the language model; the published one has 2048)
and measures, median of three turns: reading its files from the disk and from memory, verifying the manifest (one
process, all cores), and `load_pretrained`, which verifies and reads. Before a turn from the disk the files leave the
page cache. Of a policy that exists give `--policy`; it is only read.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import tyro

from chunkrl.manifest import read_manifest, verify
from chunkrl.models.pi import (
    PiConfig,
    PiModel,
    PiPolicy,
    PiRecipe,
    PiSettings,
    VisionConfig,
    load_pretrained,
    save_pretrained,
)
from chunkrl.models.pi import checkpoint as pi_checkpoint
from chunkrl.models.pi.norm_stats import NormStats

TURNS = 3


@dataclass(frozen=True)
class Config:
    """Sizes, and where the policy lies."""

    folder: str | None = None
    """Folder for the policy that is written; default: a temporary one."""
    width: int = 512
    """Of its language model."""
    policy: str | None = None
    """A pi policy that exists, in place of one that is written."""


def write_policy(folder: Path, width: int) -> Path:
    """A pi0.5 of random weights, bfloat16."""
    vision = VisionConfig(depth=9)
    config = PiConfig(vision=vision, prefix_width=width, prefix_mlp_width=8 * width, depth=6, horizon=10)
    settings = PiSettings("pi05_no_state", ("image",), 8, 7, "quantiles")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = PiModel(config)
    finally:
        torch.set_default_dtype(dtype)
    state, action = ({"q01": -torch.ones(8).double(), "q99": torch.ones(8).double()} for _ in range(2))
    policy = PiPolicy(model, PiRecipe(config, settings), NormStats(state, action), None, {})
    return save_pretrained(policy, folder / "policy", overwrite=True)


def forget(files: list[Path]) -> None:
    """Out of the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(files: list[Path]) -> None:
    """All bytes, a megabyte at a time, by one thread."""
    buffer = bytearray(1 << 20)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def seconds(act: Callable[[], object], before: Callable[[], object]) -> float:
    """Median of the turns."""
    times = []
    for _ in range(TURNS):
        before()
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(policy: Path) -> None:
    """Prints Markdown."""
    manifest = read_manifest(policy)
    assert manifest is not None, f"{policy} has no manifest"
    files = [policy / name for name in manifest.files]
    size = sum(sums.size for sums in manifest.files.values()) / 1e9
    unverified = mock.patch.object(pi_checkpoint, "verify")
    rows = [
        ("read the files", lambda: read(files), nullcontext()),
        ("verify the manifest", lambda: verify(policy, marked=True), nullcontext()),
        ("load_pretrained, not verified", lambda: load_pretrained(policy), unverified),
        ("load_pretrained", lambda: load_pretrained(policy), nullcontext()),
    ]
    found: dict[str, tuple[float, float]] = {}
    for name, act, context in rows:
        with context:
            found[name] = seconds(act, lambda: forget(files)), seconds(act, lambda: read(files))
    plain = found["load_pretrained, not verified"]
    print(f"{size:.2f} GB in {len(files)} files, {os.cpu_count()} cores\n")
    print("| | s, from the disk | s, from memory | of loading, from the disk | from memory |")
    print("|---|---:|---:|---:|---:|")
    for name, (cold, warm) in found.items():
        print(f"| {name} | {cold:.2f} | {warm:.2f} | {cold / plain[0]:.2f} | {warm / plain[1]:.2f} |")


def main(config: Config) -> None:
    """Measures a policy that exists, or one that is written and deleted."""
    if config.policy is not None:
        measure(Path(config.policy))
        return
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        measure(write_policy(Path(folder), config.width))


if __name__ == "__main__":
    main(tyro.cli(Config))
