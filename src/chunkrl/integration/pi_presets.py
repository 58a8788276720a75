"""What trains of a pi model, by name: patterns for `chunkrl.training.trainable.select_trainable`."""

from __future__ import annotations

from chunkrl.errors import ChunkRLError
from chunkrl.training.trainable import ALL

# Selections for a `PiModel`, pi0 and pi0.5 alike. `lora` and `lora_and_expert` are for a model after `apply_lora`,
# the latter with targets in `language` alone.
PI_PRESETS: dict[str, tuple[str, ...]] = {
    "full": ALL,
    "language_and_expert": ("*", "-vision.*", "-projector.*", "-language.embed_tokens.*"),
    "expert": ("*", "-vision.*", "-projector.*", "-language.*"),
    "lora": ("*.lora_A", "*.lora_B"),
    "lora_and_expert": (
        "*",
        "-vision.*",
        "-projector.*",
        "-language.embed_tokens.*",
        "-language.layers.*norm.*",
    ),
}
_LAST_LAYERS = "expert_and_last_layers:"


def pi_patterns(preset: str, depth: int) -> tuple[str, ...]:
    """A selection by name: one of `PI_PRESETS`, or `expert_and_last_layers:N`, the expert and the last N layers
    of the prefix LM.

    Args:
        depth: layers of the prefix LM (`PiConfig.depth`).

    Raises:
        ChunkRLError: no such preset.
    """
    if preset in PI_PRESETS:
        return PI_PRESETS[preset]
    number = preset.removeprefix(_LAST_LAYERS)
    if number == preset or not number.isdecimal() or not 1 <= int(number) <= depth:
        known = ", ".join((*PI_PRESETS, f"{_LAST_LAYERS}N"))
        raise ChunkRLError(f"there is no selection '{preset}': use one of {known}, N from 1 to {depth}")
    frozen = tuple(f"-language.layers.{index}.*" for index in range(depth - int(number)))
    return (*PI_PRESETS["language_and_expert"], *frozen)
