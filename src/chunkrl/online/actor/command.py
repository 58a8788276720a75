"""`chunkrl actor`: its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from chunkrl.errors import ChunkRLError
from chunkrl.models.config import ActionMode
from chunkrl.online.human.keys import KeySourceName
from chunkrl.online.link.config import ConnectConfig, CorrectionRule, SwapAt
from chunkrl.options import check_least

CorrectorName = Literal["none", "scripted", "leader", "keyboard"]
_LEAST = {
    **{"num_episodes": 1, "max_steps": 1, "exec_steps": 1, "num_candidates": 1, "camera_size": 1},
    **{"seed": 0, "prefetch_steps": 0, "finish_s": 0, "max_ahead_steps": 0},
}


@dataclass(frozen=True)
class ActorCommand:
    """A policy acts on a robot or in a simulator, a human corrects it, every step goes to the learner."""

    policy: str = ""
    """A saved policy's folder (required, but for --send-only): a run's `policy`, or any pi folder that says its
    settings. It acts until the learner sends newer weights, and must be the one that the learner began with."""
    env: str | None = None
    """A simulator's task, e.g. push-v3, libero_spatial/0 or gym_hil/PandaPickCube. Or give --robot."""
    robot: str | None = None
    """JSON file of a robot, see docs/online.md. Or give --env."""
    output_dir: str = "runs/actor"
    """Run folder: settings, metrics, log, and the spool unless --spool names another."""
    spool: str | None = None
    """Folder of what is not sent yet; one for each actor, for ever. Default: `spool` in --output-dir."""
    actor_id: str = "actor"
    """Its name in the records; each actor of a learner has its own."""
    connect: ConnectConfig = field(default_factory=ConnectConfig)
    """Where the learner is. If it is not there, steps wait in the spool."""
    offline: bool = False
    """Records without a learner: at the end the finished episodes are a LeRobot data set, `data/shard-000000` in
    --output-dir. The spool keeps all, too: the next start without it, or --send-only, sends."""
    send_only: bool = False
    """Sends what the spool holds and ends: no robot, no policy."""
    export_only: bool = False
    """Stores what the spool holds as that data set and ends, as --offline does at its end: for what a kill left."""
    finish_s: float = 60.0
    """How long the end waits for the rest of the spool to be sent, seconds; what is left then stays in the spool."""
    max_ahead_steps: int | None = None
    """Wait before an episode while the learner owes updates for more than so many recorded steps; with 0 and one
    actor an online run does not depend on the machine's load. None: never wait."""

    exec_steps: int | None = None
    """Actions executed of each chunk; default: the whole chunk, less --prefetch-steps."""
    prefetch_steps: int = 0
    """Actions left when the next chunk is asked for, so that it is made meanwhile."""
    swap_at: SwapAt = "chunk"
    """Newer weights act from the next chunk or the next episode on."""
    mode: ActionMode = "sample"
    """sample, mode (most likely chunk; a flow from zero noise), or best_of_n (the folder's Q chooses; it is not
    pushed, so that no newer weights are taken: with --offline only)."""
    num_candidates: int = 16
    """N of best_of_n."""
    condition: str | None = None
    """What a pi policy is asked for, e.g. "Advantage: negative"; "" for nothing; default: what it was saved with."""
    guidance: float | None = None
    """Classifier-free guidance of a pi policy towards the condition; default: what it was saved with."""
    guidance_from: str | None = None
    """The condition that guidance leads away from, e.g. "Advantage: negative"; "" for the policy asked for nothing;
    default: what it was saved with."""
    flow_steps: int | None = None
    """Euler steps of a pi policy; default 10."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    num_episodes: int | None = None
    """Episodes to record, those recorded again not counted; default: until somebody quits."""
    seed: int = 0
    """Determines a simulator's initial states and the policy's noise."""
    max_steps: int | None = None
    """Time limit of an episode, steps; default: the robot's or the simulator's. Running out of it truncates."""
    success_reward: float = 1.0
    """Reward of the step after which a human says success."""
    rate_hz: float | None = None
    """Control rate of a simulator, steps/s, so that a person can follow it; default: as fast as it can. A robot's is
    in its file."""
    rename: tuple[str, ...] = ()
    """ENVIRONMENT'S=POLICY'S names of a simulator's cameras, where they differ."""
    camera_size: int | None = None
    """Side of a simulator's images, pixels, for a policy with a camera: its data's; default: a pi policy's own."""

    keys: KeySourceName | None = None
    """terminal (a display is not needed), pynput, or none; default: terminal for a robot and with --rate-hz, else
    none."""
    confirm: bool | None = None
    """Each episode waits for key 2, until which its outcome may be changed; default: where there are keys."""
    corrector: CorrectorName = "none"
    """Who takes over on key 5. leader: the robot file's leader arm; scripted: MetaWorld's expert, by rule, without
    keys; keyboard: keys move gym-hil's gripper."""
    correction: CorrectionRule = field(default_factory=CorrectionRule)
    """When the scripted corrector takes over."""
    live: bool = True
    """A panel that refreshes itself, where the output is a terminal; else a line a change."""

    def __post_init__(self) -> None:
        check_least(self, _LEAST)
        for name, choices in (("mode", ActionMode), ("corrector", CorrectorName), ("swap_at", SwapAt)):
            if getattr(self, name) not in get_args(choices):
                raise ChunkRLError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(choices))}"
                )
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ChunkRLError(f"rate_hz is {self.rate_hz}; it must be above 0")

    def check(self) -> None:
        """Raises ChunkRLError where settings exclude each other."""
        if self.send_only + self.offline + self.export_only > 1:
            raise ChunkRLError(
                "--send-only sends, --export-only stores, and --offline records to store: give one of them"
            )
        if self.send_only or self.export_only:
            return
        if (self.env is None) == (self.robot is None):
            raise ChunkRLError("say what acts: --env with a simulator's task, or --robot with a robot's file")
        if self.robot is not None and self.rate_hz is not None:
            raise ChunkRLError("a robot's control rate is in its file: leave --rate-hz out")
        if self.robot is not None and self.camera_size is not None:
            raise ChunkRLError("a robot's cameras are in its file: leave --camera-size out")
        if self.mode == "best_of_n" and not self.offline:
            raise ChunkRLError(
                "the Q of best_of_n is not among the weights that the learner sends, so it would judge chunks of "
                "another policy: use --mode sample, or record with --offline"
            )
        if self.max_ahead_steps is not None and self.offline:
            raise ChunkRLError(
                "--max-ahead-steps waits for a learner, and --offline has none: leave one of them out"
            )

    @property
    def key_source(self) -> KeySourceName:
        """`keys`, or its default."""
        if self.keys is not None:
            return self.keys
        return "terminal" if self.robot is not None or self.rate_hz is not None else "none"

    @property
    def confirms(self) -> bool:
        """`confirm`, or its default."""
        return self.key_source != "none" if self.confirm is None else self.confirm
