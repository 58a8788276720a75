"""What training the real pi0.5 keeps in GPU memory besides activations, counted without a GPU; prints Markdown.

    python -m benchmarks.pi_memory          # half a minute, less than 1 GB

The two phases follow one another. In the value phase there are the policy's weights and one critic a fold; in the
policy phase the critics are on the CPU.
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

RECIPE = pi05_base(("image", "wrist_image"), 8, 7)
KINDS: tuple[OptimizerKind, ...] = ("adamw", "adamw_8bit")
LANGUAGE_ONLY = LoRAConfig(targets=("language.layers.*.self_attn.*", "language.layers.*.mlp.*"))
LORA = {"lora": LoRAConfig(), "lora_and_expert": LANGUAGE_ONLY}


def policy_phase(name: str, kind: OptimizerKind, ema: bool = False) -> MemoryPlan:
    """Of a preset of `--pi.train`."""
    return memory_plan(RECIPE.config, PI_PRESETS[name], lora=LORA.get(name), optimizer=kind, ema=ema)


def critic_bytes(depth: int, kind: OptimizerKind, targets: bool) -> int:
    """Of one critic of `depth` blocks in training."""
    with torch.device("meta"):
        value = PiValue(
            PiPolicy(meta_model(RECIPE.config), RECIPE), PiCriticConfig(depth=depth), ValueHead("hl_gauss")
        )
    return memory_plan(RECIPE.config, None, optimizer=kind, critics=[value], critic_targets=targets).critics


def main() -> None:
    """Prints both tables."""
    inference = memory_plan(RECIPE.config, None)
    print(f"Inference in bfloat16: {inference.total / 1e9:.1f} GB.\n")
    print("| policy phase, `--pi.train` | weights | all, AdamW | all, 8-bit |\n|---|---|---|---|")
    for name, ema in (*((name, False) for name in PI_PRESETS), ("full", True)):
        plans = [policy_phase(name, kind, ema) for kind in KINDS]
        totals = " | ".join(f"{plan.total / 1e9:.1f}" for plan in plans)
        print(f"| {name}{' with an average' if ema else ''} | {plans[0].weights / 1e9:.1f} | {totals} |")
    print("\n| value phase, a critic of | AdamW | 8-bit | AdamW, bootstrapped | 8-bit, bootstrapped |")
    print("|---|---|---|---|---|")
    for depth in (2, 6):
        sizes = [critic_bytes(depth, kind, targets) for targets in (False, True) for kind in KINDS]
        print(f"| {depth} blocks | " + " | ".join(f"{size / 1e9:.1f}" for size in sizes) + " |")


if __name__ == "__main__":
    main()
