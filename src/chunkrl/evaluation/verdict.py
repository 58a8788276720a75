"""Which of two policies is better, estimated from recorded episodes that neither was trained on.

The estimate: how far the policy's chunk is from the recorded one, at starts of episodes that succeeded; the median
over starts, and the mean over tasks of the logarithm of the two policies' ratio. A median and not a mean, because
successful episodes hold detours and mistakes too: a policy that leaves these out is far from them, and as near as can
be to the rest, which is the larger part. The interval resamples episodes.

It was chosen among other estimators on policies for one task and judged on policies for others (docs/results.md,
"Which policy is better, told before a roll-out"; `python -m benchmarks.verdict_bank`): fitted Q evaluation (Le et
al., arXiv 1903.08738), importance sampling per decision (Precup et al., ICML 2000), likelihood of good against bad
chunks, and Q of the policy's chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from chunkrl.algorithms.balance import episode_steps
from chunkrl.data.chunk_semantics import chunk_steps
from chunkrl.data.collection import ChunkCollection
from chunkrl.data.draws import trained_starts
from chunkrl.errors import ChunkRLError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.config import ActionMode
from chunkrl.progress import Progress, silent
from chunkrl.statistics import Interval
from chunkrl.types import Observation

MARGIN = 0.15  # nearer by less than this says nothing: equally good policies differ by it
MIN_SUCCESSES = 8  # episodes: with fewer the interval over episodes is no interval
MIN_COVERAGE = 0.5  # of a policy's chunks: the others are of actions that nobody recorded near there
COVERED = 0.95  # of the recorded chunks are covered by what was recorded near them, by definition
NEAR = 0.25  # deviations of the actions: a chunk that is so near to a recorded one is covered in any case
NUM_NEIGHBOURS = 20
_BLOCK = 256  # starts at once: k neighbours' chunks of each are in memory
_SEEDS = 2**32  # starts a data set has at most

Claim = Literal["better", "worse", "cannot tell"]
Act = Callable[[Observation, int], Tensor]


@dataclass(frozen=True, eq=False)
class Judged:
    """What is compared at n starts.

    position: int [n], of the starts in the data. episode, task: int [n]. chunk: float32 [n, K, A], the recorded
    chunks' first K steps, in units of `deviation` [A], that of the actions (inf where they never change). mask: bool
    [n, K], real steps.
    """

    position: np.ndarray
    episode: np.ndarray
    task: np.ndarray
    chunk: np.ndarray
    mask: np.ndarray
    deviation: np.ndarray

    @property
    def num_episodes(self) -> int:
        """Episodes that the starts are of."""
        return len(np.unique(self.episode))


@dataclass(frozen=True)
class Verdict:
    """Whether the first policy is better than the other.

    closer: how much nearer the first policy is to what succeeded: the logarithm of the ratio of distances, with its
    95 % interval; above 0 the first is nearer. distances: each policy's median, in deviations of the actions.
    coverage: the share of each policy's chunks that what was recorded near there covers; nan where nobody can tell,
        and then nothing is claimed.
    reason: why nothing is claimed, or "".
    """

    claim: Claim
    closer: float
    interval: Interval
    distances: tuple[float, float]
    coverage: tuple[float, float]
    num_starts: int
    num_episodes: int
    reason: str = ""


def judged_starts(data: ChunkCollection, num_starts: int, num_steps: int) -> Judged:
    """Up to num_starts starts of successful episodes, evenly spaced, with the first num_steps recorded actions.

    Raises:
        ChunkRLError: too few episodes succeeded, or are among so few starts.
    """
    trained = trained_starts(data)
    positions = np.arange(len(data)) if trained is None else np.asarray(trained)
    positions = positions[data.success[positions]]
    episode = data.episode
    num_successes = len(np.unique(episode[positions]))
    if num_successes < MIN_SUCCESSES:
        raise ChunkRLError(
            f"{data.name}: {num_successes} of the {data.num_episodes} held-out episodes succeeded, and a verdict "
            f"needs {MIN_SUCCESSES}: hold more out, or name more episodes with --dataset-dir"
        )
    positions = evenly_spaced(positions, num_starts)
    if (num_judged := len(np.unique(episode[positions]))) < MIN_SUCCESSES:
        raise ChunkRLError(
            f"--num-starts {num_starts} are of {num_judged} episodes, and a verdict needs {MIN_SUCCESSES}: give more"
        )
    chunk, mask = recorded_chunks(data, positions, num_steps)
    deviation = chunk[mask].std(axis=0, dtype=np.float64).astype(np.float32)
    moves = deviation > 1e-6 * (1 + np.abs(chunk[mask]).max(axis=0))
    if not moves.any():
        raise ChunkRLError(
            f"{data.name}: no action changes in the held-out successes: there is nothing to judge by"
        )
    deviation = np.where(moves, deviation, np.inf)  # what never changes says nothing
    return Judged(positions, episode[positions], data.task[positions], chunk / deviation, mask, deviation)


def evenly_spaced(positions: np.ndarray, num: int) -> np.ndarray:
    """Up to num of positions int [n], in their order, the first and the last among them."""
    if len(positions) <= num:
        return positions
    return positions[np.linspace(0, len(positions) - 1, num).round().astype(np.int64)]


def recorded_chunks(
    data: ChunkCollection, positions: np.ndarray, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The recorded actions from positions int [n] on, in the data's units, float32 [n, num_steps, A], and which steps
    are real, bool [n, num_steps]."""
    chunk = np.zeros((len(positions), num_steps, data.action_dim), np.float32)
    mask = np.zeros((len(positions), num_steps), bool)
    for dataset, (first, last) in zip(data.datasets, data.spans, strict=True):
        own = (first <= positions) & (positions < last)
        steps = chunk_steps(dataset.starts[positions[own] - first], num_steps, dataset.segments)
        chunk[own], mask[own] = dataset.table.action[steps.rows], steps.action_mask
    return chunk, mask


def policy_chunks(
    policy: ActingPolicy,
    data: ChunkCollection,
    judged: Judged,
    mode: ActionMode,
    batch_size: int,
    seed: int,
    progress: Progress = silent,
    name: str = "act",
) -> np.ndarray:
    """The policy's chunks at the starts, their first K steps, float32 [n, K, A], in units of the deviation."""
    num, num_steps = len(judged.position), judged.chunk.shape[1]
    found = np.zeros(judged.chunk.shape, np.float32)
    for begin in range(0, num, batch_size):
        rows = judged.position[begin : begin + batch_size]
        observation = data.batch(rows, next_observation=False).observation
        generators = [torch.Generator().manual_seed(seed * _SEEDS + int(row)) for row in rows]
        with torch.inference_mode():
            chunk = policy.act(observation, () if mode == "mode" else generators, mode)
        found[begin : begin + batch_size] = chunk[:, :num_steps].float().cpu().numpy() / judged.deviation
        progress(name, begin + len(rows), num)
    if not np.isfinite(found).all():
        raise ChunkRLError(f"{name}: the policy's chunks hold NaN or inf: its training diverged")
    return found


def distances(chunk: np.ndarray, recorded: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Root mean square difference of chunks [n, K, A] over real steps bool [n, K], float64 [n]."""
    square = ((chunk.astype(np.float64) - recorded) ** 2).sum(axis=2) * mask
    num_dims = int((np.abs(recorded).sum(axis=(0, 1)) > 0).sum())  # the others never change
    return np.sqrt(square.sum(axis=1) / (mask.sum(axis=1) * max(num_dims, 1)))


def resampled_medians(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Lower medians float [R] of values [n], the i-th counted counts[r, i] times, int [R, n]."""
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(counts[:, order], axis=1)
    return values[order][(2 * mass >= mass[:, -1:]).argmax(axis=1)]


def closeness(
    first: np.ndarray,
    second: np.ndarray,
    episode: np.ndarray,
    task: np.ndarray,
    num_resamples: int,
    seed: int,
) -> tuple[float, Interval]:
    """The mean over tasks of log(median second / median first), and its 95 % interval over episodes.

    Where a task has fewer than `MIN_SUCCESSES` episodes, tasks are drawn before their episodes: so few say too little
    of what others of their task would give, and a single one nothing.

    first, second: float [n], distances of two policies at the same starts. episode, task: int [n].
    """
    rng = np.random.default_rng(seed)
    logs, resampled, fewest = [], [], len(episode)
    for number in np.unique(task):
        rows = np.flatnonzero(task == number)
        _, place = np.unique(episode[rows], return_inverse=True)
        num = int(place.max()) + 1
        fewest = min(fewest, num)
        draws = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)
        counts = np.concatenate([np.ones((1, num), draws.dtype), draws])[:, place]
        medians = [np.maximum(resampled_medians(d[rows], counts), 1e-12) for d in (first, second)]
        ratio = np.log(medians[1] / medians[0])
        logs.append(ratio[0])
        resampled.append(ratio[1:])
    ratios = np.array(resampled)
    if fewest < MIN_SUCCESSES:
        ratios = np.take_along_axis(ratios, rng.integers(len(ratios), size=ratios.shape), axis=0)
    low, high = np.quantile(ratios.mean(axis=0), (0.025, 0.975))
    return float(np.mean(logs)), Interval(float(low), float(high))


def nearness(data: ChunkCollection, judged: Judged) -> np.ndarray:
    """What nearness of starts is measured by, float32 [n, S]: the recorded state, each value in units of its
    deviation, or, of data without one, the steps since the episode began."""
    if data.state_dim == 0:
        return episode_steps(data)[0][judged.position].astype(np.float32)[:, None]
    state = np.zeros((len(judged.position), data.state_dim), np.float32)
    for dataset, (first, last) in zip(data.datasets, data.spans, strict=True):
        own = (first <= judged.position) & (judged.position < last)
        assert dataset.table.state is not None
        state[own] = dataset.table.state[dataset.starts[judged.position[own] - first]]
    state = state - state.mean(axis=0)
    return state / np.maximum(state.std(axis=0), 1e-6)


def coverage(chunk: np.ndarray, judged: Judged, state: np.ndarray) -> float:
    """The share of chunks [n, K, A] that what was recorded near their starts, in other episodes, covers; nan where no
    other episode of the same task succeeded.

    A chunk is covered where the nearest of the recorded chunks at the `NUM_NEIGHBOURS` nearest starts of its task is
    no farther than that is for `COVERED` of the recorded chunks themselves, or than `NEAR`. state: float [n, S], of
    `nearness`.
    """
    own, theirs = (np.full(len(chunk), np.inf) for _ in range(2))
    for begin in range(0, len(chunk), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        near, is_other = _neighbours(judged, state, rows)
        mask = judged.mask[near] & judged.mask[rows, None] & is_other[..., None]
        steps = mask.sum(axis=2)
        for target, result in ((judged.chunk, own), (chunk, theirs)):
            square = ((judged.chunk[near] - target[rows, None]) ** 2).sum(axis=3) * mask
            mean = np.where(steps > 0, square.sum(axis=2) / np.maximum(steps, 1), np.inf)
            result[rows] = mean.min(axis=1)
    known = np.isfinite(own)
    if not known.any():
        return math.nan
    num_dims = max(1, int(np.isfinite(judged.deviation).sum()))
    limit = max(float(np.quantile(own[known], COVERED)), NEAR**2 * num_dims)
    return float((theirs[known] <= limit).mean())


def _neighbours(judged: Judged, state: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """int [b, k], the nearest starts; bool [b, k], whether they are of other episodes of the same task."""
    squares = (state**2).sum(axis=1)
    gap = squares[rows, None] - 2 * state[rows] @ state.T + squares[None]
    other = (judged.episode[rows, None] != judged.episode) & (judged.task[rows, None] == judged.task)
    gap = np.where(other, gap, np.inf)
    k = min(NUM_NEIGHBOURS, gap.shape[1])
    near = np.argpartition(gap, k - 1, axis=1)[:, :k]
    return near, np.take_along_axis(other, near, axis=1)


def judge(
    chunks: Sequence[np.ndarray], judged: Judged, state: np.ndarray, num_resamples: int, seed: int
) -> Verdict:
    """The verdict on two policies' chunks [n, K, A] at the judged starts; state: as `coverage` takes it."""
    found = [distances(chunk, judged.chunk, judged.mask) for chunk in chunks]
    closer, interval = closeness(found[0], found[1], judged.episode, judged.task, num_resamples, seed)
    covered = (coverage(chunks[0], judged, state), coverage(chunks[1], judged, state))
    claim, reason = claim_of(closer, interval, covered)
    return Verdict(
        claim,
        closer,
        interval,
        (float(np.median(found[0])), float(np.median(found[1]))),
        covered,
        len(judged.position),
        judged.num_episodes,
        reason,
    )


def claim_of(
    closer: float, interval: Interval, covered: tuple[float, float], margin: float = MARGIN
) -> tuple[Claim, str]:
    """What may be said of the first policy, and why it is no more than that ("" where it is a claim). Arguments as in
    `Verdict`."""
    for name, share in zip(("the first", "the other"), covered, strict=True):
        if math.isnan(share):
            return "cannot tell", (
                "of no task are there two held-out successes, so that nobody knows whether the data cover what the "
                "policies do: hold more out"
            )
        if share < MIN_COVERAGE:
            return "cannot tell", (
                f"{share:.0%} of the chunks of {name} policy are covered by what was recorded near there: the data "
                "say nothing of where the others lead"
            )
    if interval.low <= 0 <= interval.high:
        return "cannot tell", "the interval contains 0: more held-out episodes may tell"
    if abs(closer) < math.log1p(margin):
        return (
            "cannot tell",
            f"the difference is below {margin:.0%}, as it is between policies that are equally good",
        )
    return ("better" if closer > 0 else "worse"), ""
