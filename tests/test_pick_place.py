"""Onsets, the rules on gripper and state, the expert's goal and grasps: without a simulator."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from chunkrl.data.label_rules import PickPlaceRule
from chunkrl.data.onsets import first_onset, match_onsets
from chunkrl.data.pick_place import pick_place_events
from chunkrl.envs.libero_expert import LiberoExpert, PickPlace, grasp_candidates, pick_place_goal
from chunkrl.envs.libero_goals import KINDS, onset_kinds
from chunkrl.envs.libero_objects import PrivilegedState
from chunkrl.envs.libero_replay import match_start
from chunkrl.errors import ChunkRLError, DatasetError


@pytest.mark.parametrize(
    ("flags", "hold", "onset"),
    [
        ([0, 0, 1, 1], 1, 1),  # the action 1 leads from observation 1 to 2
        ([0, 0, 0, 0], 1, None),
        ([1, 1, 1, 1], 1, None),  # true from the start: reached by no action
        ([1, 0, 0, 1], 1, 2),  # lost and reached again by an action: that one
        ([0, 1, 0, 1, 1], 1, 0),  # the first time counts
        ([0, 1, 0, 1, 1], 2, 2),  # a flicker does not
        ([0, 0, 1], 3, 1),  # held until the episode ends
    ],
)
def test_first_onset(flags: list[int], hold: int, onset: int | None) -> None:
    assert first_onset(np.array(flags, dtype=bool), hold) == onset


def test_onsets_are_matched_once_and_within_the_tolerance() -> None:
    assert match_onsets(np.array([10, 20]), np.array([11, 12, 27]), 3) == (1, 2, 3)
    assert match_onsets(np.array([10, 20]), np.array([18, 11]), 2) == (2, 2, 2)
    assert match_onsets(np.array([]), np.array([5]), 9) == (0, 0, 1)


def test_onsets_of_kinds() -> None:
    held = [False, True, True, True, False]
    flags = [{"goal:(on a b)": i == 4, "grasp:a": h, "lift:a": i in (2,)} for i, h in enumerate(held)]
    found = onset_kinds(flags)
    assert set(found) == set(KINDS)
    assert [np.flatnonzero(found[kind]).tolist() for kind in ("goal", "grasp", "lift")] == [[3], [0], []]


def recording(end: str) -> tuple[np.ndarray, np.ndarray]:
    """Command [T] and state [T, 8]: fingers close from 80 mm in steps of 10 on something 10 mm wide at observation
    12, the hand rises by 10 mm a step from observation 16, and: `release` opens at action 30; `nothing`: closes on
    nothing; `end`: the episode ends with the object held."""
    steps = np.arange(40)
    command = np.where(steps >= 5, 1.0, -1.0)
    least = 0.0 if end == "nothing" else 0.01
    width = np.clip(0.08 - 0.01 * np.clip(steps - 5, 0, None), least, None)
    if end == "release":
        command[30:] = -1.0
        width = np.where(steps > 30, np.clip(0.01 + 0.02 * (steps - 30), 0, 0.08), width)
    state = np.zeros((40, 8))
    state[:, 6], state[:, 7] = width / 2, -width / 2
    state[:, 2] = 0.9 + 0.01 * np.clip(steps - 16, 0, 20)
    return command, state


def test_events_by_rule() -> None:
    rule = PickPlaceRule()
    command, state = recording("release")
    # width is 10 mm at observation 12 and stays at 13: the action 12 met it; 31 mm above it at observation 20
    assert pick_place_events(command, state, True, rule) == {"goal": [30], "grasp": [12], "lift": [19]}
    assert pick_place_events(command, state, False, rule)["goal"] == []  # where it was put, no rule can tell
    assert pick_place_events(*recording("end"), True, rule) == {"goal": [39], "grasp": [12], "lift": [19]}
    assert pick_place_events(*recording("nothing"), True, rule) == {"goal": [], "grasp": [], "lift": []}
    for bad in ({"subgoal_events": ("drop",)}, {"subgoal_events": ()}, {"subgoal_objects": 0}):
        with pytest.raises(DatasetError, match="--subgoal-"):
            PickPlaceRule(**bad)  # type: ignore[arg-type]


def test_goals_of_the_expert_and_the_privileged_state() -> None:
    assert pick_place_goal([["on", "bowl_1", "plate_1"]]) == PickPlace("on", "bowl_1", "plate_1")
    assert pick_place_goal([["In", "soup_1", "basket_1_region"]]) == PickPlace(
        "in", "soup_1", "basket_1_region"
    )
    for goal in ([["open", "drawer"]], [["on", "a", "b"], ["on", "c", "b"]]):
        assert pick_place_goal(goal) is None
        simulator = SimpleNamespace(parsed_problem={"goal_state": goal})
        with pytest.raises(
            ChunkRLError, match=r"goal is \((open|on) .*\(--policy FOLDER --mixture.policy-share 1\)"
        ):
            LiberoExpert(simulator)
        with pytest.raises(
            ChunkRLError, match=r"state 'privileged' .* goal is \((open|on) .*, or the state 'full'$"
        ):
            PrivilegedState(simulator)


def box(size: tuple[float, float, float], turn: float = 0.0) -> np.ndarray:
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = signs * np.array(size) / 2
    cos, sin = np.cos(turn), np.sin(turn)
    return corners @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + [0.3, 0.1, 0.5]


def test_grasps_fit_the_object() -> None:
    for turn in (0.0, np.pi / 4):
        narrow = grasp_candidates(box((0.16, 0.04, 0.1), turn))
        best = min(narrow, key=lambda c: abs(c[1] @ [np.cos(turn), np.sin(turn)]))
        assert abs(best[1] @ [np.cos(turn), np.sin(turn)]) < 1e-6  # closes across the long side
        assert np.allclose(best[0][:2], [0.3, 0.1]) and 0.45 < best[0][2] < 0.55
        assert all(key[0] == "middle" for _, _, key in narrow)
    wide = grasp_candidates(box((0.12, 0.12, 0.06)))
    assert len(wide) == 24 and all(key[0] == "rim" for _, _, key in wide)
    point, along, _ = wide[0]
    assert np.allclose(along, [1, 0]) and np.allclose(point[:2], [0.3 + 0.06 - 0.006, 0.1])


def test_a_start_is_matched_by_one_state_alone() -> None:
    starts = np.arange(3 * 8, dtype=float).reshape(3, 8)
    assert match_start(np.append(starts[1] + 1e-4, 7.0), starts) == 1
    assert match_start(starts[1] + 0.01, starts) is None
    assert match_start(starts[1], np.stack([starts[1], starts[1]])) is None
