"""LoRA layers: nothing changes at the start, only A and B learn, and merging gives the plain model back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from pi_tiny import KINDS, random_inputs, random_model, tiny_policy
from torch import Tensor, nn

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.integration.pi_presets import PI_PRESETS
from chunkrl.models.config import LoRAConfig
from chunkrl.models.lora import apply_lora, merge_lora
from chunkrl.models.pi import PiModel, save_pretrained
from chunkrl.models.pi.config import ModelKind
from chunkrl.training.config import OptimConfig
from chunkrl.training.optim import Optimizer, prepare_precision
from chunkrl.training.trainable import select_trainable

SMALL = LoRAConfig(rank=2, alpha=4.0)


def lora_parts(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A and B of every adapted layer, by name."""
    return {
        n: p.detach() for n, p in model.named_parameters() if n.rpartition(".")[2] in ("lora_A", "lora_B")
    }


def velocity(model: PiModel, kind: ModelKind) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 10, 32, generator=generator)
    return model.velocity(model.encode_prefix(random_inputs(kind)), x, torch.rand(2, 3, generator=generator))


def train(model: PiModel, kind: ModelKind, num_updates: int = 3) -> None:
    optimizer = Optimizer([model.parameters()], OptimConfig(lr=1e-2))
    for _ in range(num_updates):
        optimizer.step(velocity(model, kind).square().mean())


def test_a_layer_in_closed_form() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    assert apply_lora(model, LoRAConfig(rank=1, alpha=3.0, targets=("0",))) == ["0"]
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
        model.get_parameter("0.bias").copy_(torch.tensor([0.5, 0.0]))
        model.get_parameter("0.lora_A").copy_(torch.tensor([[1.0, 1.0, 1.0]]))
        model.get_parameter("0.lora_B").copy_(torch.tensor([[1.0], [-1.0]]))
    # W x + b + 3 B (A x) with A x = 6
    assert model(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.5 + 18, 2.0 - 18]
    merge_lora(model)
    assert type(model[0]) is nn.Linear
    assert model.get_parameter("0.weight").tolist() == [[4.0, 3.0, 3.0], [-3.0, -2.0, -3.0]]
    assert model(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.5 + 18, 2.0 - 18]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_bit_equal_at_the_start(kind: ModelKind, dtype: torch.dtype) -> None:
    plain, adapted = (random_model(kind).to(dtype) for _ in range(2))
    names = apply_lora(adapted, SMALL)
    assert {n for n in names if n.startswith("expert.layers.0.")} == {
        *(f"expert.layers.0.self_attn.{part}_proj" for part in "qkvo"),
        *(f"expert.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    assert torch.equal(velocity(plain, kind), velocity(adapted, kind))
    assert all(t.dtype == torch.float32 for t in lora_parts(adapted).values())
    assert set(plain.state_dict()) == set(adapted.state_dict()) - set(lora_parts(adapted))


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_and_b_learn_and_unused_layers_are_not_adapted(kind: ModelKind) -> None:
    model = random_model(kind)
    names = apply_lora(model, SMALL)
    # the last prefix layer gives keys and values alone: the rest of it is frozen as unused
    assert [n for n in names if n.startswith("language.layers.2.")] == [
        "language.layers.2.self_attn.k_proj",
        "language.layers.2.self_attn.v_proj",
    ]
    select_trainable(model, PI_PRESETS["lora"])
    before = copy.deepcopy(model.state_dict())
    train(model, kind)
    learned = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert learned == set(lora_parts(model))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_keeps_outputs_and_gives_the_plain_structure_back(kind: ModelKind) -> None:
    model, plain = random_model(kind), random_model(kind)
    apply_lora(model, SMALL)
    train(model, kind)
    trained = velocity(model, kind).detach()
    assert float((trained - velocity(plain, kind)).detach().abs().max()) > 1e-2
    merge_lora(model)
    torch.testing.assert_close(velocity(model, kind), trained, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]
    plain.load_state_dict(model.state_dict())
    assert torch.equal(velocity(plain, kind), velocity(model, kind))


def test_small_updates_of_bfloat16_weights_need_a_float32_merge() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).bfloat16()
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
    apply_lora(model, LoRAConfig(rank=1, alpha=1.0, targets=("0",)))
    with torch.no_grad():
        model.get_parameter("0.lora_A").fill_(1.0)
        model.get_parameter("0.lora_B").fill_(0.001)
    rounded = copy.deepcopy(model)
    merge_lora(rounded)
    merge_lora(model, torch.float32)
    assert rounded.get_parameter("0.weight").item() == 1.0
    assert model.get_parameter("0.weight").item() == pytest.approx(1.001)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_base_trains_under_autocast(checkpointing: bool) -> None:
    model = random_model("pi05")
    apply_lora(model, SMALL)
    select_trainable(model, PI_PRESETS["lora"])
    prepare_precision(model, torch.bfloat16)
    model.set_gradient_checkpointing(checkpointing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = velocity(model, "pi05").square().mean()
    loss.backward()
    for name in lora_parts(model):
        gradient = model.get_parameter(name).grad
        assert gradient is not None and gradient.dtype == torch.float32
        # B is zero, so A has no gradient yet
        assert bool(gradient.isfinite().all()) and bool((gradient != 0).any()) == name.endswith("lora_B")


def test_adapted_policies_are_not_saved_before_merging(tmp_path: Path) -> None:
    policy = tiny_policy("pi05")
    apply_lora(policy.model, SMALL)
    with pytest.raises(CheckpointError, match="merge_lora"):
        save_pretrained(policy, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
    merge_lora(policy.model)
    save_pretrained(policy, tmp_path / "policy")


def test_wrong_targets_are_refused() -> None:
    model = random_model("pi05")
    with pytest.raises(ChunkRLError, match=r"'experts\.\*q_proj'.*expert\.layers\.\*\.self_attn\.q_proj"):
        apply_lora(model, LoRAConfig(targets=("experts.*q_proj",)))
    with pytest.raises(ChunkRLError, match="not frozen"):
        apply_lora(model, LoRAConfig(targets=("language.layers.2.mlp.*",)))
    apply_lora(model, SMALL)
    with pytest.raises(ChunkRLError, match="already"):
        apply_lora(model, SMALL)
    with pytest.raises(ChunkRLError, match="rank"):
        LoRAConfig(rank=0)
