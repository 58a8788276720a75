"""What actions are, by the data: targets (each near the state that follows it) or motions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from chunkrl.data.frames import FrameTable
from chunkrl.data.hold_action import HoldAction

ControlKind = Literal["absolute", "delta", "unclear"]
TARGET_SHARE = 0.9  # of the next state's variance that the action says, from which on it is its target
MOTION_CORRELATION = 0.2  # of an action with a motion of the state, from which on it is one
NUM_EPISODES, NUM_FRAMES = 256, 64  # that are looked at, and of each


@dataclass(frozen=True)
class Control:
    """kind: what the actions are. targets: action values whose number in the state follows them. told: why, for
    people."""

    kind: ControlKind
    targets: tuple[int, ...]
    told: str


def recognise_control(table: FrameTable, gripper_dims: tuple[int, ...] = (-1,)) -> Control:
    """Whether the table's actions are targets or motions, from up to 256 episodes.

    An action value is a target where it says at least .9 of the variance of the next state's value of the same
    number: 1 - E(a_t - s_{t+1})^2 / var(s), which is 0 or less for numbers that are about something else. All values
    that change are (those of grippers apart, whose state may have other units): absolute. None is, and one goes with
    a motion of the state (correlation of a_t with s_{t+1} - s_t): delta. Else, and where there is no state: unclear.

    gripper_dims: of the action, negative ones from its end.
    """
    if table.state is None:
        return Control("unclear", (), "the data have no state to compare actions with")
    rows = _pairs(table)
    if len(rows) < 2:
        return Control("unclear", (), "no episode has two frames to compare")
    action, before, after = (
        np.asarray(array[which], np.float64)
        for array, which in ((table.action, rows), (table.state, rows), (table.state, rows + 1))
    )
    width = min(action.shape[1], after.shape[1])
    share = _shares(action[:, :width], after[:, :width])
    grippers = {dim % action.shape[1] for dim in gripper_dims if -action.shape[1] <= dim < action.shape[1]}
    known = [dim for dim in range(width) if np.isfinite(share[dim])]
    targets = tuple(dim for dim in known if share[dim] >= TARGET_SHARE)
    others = [dim for dim in known if dim not in targets and dim not in grippers]
    told = f"share of the next state's variance that the action says: {_told(share, known)}"
    if targets and not others and set(targets) - grippers:
        return Control("absolute", targets, told)
    strongest = _correlation(action, after - before)
    if not set(targets) - grippers and strongest >= MOTION_CORRELATION:
        return Control("delta", (), f"{told}; correlation with the state's motion up to {strongest:.2f}")
    return Control("unclear", targets, f"{told}; correlation with the state's motion up to {strongest:.2f}")


def resolve_hold(hold: HoldAction, control: Control) -> HoldAction:
    """The hold action without "auto": actions that are not known to be targets count as motions."""
    if hold.control != "auto":
        return hold
    return HoldAction("absolute" if control.kind == "absolute" else "delta", hold.gripper_dims)


def control_notes(hold: HoldAction, control: Control, may_encode: bool = True) -> list[str]:
    """What to know of the actions and of the padding that was asked for, `hold`.

    may_encode: whether the networks could write them otherwise, and do not.
    """
    pads = {
        "absolute": "chunks past an episode's end repeat the last action",
        "delta": "chunks past an episode's end are padded with zero motion",
    }
    if control.kind == "absolute" and hold.control == "delta":
        return [
            f"actions are targets ({control.told}), and --hold.control delta pads chunks past an episode's end with "
            "zeros, which send the robot to its zero position: leave it out"
        ]
    if control.kind == "absolute":
        return [
            f"actions are targets near the next state ({control.told}): {pads['absolute']}"
            + "; --encoding.kind relative lets the networks write them relative to the state" * may_encode
        ]
    if control.kind == "delta" and hold.control == "absolute":
        return [
            f"actions are motions ({control.told}), and --hold.control absolute repeats the last one past an "
            "episode's end: leave it out"
        ]
    if control.kind == "unclear" and hold.control == "auto":
        return [
            f"whether actions are targets or motions is unclear ({control.told}): taken for motions, "
            f"{pads['delta']}; say it with --hold.control absolute or delta"
        ]
    return []


def _pairs(table: FrameTable) -> np.ndarray:
    """int64 [n], rows that are followed by one of their episode."""
    chosen = np.unique(np.linspace(0, table.num_episodes - 1, NUM_EPISODES).round().astype(np.int64))
    parts = []
    for start, length in zip(table.episode_start[chosen], table.episode_length[chosen], strict=True):
        first = start + max(0, length - 1 - NUM_FRAMES) // 2  # the middle: arms stand still at the ends
        parts.append(np.arange(first, first + min(length - 1, NUM_FRAMES)))
    return np.concatenate(parts)


def _shares(action: np.ndarray, state: np.ndarray) -> np.ndarray:
    """float64 [n], of the state's variance that the action says; NaN where either never changes."""
    spread, moves = state.std(axis=0), action.std(axis=0)
    still = (spread <= 1e-6 * np.abs(state).max(axis=0)) | (moves <= 1e-6 * np.abs(action).max(axis=0))
    missed = ((action - state) ** 2).mean(axis=0)
    return np.where(still, np.nan, 1 - missed / np.where(still, 1, spread**2))


def _correlation(action: np.ndarray, motion: np.ndarray) -> float:
    """The largest absolute correlation of an action value with a state value's motion; 0 where nothing moves."""
    a, m = action - action.mean(axis=0), motion - motion.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0))[:, None] * np.sqrt((m**2).sum(axis=0))[None]
    still = scale <= 1e-12
    return float(np.abs(np.where(still, 0, (a.T @ m) / np.where(still, 1, scale))).max(initial=0.0))


def _told(share: np.ndarray, known: list[int]) -> str:
    if not known:
        return "none changes"
    shown = ", ".join(f"{max(share[dim], -9.99):.2f}" for dim in known[:8])
    return shown + (f" and {len(known) - 8} more" if len(known) > 8 else "")
