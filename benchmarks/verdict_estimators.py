"""Estimators of which policy is better, from episodes that none of them was trained on: `benchmarks.verdict_bank`.

Each takes a `Group`, policies and the episodes that they are judged on, and gives a number for each policy, larger
for better. What `chunkrl verdict` does is `median_distance`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Estimate = np.ndarray  # float [P], larger for better


@dataclass(frozen=True, eq=False)
class Whole:
    """All N starts, for what is fitted on them.

    state: float32 [N, S]. actions: float32 [N, H, A], recorded, in deviations; mask: bool [N, H]. chunks: float32
    [P, N, H, A], the policies' own. log_prob: float [P, N], of the recorded chunks; nan without a density.
    episode, step: int [N]. next_row, covered_steps: int [N]. ends: bool [N], the chunk reaches the episode's end.
    """

    state: np.ndarray
    actions: np.ndarray
    mask: np.ndarray
    chunks: np.ndarray
    log_prob: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    next_row: np.ndarray
    covered_steps: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """P policies on N starts of episodes of one task.

    distance: float [P, N], root mean square difference of the policies' chunks from the recorded ones. loss: float
    [P, N], what imitation loses on the recorded chunks: minus the log-likelihood by value, or the flow's loss.
    success: bool [N], of the start's episode. whole: where the policies were asked at every start of data with a
    state.
    """

    distance: np.ndarray
    loss: np.ndarray
    success: np.ndarray
    whole: Whole | None
    gamma: float = 0.99


def median_distance(group: Group) -> Estimate:
    """Minus the median distance to the chunks of successful episodes: what `chunkrl verdict` compares."""
    return -np.median(group.distance[:, group.success], axis=1)


def mean_distance(group: Group) -> Estimate:
    """Minus the mean of the same: the validation loss of imitation."""
    return -group.distance[:, group.success].mean(axis=1)


def distance_contrast(group: Group) -> Estimate:
    """Mean distance to the chunks of failures minus that to those of successes."""
    return group.distance[:, ~group.success].mean(axis=1) - group.distance[:, group.success].mean(axis=1)


def imitation_loss(group: Group) -> Estimate:
    """Minus the mean loss on the chunks of successes: their log-likelihood, minus the flow's loss on them."""
    return -group.loss[:, group.success].mean(axis=1)


def loss_contrast(group: Group) -> Estimate:
    """Mean loss on the chunks of failures minus that on those of successes."""
    return group.loss[:, ~group.success].mean(axis=1) - group.loss[:, group.success].mean(axis=1)


class Members(nn.Module):
    """M networks of the same shape at once: [M, B, D] -> [M, B], logits."""

    def __init__(self, num: int, width: int, hidden: int) -> None:
        super().__init__()
        sizes = [width, hidden, hidden, 1]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(num, a, b) / a**0.5) for a, b in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(num, 1, b)) for b in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if number + 1 < len(self.weights):
                x = torch.relu(x)
        return x[..., 0]


def _whole(group: Group) -> Whole:
    assert group.whole is not None, "estimators of `FITTED` need all starts"
    return group.whole


def _fit(
    group: Group, bootstrap: bool, num_updates: int = 1500, batch: int = 256, hidden: int = 64, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Q of each policy's own chunk and of the recorded one, float [M, N] each, of networks that never saw the episode
    (two folds); outputs lie between 0 and 1.

    bootstrap: fitted Q evaluation (Le et al., arXiv 1903.08738), a network for each policy; else one network of the
    recordings' own discounted outcomes.
    """
    torch.manual_seed(seed)
    whole = _whole(group)
    num = len(whole.chunks) if bootstrap else 1
    state = torch.from_numpy((whole.state - whole.state.mean(0)) / (whole.state.std(0) + 1e-3))
    recorded = torch.from_numpy((whole.actions * whole.mask[..., None]).reshape(len(state), -1))
    chunks = torch.from_numpy(whole.chunks.reshape(len(whole.chunks), len(state), -1))
    episode, next_row = torch.from_numpy(whole.episode), torch.from_numpy(whole.next_row)
    success = torch.from_numpy(group.success.astype(np.float32))
    covered, ends = torch.from_numpy(whole.covered_steps), torch.from_numpy(whole.ends)
    length = torch.from_numpy(np.bincount(whole.episode)[whole.episode])
    outcome = success * group.gamma ** (length - 1 - torch.from_numpy(whole.step))
    last = success * group.gamma ** (covered.clamp(min=1) - 1)
    own, theirs = (
        np.zeros((n, len(state)), np.float32) for n in (len(whole.chunks), 1 if not bootstrap else num)
    )
    for fold in range(2):
        rows = torch.nonzero(episode % 2 != fold)[:, 0]
        network, target = Members(num, state.shape[1] + recorded.shape[1], hidden), None
        if bootstrap:
            target = Members(num, state.shape[1] + recorded.shape[1], hidden).requires_grad_(False)
            target.load_state_dict(network.state_dict())
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        for _ in range(num_updates):
            drawn = rows[torch.randint(len(rows), (batch,))]
            goal = outcome[drawn].expand(num, -1)
            if target is not None:
                following = next_row[drawn]
                seen = torch.cat([state[following].expand(num, -1, -1), chunks[:, following]], dim=2)
                onward = group.gamma ** covered[drawn] * torch.sigmoid(target(seen))
                goal = torch.where(ends[drawn], last[drawn], onward)
            noisy = state[drawn] + 0.1 * torch.randn(batch, state.shape[1])
            logits = network(torch.cat([noisy, recorded[drawn]], dim=1).expand(num, -1, -1))
            loss = (
                nn.functional.binary_cross_entropy_with_logits(logits, goal, reduction="none")
                .mean(dim=1)
                .sum()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if target is not None:
                with torch.no_grad():
                    for old, new in zip(target.parameters(), network.parameters(), strict=True):
                        old.lerp_(new, 0.01)
        unseen = torch.nonzero(episode % 2 == fold)[:, 0]
        with torch.no_grad():
            for number in range(len(chunks)):
                seen = torch.cat([state[unseen], chunks[number][unseen]], dim=1).expand(num, -1, -1)
                own[number, unseen] = torch.sigmoid(network(seen))[number if bootstrap else 0].numpy()
            seen = torch.cat([state[unseen], recorded[unseen]], dim=1).expand(num, -1, -1)
            theirs[:, unseen] = torch.sigmoid(network(seen)).numpy()
    return own, theirs


def fitted_q_evaluation(group: Group) -> Estimate:
    """Fitted Q evaluation: mean Q of the policy's chunk at the first observations."""
    return _fit(group, bootstrap=True)[0][:, _whole(group).step == 0].mean(axis=1)


def q_of_the_policys_chunk(group: Group) -> Estimate:
    """Q of the recordings' own continuation, of the policy's chunk minus the recorded one, mean over starts."""
    own, theirs = _fit(group, bootstrap=False)
    return (own - theirs).mean(axis=1)


def importance_sampling(group: Group) -> Estimate:
    """Weighted importance sampling per decision (Precup et al., ICML 2000), a decision a chunk; the density of what
    acted is a Gaussian about the mean of linear regression on the state, within the fold that did not see it."""
    whole = _whole(group)
    decision = (whole.step % whole.actions.shape[1] == 0) & whole.mask.all(axis=1)
    flat = whole.actions.reshape(len(whole.actions), -1)
    state = np.concatenate([whole.state, np.ones((len(whole.state), 1), np.float32)], axis=1)
    behaviour = np.zeros(len(flat))
    for fold in range(2):
        rows, unseen = whole.episode % 2 != fold, whole.episode % 2 == fold
        solution = np.linalg.lstsq(state[rows], flat[rows], rcond=1e-6)[0]
        deviation = (flat[rows] - state[rows] @ solution).std(axis=0) + 1e-3
        z = (flat[unseen] - state[unseen] @ solution) / deviation
        behaviour[unseen] = -(z**2 / 2 + np.log(deviation)).sum(axis=1)
    found = []
    for log_prob in whole.log_prob:
        ratio = np.bincount(whole.episode[decision], weights=(log_prob - behaviour)[decision])
        weight = np.exp(np.clip(ratio - ratio.max(), -50, 0))
        success = np.zeros(len(ratio))
        success[whole.episode] = group.success
        found.append(float((weight * success).sum() / weight.sum()))
    return np.array(found)


MEDIAN = "median distance to successes"
# of every policy at some starts of successes and of failures
ESTIMATORS: Mapping[str, Callable[[Group], Estimate]] = {
    MEDIAN: median_distance,
    "mean distance to successes": mean_distance,
    "distance to failures minus to successes": distance_contrast,
    "imitation loss of successes": imitation_loss,
    "imitation loss of failures minus of successes": loss_contrast,
}
# of policies that were asked at every start of data with a state
FITTED: Mapping[str, Callable[[Group], Estimate]] = {
    "Q of the policy's chunk minus the recorded": q_of_the_policys_chunk,
    "fitted Q evaluation": fitted_q_evaluation,
    "importance sampling per decision": importance_sampling,
}
