"""Chunks that a human made, which are taken to be good whatever the critic says of them.

The advantage-conditioned document: interventions automatically receive a high advantage. Of labels in the prompt
that is the highest label, of weights the weight of the highest advantage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chunkrl.algorithms.config import HumanRule
from chunkrl.data.chunk_semantics import chunk_steps
from chunkrl.data.collection import ChunkData


@dataclass(frozen=True)
class HumanChunks:
    """forced: bool [len], chunks that are forced high. loss_steps: bool [len, H], the steps that the policy's loss
    counts; None: all."""

    forced: np.ndarray
    loss_steps: np.ndarray | None = None


def human_chunks(data: ChunkData, rule: HumanRule) -> HumanChunks | None:
    """What `rule` makes of the chunks of a human; None where there are none, or where it asks for nothing.

    rule: `high` forces chunks whose real steps are all a human's, `high_and_mask` also those that are so in part, of
    which the robot's steps are masked; `critic` none.
    """
    if rule == "critic" or not data.frame_labels.human.any():
        return None
    steps = chunk_steps(data.starts, data.action_horizon, data.segments)
    acted = data.frame_labels.human[steps.rows] & steps.action_mask
    every, some = np.all(acted == steps.action_mask, axis=1), np.any(acted, axis=1)
    if rule == "high":
        return HumanChunks(every)
    return HumanChunks(some, np.where((some & ~every)[:, None], acted, True))


def forced_metrics(
    overruled: np.ndarray, advantage: np.ndarray, rates: np.ndarray | None = None
) -> dict[str, float]:
    """The share of chunks on which the critic was overruled, bool [N], and what it thinks of them.

    advantage: the critic's, float [N]. rates: how often each is drawn, float [N]; None: all alike.
    """
    metrics = {"advantage/forced_fraction": float(np.average(overruled, weights=rates))}
    if overruled.any():
        metrics["advantage/mean_of_forced"] = float(advantage[overruled].mean())
    return metrics
