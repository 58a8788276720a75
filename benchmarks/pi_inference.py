"""Latency of one action chunk from pi0.5 (or pi0), from images on the device to actions on the device.

    python -m benchmarks.pi_inference                    # real size, random weights; a GPU with 24 GB
    python -m benchmarks.pi_inference --size tiny        # in seconds on a CPU: shows that the code runs, no more

Two cameras, a full prompt (200 tokens for pi0.5), 50 actions, 10 Euler steps, batch 1, bfloat16 on a GPU. Each call
encodes the prefix and integrates; it ends when the device is done. `compiled` is torch.compile in one graph, replayed
as a CUDA graph on a GPU. The floor on an H200 is 6 ms, of them 4 for the prefix (docs/pi0.md). Writes JSON.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from chunkrl.files.atomic import write_text
from chunkrl.models.pi import PiConfig, PiModel, VisionConfig
from chunkrl.models.pi.config import ModelKind, pi0_config, pi05_config
from chunkrl.models.pi.flow import PrefixInputs, euler_times
from chunkrl.run.build import choose_device

CAMERAS = ("base", "wrist")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    kind: ModelKind = "pi05"
    size: Literal["real", "tiny"] = "real"
    num_samples: int = 1
    """Chunks a call; one prefix serves them."""
    num_steps: int = 10
    num_calls: int = 100
    """Timed calls, after the warm-up."""
    num_warmup: int = 5
    device: str = "auto"
    output: str | None = None
    """JSON file, e.g. benchmarks/results/pi_inference.json."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call, and peak memory of the device in GB (0 on a CPU).

    difference: largest difference of the actions from the eager model's.
    """

    p50: float
    p90: float
    minimum: float
    peak_memory: float
    difference: float


def tiny_config(kind: ModelKind) -> PiConfig:
    """A model of 100 thousand parameters."""
    vision = VisionConfig(image_size=28, patch_size=14, width=32, depth=2, mlp_width=64, num_heads=2)
    return PiConfig(
        kind=kind,
        vision=vision,
        vocab_size=256,
        prefix_width=32,
        prefix_mlp_width=64,
        expert_width=32,
        expert_mlp_width=64,
        depth=2,
        num_heads=2,
        head_dim=16,
        max_prompt_tokens=16,
    )


def random_model(config: PiConfig, device: torch.device, dtype: torch.dtype) -> PiModel:
    """Weights of the size that initialisation gives, made on the device one at a time."""
    with torch.device("meta"):
        model = PiModel(config)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        scale = 0.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        value = torch.randn(parameter.shape, generator=generator, device=device, dtype=dtype) * scale
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return model.eval()


def random_inputs(config: PiConfig, device: torch.device) -> PrefixInputs:
    """Both cameras there and every prompt token used: nothing to leave out."""
    generator = torch.Generator().manual_seed(1)
    side, length = config.vision.image_size, config.max_prompt_tokens
    images = {name: torch.rand(1, 3, side, side, generator=generator) * 2 - 1 for name in CAMERAS}
    return PrefixInputs(
        images=images,
        image_masks={name: torch.ones(1, dtype=torch.bool) for name in CAMERAS},
        tokens=torch.randint(3, config.vocab_size, (1, length), generator=generator),
        token_mask=torch.ones(1, length, dtype=torch.bool),
        state=torch.zeros(1, config.action_dim) if config.kind == "pi0" else None,
        dense=True,
    ).to(device)


@torch.no_grad()
def measure(
    act: Callable[[], Tensor], config: BenchmarkConfig, device: torch.device, expected: Tensor
) -> Latency:
    """Times `act`, warmed up."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    actions = act().clone()
    for _ in range(config.num_warmup):
        actions = act().clone()
    milliseconds = []
    for _ in range(config.num_calls):
        if is_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        act()
        if is_gpu:
            torch.cuda.synchronize()
        milliseconds.append(1e3 * (time.perf_counter() - begin))
    return Latency(
        p50=float(np.percentile(milliseconds, 50)),
        p90=float(np.percentile(milliseconds, 90)),
        minimum=min(milliseconds),
        peak_memory=torch.cuda.max_memory_allocated() / 1e9 if is_gpu else 0.0,
        difference=float((actions - expected).abs().max()),
    )


@torch.no_grad()
def run(config: BenchmarkConfig) -> dict[str, Latency]:
    """Eager and compiled, on the same weights and inputs."""
    device = choose_device(config.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = tiny_config(config.kind)
    if config.size == "real":
        sizes = pi05_config() if config.kind == "pi05" else pi0_config()
    model, inputs = random_model(sizes, device, dtype), random_inputs(sizes, device)
    generator = torch.Generator().manual_seed(2)
    shape = (1, config.num_samples, sizes.horizon, sizes.action_dim)
    noise = torch.randn(shape, generator=generator).to(device)
    times = euler_times(config.num_steps, device)

    def act() -> Tensor:
        return model.sample(model.encode_prefix(inputs), noise, times)

    expected = act().clone()
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return {
        "eager": measure(act, config, device, expected),
        "compiled": measure(torch.compile(act, fullgraph=True, mode=mode), config, device, expected),
    }


def main(config: BenchmarkConfig) -> None:
    """Prints the table and writes the JSON."""
    found = run(config)
    is_gpu = choose_device(config.device).type == "cuda"
    machine = torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine()
    print(
        f"{config.kind}, {config.size} size, {config.num_samples} chunk(s), {machine}, PyTorch {torch.__version__}\n"
    )
    print("| | p50 ms | p90 ms | minimum ms | peak memory GB | difference from eager |")
    print("|---|---|---|---|---|---|")
    for name, latency in found.items():
        print(
            f"| {name} | {latency.p50:.2f} | {latency.p90:.2f} | {latency.minimum:.2f} | {latency.peak_memory:.2f} | "
            f"{latency.difference:.1e} |"
        )
    if config.output:
        record = {
            "config": asdict(config),
            "machine": machine,
            "torch": torch.__version__,
            "latency": {name: asdict(latency) for name, latency in found.items()},
        }
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        write_text(config.output, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
