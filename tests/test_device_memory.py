"""No second copy of what is on a GPU, not even for a moment: copies go by way of the CPU's memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pi_tiny import tiny_policy
from torch.utils._python_dispatch import TorchDispatchMode

from chunkrl.integration import pi_training
from chunkrl.integration.config import PiTrainingConfig
from chunkrl.integration.pi_saving import save_pi_policy
from chunkrl.integration.pi_training import choose_trained
from chunkrl.models.config import LoRAConfig
from chunkrl.models.pi import PiPolicy, load_pretrained
from chunkrl.training.optim import Ema

CPU = torch.device("cpu")


class Copies(TorchDispatchMode):
    """Which of some tensors are copied whole: to the CPU, or to where they are."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self.pointers = {tensor.data_ptr() for tensor in tensors}
        self.to_cpu = self.in_place = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].data_ptr() in self.pointers:
            self.in_place += func is torch.ops.aten.clone.default
            if func is torch.ops.aten._to_copy.default:
                to_cpu = kwargs.get("device") == CPU
                self.to_cpu += to_cpu
                self.in_place += not to_cpu
        return func(*args, **kwargs)


def test_averages_are_saved_and_applied_without_a_second_copy_on_their_device() -> None:
    layer = torch.nn.Linear(3, 2)
    ema = Ema(layer.named_parameters(), 0.5)
    weight = layer.weight.detach().clone()
    average = ema.state_dict()["weight"]
    with torch.no_grad():
        layer.weight += 1
    ema.update()
    assert ema.state_dict()["weight"] is average  # the tensor itself, as in the state of a module
    torch.testing.assert_close(average, weight + 0.5)
    with Copies([*layer.parameters(), *ema.state_dict().values()]) as copies, ema.applied():
        torch.testing.assert_close(layer.weight.detach(), weight + 0.5)
    assert (copies.to_cpu, copies.in_place) == (2, 0)
    assert torch.equal(layer.weight.detach(), weight + 1)


def test_lora_is_merged_in_a_copy_on_the_cpu(tmp_path: Path) -> None:
    policy = tiny_policy("pi05")
    choose_trained(policy, PiTrainingConfig(train="lora", lora=LoRAConfig(rank=2)), CPU)
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    with Copies(list(policy.model.parameters())) as copies:
        save_pi_policy(policy, tmp_path / "policy")
    assert copies.to_cpu == len(before) and copies.in_place == 0
    # training may keep what it had
    after = policy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(
        "lora" in name for name, _ in load_pretrained(tmp_path / "policy").model.named_parameters()
    )


def test_a_policy_gets_other_tensors_without_copying_them() -> None:
    policy = tiny_policy("pi05")
    choose_trained(policy, PiTrainingConfig(train="lora", lora=LoRAConfig(rank=2)), CPU)
    state = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    drawn = torch.get_rng_state()
    other = policy.with_state(state)
    assert torch.equal(torch.get_rng_state(), drawn)
    found = other.model.state_dict()
    assert found.keys() == state.keys()
    assert all(found[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    assert (other.recipe, other.norm_stats, other.tokenizer) == (
        policy.recipe,
        policy.norm_stats,
        policy.tokenizer,
    )


def test_a_checkpoint_is_frozen_and_cast_before_it_goes_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device there are never float32 parameters that do not train."""
    moved: list[set[torch.dtype]] = []
    events: list[str] = []
    to = PiPolicy.to

    def recorded(self: PiPolicy, *args: Any, **kwargs: Any) -> PiPolicy:
        frozen = {p.dtype for p in self.parameters() if not p.requires_grad}
        trained = {p.dtype for p in self.parameters() if p.requires_grad}
        moved.extend([frozen, trained])
        events.append("to")
        return to(self, *args, **kwargs)

    def loaded(*_: Any, device: Any = "cpu", **__: Any) -> PiPolicy:
        assert torch.device(device) == CPU
        events.append("load")
        return tiny_policy("pi05")

    monkeypatch.setattr(PiPolicy, "to", recorded)
    monkeypatch.setattr(pi_training, "load_pretrained", loaded)
    monkeypatch.setattr(pi_training, "frozen_dtype", lambda device: torch.bfloat16)
    policy = tiny_policy("pi05")
    monkeypatch.setattr(pi_training, "find_pi_recipe", lambda *_: policy.recipe)
    monkeypatch.setattr(pi_training, "_for_data", lambda _, recipe, *__: recipe)
    monkeypatch.setattr(pi_training, "fingerprint", lambda *_: "")
    data: Any = type("Data", (), {"cameras": ()})()
    config = PiTrainingConfig(train="expert")
    pi_training.pi_networks(data, tmp_path, pi_training.PiChunkConfig(), config, None, CPU)
    assert events == ["load", "to"]
    assert moved == [{torch.bfloat16}, {torch.float32}]
