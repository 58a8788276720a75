"""Sizes of pi0 and pi0.5, and the settings a checkpoint needs to be run as it was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from chunkrl.config import record_of
from chunkrl.data.resize import Resize
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.files.json_files import parse_json, read_json
from chunkrl.manifest import MARK

ModelKind = Literal["pi0", "pi05"]
PromptFormat = Literal["pi0", "pi05_state", "pi05_padded_state", "pi05_no_state"]
NormalizationMode = Literal["mean_std", "quantiles", "identity"]
ResizeMode = Literal["antialias", "bilinear", "lerobot_0.4"]
OverlongPrompt = Literal["error", "cut_task"]
ConditionPlace = Literal["end", "task"]


_CURE = "copy the checkpoint again, or correct it for this version"


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise CheckpointError(f"{name} is '{value}'; it must be one of {', '.join(choices)}")


# Beyond these no model is built; what they say of a damaged file is said before anything is counted up to them.
_MOST, _MOST_LAYERS, _MOST_STEPS = 2**20, 1024, 2**16
_MOST_OF = {"depth": _MOST_LAYERS, "horizon": _MOST_STEPS, "max_prompt_tokens": _MOST_STEPS}


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value, most = getattr(owner, name), _MOST_OF.get(name, _MOST)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise CheckpointError(
                f"{type(owner).__name__}.{name} is {value!r}; it must be a positive integer, at most {most}"
            )


def _number(owner: object, name: str, above: float) -> None:
    value = getattr(owner, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < math.inf:
        raise CheckpointError(
            f"{type(owner).__name__}.{name} is {value!r}; it must be a finite number above {above}"
        )


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP; the defaults are So400m/14 at 224 pixels (412 million parameters)."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1152
    depth: int = 27
    mlp_width: int = 4304
    num_heads: int = 16

    def __post_init__(self) -> None:
        _positive(self, *(f.name for f in fields(self)))
        if self.width % self.num_heads or self.image_size % self.patch_size:
            raise CheckpointError(
                f"vision width {self.width} must be a multiple of num_heads {self.num_heads}, and "
                f"image_size {self.image_size} a multiple of patch_size {self.patch_size}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class PiConfig:
    """Every size of the model. The defaults are the published ones: Gemma 2B and the 300M action expert.

    kind: "pi0" (state is a token, time enters with the actions) or "pi05" (state is text, time enters
        through adaptive RMSNorm).
    horizon: actions in a chunk. action_dim: width of the padded actions and of pi0's padded state.
    max_prompt_tokens: longest prompt (48 for pi0, 200 for pi0.5 as published).
    time_beta_alpha: flow times in training are Beta(time_beta_alpha, 1) * time_scale + time_offset.
    """

    kind: ModelKind = "pi05"
    vision: VisionConfig = field(default_factory=VisionConfig)
    vocab_size: int = 257152
    prefix_width: int = 2048
    prefix_mlp_width: int = 16384
    expert_width: int = 1024
    expert_mlp_width: int = 4096
    depth: int = 18
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 256
    action_dim: int = 32
    horizon: int = 50
    max_prompt_tokens: int = 200
    time_min_period: float = 4e-3
    time_max_period: float = 4.0
    time_beta_alpha: float = 1.5
    time_scale: float = 0.999
    time_offset: float = 0.001

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, get_args(ModelKind))
        skip = {"kind", "vision"} | {f.name for f in fields(self) if f.name.startswith("time_")}
        _positive(self, *(f.name for f in fields(self) if f.name not in skip))
        for name in ("time_min_period", "time_max_period", "time_beta_alpha", "time_scale"):
            _number(self, name, above=0)
        _number(self, "time_offset", above=-1)
        if self.num_heads % self.num_kv_heads or self.head_dim % 2 or self.expert_width % 2:
            raise CheckpointError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}; "
                f"head_dim {self.head_dim} and expert_width {self.expert_width} must be even"
            )


@dataclass(frozen=True)
class PiSettings:
    """What surrounds the model and must be the same in training and inference; saved with the checkpoint.

    prompt_format: see `chunkrl.models.pi.prompt`; a wrong one costs the policy its success rate.
    cameras: the observation's camera names in the model's order. A camera slot that the checkpoint was
        trained with and that is not there is left out: a masked camera has no effect and no position. None
        at all where the state says everything; the vision tower is then there and not used.
    state_dim, action_dim: real widths, before padding. state_dim 0: the policy takes no state.
    normalization, normalization_epsilon: "mean_std" (x - mean) / (std + eps), "quantiles"
        (x - q01) / (q99 - q01 + eps) * 2 - 1. openpi's eps is 1e-6, LeRobot's quantiles have none.
    resize: "antialias" (openpi's data pipeline), "bilinear" without antialiasing (openpi's PyTorch code, newer
        LeRobot), or "lerobot_0.4": the same, but what fills a non-square image up is -3 and not black (-1).
    data_resize: what the training data's images were resized with before the model's own resizing; None: nothing.
    fps: frames per second of the training data; None: not known.
    delta_actions: per action dimension, whether the model's action is relative to the state at the chunk's
        start (openpi's `pi0_libero`); empty for none.
    overlong_prompt: "error", or "cut_task": the task's last words go, the state and the condition never.
    condition: text that actions are asked for with, e.g. "Advantage: positive"; empty for a policy without.
    condition_place: "end", after the state (pi*0.6, the advantage-conditioned document), or "task", after the
        task's text: stock LeRobot then runs the policy if the condition is appended to its task string.
    guidance: of classifier-free guidance when acting; 1 is plain conditioning.
    guidance_from: the condition that guidance leads away from, e.g. "Advantage: negative"; empty: the policy without
        a condition.
    conditions: all texts that it was trained with, and may be asked for; empty: none, or not known.
    """

    prompt_format: PromptFormat
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    normalization: NormalizationMode
    normalization_epsilon: float = 1e-6
    resize: ResizeMode = "antialias"
    delta_actions: tuple[bool, ...] = ()
    overlong_prompt: OverlongPrompt = "error"
    condition: str = ""
    condition_place: ConditionPlace = "end"
    guidance: float = 1.0
    conditions: tuple[str, ...] = ()
    guidance_from: str = ""
    data_resize: Resize | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        _one_of("prompt_format", self.prompt_format, get_args(PromptFormat))
        _one_of("normalization", self.normalization, get_args(NormalizationMode))
        _one_of("resize", self.resize, get_args(ResizeMode))
        _one_of("overlong_prompt", self.overlong_prompt, get_args(OverlongPrompt))
        _one_of("condition_place", self.condition_place, get_args(ConditionPlace))
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise CheckpointError(f"fps is {self.fps}; it must be positive and finite")
        if not 0 <= self.guidance < math.inf:
            raise CheckpointError(f"guidance is {self.guidance}; it must be finite and not negative")
        if not 0 <= self.normalization_epsilon < math.inf:
            raise CheckpointError(
                f"normalization_epsilon is {self.normalization_epsilon}; it must be finite and not negative"
            )
        _positive(self, "action_dim")
        if not isinstance(self.state_dim, int) or not 0 <= self.state_dim <= _MOST:
            raise CheckpointError(f"state_dim is {self.state_dim!r}; it must be an integer from 0")
        if isinstance(self.cameras, str) or not all(isinstance(name, str) and name for name in self.cameras):
            raise CheckpointError(f"cameras is {self.cameras!r}; it must be a list of names")
        object.__setattr__(self, "cameras", tuple(self.cameras))
        object.__setattr__(self, "delta_actions", tuple(self.delta_actions))
        object.__setattr__(self, "conditions", tuple(self.conditions))
        if self.conditions and self.condition not in ("", *self.conditions):
            raise CheckpointError(
                f"condition is {self.condition!r}, which is none of those it was trained with: {self.conditions}"
            )
        if self.guidance_from not in ("", *self.conditions):
            raise CheckpointError(
                f"guidance_from is {self.guidance_from!r}, which is none of the conditions that it was trained with: "
                f"{self.conditions}"
            )
        if len(set(self.cameras)) != len(self.cameras):
            raise CheckpointError(f"cameras is {self.cameras}; name each camera once")
        if not self.cameras and self.state_dim == 0:
            raise CheckpointError(
                "the policy has neither a camera nor a state: name a camera or set state_dim"
            )
        if len(self.delta_actions) > min(self.state_dim, self.action_dim):
            raise CheckpointError(
                f"delta_actions ({len(self.delta_actions)} entries) must not be longer than the state "
                f"({self.state_dim}) or the action ({self.action_dim})"
            )


@dataclass(frozen=True)
class PiRecipe:
    """Model sizes and settings together: all that a folder of bare weights does not say."""

    config: PiConfig
    settings: PiSettings

    def __post_init__(self) -> None:
        config, settings = self.config, self.settings
        if (config.kind == "pi0") != (settings.prompt_format == "pi0"):
            raise CheckpointError(
                f"prompt_format '{settings.prompt_format}' does not belong to a {config.kind} model"
            )
        if max(settings.state_dim, settings.action_dim) > config.action_dim:
            raise CheckpointError(
                f"state_dim {settings.state_dim} and action_dim {settings.action_dim} must fit the model's "
                f"action_dim {config.action_dim}"
            )
        if settings.state_dim == 0 and settings.prompt_format != "pi05_no_state":
            raise CheckpointError(
                f"prompt_format '{settings.prompt_format}' needs the state, but state_dim is 0; "
                "give the state's width (only pi05_no_state runs without)"
            )

    def to_json(self, beside: Mapping[str, str] | None = None) -> str:
        """The recipe as JSON text; `from_json` reads it back equal. beside: what else the file says."""
        record = {"model": asdict(self.config), "settings": asdict(self.settings), **(beside or {})}
        return json.dumps(record, indent=2)

    @classmethod
    def from_json(cls, text: str, source: str) -> PiRecipe:
        """Read `to_json`'s text; `source` names the file in errors.

        Raises:
            CheckpointError: not JSON, an unknown or a missing key, or a value that is not allowed.
        """
        data = parse_json(text.encode(errors="surrogatepass"), dict, source, CheckpointError, _CURE)
        return cls._from_json(data, source)

    @classmethod
    def read(cls, file: Path) -> PiRecipe:
        """Does as `from_json`, from a file (`RECIPE_FILE`)."""
        data = read_json(file, dict, CheckpointError, _CURE)
        data.pop(MARK, None)
        return cls._from_json(data, str(file))

    @classmethod
    def _from_json(cls, data: dict[str, Any], source: str) -> PiRecipe:
        if set(data) != {"model", "settings"}:
            raise CheckpointError(f"{source} must have exactly the keys 'model' and 'settings': {_CURE}")
        config = record_of(PiConfig, data["model"], f"{source}, model", CheckpointError, _CURE)
        settings = record_of(PiSettings, data["settings"], f"{source}, settings", CheckpointError, _CURE)
        try:
            return cls(config, settings)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}: {_CURE}") from error


def pi0_config(horizon: int = 50) -> PiConfig:
    """The published pi0 (3.24 billion parameters)."""
    return PiConfig(kind="pi0", horizon=horizon, max_prompt_tokens=48)


def pi05_config(horizon: int = 50) -> PiConfig:
    """The published pi0.5 (3.35 billion parameters)."""
    return PiConfig(kind="pi05", horizon=horizon, max_prompt_tokens=200)


LIBERO_CAMERAS = ("image", "wrist_image")
LIBERO_ASSET_ID = "physical-intelligence/libero"


def pi0_libero() -> PiRecipe:
    """openpi's `pi0_libero`: joint-space deltas to the state in the first six action dimensions."""
    settings = PiSettings(
        prompt_format="pi0",
        cameras=LIBERO_CAMERAS,
        state_dim=8,
        action_dim=7,
        normalization="mean_std",
        delta_actions=(True,) * 6 + (False,),
    )
    return PiRecipe(pi0_config(), settings)


def pi05_libero() -> PiRecipe:
    """openpi's `pi05_libero`: horizon 10 and no state in the prompt."""
    settings = PiSettings(
        prompt_format="pi05_no_state",
        cameras=LIBERO_CAMERAS,
        state_dim=8,
        action_dim=7,
        normalization="quantiles",
    )
    return PiRecipe(pi05_config(horizon=10), settings)


def pi0_base(cameras: tuple[str, ...], state_dim: int, action_dim: int) -> PiRecipe:
    """openpi's `pi0_base` for a robot with these cameras and widths."""
    return PiRecipe(pi0_config(), PiSettings("pi0", cameras, state_dim, action_dim, "mean_std"))


def pi05_base(cameras: tuple[str, ...], state_dim: int, action_dim: int) -> PiRecipe:
    """openpi's `pi05_base` for a robot with these cameras and widths (unpadded state in the prompt)."""
    return PiRecipe(pi05_config(), PiSettings("pi05_state", cameras, state_dim, action_dim, "quantiles"))


@dataclass(frozen=True)
class PiCriticConfig:
    """Size and regularisation of a critic."""

    depth: int = 6
    """N, blocks copied from the policy's prefix language model; 0: a small head on frozen features, the baseline."""
    num_queries: int = 32
    """Value queries."""
    head_width: int = 512
    """Hidden width of the readout."""
    dropout: float = 0.0
    """Dropout in the readout, while training."""
    state_noise: float = 0.0
    """Deviation of the noise on the state while training; 1 is about the data's own deviation."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass."""

    def __post_init__(self) -> None:
        if self.depth < 0 or not 1 <= self.num_queries <= 2**16 or not 1 <= self.head_width <= 2**16:
            raise ChunkRLError(
                f"critic depth {self.depth}, num_queries {self.num_queries}, head_width {self.head_width}: "
                "depth counts the policy's blocks from 0, the others lie in 1 to 65536"
            )
        if not 0 <= self.dropout < 1 or self.state_noise < 0:
            raise ChunkRLError("critic dropout must lie in [0, 1), and state_noise must not be negative")


DEFAULT_FLOW_STEPS = 10
