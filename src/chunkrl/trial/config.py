"""`chunkrl trial`: its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import tyro

from chunkrl.errors import ChunkRLError
from chunkrl.models.config import ActionMode
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.human.keys import KeySourceName
from chunkrl.options import check_least

_LEAST = {
    **{"max_pairs": 1, "max_steps": 1, "exec_steps": 1, "prefetch_steps": 0, "seed": 0, "order_seed": 0},
    "camera_size": 1,
}
ACTOR_ID = "trial"


@dataclass(frozen=True)
class TrialCommand:
    """Policies against each other on a robot or in a simulator, blind and in random order, until it is decided which
    is better: chunkrl trial NEW OLD, or NEW=FOLDER OLD=FOLDER."""

    policies: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of saved policies, the one to judge first; NAME=FOLDER names one. It is compared with each of the
    others."""
    env: str | None = None
    """A simulator's task, e.g. push-v3 or libero_spatial/0, which says itself what succeeded. Or give --robot."""
    robot: str | None = None
    """JSON file of a robot, see docs/online.md. Or give --env."""
    output_dir: str = "runs/trial"
    """Folder for results, page and the episodes' data set. A trial with the same settings that lies there is resumed,
    any other is refused."""
    overwrite: bool = False
    """Another trial in --output-dir makes place: its folder is kept as NAME.replaced-001."""
    error: float = 0.05
    """Probability with which equal policies may be told apart, however many trials are made."""
    max_pairs: int = 200
    """Pairs (with more than two policies: rounds) after which it ends undecided; resume it with more."""
    seed: int = 0
    """Determines a simulator's initial states, the same for all policies of a pair, and the policies' noise."""
    order_seed: int | None = None
    """Determines who acts when; whoever knows it is not blind. Default: drawn, and kept where nobody need look."""

    exec_steps: int | None = None
    """Actions executed of each chunk; default: the whole chunk, less --prefetch-steps."""
    prefetch_steps: int = 0
    """Actions left when the next chunk is asked for, so that it is made meanwhile."""
    mode: ActionMode = "mode"
    """mode (most likely chunk; a flow from zero noise), sample, or best_of_n (of 16)."""
    condition: str | None = None
    """What pi policies are asked for; default: what they were saved with."""
    guidance: float | None = None
    """Classifier-free guidance of pi policies towards the condition; default: what they were saved with."""
    guidance_from: str | None = None
    """The condition that guidance leads away from; "" for the policies asked for nothing; default: what they were
    saved with."""
    flow_steps: int | None = None
    """Euler steps of pi policies; default 10."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    max_steps: int | None = None
    """Time limit, steps, after which an episode has failed; default: the robot's or the simulator's."""
    rate_hz: float | None = None
    """Control rate of a simulator, steps/s, so that a person can follow it; default: as fast as it can."""
    rename: tuple[str, ...] = ()
    """ENVIRONMENT'S=POLICY'S names of a simulator's cameras, where they differ."""
    camera_size: int | None = None
    """Side of a simulator's images, pixels, for policies with a camera: their data's."""
    keys: KeySourceName | None = None
    """terminal, pynput, or none; default: terminal for a robot and with --rate-hz, else none."""
    live: bool = True
    """A panel that refreshes itself, where the output is a terminal; else a line a change."""

    def __post_init__(self) -> None:
        check_least(self, _LEAST)
        if self.mode not in get_args(ActionMode):
            raise ChunkRLError(f"mode is {self.mode!r}; use one of {', '.join(get_args(ActionMode))}")
        if not 0 < self.error < 1:
            raise ChunkRLError(f"error is {self.error}; it must lie between 0 and 1, as 0.05 does")

    def check(self) -> None:
        """Raises ChunkRLError where settings exclude each other, or a robot has nobody to say what succeeded."""
        actor = self.as_actor("")
        actor.check()
        if self.robot is not None and actor.key_source == "none":
            raise ChunkRLError(
                "a robot does not know success: a person says it with the keys 1 and 0 (--keys terminal, or pynput)"
            )

    def as_actor(self, policy: str) -> ActorCommand:
        """How an actor would be told to do the same with one policy: robot, simulator and keys are opened as its
        are."""
        return ActorCommand(
            policy=policy,
            env=self.env,
            robot=self.robot,
            output_dir=self.output_dir,
            actor_id=ACTOR_ID,
            offline=True,
            exec_steps=self.exec_steps,
            prefetch_steps=self.prefetch_steps,
            mode=self.mode,
            condition=self.condition,
            guidance=self.guidance,
            guidance_from=self.guidance_from,
            flow_steps=self.flow_steps,
            device=self.device,
            seed=self.seed,
            max_steps=self.max_steps,
            rate_hz=self.rate_hz,
            rename=self.rename,
            camera_size=self.camera_size,
            keys=self.keys,
            live=self.live,
        )

    def named(self) -> dict[str, str]:
        """Name -> folder of every policy, in the order given; a folder given twice has two names.

        Raises:
            ChunkRLError: fewer than two, or two of one name.
        """
        if len(self.policies) < 2:
            raise ChunkRLError(
                f"a trial needs at least two policies, got {len(self.policies)}: chunkrl trial NEW OLD, or "
                "NAME=FOLDER NAME=FOLDER"
            )
        found: dict[str, str] = {}
        for text in self.policies:
            name, folder = ("", text) if Path(text).exists() or "=" not in text else text.split("=", 1)
            if name in found:
                raise ChunkRLError(f"{name} names {found[name]} and {folder}: give each its own name")
            given, number = name or folder.rstrip("/"), 2
            while (name or given) in found:
                given, number = f"{folder.rstrip('/')} ({number})", number + 1
            found[name or given] = folder
        return found
