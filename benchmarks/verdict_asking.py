"""What the policies of a task do at recorded starts: asked once each, for all estimators of `verdict_bank`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.verdict_entries import Entry, HeldOut
from benchmarks.verdict_estimators import Group, Whole
from chunkrl.data.chunk_semantics import chunk_steps
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.draws import trained_starts
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.verdict import (
    Judged,
    coverage,
    distances,
    evenly_spaced,
    judged_starts,
    nearness,
    policy_chunks,
    recorded_chunks,
)
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.run.policy_io import load_policy

NUM_DRAWS = 4  # of noise and time, for a flow's loss at a start


@dataclass(frozen=True, eq=False)
class Asked:
    """What a task's policies do. judged: the starts that `chunkrl verdict` compares at, in a group of theirs and
    starts of failures; of: float [P, n], the distances there. covered: each policy's coverage, of 2000 of them."""

    group: Group
    judged: Judged
    of: np.ndarray
    covered: tuple[float, ...]


def ask(held_out: HeldOut, data: ChunkDataset, entries: Sequence[Entry]) -> Asked:
    """Asks every policy once at each start."""
    collection = ChunkCollection([data])
    limit = held_out.num_starts or len(data)
    judged = judged_starts(collection, limit, held_out.horizon)
    unit = np.where(np.isfinite(judged.deviation), judged.deviation, 0.0)  # what never changes stays 0
    trained = trained_starts(collection)
    failures = np.arange(len(data)) if trained is None else np.asarray(trained)
    failures = evenly_spaced(failures[~data.success[failures]], limit)
    position = np.union1d(judged.position, failures)
    chunk, mask = recorded_chunks(collection, position, held_out.horizon)
    asked = Judged(
        position,
        data.episode[position],
        data.task[position],
        chunk / judged.deviation,
        mask,
        judged.deviation,
    )
    thin = judged_starts(collection, min(2000, limit), held_out.horizon)
    thin_state, thin_rows = nearness(collection, thin), np.searchsorted(position, thin.position)
    chunks, losses, has_density, covered = [], [], [], []
    for entry in entries:
        policy = load_policy(entry.policy)
        own = policy_chunks(policy, collection, asked, entry.mode, held_out.batch, 0)
        own_thin = own[thin_rows] * (unit / thin.deviation)
        covered.append(coverage(own_thin, thin, thin_state))
        losses.append(imitation_losses(policy, collection, position, held_out.batch))
        has_density.append(_is_gaussian(policy))
        chunks.append(own)
    distance = np.stack([distances(own, asked.chunk, asked.mask) for own in chunks])
    loss, whole = np.stack(losses), None
    if held_out.num_starts is None:
        whole = _whole(data, asked, np.stack(chunks), np.where(np.array(has_density)[:, None], loss, np.nan))
    group = Group(distance, loss, data.success[position], whole)
    return Asked(group, judged, distance[:, np.searchsorted(position, judged.position)], tuple(covered))


def _is_gaussian(policy: ActingPolicy) -> bool:
    return isinstance(policy, ChunkPolicy) and policy.spec.policy.kind == "gaussian"


def imitation_losses(
    policy: ActingPolicy, data: ChunkCollection, position: np.ndarray, batch_size: int
) -> np.ndarray:
    """What imitation loses on the recorded chunks, float [n]; noise and times are the same for every policy."""
    found = np.zeros(len(position))
    num_draws = 1 if _is_gaussian(policy) else NUM_DRAWS
    for begin in range(0, len(position), batch_size):
        batch = data.batch(position[begin : begin + batch_size], next_observation=False)
        observation = policy.takes.take(batch.observation).observation
        torch.manual_seed(begin)
        with torch.inference_mode():
            for _ in range(num_draws):
                loss = policy.imitation_loss(observation, batch.actions, batch.action_mask)
                found[begin : begin + batch_size] += loss.double().numpy() / num_draws
    return found


def _whole(data: ChunkDataset, asked: Judged, chunks: np.ndarray, loss: np.ndarray) -> Whole:
    """What is fitted on all starts of data that end with success. loss: by value, nan without a density."""
    if len(asked.position) != len(data):
        raise ChunkRLError(f"{data.name} has frames after a success: collect it to end there")
    steps = chunk_steps(data.starts, data.action_horizon, data.segments)
    batch = data.batch(asked.position, next_observation=False)
    assert batch.observation.state is not None
    return Whole(
        batch.observation.state.numpy(),
        asked.chunk,
        asked.mask,
        chunks,
        -loss * (asked.mask.sum(axis=1) * asked.chunk.shape[2]),
        data.episode,
        batch.frame_index.numpy(),
        steps.next_row,
        steps.covered_steps,
        steps.terminated | steps.truncated,
    )
