"""Settings that another setting switches off: given all the same, nothing would read them.

Not among them is the project of a tracking service: who turns that off for a run keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chunkrl.algorithms.registry import VALUE_TRAINING
from chunkrl.config import changed_settings
from chunkrl.policies.registry import critic_settings
from chunkrl.run.config import TrainConfig, is_of

_OF_NETWORKS = ("num_folds", "fit.target", "fit.num_critics", "fit.aggregate", "fit.quantile")
"""What networks of V are to say, beside how they are trained."""


@dataclass(frozen=True)
class Switch:
    """settings: paths ("fit.lam"), of all of a part by its name. is_on: whether something reads them. when: the flags
    with which, or without which, something does."""

    settings: tuple[str, ...]
    is_on: Callable[[TrainConfig], bool]
    when: str


SWITCHES = (
    Switch(("fit.quantile",), lambda c: c.fit.aggregate == "quantile", "with --fit.aggregate quantile"),
    Switch(("fit.target_rate",), lambda c: c.fit.target == "bootstrap", "with --fit.target bootstrap"),
    Switch(("fit.lam",), lambda c: c.fit.n_step is None, "without --fit.n-step"),
    Switch(
        ("fit.head.num_bins", "fit.head.sigma"),
        lambda c: c.fit.head.kind == "hl_gauss",
        "with --fit.head.kind hl_gauss",
    ),
    Switch(("final_lr_ratio",), lambda c: c.schedule == "cosine", "with --schedule cosine"),
    Switch(
        ("value_videos.every_saves",),
        lambda c: c.value_videos.num_episodes > 0,
        "with --value-videos.num-episodes",
    ),
    Switch(("frames.antialias",), lambda c: c.frames.resize is not None, "with --resize"),
    Switch(("labels.failure_penalty",), lambda c: c.labels.step_reward == "cost", "with --step-reward cost"),
    Switch(
        ("labels.success_key",),
        lambda c: "episode_flag" in (c.labels.success, c.additional_success),
        "with --success episode_flag",
    ),
    Switch(
        ("labels.gripper_index",),
        lambda c: c.labels.subgoal in ("gripper", "pick_place"),
        "with --subgoal gripper or pick_place",
    ),
    Switch(
        (*VALUE_TRAINING, *critic_settings(), *_OF_NETWORKS),
        lambda c: not c.values_are_progress,
        "where values are trained, without a file of progress in --values",
    ),
    Switch(("labels.pick_place",), lambda c: c.labels.subgoal == "pick_place", "with --subgoal pick_place"),
)


def switched_off(config: TrainConfig) -> dict[str, Switch]:
    """The settings that differ from their defaults, and that another one switches off, with what does."""
    changed = changed_settings(config)
    return {
        path: switch
        for switch in SWITCHES
        if not switch.is_on(config)
        for path in changed
        if is_of(path, switch.settings)
    }
