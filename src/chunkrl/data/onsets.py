"""When something becomes true: the one meaning of a sub-goal's onset, for collection, replays and rules."""

from __future__ import annotations

import numpy as np


def first_onset(flags: np.ndarray, hold_steps: int = 1) -> int | None:
    """The action t after which a condition first becomes true; None where it never does.

    flags: bool [T + 1], of the observations before action 0 and after each of T actions; the action t leads from
        flags[t] to flags[t + 1]. What is true from the start was reached by no action: it counts only when it has
        been false and becomes true again. A condition that is lost and reached again does not count again.
    hold_steps: observations for which it must stay true to count, or until the episode ends; against flicker.
    """
    flags = np.asarray(flags, dtype=bool)
    rises = np.flatnonzero(flags[1:] & ~flags[:-1])
    for rise in rises:
        if flags[rise + 1 : rise + 1 + hold_steps].all():
            return int(rise)
    return None


def match_onsets(truth: np.ndarray, found: np.ndarray, tolerance: int) -> tuple[int, int, int]:
    """(matches, number of true onsets, number found): true and found onsets [N], [M] of one episode, steps.

    Every onset is matched at most once, nearest pairs first, with a distance of at most `tolerance` steps.
    Precision is matches / found, recall is matches / true ones.
    """
    truth, found = np.asarray(truth, dtype=int), np.asarray(found, dtype=int)
    pairs = [(abs(t - f), i, j) for i, t in enumerate(truth) for j, f in enumerate(found)]
    used_truth, used_found = set(), set()
    for distance, i, j in sorted(pairs):
        if distance <= tolerance and i not in used_truth and j not in used_found:
            used_truth.add(i)
            used_found.add(j)
    return len(used_truth), len(truth), len(found)
