"""The losses of chunk-level offline RL as pure functions of tensors; each returns a scalar mean.

The document's forms (chunk-level offline RL, "Core Formulations") and the repairs that practice added:
bootstrapping only past a non-terminated end, expectile values (IQL, arXiv 2110.06169), a temperature on
log pi, normalised and clipped weights (AWAC, arXiv 2006.09359). Shapes: B transitions, K networks. V and Q that are
trained before the policy have the loss of their output head (`chunkrl.models.value_head.ValueHead.loss`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalize = Literal["none", "standardize", "max"]


def weighted_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values [..., B] over the rows where mask [B] (bool or weights) counts; 0 where none does."""
    mask = mask.to(values.dtype)
    return ((values * mask).sum(-1) / mask.sum(-1).clamp(min=1e-8)).mean()


def bellman_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """y = r + discount V(x'), all [B]; `discount` is gamma^k and 0 where terminated. No gradient flows."""
    return (reward + discount * next_value).detach()


def critic_loss(q: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_Q = E[(Q(x, A) - y)^2]. q: [num_critics, B]; target, mask (`critic_mask`): [B]; mean over critics."""
    return weighted_mean((q - target.detach()).square(), mask)


def value_loss(value: Tensor, q: Tensor, log_prob: Tensor | None, alpha: float) -> Tensor:
    """L_V = E[(V(x) - E_{A~pi}[Q(x, A) - alpha log pi(A|x)])^2] with one chunk A ~ pi a row.

    value, q, log_prob: [B]; alpha = 1 is the document's; log_prob None (flow policies): no entropy term.
    Gradients reach V only.
    """
    target = q if log_prob is None else q - alpha * log_prob
    return (value - target.detach()).square().mean()


def expectile_loss(value: Tensor, target: Tensor, expectile: float, mask: Tensor) -> Tensor:
    """E[|tau - 1(u < 0)| u^2], u = target - V(x) (IQL eq. 5). value: [..., B]; target, mask: [B]."""
    error = target.detach() - value
    weight = torch.where(error < 0, 1 - expectile, expectile)
    return weighted_mean(weight * error.square(), mask)


def advantage_weights(
    advantage: Tensor, beta: float, clip: float | None, normalize: Normalize = "none"
) -> Tensor:
    """w = exp(beta A), no gradient. advantage: [B]. clip: largest weight (None: none).

    normalize: `none` (the document), `standardize` (A to mean 0, deviation 1) or `max` (largest A to 0).
    """
    advantage = advantage.detach()
    if normalize == "standardize":
        advantage = (advantage - advantage.mean()) / advantage.std(unbiased=False).clamp(min=1e-8)
    elif normalize == "max":
        advantage = advantage - advantage.max()
    weights = torch.exp(beta * advantage)
    return weights if clip is None else weights.clamp(max=clip)


def policy_loss(weights: Tensor, negative_log_likelihood: Tensor) -> Tensor:
    """L_pi = E[w * (-log pi(A|x))], or with the per-sample flow loss in its place; both [B].

    Gradients reach the policy only.
    """
    return (weights.detach() * negative_log_likelihood).mean()


def total_loss(critic: Tensor, value: Tensor, policy: Tensor, lambda_v: float, lambda_pi: float) -> Tensor:
    """L = L_Q + lambda_V L_V + lambda_pi L_pi."""
    return critic + lambda_v * value + lambda_pi * policy


def effective_sample_size(weights: Tensor, rates: Tensor | None = None) -> Tensor:
    """(sum w)^2 / (n sum w^2) in (0, 1]: the share of samples that carry the weighted loss.

    weights: [n]. rates: how often each sample is drawn, [n]; None: all alike.
    """
    if rates is not None:
        total = (rates * weights).sum().square()
        return total / (rates.sum() * (rates * weights.square()).sum()).clamp(min=1e-12)
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp(min=1e-12)
