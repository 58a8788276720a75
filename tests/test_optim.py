"""The optimiser: schedule, accumulation, exact resume, 8-bit moments, precision and averages."""

from __future__ import annotations

import builtins
import copy
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from pi_tiny import KINDS, random_inputs, random_model
from torch import Tensor, nn

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.install import MissingExtraError
from chunkrl.models.pi.config import ModelKind
from chunkrl.training.checkpoint import load_state, save_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.optim import Ema, Optimizer, learning_rate, prepare_precision, update_ema

COSINE = OptimConfig(lr=1e-2, schedule="cosine", warmup_updates=3, weight_decay=0.1, grad_clip=0.5)
needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not installed: pip install '.[eightbit]'"
)


def network() -> nn.Sequential:
    """One weight that torchao quantises (4096 elements), and smaller ones."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 3))


def loss_of(model: nn.Module, number: int) -> Tensor:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(number))
    return (model(x) - x[:, :3]).square().mean()


def train(model: nn.Module, optimizer: Optimizer, updates: range, parts: int) -> list[float]:
    """Each update accumulates over `parts` losses; returns the gradient norms."""
    norms = []
    for update in updates:
        for part in range(parts):
            optimizer.backward(loss_of(model, update * parts + part) / parts)
        norms.append(optimizer.apply())
    return norms


# ---- schedule


def test_constant_rate_with_warmup() -> None:
    config = OptimConfig(lr=1.0, warmup_updates=4)
    assert [learning_rate(config, u) for u in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(OptimConfig(lr=3e-4), 0) == 3e-4


def test_cosine_rate_in_closed_form() -> None:
    config = OptimConfig(lr=2.0, schedule="cosine", warmup_updates=2, final_lr_ratio=0.1)
    rates = [learning_rate(config, u, 11) for u in range(13)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.1)  # half-way between 2 and 0.2
    assert rates[4] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[10] == rates[11] == rates[12] == pytest.approx(0.2)
    assert rates[2:11] == sorted(rates[2:11], reverse=True)


def test_the_optimiser_follows_the_schedule() -> None:
    """From zero moments and a constant gradient AdamW moves by the learning rate."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Optimizer([[parameter]], OptimConfig(lr=0.1, schedule="cosine", warmup_updates=2), 5)
    expected = 0.0
    for update in range(5):
        assert optimizer.lr == learning_rate(OptimConfig(0.1, schedule="cosine", warmup_updates=2), update, 5)
        expected -= optimizer.lr
        optimizer.step(parameter.sum())
        assert float(parameter.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"betas": (0.9, 1.0)},
        {"schedule": "linear"},
        {"kind": "sgd"},
        {"warmup_updates": -1},
        {"final_lr_ratio": 1.5},
    ],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ChunkRLError):
        OptimConfig(**settings)


def test_a_schedule_needs_its_length_and_the_optimiser_something_to_train() -> None:
    model = network()
    with pytest.raises(ChunkRLError, match="num_updates"):
        Optimizer([model.parameters()], COSINE)
    with pytest.raises(ChunkRLError, match="warmup_updates 3"):
        Optimizer([model.parameters()], COSINE, 3)
    with pytest.raises(ChunkRLError, match="prepare_precision"):
        Optimizer([copy.deepcopy(model).bfloat16().parameters()], OptimConfig())
    with pytest.raises(ChunkRLError, match="nothing to train"):
        Optimizer([model.requires_grad_(False).parameters()], OptimConfig())


# ---- steps


def test_accumulated_parts_equal_one_batch() -> None:
    """The gradient of a mean of losses is the mean of their gradients; norm and clipping see the sum alone."""
    whole, parts = network(), network()
    first, second = (Optimizer([m.parameters()], OptimConfig(grad_clip=0.1)) for m in (whole, parts))
    for update in range(3):
        together = first.step((loss_of(whole, 2 * update) + loss_of(whole, 2 * update + 1)) / 2)
        assert train(parts, second, range(update, update + 1), 2) == [pytest.approx(together, rel=1e-5)]
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_each_group_is_clipped_by_its_own_norm() -> None:
    first, second = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = Optimizer([[first], [second]], OptimConfig(grad_clip=1.0))
    norm = optimizer.step(3 * first[0] + 4 * first[1] + 0.5 * second[0])
    assert norm == pytest.approx(math.hypot(5, 0.5))
    moments = optimizer.state_dict()["moments"]
    clipped = [moments[str(group)]["exp_avg"] / 0.1 for group in range(2)]  # 1 - beta1
    torch.testing.assert_close(
        clipped[0], torch.tensor([0.6, 0.8], dtype=torch.float64), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(clipped[1], torch.tensor([0.5, 0.0], dtype=torch.float64))
    assert first.grad is None and second.grad is None  # no memory waits for the next update


@pytest.mark.parametrize(
    "kind", ["adamw", pytest.param("adamw_8bit", marks=[needs_torchao, pytest.mark.slow])]
)
def test_a_resumed_run_is_bit_equal(kind: str, tmp_path: Path) -> None:
    config = OptimConfig(**{**vars(COSINE), "kind": kind})
    straight, interrupted, resumed = network(), network(), network()
    optimizer = Optimizer([straight.parameters()], config, 10)
    norms = train(straight, optimizer, range(10), 2)
    first = Optimizer([interrupted.parameters()], config, 10)
    before = train(interrupted, first, range(5), 2)
    save_state(tmp_path / "c", {"model": interrupted.state_dict(), "optimizer": first.state_dict()})
    state = load_state(tmp_path / "c")
    resumed.load_state_dict(state["model"])
    second = Optimizer([resumed.parameters()], config, 10)
    second.load_state_dict(state["optimizer"])
    assert second.num_applied == 5
    assert before + train(resumed, second, range(5, 10), 2) == norms
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_other_parameters_or_another_kind_is_refused() -> None:
    model = network()
    optimizer = Optimizer([model.parameters()], OptimConfig())
    optimizer.step(loss_of(model, 0))
    state = optimizer.state_dict()
    with pytest.raises(CheckpointError, match="trains 4 parameters, this run 2"):
        Optimizer([model[0].parameters()], OptimConfig()).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"parameter 0 \[128, 32\] do not belong to one of \[128, 31\]"):
        other = nn.Sequential(nn.Linear(31, 128), nn.Linear(128, 3))
        Optimizer([other.parameters()], OptimConfig()).load_state_dict(state)
    with pytest.raises(CheckpointError, match="another version"):
        optimizer.load_state_dict(state["moments"])


@needs_torchao
@pytest.mark.slow
def test_eight_bit_moments_learn_and_take_two_bytes_a_parameter() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(64, 256, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(64, 64)
    y = x.repeat(1, 4)
    plain = Optimizer([models[0].parameters()], OptimConfig(lr=1e-2))
    quantised = Optimizer([models[1].parameters()], OptimConfig(lr=1e-2, kind="adamw_8bit"))
    for _ in range(60):
        for model, optimizer in zip(models, (plain, quantised), strict=True):
            optimizer.step((model(x) - y).square().mean())
    losses = [float((model(x) - y).square().mean().detach()) for model in models]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1] < 0.1
    moments = quantised.state_dict()["moments"]["0"]
    size = sum(moments[m][part].nbytes for m in ("exp_avg", "exp_avg_sq") for part in ("codes", "scale"))
    # one byte a moment, and one float32 scale for 256 of them
    assert size == 2 * (64 * 256) * (1 + 4 / 256)
    with pytest.raises(CheckpointError, match="under adamw"):
        Optimizer([models[1].parameters()], OptimConfig()).load_state_dict(quantised.state_dict())


def test_eight_bit_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **settings: object) -> object:
        if name.startswith("torchao"):
            raise ImportError(name)
        return real(name, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"\[eightbit\]"):
        Optimizer([network().parameters()], OptimConfig(kind="adamw_8bit"))


# ---- averages


def test_the_average_in_closed_form() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    ema = Ema([("x", parameter)], decay=0.75)
    with torch.no_grad():
        parameter.fill_(5.0)
    for expected in (2.0, 2.75):  # 0.75 * 1 + 0.25 * 5, 0.75 * 2 + 0.25 * 5
        ema.update()
        assert ema.state_dict()["x"].item() == expected


def test_small_steps_of_bfloat16_parameters_reach_the_average() -> None:
    """0.001 of a step of 0.01 from 1 is far below bfloat16's spacing at 1 (2^-7), so bfloat16 would never move."""
    online = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        online.weight.fill_(1.0)
    ema, target = Ema(online.named_parameters(), decay=0.999), copy.deepcopy(online).float()
    with torch.no_grad():
        online.weight.fill_(1.0078125)
    stuck = torch.ones((), dtype=torch.bfloat16)
    for _ in range(1000):
        ema.update()
        update_ema(target, online, 0.001)
        stuck.lerp_(online.weight.detach()[0, 0], 0.001)
    expected = 1 + 0.0078125 * (1 - 0.999**1000)
    assert stuck.item() == 1.0
    assert ema.state_dict()["weight"].item() == pytest.approx(expected, abs=1e-4)
    assert target.weight.item() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ChunkRLError, match="loses small steps"):
        update_ema(copy.deepcopy(online), online, 0.001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_averages_are_taken_back_exactly(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    ema = Ema(model.named_parameters(), decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    ema.update()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="evaluation"), ema.applied():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, ema.state_dict()[name].to(dtype))
        raise RuntimeError("evaluation failed")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_averages_are_saved_and_only_loaded_where_they_belong() -> None:
    model = network()
    ema, other = Ema(model.named_parameters(), 0.5), Ema(network().named_parameters(), 0.5)
    with torch.no_grad():
        model.get_parameter("0.bias").add_(1.0)
    ema.update()
    other.load_state_dict(ema.state_dict())
    for name, value in ema.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="other parameters"):
        Ema(model[0].named_parameters(), 0.5).load_state_dict(ema.state_dict())
    with pytest.raises(ChunkRLError, match="decay"):
        Ema(model.named_parameters(), 1.0)


# ---- precision


def freeze_prefix(name: str) -> bool:
    return not name.startswith(("vision", "projector", "language"))


def last_layer(name: str) -> bool:
    return freeze_prefix(name) or name.startswith("language.layers.2.self_attn.k_proj")


@pytest.mark.parametrize("trains", [freeze_prefix, last_layer, lambda name: True])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_masters_train_under_autocast(kind: ModelKind, trains: Callable[[str], bool]) -> None:
    model, inputs = random_model(kind), random_inputs(kind)
    generator = torch.Generator().manual_seed(1)
    actions = torch.randn(2, 10, 32, generator=generator)
    noise = torch.randn(2, 3, 10, 32, generator=generator)
    time = torch.rand(2, 3, generator=generator)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and trains(name))
    exact = model.flow_loss(model.encode_prefix(inputs), actions, noise, time).mean()
    exact.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)

    prepare_precision(model, torch.bfloat16)
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    for checkpointing in (False, True):
        model.set_gradient_checkpointing(checkpointing)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.flow_loss(model.encode_prefix(inputs), actions, noise, time).mean()
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert set(found) == set(expected)
        for name, gradient in found.items():
            assert gradient.dtype == torch.float32 and bool(gradient.isfinite().all()), name
        mine, reference = (torch.cat([g[n].flatten() for n in expected]) for g in (found, expected))
        assert torch.cosine_similarity(mine, reference, dim=0) > 0.99
        model.zero_grad(set_to_none=True)


def test_nothing_is_cast_where_no_dtype_is_given() -> None:
    model = network()
    model[0].requires_grad_(False)
    model.double()
    prepare_precision(model, None)
    assert [p.dtype for p in model.parameters()] == [torch.float64] * 2 + [torch.float32] * 2
