"""Where a gripper grasps, lifts and places, by rules on its command and the robot's state: no simulator.

For LIBERO's demonstrations and others of its form: the gripper's command is positive to close, the state holds two
finger joints and the hand's height. What the rules cannot see: whether what is held is the right object, and whether
it was put where it belongs; so a placement counts in successful episodes alone. `docs/libero.md` has their measured
agreement with the simulator's own predicates.
"""

from __future__ import annotations

import numpy as np

from chunkrl.data.label_rules import PickPlaceEvent, PickPlaceRule


def pick_place_events(
    command: np.ndarray, state: np.ndarray, success: bool, rule: PickPlaceRule
) -> dict[PickPlaceEvent, list[int]]:
    """Event -> the actions of one episode that reached it.

    command: [T], positive closes; state: [T, S], before each action. success: of the episode; its end counts as a
    placement where something is still held.
    """
    width = np.abs(state[:, rule.finger_entries[0]] - state[:, rule.finger_entries[1]])
    height = state[:, rule.height_entry]
    closing = command > 0
    grasps, lifts, places = [], [], []
    held_from: int | None = None  # index of the observation in which the object is held
    lifted = False
    for t in range(1, len(command)):  # what the observation t says was done by the action t - 1
        holding = closing[t - 1] and width[t] > rule.finger_width_m
        if held_from is None:
            met = holding and 0 <= width[t - 1] - width[t] < rule.finger_still_m
            closed = width[t] < width[: t + 1].max() - 4 * rule.finger_still_m
            if met and closed and (width[t : t + 3] > rule.finger_width_m).all():
                held_from, lifted = t, False
                grasps.append(t - 1)
            continue
        if holding and not lifted and height[t] > height[held_from] + rule.lift_m:
            lifted = True
            lifts.append(t - 1)
        if not holding:
            if lifted and not closing[t - 1]:  # let go, not lost
                places.append(t - 1)
            held_from = None
    if held_from is not None and success:
        places.append(len(command) - 1)
    number = rule.subgoal_objects
    return {
        "goal": places[-number:] if success else [],
        "grasp": grasps[:number],
        "lift": lifts[:number],
    }
