"""Settings of the networks: sizes, kind of policy, LoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from chunkrl.config import Variants
from chunkrl.errors import ChunkRLError

ActionMode = Literal["mode", "sample", "best_of_n"]
"""How a policy acts: its most likely chunk, one that is drawn, or of N that are drawn the one that Q prefers."""

# larger networks are none of these small ones: a damaged file says so, and building them would not end
_MOST = {"hidden_dim": 2**14, "num_layers": 256, "text_dim": 2**14, "text_tokens": 2**16}


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes shared by all small networks.

    hidden_dim: width of every hidden layer. num_layers: hidden layers of each head.
    image_channels: of the convolutions, multiples of 8; the first makes a quarter of the image's size, each other
    halves it, and the last are keypoints (`ImageEncoder`). image_shift: training moves each image by up to so many
    pixels in rows and columns (`shift_images`). text_dim: features a text gives. text_buckets, text_tokens: hash
    vocabulary and longest text in words.
    layer_norm: in critics (it keeps Q from exploding off the data). dropout: in critics' heads.
    """

    hidden_dim: int = 256
    num_layers: int = 3
    image_channels: tuple[int, ...] = (32, 64, 64)
    image_shift: int = 0
    text_dim: int = 64
    text_buckets: int = 4096
    text_tokens: int = 32
    layer_norm: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ChunkRLError(f"network {name} is {getattr(self, name)}; it must lie in 1 to {most}")
        if not 0 < len(self.image_channels) <= _MOST["num_layers"] or any(
            width % 8 or not 8 <= width <= _MOST["hidden_dim"] for width in self.image_channels
        ):
            raise ChunkRLError(
                f"network image_channels is {self.image_channels}; give multiples of 8 (groups of GroupNorm)"
            )
        if self.image_shift < 0:
            raise ChunkRLError(f"network image_shift is {self.image_shift}; give pixels, or 0 for none")
        if not 2 <= self.text_buckets <= 2**24 or not 0 <= self.dropout < 1:
            raise ChunkRLError("network text_buckets must lie in 2 to 2**24 and dropout in [0, 1)")


@dataclass(frozen=True)
class PolicySettings(Variants):
    """What a policy's family lets one set; each family has a class for it (`chunkrl.policies.family`).

    kind: `gaussian`, `flow`, or `pi`, the pretrained checkpoint of --pi0-config.
    """

    registry: ClassVar[str] = "chunkrl.policies.registry"
    kind: str = "gaussian"

    def __post_init__(self) -> None:
        if self.class_of(self.kind) is not type(self):
            own = self.class_of(self.kind).__name__
            raise ChunkRLError(f"policy kind {self.kind!r} has settings of its own: give {own}(...)")


@dataclass(frozen=True)
class PolicyConfig(PolicySettings):
    """Settings of the Gaussian, the flow, and a pi policy, which reads its kind alone.

    spread: of the Gaussian, `state` (a network output) or `fixed`. fixed_std: its deviation where it is fixed,
    normalised units. flow_steps: Euler steps when sampling.
    """

    spread: Literal["state", "fixed"] = "state"
    fixed_std: float = 0.3
    flow_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spread not in ("state", "fixed"):
            raise ChunkRLError(f"policy kind {self.kind!r} with spread {self.spread!r}: see PolicyConfig")
        if not 0 < self.fixed_std < math.inf or not 1 <= self.flow_steps <= 10_000:
            raise ChunkRLError("policy fixed_std must be positive and flow_steps lie in 1 to 10,000")


@dataclass(frozen=True)
class LoRAConfig:
    """Size and place of LoRA."""

    rank: int = 16
    """Rank of the update."""
    alpha: float = 16.0
    """The update's scale is alpha / rank."""
    targets: tuple[str, ...] = (
        "language.layers.*.self_attn.*",
        "language.layers.*.mlp.*",
        "expert.layers.*.self_attn.*",
        "expert.layers.*.mlp.*",
    )
    """Globs on the names of linear modules, a leading - excludes; default: attention and MLPs of a pi model's prefix
    language model and action expert."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not self.targets:
            raise ChunkRLError("LoRA needs a rank of at least 1, a positive alpha and at least one target")
