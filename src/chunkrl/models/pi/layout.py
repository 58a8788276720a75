"""Names and shapes of the published checkpoints, and how each maps to `PiModel`'s parameters.

PyTorch (openpi, and LeRobot with `model.` in front): the same tensors under longer names. JAX (openpi, Orbax):
layers stacked on axis 0, matrices as [in, out], heads on an axis of their own, the expert's names with `_1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from chunkrl.models.pi.config import PiConfig
from chunkrl.models.pi.flow import PiModel

LEROBOT_PREFIX = "model."
_PALIGEMMA = "paligemma_with_expert.paligemma."
_PREFIXES = (
    (_PALIGEMMA + "model.vision_tower.vision_model.", "vision."),
    (_PALIGEMMA + "model.multi_modal_projector.linear.", "projector."),
    (_PALIGEMMA + "model.language_model.", "language."),
    ("paligemma_with_expert.gemma_expert.model.", "expert."),
)
EMBEDDING = "language.embed_tokens.weight"
# The tied embedding under its other name, and a head that no implementation uses.
TIED_HEAD = _PALIGEMMA + "lm_head.weight"
UNUSED_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"


def parameter_shapes(config: PiConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model by name; made on the meta device, so it costs no memory at any size."""
    with torch.device("meta"):
        model = PiModel(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def from_torch_name(name: str) -> str:
    """A published PyTorch name (openpi's or LeRobot's) to `PiModel`'s; names it does not know stay."""
    name = name.removeprefix(LEROBOT_PREFIX)
    for published, own in _PREFIXES:
        if name.startswith(published):
            return own + name[len(published) :]
    return name


def to_torch_name(name: str) -> str:
    """`PiModel`'s name to openpi's; LeRobot's has `LEROBOT_PREFIX` in front."""
    for published, own in _PREFIXES:
        if name.startswith(own):
            return published + name[len(own) :]
    return name


@dataclass(frozen=True)
class JaxRule:
    """How one JAX array becomes parameters.

    num_layers: length of the stacked axis 0, or None for an array that is not stacked.
    targets: (name, transform) pairs; `{}` in a name stands for the layer, and a transform maps the array
        (of one layer) to the parameter. Transforms only permute and reshape: they are bit-exact.
    """

    num_layers: int | None
    targets: tuple[tuple[str, Callable[[Tensor], Tensor]], ...]

    def convert(self, array: Tensor, first_layer: int = 0) -> dict[str, Tensor]:
        """The array, or layers `first_layer` and following of a stacked one, to named parameters."""
        if self.num_layers is None:
            return {name: transform(array) for name, transform in self.targets}
        return {
            name.format(first_layer + offset): transform(layer)
            for offset, layer in enumerate(array)
            for name, transform in self.targets
        }


def _same(x: Tensor) -> Tensor:
    return x


def _transpose(x: Tensor) -> Tensor:
    return x.T


def _heads_out(x: Tensor) -> Tensor:
    """[heads, width, D] -> [heads * D, width]."""
    return x.permute(0, 2, 1).flatten(0, 1)


def _heads_in(x: Tensor) -> Tensor:
    """[heads, D, width] -> [width, heads * D]."""
    return x.flatten(0, 1).T


def _vision_rules(depth: int) -> dict[str, JaxRule]:
    encoder, block = "PaliGemma/img/Transformer", "PaliGemma/img/Transformer/encoderblock"
    layer = "vision.encoder.layers.{}"
    rules = {
        "PaliGemma/img/embedding/kernel": JaxRule(
            None, (("vision.embeddings.patch_embedding.weight", lambda x: x.permute(3, 2, 0, 1)),)
        ),
        "PaliGemma/img/embedding/bias": JaxRule(None, (("vision.embeddings.patch_embedding.bias", _same),)),
        "PaliGemma/img/pos_embedding": JaxRule(
            None, (("vision.embeddings.position_embedding.weight", lambda x: x.squeeze(0)),)
        ),
        f"{encoder}/encoder_norm/scale": JaxRule(None, (("vision.post_layernorm.weight", _same),)),
        f"{encoder}/encoder_norm/bias": JaxRule(None, (("vision.post_layernorm.bias", _same),)),
        **_dense("PaliGemma/img/head", "projector"),
    }
    for index in (0, 1):
        norm, dense = f"{layer}.layer_norm{index + 1}", f"{layer}.mlp.fc{index + 1}"
        rules[f"{block}/LayerNorm_{index}/scale"] = JaxRule(depth, ((f"{norm}.weight", _same),))
        rules[f"{block}/LayerNorm_{index}/bias"] = JaxRule(depth, ((f"{norm}.bias", _same),))
        rules.update(_dense(f"{block}/MlpBlock_0/Dense_{index}", dense, depth))
    attention = f"{block}/MultiHeadDotProductAttention_0"
    for jax_name, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        target = f"{layer}.self_attn.{name}"
        rules[f"{attention}/{jax_name}/kernel"] = JaxRule(
            depth, ((f"{target}.weight", lambda x: x.flatten(1).T),)
        )
        rules[f"{attention}/{jax_name}/bias"] = JaxRule(depth, ((f"{target}.bias", lambda x: x.flatten()),))
    rules[f"{attention}/out/kernel"] = JaxRule(depth, ((f"{layer}.self_attn.out_proj.weight", _heads_in),))
    rules[f"{attention}/out/bias"] = JaxRule(depth, ((f"{layer}.self_attn.out_proj.bias", _same),))
    return rules


def _dense(jax_name: str, name: str, depth: int | None = None) -> dict[str, JaxRule]:
    return {
        f"{jax_name}/kernel": JaxRule(depth, ((f"{name}.weight", _transpose),)),
        f"{jax_name}/bias": JaxRule(depth, ((f"{name}.bias", _same),)),
    }


def _gemma_rules(depth: int, suffix: str, name: str, adaptive: bool) -> dict[str, JaxRule]:
    layers, layer = "PaliGemma/llm/layers", f"{name}.layers.{{}}"
    attention = f"{layer}.self_attn"
    rules = {
        f"{layers}/attn/q_einsum{suffix}/w": JaxRule(depth, ((f"{attention}.q_proj.weight", _heads_out),)),
        f"{layers}/attn/kv_einsum{suffix}/w": JaxRule(
            depth,
            (
                (f"{attention}.k_proj.weight", lambda x: _heads_out(x[0])),
                (f"{attention}.v_proj.weight", lambda x: _heads_out(x[1])),
            ),
        ),
        f"{layers}/attn/attn_vec_einsum{suffix}/w": JaxRule(
            depth, ((f"{attention}.o_proj.weight", _heads_in),)
        ),
        f"{layers}/mlp{suffix}/gating_einsum": JaxRule(
            depth,
            (
                (f"{layer}.mlp.gate_proj.weight", lambda x: x[0].T),
                (f"{layer}.mlp.up_proj.weight", lambda x: x[1].T),
            ),
        ),
        f"{layers}/mlp{suffix}/linear": JaxRule(depth, ((f"{layer}.mlp.down_proj.weight", _transpose),)),
    }
    norms = (
        (f"{layers}/pre_attention_norm{suffix}", f"{layer}.input_layernorm", depth),
        (f"{layers}/pre_ffw_norm{suffix}", f"{layer}.post_attention_layernorm", depth),
        (f"PaliGemma/llm/final_norm{suffix}", f"{name}.norm", None),
    )
    for jax_name, target, num_layers in norms:
        if adaptive:
            rules.update(_dense(f"{jax_name}/Dense_0", f"{target}.dense", num_layers))
        else:
            rules[f"{jax_name}/scale"] = JaxRule(num_layers, ((f"{target}.weight", _same),))
    return rules


def jax_rules(config: PiConfig) -> dict[str, JaxRule]:
    """Every array of openpi's JAX parameter tree (keys joined with `/`) and what it becomes."""
    rules = _vision_rules(config.vision.depth)
    rules["PaliGemma/llm/embedder/input_embedding"] = JaxRule(None, ((EMBEDDING, _same),))
    rules.update(_gemma_rules(config.depth, "", "language", adaptive=False))
    rules.update(_gemma_rules(config.depth, "_1", "expert", adaptive=config.kind == "pi05"))
    heads = ["action_in_proj", "action_out_proj"]
    if config.kind == "pi05":
        heads += ["time_mlp_in", "time_mlp_out"]
    else:
        heads += ["state_proj", "action_time_mlp_in", "action_time_mlp_out"]
    for head in heads:
        rules.update(_dense(head, head))
    return rules


def converted_shapes(
    rules: Mapping[str, JaxRule], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """What parameters the arrays of these shapes would become, read nothing.

    Returns:
        (parameter name -> shape, problems: arrays that no rule knows or whose rank or depth is wrong).
    """
    converted: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    for name, shape in shapes.items():
        rule = rules.get(name)
        if rule is None:
            problems.append(f"{name} {list(shape)}")
            continue
        if rule.num_layers is not None and (not shape or shape[0] != rule.num_layers):
            problems.append(f"{name} {list(shape)}: axis 0 must hold {rule.num_layers} layers")
            continue
        try:
            parts = rule.convert(torch.empty(shape, device="meta"))
        except (RuntimeError, IndexError):
            problems.append(f"{name} {list(shape)}: wrong number of axes")
            continue
        converted.update({key: tuple(value.shape) for key, value in parts.items()})
    return converted, problems
