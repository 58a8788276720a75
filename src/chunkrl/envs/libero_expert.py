"""A privileged scripted expert for LIBERO's pick-and-place tasks: one object onto or into one target.

It reads poses and collision geometry from the simulator and follows the goal of the task's BDDL file. What it
does is decided again at every step from where things are (as MetaWorld's experts do), with little memory: so it
recovers from noise, from other controllers that act in between, and from a grasp that failed.

A grasp is chosen by geometry: through the object's middle where it is narrow enough for the open gripper, else
at its rim (a bowl), with the closing direction whose fingers and hand stay clear of everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chunkrl.envs.libero_geometry import SceneGeometry
from chunkrl.errors import ChunkRLError

OPEN, CLOSE = -1.0, 1.0
_GAIN = 12.0  # action units a metre of error; 1 unit is 5 cm
_TURN_GAIN = 1.0  # action units a radian; 1 unit is 0.5 rad
_TIP = 0.009  # the finger tips reach so far below the grip point, m
_PALM = 0.035  # and the hand begins so far above it
_MAX_WIDTH = 0.072  # of an object between the fingers; they open to 8 cm
_MARGIN = 0.03  # kept clear of obstacles while moving sideways
_CLOSE_STEPS, _FAILED_STEPS, _RELEASE_STEPS = 6, 20, 14
_BIAS_GAIN, _BIAS_LIMIT = 0.15, 0.03  # integral part of the position control: a step; its limit, m


def _grid(low: float, high: float, half_across: float, spacing: float) -> np.ndarray:
    """Points [N, 2] that cover both of low <= |along| <= high, |across| <= half_across, metres."""
    along = np.linspace(low, high, int(np.ceil((high - low) / spacing)) + 1)
    across = np.linspace(-half_across, half_across, int(np.ceil(2 * half_across / spacing)) + 1)
    return np.array([(sign * a, b) for sign in (-1, 1) for a in along for b in across])


# Footprints of the open gripper, (along its closing direction, across): fingers, with room to spare, and the hand.
_FINGERS = _grid(0.038, 0.065, 0.011, 0.003)
_ROOMY_FINGERS = _grid(0.034, 0.071, 0.017, 0.004)
_HAND = _grid(0.0, 0.1, 0.032, 0.016)


@dataclass(frozen=True)
class PickPlace:
    """Which object goes where: `predicate` on (onto an object) or in (into a region)."""

    predicate: str
    object: str
    target: str


def pick_place_goal(goal_state: Sequence[Sequence[str]]) -> PickPlace | None:
    """The goal of a task with one conjunct `on` or `in`, as LIBERO parses it from BDDL.

    None for other goals (drawers, switches, several objects).
    """
    if len(goal_state) == 1 and len(goal_state[0]) == 3 and goal_state[0][0].lower() in ("on", "in"):
        predicate, thing, target = goal_state[0]
        return PickPlace(predicate.lower(), thing, target)
    return None


def goal_text(goal_state: Sequence[Sequence[str]]) -> str:
    """A goal for messages."""
    return " and ".join("(" + " ".join(conjunct) + ")" for conjunct in goal_state)


@dataclass(frozen=True)
class _Grasp:
    """point [3]: of the grip. closing [2]: unit vector along which the fingers close. key: for its failures.
    seen [3]: where the object was."""

    point: np.ndarray
    closing: np.ndarray
    key: tuple[str, int]
    seen: np.ndarray


def grasp_candidates(corners: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, tuple[str, int]]]:
    """(point [3], closing direction [2], key) of grasps from above of an object with box corners [N, 3]."""
    top, bottom = corners[:, 2].max(), corners[:, 2].min()
    found = []
    height = max(top - _PALM + 0.005, bottom + _TIP + 0.004)
    for number, angle in enumerate(np.arange(16) * np.pi / 16):
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        places = corners[:, :2] @ np.stack([along, across], axis=1)
        if np.ptp(places[:, 0]) <= _MAX_WIDTH:
            middle = (places.max(0) + places.min(0)) / 2
            found.append(
                (np.append(middle[0] * along + middle[1] * across, height), along, ("middle", number))
            )
    if found:
        return found
    rim = corners[corners[:, 2] > top - 0.015, :2]
    centre = (rim.max(0) + rim.min(0)) / 2
    for number, angle in enumerate(np.arange(24) * np.pi / 12):
        along = np.array([np.cos(angle), np.sin(angle)])
        radius = ((rim - centre) @ along).max()
        point = np.append(centre + (radius - 0.006) * along, top - 0.015)
        found.append((point, along, ("rim", number)))
    return found


class LiberoExpert:
    """Acts in one LIBERO simulator (`chunkrl.envs.scripted.ScriptedExpert`)."""

    release = np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, OPEN])

    def __init__(self, simulator: Any) -> None:
        """simulator: robosuite's environment object of a LIBERO task. Raises ChunkRLError for other goals."""
        goal_state = simulator.parsed_problem["goal_state"]
        goal = pick_place_goal(goal_state)
        if goal is None:
            raise ChunkRLError(
                f"the scripted expert picks one object and places it; this task's goal is {goal_text(goal_state)}: "
                "use a task of libero_spatial or libero_object, or collect with a policy alone (--policy FOLDER "
                "--mixture.policy-share 1)"
            )
        self._goal, self._simulator = goal, simulator
        self.reset()

    def reset(self) -> None:
        """Forgets the episode before."""
        self._scene = SceneGeometry(self._simulator)
        self._grasp: _Grasp | None = None
        self._failures: dict[tuple[str, int], int] = {}
        self._close_steps = self._touch_steps = self._lost_steps = self._release_steps = 0
        self._descent_steps = 0
        self._held = self._lowering = False
        self._closing = np.array([0.0, 1.0])
        self._place, self._last, self._bias = np.full(3, np.inf), np.full(3, np.inf), np.zeros(3)

    def act(self, shift: np.ndarray) -> np.ndarray:
        """The next action [7], in [-1, 1]; shift [3]: metres by which the target is misplaced, for bad data."""
        self._notice()
        if self._held:
            return self._carry(np.asarray(shift))
        self._lowering = False
        if self._release_steps:
            self._release_steps -= 1
            position, _ = self._scene.grip()
            rise = 0.04 if self._release_steps < _RELEASE_STEPS - 5 else 0.0  # the fingers need time to open
            return self._move(position + np.array([0, 0, rise]), OPEN)
        return self._fetch(np.asarray(shift))

    def _notice(self) -> None:
        """Whether the object is held: both fingers have touched it for some steps, and have not lost it."""
        if self._scene.holds(self._goal.object):
            self._touch_steps += 1
            self._lost_steps = 0
        else:
            self._touch_steps = 0
            self._lost_steps += 1
        if self._held and self._lost_steps > 4:
            self._held, self._grasp = False, None
        elif not self._held and self._touch_steps >= 3 and self._close_steps >= _CLOSE_STEPS:
            self._held, self._close_steps = True, 0
        if not self._held and self._lost_steps == 0 and self._release_steps:
            self._close_steps = 0

    def _fetch(self, shift: np.ndarray) -> np.ndarray:
        """Towards the object with open fingers, then close them."""
        scene, name = self._scene, self._goal.object
        seen = scene.position(name)
        moved = self._grasp is not None and np.linalg.norm(seen - self._grasp.seen) > 0.012
        if self._grasp is None or (moved and self._close_steps == 0):
            self._grasp = self._choose_grasp(seen)
            self._descent_steps = 0
        grasp = self._grasp
        self._closing = grasp.closing
        position, rotation = scene.grip()
        off = np.linalg.norm(grasp.point[:2] - position[:2])
        turn = np.linalg.norm(self._turn(rotation))
        if self._close_steps:
            self._close_steps += 1
            if self._close_steps > _FAILED_STEPS:
                self._fail()
            return self._move(grasp.point, CLOSE)
        above = position[2] - grasp.point[2]
        if off > 0.02 or turn > 0.15:
            hover = self._clear_height(position[:2], grasp.point[:2], "") + _TIP + _MARGIN
            hover = max(hover, grasp.point[2] + 0.05)
            if off > 0.02 and position[2] < hover - 0.02:
                return self._move(np.append(position[:2], hover + 0.01), OPEN)
            return self._move(np.append(grasp.point[:2], hover), OPEN)
        self._descent_steps += 1
        if (above < 0.008 and off < 0.007) or self._descent_steps > 50:
            self._close_steps = 1
        return self._move(grasp.point, OPEN)

    def _fail(self) -> None:
        assert self._grasp is not None
        kind, number = self._grasp.key
        for near in (-2, -1, 0, 1, 2):  # its neighbours would fail likewise
            self._failures[kind, (number + near) % 24] = (
                self._failures.get((kind, (number + near) % 24), 0) + 1
            )
        self._grasp = None
        self._close_steps, self._release_steps, self._descent_steps = 0, _RELEASE_STEPS, 0

    def _carry(self, shift: np.ndarray) -> np.ndarray:
        """Up, across and down with the object between the fingers, then let go."""
        scene, goal = self._scene, self._goal
        position, _ = scene.grip()
        place = scene.position(goal.object)
        bottom = scene.corners(goal.object)[:, 2].min()
        target = scene.position(goal.target) + shift
        offset = target[:2] - place[:2]
        off = np.linalg.norm(offset)
        self._lowering = off < (0.03 if self._lowering else 0.012)
        around = np.array([(a, b) for a in (-0.03, 0.0, 0.03) for b in (-0.03, 0.0, 0.03)])
        if self._lowering:
            floor = scene.tops(target[:2] + around, goal.object).max()
            if goal.predicate == "in":
                rim = scene.corners(scene.parent(goal.target))[:, 2].max()
                floor = (
                    rim + 0.005 + _TIP - (position[2] - bottom)
                )  # down to where the finger tips pass the rim
            if bottom < floor + 0.004:
                self._held, self._grasp, self._release_steps = False, None, _RELEASE_STEPS
                return self._move(position, OPEN)
            drop = min(0.05, bottom - floor + 0.005)
            return self._move(position + np.array([*offset, -drop]), CLOSE)
        clear = self._clear_height(place[:2], target[:2], goal.object) + _MARGIN + position[2] - bottom
        if position[2] < clear - 0.015:
            return self._move(np.append(position[:2], clear + 0.01), CLOSE)
        return self._move(np.append(position[:2] + offset, clear + 0.005), CLOSE)

    def _clear_height(self, start: np.ndarray, end: np.ndarray, without: str) -> float:
        """Height of the highest thing on the way from start to end [2], 7 cm to either side."""
        way = end - start
        across = np.array([-way[1], way[0]]) / max(np.linalg.norm(way), 1e-6)
        ways = start + np.linspace(0, 1, 9)[:, None] * way
        points = np.concatenate([ways + side * across for side in (-0.07, -0.035, 0.0, 0.035, 0.07)])
        return float(self._scene.tops(points, without).max())

    def _choose_grasp(self, seen: np.ndarray) -> _Grasp:
        """The clearest grasp; among clear ones, the one that turns the hand least and has failed least."""
        scene, name = self._scene, self._goal.object
        best: tuple[float, _Grasp] | None = None
        for point, along, key in grasp_candidates(scene.corners(name)):
            across = np.array([-along[1], along[0]])
            frame = np.stack([along, across])
            fingers = scene.tops(point[:2] + _FINGERS @ frame, name).max() - (point[2] - _TIP - 0.002)
            room = scene.tops(point[:2] + _ROOMY_FINGERS @ frame, name).max() - (point[2] - _TIP - 0.002)
            hand = scene.tops(point[:2] + _HAND @ frame, name).max() - (point[2] + _PALM - 0.005)
            closing = along if along[1] >= 0 else -along  # within a quarter turn of the resting hand
            turn = np.arccos(np.clip(closing[1], -1, 1))
            cost = 1e3 * max(fingers, 0) + 1e3 * max(hand, 0) + 3.0 * (room > 0)
            cost += 0.5 * turn + 2.0 * self._failures.get(key, 0)
            if best is None or cost < best[0]:
                best = cost, _Grasp(point, closing, key, seen)
        assert best is not None
        return best[1]

    def _turn(self, rotation: np.ndarray) -> np.ndarray:
        """Axis-angle [3] from the hand's rotation [3, 3] to straight down with the wanted closing direction."""
        x = np.array([*self._closing, 0.0])
        z = np.array([0.0, 0.0, -1.0])
        wanted = np.stack([x, np.cross(z, x), z], axis=1)
        error = wanted @ rotation.T
        angle = np.arccos(np.clip((np.trace(error) - 1) / 2, -1, 1))
        axis = np.array([error[2, 1] - error[1, 2], error[0, 2] - error[2, 0], error[1, 0] - error[0, 1]])
        return axis * (angle / max(2 * np.sin(angle), 1e-6)) if angle < 3.1 else axis

    def _move(self, place: np.ndarray, gripper: float) -> np.ndarray:
        position, rotation = self._scene.grip()
        error = place - position
        still = np.linalg.norm(position - self._last) < 0.001
        self._last = position
        if np.linalg.norm(place - self._place) > 0.02:
            self._bias = np.zeros(3)
        elif still and np.linalg.norm(error) < _BIAS_LIMIT:  # friction holds it, not the way that is left
            self._bias = np.clip(self._bias + _BIAS_GAIN * error, -_BIAS_LIMIT, _BIAS_LIMIT)
        self._place = place
        parts = [_GAIN * (error + self._bias), _TURN_GAIN * self._turn(rotation), [gripper]]
        return np.clip(np.concatenate(parts), -1.0, 1.0)
