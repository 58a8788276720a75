"""What training the real pi0.5 keeps in GPU memory besides activations, counted without a GPU; prints Markdown.

    python -m benchmarks.pi_memory          # half a minute, less than 1 GB

The two phases follow one another. In the value phase there are the policy's weights and one critic a fold, or with
`--fit.fold-order one_by_one` one critic; in the policy phase there are no critics.
"""

from __future__ import annotations

import torch

from chunkrl.models.lora import LoRAConfig
from chunkrl.models.pi.config import pi05_base
from chunkrl.models.pi.critic import PiCriticConfig, PiValue
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.value_head import ValueHead
from chunkrl.training.memory import MemoryPlan, memory_plan, meta_model
from chunkrl.training.optim import OptimizerKind
from chunkrl.training.trainable import PI_PRESETS

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


def main() -> None:
    """Prints both tables."""
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


if __name__ == "__main__":
    main()
