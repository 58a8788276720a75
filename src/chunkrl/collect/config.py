"""What `chunkrl collect` collects, and the columns that it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from chunkrl.data.feature_spec import FeatureSpec
from chunkrl.envs.family import EnvInfo, EnvOptions
from chunkrl.envs.libero_goals import SubgoalKind, check_kinds
from chunkrl.envs.offscreen import Rendering
from chunkrl.envs.registry import check_rendering, describe, expand, family_of
from chunkrl.envs.scripted import MixtureConfig
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import ActionMode
from chunkrl.options import check_least

Naming = Literal["lerobot", "openpi"]
# (state, action, cameras) of openpi's LIBERO data sets; LeRobot's are the environments' own.
_OPENPI = ("state", "actions", ("image", "wrist_image"))
CONTROLLER, SUBGOAL_KINDS, INITIAL_SEED = (
    f"complementary_info.{name}" for name in ("controller", "subgoal_kinds", "initial_seed")
)


@dataclass(frozen=True)
class CollectConfig:
    """What to collect."""

    env: str = "push-v3"
    """MetaWorld task, LIBERO task (libero_spatial/3) or suite (libero_spatial); several, joined by +, take turns."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """How good and bad behaviour are mixed."""
    num_episodes: int = 150
    """Episodes, successful or not."""
    max_steps: int | None = None
    """Time limit, steps; default: the task's own (MetaWorld 150)."""
    seed: int = 0
    """Determines initial states, controllers and noise; episode i depends on the seed and i alone."""
    num_workers: int = 2
    """Simulator processes (0: in this process)."""
    state: str = "full"
    """MetaWorld: full (39 entries) or compact; LIBERO: full (the field's 8) or privileged (8 and where object and
    target are). Evaluate with the same."""
    camera_size: int = 0
    """Side of the cameras' images, pixels (0: no camera). Evaluate with the same."""
    rendering: Rendering = "default"
    """How LIBERO draws: default, or fast (no shadows, reflections and multisampling). Evaluate with the same."""
    naming: Naming = "lerobot"
    """Columns as LeRobot's LIBERO data sets name them, or as openpi's (image, wrist_image, state, actions)."""
    fps: float | None = None
    """Frames a second that the data set states; default: the simulator's (public LIBERO sets state 10)."""
    subgoals: tuple[SubgoalKind, ...] = ("goal",)
    """LIBERO: what the column `subgoal` marks at its onset: goal (each condition of the task's goal), grasp, lift."""
    policy: str | None = None
    """A learned policy that acts in its share (--mixture.policy-share): a run's `policy`, or a pi folder."""
    mode: ActionMode = "sample"
    """How the policy acts: mode, sample, or best_of_n."""
    exec_steps: int | None = None
    """Actions executed of each of the policy's chunks; default: the whole chunk."""
    rename: tuple[str, ...] = ()
    """Cameras that the policy knows by another name: ENVIRONMENT'S=POLICY'S, as of chunkrl evaluate."""
    hang_s: float = 1800.0
    """Seconds for an episode after which a silent simulator process is taken for hung and replaced."""
    device: str = "cpu"
    """Where each simulator process runs its copy of the policy."""

    def __post_init__(self) -> None:
        least_values = {"num_episodes": 1, "max_steps": 1, "seed": 0, "num_workers": 0, "camera_size": 0}
        check_least(self, least_values | {"exec_steps": 1, "hang_s": 1})
        for name, values in (("naming", Naming), ("mode", ActionMode)):
            if getattr(self, name) not in get_args(values):
                raise ChunkRLError(f"{name} is {getattr(self, name)!r}; use one of {get_args(values)}")
        check_kinds(self.subgoals)
        if (self.policy is None) != (self.mixture.policy_share == 0):
            raise ChunkRLError(
                "--policy FOLDER and --mixture.policy-share go together: give both (a share above 0) or neither"
            )
        if self.fps is not None and not self.fps > 0:
            raise ChunkRLError(f"fps is {self.fps}; it must be positive")


@dataclass(frozen=True)
class CollectCommand(CollectConfig):
    """Mixed-quality episodes of scripted and learned policies in a simulator, as a LeRobot v3.0 data set."""

    output_dir: str = ""
    """The data set's folder; default: data/<env>. What a kill left there is resumed; another set is refused."""
    overwrite: bool = False
    """Another data set in --output-dir makes place: its folder is kept as NAME.replaced-001."""

    @property
    def folder(self) -> str:
        """`output_dir`, or its default."""
        return self.output_dir or f"data/{self.env.replace('/', '-')}"


@dataclass(frozen=True)
class CollectPlan:
    """A configuration with its tasks looked up: cheap, without a simulator where possible.

    columns: names of state, action and cameras, in this order of meaning.
    """

    config: CollectConfig
    tasks: tuple[str, ...]
    info: EnvInfo
    state_column: str
    action_column: str
    cameras: tuple[str, ...]

    @property
    def options(self) -> EnvOptions:
        """What the environments observe. Placements are drawn: never LIBERO's official initial states."""
        config = self.config
        return EnvOptions(
            config.max_steps, config.state, config.camera_size, self.cameras, config.rendering, "sampled"
        )

    @property
    def has_goals(self) -> bool:
        """Whether the simulator says which conditions of a goal hold."""
        return family_of(self.tasks[0]).has_goals

    @property
    def fps(self) -> float:
        """Frames a second that the data set states."""
        return self.info.fps if self.config.fps is None else self.config.fps

    def task_of(self, episode: int) -> str:
        """The task of an episode: tasks take turns."""
        return self.tasks[episode % len(self.tasks)]

    def features(self) -> dict[str, FeatureSpec]:
        """The columns (flags in `next.*`, and `subgoal`, follow the action of their frame)."""
        size, names = self.config.camera_size, self.info.states[self.config.state]
        pictures = {camera: FeatureSpec("image", (size, size, 3)) for camera in self.cameras if size}
        flags = dict.fromkeys(
            ("next.success", "next.done", "next.truncated", *(("subgoal",) if self.has_goals else ())),
            FeatureSpec("bool", (1,)),
        )
        # for diagnostics and replays only, training never reads them
        extra = (CONTROLLER, *((SUBGOAL_KINDS, INITIAL_SEED) if self.has_goals else ()))
        return pictures | {
            self.state_column: FeatureSpec("float32", (len(names),), names),
            self.action_column: FeatureSpec("float32", (self.info.action_dim,)),
            "next.reward": FeatureSpec("float32", (1,)),
            **flags,
            **dict.fromkeys(extra, FeatureSpec("int64", (1,))),
        }


def plan(config: CollectConfig) -> CollectPlan:
    """Looks up tasks and names.

    Raises ChunkRLError: no such task or suite, a state, rendering or names that it cannot have.
    """
    tasks = expand(config.env.split("+"))
    info = describe(tasks)
    check_rendering(tasks, config.rendering)
    if config.state not in info.states:
        raise ChunkRLError(f"state is {config.state!r}; {info.kind} has {', '.join(info.states)}")
    state, action, cameras = "observation.state", "action", info.cameras
    if config.naming == "openpi":
        state, action, cameras = _OPENPI
        if not family_of(tasks[0]).has_openpi_names:
            raise ChunkRLError(f"--naming openpi names LIBERO's cameras; {info.kind} has {info.cameras}")
    return CollectPlan(config, tasks, info, state, action, cameras)
