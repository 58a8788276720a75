"""What `--use-pi0-actions` does to Q, on a toy where the right answer is known.

    python -m benchmarks.pi_actions            # about a minute on one CPU core; prints Markdown

A state shows a goal, +1 or -1. Every recorded chunk goes all the way to +1 or to -1, at random, and succeeds where
that is the goal. A tiny pi0.5 clones the recordings by flow matching: its chunks go either way too, whatever the
goal. Then Q, V and a Gaussian policy learn (objective iql) from the recorded chunks, from the pi policy's in their
place, and from the recorded ones with the pi policy's as candidates. Reported on new states: Q of the right chunk
minus Q of the wrong one, how often the first is larger, how often the policy's most likely chunk is the right one.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from chunkrl.algorithms.iql import ChunkIQL, IQLConfig
from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.writer import DatasetWriter
from chunkrl.integration.chunk_cache import ChunkRequest, cached_chunks
from chunkrl.models.config import NetworkConfig
from chunkrl.models.pi import PiConfig, PiModel, PiPolicy, PiRecipe, PiSettings, VisionConfig
from chunkrl.progress import silent
from chunkrl.run.config import TrainConfig
from chunkrl.training.config import OptimConfig
from chunkrl.training.trainer import Trainer, TrainerConfig
from chunkrl.types import Observation

Arm = Literal["recorded chunks", "pi's in their place", "pi's as candidates"]
ARMS: tuple[Arm, ...] = ("recorded chunks", "pi's in their place", "pi's as candidates")
CAMERA, HORIZON, NUM_CANDIDATES = "observation.images.front", 4, 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    num_episodes: int = 200
    pi_updates: int = 300
    """Of the tiny pi policy."""
    num_updates: int = 1500
    """Of Q, V and the policy."""
    num_states: int = 500
    """New states for the report."""


@dataclass(frozen=True)
class Measured:
    """gap: mean Q(right) - Q(wrong). ordered: share of states where it is positive. right: share of right chunks."""

    gap: float
    ordered: float
    right: float


class Letters:
    """A tokenizer without a file: one token a character."""

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Token ids of a text."""
        return [2] * add_bos + [3 + ord(letter) % 200 for letter in text]


def states(rng: np.random.Generator, num: int) -> np.ndarray:
    """Goals and a value without meaning, float32 [num, 2]."""
    return np.stack([rng.choice([-1.0, 1.0], num), rng.normal(size=num)], axis=1).astype(np.float32)


def write_toy(root: Path, rng: np.random.Generator, num_episodes: int) -> None:
    """Recorded chunks that go to +1 or -1 at random; half of them succeed."""
    features = {
        "observation.state": FeatureSpec("float32", (2,)),
        "action": FeatureSpec("float32", (1,)),
        "next.success": FeatureSpec("bool", (1,)),
        CAMERA: FeatureSpec("image", (28, 28, 3)),
    }
    directions = np.where(np.arange(num_episodes) % 2, 1.0, -1.0)
    with DatasetWriter(root, fps=10, features=features) as writer:
        for state, direction in zip(states(rng, num_episodes), directions, strict=True):
            action = direction + 0.1 * rng.normal(size=(HORIZON, 1))
            success = np.arange(HORIZON) == HORIZON - 1
            writer.add_episode(
                {
                    "observation.state": np.repeat(state[None], HORIZON, axis=0),
                    "action": action.astype(np.float32),
                    "next.success": success & (direction == state[0]),
                    CAMERA: np.zeros((HORIZON, 28, 28, 3), dtype=np.uint8),
                },
                "go",
            )


def tiny_pi() -> PiPolicy:
    """A pi0.5 with 60 thousand parameters."""
    config = PiConfig(
        vision=VisionConfig(28, 14, 16, 1, 32, 2),
        vocab_size=256,
        prefix_width=32,
        prefix_mlp_width=64,
        expert_width=32,
        expert_mlp_width=64,
        depth=2,
        num_heads=2,
        head_dim=16,
        horizon=HORIZON,
    )
    settings = PiSettings("pi05_state", ("front",), 2, 1, "identity")
    return PiPolicy(PiModel(config), PiRecipe(config, settings), tokenizer=Letters())


def clone(policy: PiPolicy, dataset: ChunkDataset, num_updates: int, rng: np.random.Generator) -> None:
    """Flow matching on the recorded chunks."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=2e-3)
    first_frames = dataset.table.episode_start
    for _ in range(num_updates):
        batch = dataset.batch(rng.choice(first_frames, 32), next_observation=False)
        images = {"front": torch.zeros(32, 3, 28, 28, dtype=torch.uint8)}
        observation = Observation(images, batch.observation.state, batch.observation.task)
        loss = policy.flow_loss(observation, batch.actions, batch.action_mask, num_noise=8).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def learn(dataset: ChunkDataset, num_updates: int, seed: int) -> ChunkIQL:
    """Q, V and a policy on the chunks that the data set gives."""
    config = TrainConfig(cameras=(), network=NetworkConfig(hidden_dim=64, num_layers=2))
    torch.manual_seed(seed)
    algorithm = ChunkIQL(
        IQLConfig(num_updates=num_updates, target_rate=0.02),
        config.family.networks(config, dataset, CPU, silent),
        OptimConfig(lr=1e-3),
        dataset,
        seed,
        CPU,
    )
    settings = TrainerConfig(batch_size=128, seed=seed, save_interval=0, log_interval=100)
    Trainer(algorithm, dataset, settings, None, silent).run()
    return algorithm


@torch.no_grad()
def measure(algorithm: ChunkIQL, state: np.ndarray) -> Measured:
    """On states float32 [B, 2] that no one trained on."""
    observation = Observation(state=torch.from_numpy(state), task=("go",) * len(state))
    right = torch.from_numpy(state[:, 0])[:, None, None].expand(-1, HORIZON, 1)
    q = algorithm.q_ensemble()
    assert q is not None
    scores = q(observation, torch.stack([right, -right], dim=1))
    gap = scores[:, 0] - scores[:, 1]
    goes = algorithm.policy.eval()(observation).sum(dim=(1, 2)) * right[:, 0, 0]
    return Measured(float(gap.mean()), float((gap > 0).float().mean()), float((goes > 0).float().mean()))


def run(config: BenchmarkConfig, seed: int, folder: Path) -> tuple[dict[Arm, Measured], float]:
    """Every arm on one seed's data; and how often the pi policy's own chunks go the right way."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    write_toy(folder / "data", rng, config.num_episodes)

    def opened() -> ChunkDataset:
        # nothing follows a chunk: Q is its success
        settings = ChunkSettings(HORIZON, labels=LabelRule(failure_terminal=True), cameras=())
        return ChunkDataset(folder / "data", settings, cache_dir=folder / "cache", progress=silent)

    dataset = opened()
    policy = tiny_pi()
    clone(policy, dataset, config.pi_updates, rng)
    request = ChunkRequest(
        "toy", "toy", (("front", CAMERA),), NUM_CANDIDATES, HORIZON, 10, seed, "float32", 64
    )
    chunks = cached_chunks(dataset, request, lambda: policy, silent)
    assert dataset.table.state is not None
    goal = np.asarray(dataset.table.state)[dataset.starts, 0]
    own = float((np.sign(chunks.mean(axis=(2, 3))) == goal[:, None]).mean())
    new = states(np.random.default_rng(seed + 1000), config.num_states)
    found: dict[Arm, Measured] = {}
    for arm in ARMS:
        dataset = opened()
        if arm == "pi's in their place":
            dataset.replace_actions(chunks[:, 0])
        elif arm == "pi's as candidates":
            dataset.attach("candidates", chunks)
        found[arm] = measure(learn(dataset, config.num_updates, seed), new)
    return found, own


def main(config: BenchmarkConfig) -> None:
    """Runs the seeds and prints the table: means, every seed in brackets."""
    torch.set_num_threads(1)
    results: list[dict[Arm, Measured]] = []
    own = []
    for seed in config.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found, share = run(config, seed, Path(folder))
        results.append(found)
        own.append(share)
    print(f"The pi policy's own chunks go the right way in {np.mean(own):.0%} of cases.\n")
    print("| Q, V and policy learn from | Q(right) - Q(wrong) | right > wrong | policy goes right |")
    print("|---|---|---|---|")
    for arm in ARMS:
        cells = [
            _cell([getattr(found[arm], name) for found in results]) for name in ("gap", "ordered", "right")
        ]
        print(f"| {arm} | {' | '.join(cells)} |")


def _cell(values: list[Any]) -> str:
    return f"{np.mean(values):.2f} ({' '.join(f'{value:.2f}' for value in values)})"


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
