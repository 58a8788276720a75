"""What a data set's chunks are: one record for the data path, training and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.hold_action import HoldAction
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.resize import Resize
from chunkrl.errors import DatasetError

ChunkReward = Literal["any", "sum"]


@dataclass(frozen=True)
class ColumnMapping:
    """Which columns are the state, the action and the cameras; None recognises the usual names, one text is one
    name."""

    state_key: tuple[str, ...] | None = None
    """Column of the state, or several, joined in this order (no name: no state); default: the names of LeRobot,
    openpi and the chunk-level document."""
    action_key: tuple[str, ...] | None = None
    """Column of the actions, or several, joined in this order; default: the same."""
    image_keys: tuple[str, ...] | None = None
    """Columns of the cameras (no name: none is used); default: the same."""

    def __post_init__(self) -> None:
        for name in ("state_key", "action_key", "image_keys"):
            keys = getattr(self, name)
            if isinstance(keys, str):
                object.__setattr__(self, name, (keys,))
            elif keys is not None and len(set(keys)) < len(keys):
                raise DatasetError(f"--{name.replace('_', '-')} {' '.join(keys)}: names a column twice")


@dataclass(frozen=True)
class FrameSettings:
    """How frames are kept and given."""

    cache: bool = True
    """Keep decoded images on disk; --no-cache decodes them whenever they are asked for."""
    resize: tuple[int, int] | None = None
    """Height and width of images, in shape, with black bars; default: as recorded."""
    antialias: bool = True
    """Resize as Pillow's bilinear filter does (openpi's data); else without antialiasing (LeRobot's)."""
    skip_bad_episodes: bool = False
    """Set episodes with a problem aside and list them, rather than stop at the first."""
    held_out: float = 0.0
    """Part of the episodes that nothing is trained on (.2: one of every five that follow each other), so that
    `chunkrl verdict` can judge the policy on them."""

    @property
    def image_resize(self) -> Resize | None:
        """What makes images of the recorded ones; None: nothing."""
        return None if self.resize is None else Resize(*self.resize, antialias=self.antialias)


@dataclass(frozen=True)
class ChunkSettings:
    """What a data set's chunks are.

    Raises DatasetError for settings that fit no data.
    """

    action_horizon: int = 10
    """H, actions per chunk."""
    gamma: float = 0.99
    """Discount a step."""
    critic_horizon: int | None = None
    """n, the steps that reward, discount and next observation cover; None: H. With n < H the later actions of a
    chunk count only through the value of where they led; with n > H, what followed the chunk counts as its doing."""
    reward: ChunkReward = "any"
    """any: the chunk-level document's indicator of a sub-goal; sum: discounted step rewards."""
    labels: LabelRule = LabelRule()
    """How success, reward and sub-goals are read from the columns."""
    hold: HoldAction = HoldAction()
    """What pads chunks beyond an episode's end; auto: as the data's actions are recognised."""
    encoding: ActionEncoding = ActionEncoding()
    """How actions are written (padded first; the hold action is in the data's units)."""
    mapping: ColumnMapping = ColumnMapping()
    """Which columns are state, actions and cameras."""
    cameras: tuple[str, ...] | None = None
    """Which cameras to decode; None all, () none."""
    revision: str | None = None
    """Hub revision of the data set."""
    frames: FrameSettings = FrameSettings()
    """How frames are kept: cache, image size, bad episodes."""

    def __post_init__(self) -> None:
        if self.action_horizon < 1:
            raise DatasetError(f"action_horizon is {self.action_horizon}; a chunk has at least 1 action")
        if self.critic_horizon is not None and self.critic_horizon < 1:
            raise DatasetError(f"critic_horizon is {self.critic_horizon}; it must be at least 1 step")
        if not 0.0 < self.gamma <= 1.0:
            raise DatasetError(f"gamma is {self.gamma}; it must lie in (0, 1]")
        if self.reward not in get_args(ChunkReward):
            raise DatasetError(f"reward is {self.reward!r}; it must be one of {get_args(ChunkReward)}")
        if self.encoding.kind != "absolute" and self.hold.control == "delta":
            raise DatasetError(
                f"action encoding {self.encoding.kind} is for recorded targets: pad with hold.control absolute"
            )
