"""What training the real pi0.5 keeps in GPU memory besides activations, counted without a GPU; prints Markdown.

    python -m benchmarks.pi_memory          # half a minute, less than 1 GB

The two phases follow one another. In the value phase there are the policy's weights and one critic per fold, or with
`--fit.fold-order one_by_one` one critic; in the policy phase there are no critics.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from chunkrl.integration.pi_memory import MemoryPlan, memory_plan, meta_model
from chunkrl.integration.pi_presets import PI_PRESETS
from chunkrl.models.config import LoRAConfig
from chunkrl.models.pi.config import PiCriticConfig, pi05_base
from chunkrl.models.pi.critic import CriticInputs, PiValue
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.value_head import ValueHead
from chunkrl.training.config import OptimizerKind
from chunkrl.types import Observation

NUM_FOLDS = 5
RECIPE = pi05_base(("image", "wrist_image"), 8, 7)
KINDS: tuple[OptimizerKind, ...] = ("adamw", "adamw_8bit")
LANGUAGE_ONLY = LoRAConfig(targets=("language.layers.*.self_attn.*", "language.layers.*.mlp.*"))
LORA = {"lora": LoRAConfig(), "lora_and_expert": LANGUAGE_ONLY}


def policy_phase(name: str, kind: OptimizerKind, ema: bool = False) -> MemoryPlan:
    """Of a preset of `--pi.train`."""
    return memory_plan(RECIPE.config, PI_PRESETS[name], lora=LORA.get(name), optimizer=kind, ema=ema)


def value_phase(depth: int, kind: OptimizerKind, targets: bool, one_by_one: bool) -> MemoryPlan:
    """Of `NUM_FOLDS` critics of `depth` blocks, beside the weights of `--pi.train expert`."""
    with torch.device("meta"):
        policy = PiPolicy(meta_model(RECIPE.config), RECIPE)
        critic = PiValue(policy, PiCriticConfig(depth=depth), ValueHead("hl_gauss"))
    return memory_plan(
        RECIPE.config,
        PI_PRESETS["expert"],
        optimizer=kind,
        critics=[critic] * NUM_FOLDS,
        critic_targets=targets,
        one_by_one=one_by_one,
    )


def fold_costs(depth: int) -> tuple[float, float]:
    """TFLOP a sample: of the vision tower on both cameras, and of one critic's update (forward and backward)."""
    # PyTorch's FLOP counter runs the modules on the meta device, which autocast does not know
    with torch.device("meta"), mock.patch("torch.is_autocast_enabled", return_value=False):
        policy = PiPolicy(meta_model(RECIPE.config).requires_grad_(False), RECIPE)
        critic = PiValue(policy, PiCriticConfig(depth=depth), ValueHead("hl_gauss"))
        with FlopCounterMode(display=False) as vision:
            tokens = policy.model.projector(policy.model.vision(torch.zeros(2, 3, 224, 224)))
        length = 2 * tokens.shape[1] + RECIPE.config.max_prompt_tokens
        valid = torch.ones(1, length, dtype=torch.bool)
        inputs = CriticInputs(torch.zeros(1, length, tokens.shape[-1]), valid, Observation())
        with FlopCounterMode(display=False) as update:
            critic.outputs(inputs).sum().backward()
    return vision.get_total_flops() / 1e12, update.get_total_flops() / 1e12


def main() -> None:
    """Prints both tables, and what one by one costs."""
    inference = memory_plan(RECIPE.config, None)
    print(f"Inference in bfloat16: {inference.total / 1e9:.1f} GB.\n")
    print("| policy phase, `--pi.train` | weights | all, AdamW | all, 8-bit |\n|---|---|---|---|")
    for name, ema in (*((name, False) for name in PI_PRESETS), ("full", True)):
        plans = [policy_phase(name, kind, ema) for kind in KINDS]
        totals = " | ".join(f"{plan.total / 1e9:.1f}" for plan in plans)
        print(f"| {name}{' with an average' if ema else ''} | {plans[0].weights / 1e9:.1f} | {totals} |")
    columns = " | ".join(f"{t} {k}" for t in ("AdamW", "8-bit") for k in ("", "bootstrapped"))
    print(f"\n| value phase, {NUM_FOLDS} critics of | {columns} |\n|---|---|---|---|---|")
    for depth in (6, 2):
        for one_by_one in (False, True):
            plans = [
                value_phase(depth, kind, targets, one_by_one) for kind in KINDS for targets in (False, True)
            ]
            totals = " | ".join(f"{(plan.weights + plan.critics) / 1e9:.1f}" for plan in plans)
            print(f"| {depth} blocks, {'one by one' if one_by_one else 'together'} | {totals} |")
    vision, update = fold_costs(6)
    alone, together = NUM_FOLDS * (vision + update), vision + NUM_FOLDS * update
    print(
        f"\nTFLOP a sample of two cameras: vision {vision:.2f}, an update of a critic of 6 blocks {update:.2f}. One "
        f"by one takes {alone:.1f}, together {together:.1f}: {alone / together:.2f} times as much."
    )


if __name__ == "__main__":
    main()
