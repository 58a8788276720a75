"""The memory plan counts what training really allocates, and gives the published models' figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pi_tiny import random_inputs, random_model, tiny_config, tiny_policy
from test_optim import needs_torchao
from torch.utils._python_dispatch import TorchDispatchMode

from chunkrl.integration.pi_memory import MemoryPlan, memory_plan, meta_model
from chunkrl.integration.pi_presets import PI_PRESETS
from chunkrl.models.config import LoRAConfig
from chunkrl.models.lora import apply_lora
from chunkrl.models.pi import PiModel
from chunkrl.models.pi.config import PiCriticConfig, pi0_config, pi05_config
from chunkrl.models.pi.critic import PiValue
from chunkrl.models.value_head import ValueHead
from chunkrl.training.config import OptimConfig, OptimizerKind
from chunkrl.training.optim import Ema, Optimizer, prepare_precision
from chunkrl.training.trainable import ALL, count_trainable, select_trainable

LANGUAGE_LORA = LoRAConfig(rank=4, targets=("language.layers.*.self_attn.*", "language.layers.*.mlp.*"))


class CastCounter(TorchDispatchMode):
    """Bytes of the bfloat16 copies made of a model's float32 parameters."""

    def __init__(self, model: PiModel) -> None:
        super().__init__()
        self.pointers = {p.data_ptr() for p in model.parameters() if p.dtype == torch.float32}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.bytes += out.nbytes * (args[0].data_ptr() in self.pointers)
        return out


def state_bytes(value: Any) -> int:
    """All tensors of a nested state but the step counts."""
    if isinstance(value, dict):
        return sum(state_bytes(item) for key, item in value.items() if key != "step")
    return value.nbytes if isinstance(value, torch.Tensor) else 0


@pytest.mark.parametrize(
    ("preset", "lora", "kind"),
    [
        ("full", None, "adamw"),
        ("expert", None, "adamw"),
        ("lora_and_expert", LANGUAGE_LORA, "adamw"),
        pytest.param("expert", None, "adamw_8bit", marks=[needs_torchao, pytest.mark.slow]),
    ],
)
def test_the_plan_is_what_training_allocates(
    preset: str, lora: LoRAConfig | None, kind: OptimizerKind
) -> None:
    model, inputs = random_model("pi05"), random_inputs("pi05")
    if lora is not None:
        apply_lora(model, lora)
    select_trainable(model, PI_PRESETS[preset])
    prepare_precision(model, torch.bfloat16)
    optimizer = Optimizer([model.parameters()], OptimConfig(kind=kind))
    ema = Ema(((n, p) for n, p in model.named_parameters() if p.requires_grad), 0.9)
    with CastCounter(model) as casts, torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = model.velocity(model.encode_prefix(inputs), torch.randn(2, 1, 10, 32), torch.rand(2, 1))
        loss = velocity.square().mean()
    optimizer.backward(loss)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.apply()
    assert memory_plan(
        tiny_config("pi05"), PI_PRESETS[preset], lora=lora, optimizer=kind, ema=True
    ) == MemoryPlan(
        weights=sum(p.nbytes for p in model.parameters()),
        gradients=gradients,
        optimizer=state_bytes(optimizer.state_dict()["moments"]),
        ema=state_bytes(ema.state_dict()),
        casts=casts.bytes,
        critics=0,
    )


def test_critics_are_counted_with_optimiser_and_target() -> None:
    policy = tiny_policy("pi05")
    config, head = PiCriticConfig(depth=2, num_queries=2, head_width=8), ValueHead()
    critics = [PiValue(policy, config, head) for _ in range(2)]
    plan = memory_plan(tiny_config("pi05"), PI_PRESETS["expert"], critics=critics)
    masters = sum(p.numel() for p in critics[0].parameters())
    cast = sum(
        p.numel() for m in critics[0].modules() if isinstance(m, torch.nn.Linear) for p in m.parameters()
    )
    # weights, two moments and the target in float32 of each; one gradient, and autocast's copies of one
    assert plan.critics == 2 * 4 * 4 * masters + 4 * masters + 2 * cast
    assert plan.total == sum(vars(plan).values())
    plan = memory_plan(tiny_config("pi05"), PI_PRESETS["expert"], critics=critics, critic_targets=False)
    assert plan.critics == 2 * 3 * 4 * masters + 4 * masters + 2 * cast
    # one by one: the memory of one, whatever their number; the target is there when the gradient is not
    for number, targets in ((1, False), (3, False), (3, True)):
        plan = memory_plan(
            tiny_config("pi05"),
            PI_PRESETS["expert"],
            critics=critics[:1] * number,
            critic_targets=targets,
            one_by_one=True,
        )
        assert plan.critics == 4 * 4 * masters + 2 * cast


def test_the_published_sizes() -> None:
    """../shared/reference/pi-models.md: parameters, and bytes of pi0.5."""
    config = pi05_config()
    parts = count_trainable(meta_model(config)).parts
    sizes = {name: part.trained + part.frozen for name, part in parts.items()}
    assert sizes["vision"] == 412_442_352
    assert sizes["projector"] == 2_361_344
    assert sizes["language"] == 526_647_296 + 1_981_884_416
    assert sizes["expert"] == 427_932_672
    assert sum(sizes.values()) == 3_353_433_872
    pi0 = count_trainable(meta_model(pi0_config()))
    assert pi0.num_trained + pi0.num_frozen == 3_238_048_528
    assert round(memory_plan(config, None).total / 1e9, 1) == 6.7
    assert round(memory_plan(config, None, frozen_dtype=torch.float32).total / 1e9, 1) == 13.4
    full = memory_plan(config, ALL, frozen_dtype=torch.float32)
    # The figure counts gradients and moments of the last prefix layer's unused weights too; we keep none.
    unused = parts["language"].frozen
    assert round((full.total - full.casts + 3 * 4 * unused) / 1e9, 1) == 53.7
    expert = memory_plan(config, PI_PRESETS["expert"])
    assert expert.gradients == 4 * (427_932_672 + 2_165_792)
