"""What the texts of a batch cost a small network: each distinct one once, against every row padded to the longest.

    python -m benchmarks.text_encoding

Hashing, and the GRU forward and backward, of 256 rows in turn; features must be equal. Prints one JSON line for each
number of distinct texts.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
import tyro
from torch import Tensor

from chunkrl.data.normalize import Normalizer
from chunkrl.models.config import NetworkConfig
from chunkrl.models.encoders import ObservationEncoder, ObservationSpec, word_ids
from chunkrl.types import Observation

CONFIG = NetworkConfig()


@dataclass(frozen=True)
class Config:
    """What is measured."""

    num_texts: tuple[int, ...] = (1, 10, 100)
    """Distinct texts of a batch, of 8 to 17 words."""
    batch_size: int = 256
    rounds: int = 15
    """Turns of each way; the median counts."""


def texts_of(num_texts: int, batch_size: int) -> tuple[str, ...]:
    """Sentences about as long as LIBERO's, which have 8 to 17 words."""
    rng = np.random.default_rng(0)
    known = [
        " ".join(f"w{word}" for word in rng.integers(500, size=rng.integers(8, 18))) for _ in range(num_texts)
    ]
    return tuple(known[number] for number in rng.integers(num_texts, size=batch_size))


def padded(encoder: ObservationEncoder, texts: tuple[str, ...], spent: list[float]) -> Tensor:
    """Every row for itself, with padding."""
    started = perf_counter()
    ids = torch.zeros(len(texts), CONFIG.text_tokens, dtype=torch.int64)
    for row, text in enumerate(texts):
        found = word_ids(text, CONFIG.text_buckets, CONFIG.text_tokens)
        ids[row, : len(found)] = torch.tensor(found)
    spent.append(perf_counter() - started)
    assert encoder.text is not None
    outputs, _ = encoder.text.gru(encoder.text.embed(ids))
    return torch.nn.functional.gelu(outputs[torch.arange(len(texts)), (ids != 0).sum(-1) - 1])


def once(encoder: ObservationEncoder, texts: tuple[str, ...], spent: list[float]) -> Tensor:
    """Each distinct text once."""
    started = perf_counter()
    prepared = encoder.prepare(Observation(task=texts))
    spent.append(perf_counter() - started)
    return encoder(prepared)


def measure(num_texts: int, config: Config) -> dict[str, float]:
    """Median milliseconds of both ways, and their ratio."""
    torch.manual_seed(0)
    encoder = ObservationEncoder(ObservationSpec(use_task=True), CONFIG, Normalizer.identity(1))
    texts = texts_of(num_texts, config.batch_size)
    ways: dict[str, Callable[..., Tensor]] = {"padded": padded, "once": once}
    hashing: dict[str, list[float]] = {name: [] for name in ways}
    total: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.rounds):
        features = {}
        for name, way in ways.items():
            started = perf_counter()
            features[name] = way(encoder, texts, hashing[name])
            features[name].sum().backward()
            total[name].append(perf_counter() - started)
        torch.testing.assert_close(features["padded"], features["once"])
    found: dict[str, float] = {"num_texts": num_texts}
    for name in ways:
        hash_s, total_s = statistics.median(hashing[name]), statistics.median(total[name])
        found |= {f"{name}_hashing_ms": 1000 * hash_s, f"{name}_network_ms": 1000 * (total_s - hash_s)}
    return found | {"ratio": statistics.median(total["once"]) / statistics.median(total["padded"])}


def main() -> None:
    """One line for each number of texts."""
    config = tyro.cli(Config)
    torch.set_num_threads(1)
    for num_texts in config.num_texts:
        found = {name: round(number, 3) for name, number in measure(num_texts, config).items()}
        print(json.dumps(found | {"load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
