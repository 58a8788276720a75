"""Best-of-N, distilled: the policy learns the chunk that Q prefers of N of its own and the recorded one (VGAS+).

Best-of-N improves a policy at action time, at the price of N samples and Q on the robot. Here its choice is made once
for every start of the data, by the critic that never saw the episode (`advantage_critic`), and the policy is trained
on it. Q is asked of the policy's own chunks alone, which are near the data's, and the recorded chunk stands among the
candidates, so that a start keeps it unless Q says that another one is better.

A start's weight is made as a recorded chunk's (`weights`, with the same due of its stratum), of its advantage plus
what the winner gains on the recorded chunk in held-out Q: where none gains it is the weight of before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chunkrl import ranks
from chunkrl.algorithms.best_of_n import least_q
from chunkrl.algorithms.cross_fit import CrossFitted, labelling_batch_size, labelling_batches
from chunkrl.data.collection import ChunkData
from chunkrl.data.large_arrays import zeros
from chunkrl.models.policy import PolicyModel
from chunkrl.progress import Progress
from chunkrl.training.algorithm import Histogram, Metrics
from chunkrl.training.optim import autocast
from chunkrl.types import ChunkTransition

_NOISE = 0xBE57  # the stream of random numbers of candidates


@dataclass(frozen=True)
class BestChunks:
    """Labels of every start: the one of the policy's chunks that Q prefers, float32 [len, H, A] in the units of
    batches; what Q says of it, of the recorded chunk, and of the policy's on average, float32 [len] each. Zero where
    it is not asked about."""

    chunk: np.ndarray
    q: np.ndarray
    q_recorded: np.ndarray
    q_mean: np.ndarray


@torch.no_grad()
def best_chunks(
    policy: PolicyModel,
    critics: CrossFitted,
    data: ChunkData,
    positions: np.ndarray | None,
    num_candidates: int,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> BestChunks:
    """The best of N chunks of `policy` at each start, by the critic that never saw the start's episode.

    critics: of chunks; the data's label `fold` says whose each start is. positions: int [n], starts to ask about;
    None: all. seed: a start's noise depends on it and on its position alone. Several processes share the work, and
    all get all of it.
    """
    policy.eval()
    critics.eval()
    first: Any = critics.networks[0]
    folder, shape = data.cache_dir, (len(data), data.action_horizon, data.action_dim)
    chunks, scores = zeros(folder, shape, np.float32), zeros(folder, (3, len(data)), np.float32)
    size = max(1, labelling_batch_size(data) // num_candidates)
    for own, batch in labelling_batches(data, device, positions, size, progress, f"best of {num_candidates}"):
        noise = _noise(seed, batch.index, (num_candidates, *policy.noise_shape))
        with autocast(device):
            observation = policy.with_vision(batch.observation)
            drawn = policy.sample(observation, num_candidates, noise)
            prepared = first.prepare(observation)
            asked = torch.cat([batch.actions[:, None], drawn.to(batch.actions)], dim=1)
            q = least_q(critics, prepared, asked).transpose(1, 2)
        held_out = critics.held_out(q, batch.labels["fold"])
        best, chosen = held_out[1:].max(dim=0)
        rows = torch.arange(len(chosen), device=chosen.device)
        chunks[own] = drawn[rows, chosen].cpu().numpy()[: len(own)]
        found = torch.stack([best, held_out[0], held_out[1:].mean(dim=0)])
        scores[:, own] = found.float().cpu().numpy()[:, : len(own)]
    if ranks.world_size() > 1:  # each is zero in the others' rows
        chunks, scores = (ranks.sum_over_ranks(torch.from_numpy(part)).numpy() for part in (chunks, scores))
    return BestChunks(chunks, *scores)


def _noise(seed: int, index: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal float32 [B, *shape] of the starts at positions `index` int [B]."""
    streams = (np.random.default_rng([seed, _NOISE, int(position)]) for position in index)
    return torch.from_numpy(np.stack([s.standard_normal(shape, dtype=np.float32) for s in streams]))


def mixture(weight: np.ndarray, recorded: np.ndarray, won: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """Labels of a loss of which `share` is of the best chunks: `weight`, float32 [len], and `best_probability`, how
    likely the policy's chunk stands in place of the recorded one, float32 [len]. In expectation the loss is

        share weight loss(best chunk) + (1 - share) recorded loss(recorded chunk).

    weight: of the best chunks, recorded: of the recorded ones, float [len]. won: bool [len], starts whose best chunk
    is the policy's.
    """
    mixed = share * weight + (1 - share) * recorded
    best = np.where(won, share * weight, 0.0) / np.maximum(mixed, 1e-30)
    return {"weight": mixed.astype(np.float32), "best_probability": best.astype(np.float32)}


def with_best_chunks(batch: ChunkTransition) -> ChunkTransition:
    """The batch with the policy's chunks in place of the recorded ones, as likely as its labels say (from torch's
    global generator). They have no padding."""
    probability = batch.labels["best_probability"]
    drawn = ranks.draw_rows(torch.rand, (len(probability),)).to(probability) < probability
    return replace(
        batch,
        actions=torch.where(drawn[:, None, None], batch.labels["best_chunk"], batch.actions),
        action_mask=batch.action_mask | drawn[:, None],
    )


def distil_metrics(
    won: np.ndarray, gain: np.ndarray, mean_gain: np.ndarray, rates: np.ndarray | None
) -> Metrics:
    """What best-of-N promises, over what is drawn.

    won: bool [len], starts where a chunk of the policy stands in place of the recorded one. gain: float [len], the
    best of the policy's minus the recorded chunk in Q, mean_gain: the policy's average chunk minus it; in units of
    returns. rates: float [len], how often each start is drawn; None: all alike.
    """
    drawn = slice(None) if rates is None else rates > 0
    return {
        "distil/replaced_fraction": float(np.average(won, weights=rates)),
        "distil/predicted_gain": float(np.average(np.where(won, gain, 0.0), weights=rates)),
        "distil/policy_gain": float(np.average(mean_gain, weights=rates)),
        "distil/gain": Histogram.of(gain[drawn]),
    }
