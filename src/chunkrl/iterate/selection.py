"""Which round's policy is used, and when rounds end: by held-out success, never by the states that are reported."""

from __future__ import annotations

from collections.abc import Mapping

from chunkrl.evaluation.evaluation_result import Rate
from chunkrl.iterate.config import StopRule


def choose(scores: Mapping[int, Rate]) -> int | None:
    """The round with the highest success; of equal ones the first, which needed the least. None: no score is known.

    scores: round -> success of its policy, the pretrained one's (round 0) among them.
    """
    if not scores:
        return None
    return max(sorted(scores), key=lambda number: scores[number].rate)


def why_ended(scores: Mapping[int, Rate], rule: StopRule) -> str:
    """Why no further round begins after these, for people; "" where one does."""
    best = choose(scores)
    if best is None:
        return ""
    last = max(scores)
    newest = scores[last]
    if rule.at_full_success and newest.num_success == newest.num_episodes:
        return f"all {newest.num_episodes} selection episodes of round {last} succeed"
    if rule.patience and last - best >= rule.patience:
        return f"no better selection than round {best}'s in {last - best} rounds"
    return ""
