"""Speed and memory of training pi0.5: samples per second, peak memory, share of the device's matrix throughput.

    python -m benchmarks.pi_training                                  # real size, random weights; a GPU with 80 GB
    python -m benchmarks.pi_training --train expert lora value --batch-size 8      # what fits smaller ones
    python -m benchmarks.pi_training --size tiny --num-updates 3      # seconds on a CPU: shows that the code runs

Two cameras, a full prompt, 50 actions. An update is forward, backward, clipping and AdamW with fp32 masters under
bfloat16 autocast, several noise samples a prefix pass, as the trainer does it; reading data is not part of it.
`value` trains the critic alone on the frozen policy's features, which is a phase of its own in training. FLOP are
counted by PyTorch on one update (recomputation counts as work done), the limit is a large matrix product timed in the
same run.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pi_inference import CAMERAS, random_inputs, random_model, tiny_config
from chunkrl.files.atomic import write_text
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.integration.pi_training import choose_trained
from chunkrl.models.config import LoRAConfig
from chunkrl.models.pi import PiPolicy, PiRecipe, PiSettings
from chunkrl.models.pi.config import PiCriticConfig, pi05_config
from chunkrl.models.pi.critic import CriticInputs, PiValue
from chunkrl.models.pi.flow import PrefixInputs
from chunkrl.models.value_head import ValueHead
from chunkrl.run.build import choose_device
from chunkrl.training.config import OptimConfig, OptimizerKind
from chunkrl.training.optim import Optimizer, autocast
from chunkrl.types import Observation

Trained = Literal["full", "language_and_expert", "expert", "lora", "value"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    train: tuple[Trained, ...] = ("full", "expert", "lora", "value")
    size: Literal["real", "tiny"] = "real"
    batch_size: int = 16
    num_noise: int = 4
    critic_depth: int = 6
    gradient_checkpointing: bool = False
    optimizer: OptimizerKind = "adamw"
    num_updates: int = 20
    """Timed, after three for warming up."""
    device: str = "auto"
    output: str | None = None
    """JSON file, e.g. benchmarks/results/pi_training.json."""


@dataclass(frozen=True)
class Measured:
    """Samples per second (median), peak memory of the device in GB (0 on a CPU), TFLOP per sample as done, and the
    share of the device's matrix throughput; trained: parameters."""

    samples_per_second: float
    peak_memory: float
    teraflop_per_sample: float
    utilisation: float
    trained: int


def matrix_throughput(device: torch.device) -> float:
    """FLOP a second of a large matrix product in the precision of training."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        begin = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def build(config: BenchmarkConfig, train: Trained, device: torch.device) -> tuple[PiPolicy, PrefixInputs]:
    """A policy with random weights, its trained part chosen, and inputs for a whole batch."""
    sizes = pi05_config() if config.size == "real" else tiny_config("pi05")
    frozen = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(sizes, device, frozen).requires_grad_(train != "value")
    model.freeze_unused()
    settings = PiSettings("pi05_state", CAMERAS, min(8, sizes.action_dim), 7, "identity")
    policy = PiPolicy(model, PiRecipe(sizes, settings))
    if train != "value":
        rank = 16 if config.size == "real" else 2
        choose_trained(
            policy,
            PiTrainingConfig(
                train=train, lora=LoRAConfig(rank), gradient_checkpointing=config.gradient_checkpointing
            ),
            device,
        )
    one = random_inputs(sizes, device)
    batch = one.map(lambda tensor: tensor.expand(config.batch_size, *tensor.shape[1:]).contiguous())
    return policy, batch


def make_update(
    config: BenchmarkConfig, train: Trained, device: torch.device
) -> tuple[Callable[[], None], int]:
    """One update as a function, and how many parameters it trains."""
    policy, inputs = build(config, train, device)
    model, size = policy.model, config.batch_size
    optim = OptimConfig(lr=1e-5, kind=config.optimizer, grad_clip=1.0)
    if train == "value":
        critic_config = PiCriticConfig(
            depth=min(config.critic_depth, model.config.depth),
            gradient_checkpointing=config.gradient_checkpointing,
        )
        critic = PiValue(policy, critic_config, ValueHead("hl_gauss")).to(device)
        optimizer = Optimizer([critic.parameters()], optim)
        target = torch.linspace(0, 1, size, device=device)

        def update() -> None:
            with torch.no_grad(), autocast(device):
                embeddings, valid = model.embed_prefix(inputs)
            with autocast(device):
                outputs = critic.outputs(CriticInputs(embeddings, valid, Observation()))
            optimizer.step(critic.value_head.loss(outputs, target).mean())

        return update, sum(p.numel() for p in critic.parameters())
    optimizer = Optimizer([model.parameters()], optim)
    shape = (model.config.horizon, model.config.action_dim)
    actions = torch.randn(size, *shape, device=device)

    def update_policy() -> None:
        noise = torch.randn(size, config.num_noise, *shape, device=device)
        drawn = model.draw_times((size, config.num_noise)).to(device)
        with autocast(device):
            prefix = model.encode_prefix(inputs)
            loss = model.flow_loss(prefix, actions, noise, drawn).mean()
        optimizer.step(loss)

    return update_policy, sum(p.numel() for p in model.parameters() if p.requires_grad)


def measure(config: BenchmarkConfig, train: Trained, device: torch.device, limit: float) -> Measured:
    """Builds, warms up and times one way of training."""
    update, trained = make_update(config, train, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    update()
    with FlopCounterMode(display=False) as counter:
        update()
    update()
    seconds = []
    for _ in range(config.num_updates):
        _wait(device)
        begin = time.perf_counter()
        update()
        _wait(device)
        seconds.append(time.perf_counter() - begin)
    median = float(np.median(seconds))
    flop = counter.get_total_flops()
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    return Measured(
        config.batch_size / median, peak, flop / config.batch_size / 1e12, flop / median / limit, trained
    )


def main(config: BenchmarkConfig) -> None:
    """Prints the table and writes the JSON; what does not fit is said and left out."""
    device = choose_device(config.device)
    is_gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine()
    limit = matrix_throughput(device)
    print(
        f"pi0.5, {config.size} size, batch {config.batch_size}, {config.num_noise} noise samples, "
        f"{config.optimizer}, {machine}, {limit / 1e12:.2f} TFLOP/s, PyTorch {torch.__version__}\n"
    )
    print("| trained | parameters | samples/s | TFLOP a sample | of the limit | peak memory GB |")
    print("|---|---|---|---|---|---|")
    found: dict[str, Measured | str] = {}
    for train in config.train:
        try:
            row = found[train] = measure(replace(config, train=(train,)), train, device, limit)
        except torch.OutOfMemoryError as error:
            found[train] = f"out of memory: {error}"[:200]
            print(f"| {train} | | out of memory | | | |")
            continue
        finally:
            if is_gpu:
                torch.cuda.empty_cache()
        print(
            f"| {train} | {row.trained:,} | {row.samples_per_second:.1f} | {row.teraflop_per_sample:.4g} | "
            f"{row.utilisation:.0%} | {row.peak_memory:.1f} |",
            flush=True,
        )
    if config.output:
        record = {
            "config": asdict(config),
            "machine": machine,
            "torch": torch.__version__,
            "matrix_teraflops": limit / 1e12,
            "measured": {k: v if isinstance(v, str) else asdict(v) for k, v in found.items()},
        }
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        write_text(config.output, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
