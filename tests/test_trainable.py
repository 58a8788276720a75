"""What trains is what the patterns say: nothing more, and never silently everything or nothing."""

from __future__ import annotations

import pytest
from pi_tiny import KINDS, random_model
from torch import nn

from chunkrl.errors import ChunkRLError
from chunkrl.integration.pi_presets import PI_PRESETS, pi_patterns
from chunkrl.models.config import LoRAConfig
from chunkrl.models.lora import apply_lora
from chunkrl.models.name_patterns import match_names
from chunkrl.models.pi.config import ModelKind
from chunkrl.training.trainable import PartCount, count_trainable, select_trainable

NAMES = ("encoder.0.weight", "encoder.1.weight", "head.weight", "head.bias")


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("*",), NAMES),
        (("head.*",), NAMES[2:]),
        (("*", "-head.*"), NAMES[:2]),
        (("-head.*", "*"), NAMES[:2]),
        (("*weight", "-encoder.[0]*"), ("encoder.1.weight", "head.weight")),
        (("-head.*",), ()),
        (("Head.*",), None),
    ],
)
def test_patterns(patterns: tuple[str, ...], expected: tuple[str, ...] | None) -> None:
    if expected is None:
        with pytest.raises(ChunkRLError, match=r"matches no name; names that are there: .*head\.weight"):
            match_names(patterns, NAMES, "name")
    else:
        assert match_names(patterns, NAMES, "name") == set(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["full", "language_and_expert", "expert", "expert_and_last_layers:2"])
def test_presets(kind: ModelKind, preset: str) -> None:
    model = random_model(kind)
    used = trained(model)
    report = select_trainable(model, pi_patterns(preset, depth=3))
    frozen_parts = {
        "full": (),
        "language_and_expert": ("vision.", "projector.", "language.embed_tokens."),
        "expert": ("vision.", "projector.", "language."),
        "expert_and_last_layers:2": (
            "vision.",
            "projector.",
            "language.embed_tokens.",
            "language.layers.0.",
        ),
    }[preset]
    assert trained(model) == {name for name in used if not name.startswith(frozen_parts)}
    assert report.num_trained == sum(model.get_parameter(name).numel() for name in trained(model))
    assert report.num_trained + report.num_frozen == sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.vision.parameters())
    assert report.parts["vision"] == (PartCount(0, vision) if frozen_parts else PartCount(vision, 0))
    assert report.warning == ""


def test_lora_presets() -> None:
    model = random_model("pi05")
    apply_lora(
        model, LoRAConfig(rank=2, targets=("language.layers.*.self_attn.*", "language.layers.*.mlp.*"))
    )
    select_trainable(model, PI_PRESETS["lora_and_expert"])
    chosen = trained(model)
    expert = {n for n, _ in model.named_parameters() if n.startswith(("expert.", "action_", "time_"))}
    assert chosen - expert == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert chosen >= expert


def test_the_report_is_a_table() -> None:
    model = nn.ModuleDict({"body": nn.Linear(40, 50), "head": nn.Linear(50, 2)})
    report = select_trainable(model, ("head.*",))
    assert report.parts == {"body": PartCount(0, 2050), "head": PartCount(102, 0)}
    assert report == count_trainable(model)
    assert str(report).splitlines() == [
        "part  trained  frozen",
        "body        0   2,050",
        "head      102       0",
        "all       102   2,050",
    ]


def test_mistakes_are_refused() -> None:
    model = random_model("pi05")
    before = trained(model)
    with pytest.raises(ChunkRLError, match=r"'critic\.value_queries' matches no parameter"):
        select_trainable(model, ("expert.*", "critic.value_queries"))
    with pytest.raises(ChunkRLError, match=r"'-experts\.\*' matches no parameter; .*expert\.layers\.\*"):
        select_trainable(model, ("*", "-experts.*"))
    with pytest.raises(ChunkRLError, match="freezes everything"):
        select_trainable(model, ("-vision.*",))
    with pytest.raises(ChunkRLError, match="freezes everything"):
        select_trainable(model, ())
    with pytest.raises(ChunkRLError, match=r"'language\.norm\*' matches only parameters that are frozen"):
        select_trainable(model, ("expert.*", "language.norm*"))
    with pytest.raises(ChunkRLError, match=r"expert_and_last_layers:N, N from 1 to 3"):
        pi_patterns("expert_and_last_layers:4", depth=3)
    with pytest.raises(ChunkRLError, match="no selection 'experts'"):
        pi_patterns("experts", depth=3)
    assert trained(model) == before


def test_a_selection_that_freezes_nothing_is_pointed_out() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert select_trainable(model, ("*",)).warning == ""
    report = select_trainable(model, ("body.*", "head.*"))
    assert "freezes nothing" in report.warning
    assert str(report).endswith("warning: the selection ['body.*', 'head.*'] freezes nothing")


def test_unused_parameters_are_never_turned_on() -> None:
    model = random_model("pi05")
    unused = {name for name, _ in model.named_parameters()} - trained(model)
    select_trainable(model, ("language.layers.2.*", "expert.*"))
    assert not unused & trained(model)
    assert "language.layers.2.self_attn.k_proj.weight" in trained(model)
