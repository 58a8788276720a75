"""A pi0.5 of well under a million parameters, to be trained from scratch on one core.

The architecture is the published one (SigLIP, prefix language model, action expert with adaptive norms, flow
matching, state in the prompt); only the sizes differ. A pretrained language model knows the order of numbers
and starts from trained blocks. This one has neither, so three things are set by hand:

1. the state bins' token embeddings start as smooth features of the number (`number_features`), so that near
   bins are near each other from the start; they are trained as all others are;
2. the action expert's gates start at 1 and its scales and shifts at 0: plain pre-norm blocks. openpi starts the
   gates at 0, so that each block is the identity;
3. token embeddings have Gemma's size (1 after the factor sqrt(width)), and the projections that end a block are
   divided by sqrt(2 depth).

Train it with noise on the state (`state_noise` of `PiLearner`, two to four bins: 0.03 to 0.06). Tokens tell every
bin apart, and a small data set's episodes are then learned by heart, the mistakes in them included.

    python -m chunkrl.models.pi.tiny DATASET checkpoints/pi0/tiny --horizon 5

makes one for a data set: untrained weights, the data's statistics, a tokenizer.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from chunkrl.data.chunk_settings import ChunkSettings
from chunkrl.data.chunks import ChunkDataset
from chunkrl.data.normalize import Statistics
from chunkrl.errors import ChunkRLError
from chunkrl.models.layers import AdaptiveRMSNorm
from chunkrl.models.pi.checkpoint import save_pretrained
from chunkrl.models.pi.config import PiConfig, PiRecipe, PiSettings, VisionConfig
from chunkrl.models.pi.flow import PiModel
from chunkrl.models.pi.norm_stats import NormStats
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.pi.tiny_tokenizer import NUM_BINS, TINY_TOKENIZER, vocab_size
from chunkrl.models.pi.tokenizer import SentencePieceTokenizer

IMAGE_SIZE = 64
MAX_PROMPT_TOKENS = 64
_ENDS_OF_BLOCKS = ("o_proj", "down_proj", "out_proj", "fc2")
_STATISTICS = ("mean", "std", "q01", "q99")


def tiny_recipe(
    state_dim: int,
    action_dim: int,
    horizon: int,
    cameras: tuple[str, ...] = (),
    width: int = 64,
    depth: int = 3,
) -> PiRecipe:
    """Sizes and settings of the tiny pi0.5.

    A camera's image of 64 pixels becomes 4 tokens. Without a camera an update is cheaper, and a simulator
    that draws in software much cheaper.

    Args:
        state_dim, action_dim: of the robot; each state dimension is one token of the 64 a prompt may have.
        horizon: actions per chunk.
        cameras: the observation's cameras; none where the state says everything.
        width: of the prefix and of the action expert. depth: their layers.
    """
    config = PiConfig(
        kind="pi05",
        vision=VisionConfig(
            image_size=IMAGE_SIZE, patch_size=32, width=32, depth=1, mlp_width=64, num_heads=2
        ),
        vocab_size=vocab_size(),
        prefix_width=width,
        prefix_mlp_width=2 * width,
        expert_width=width,
        expert_mlp_width=2 * width,
        depth=depth,
        num_heads=4,
        num_kv_heads=1,
        head_dim=16,
        action_dim=max(state_dim, action_dim),
        horizon=horizon,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
    )
    return PiRecipe(config, PiSettings("pi05_state", cameras, state_dim, action_dim, "quantiles"))


def tiny_policy(recipe: PiRecipe, state: Statistics, action: Statistics, seed: int) -> PiPolicy:
    """A `tiny_recipe` policy with fresh weights, to train from scratch.

    Args:
        recipe: of `tiny_recipe`.
        state, action: statistics of the training data, for normalisation.
        seed: determines the weights.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        CheckpointError: statistics of other widths, or a recipe with another vocabulary.
    """
    tokenizer = SentencePieceTokenizer(TINY_TOKENIZER, recipe.config.vocab_size)
    model = PiModel(recipe.config)
    initialize(model, [_bin_token(tokenizer, number) for number in range(-1, NUM_BINS)], seed)
    if not recipe.settings.cameras:
        model.vision.requires_grad_(False)
        model.projector.requires_grad_(False)
    stats = NormStats(
        *({k: torch.from_numpy(getattr(s, k)).double() for k in _STATISTICS} for s in (state, action))
    )
    return PiPolicy(model, recipe, stats, tokenizer)


def _bin_token(tokenizer: SentencePieceTokenizer, number: int) -> int:
    (token,) = tokenizer.encode(f" {number}", add_bos=False)
    return token


def number_features(count: int, width: int) -> Tensor:
    """Smooth features of the numbers 0 .. count - 1: float32 [count, width], mean square 1.

    Sines and cosines whose periods fall geometrically from 4 * count to 8 numbers, amplitudes in proportion to
    the period (Fourier features, Tancik et al. 2020, arXiv 2006.10739): mostly slow ones, so that a model fits
    smooth functions of the state before it can tell single states apart.
    """
    number = torch.arange(count, dtype=torch.float64)[:, None]
    period = 4 * count * (2 / count) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angles = 2 * math.pi * number / period
    features = torch.cat((angles.sin(), angles.cos()), dim=1) * period.repeat(2)
    return (features / features.square().mean().sqrt()).float()


@torch.no_grad()
def initialize(model: PiModel, number_tokens: list[int], seed: int) -> None:
    """Weights to train from scratch with; see the module's text. number_tokens: ids of the bins, in order."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * std

    adaptive = [module for module in model.modules() if isinstance(module, AdaptiveRMSNorm)]
    modulations = {id(module.dense) for module in adaptive}
    for module in adaptive:
        scale_shift_gate = torch.tensor([0.0, 0.0, 1.0])
        module.dense.weight.zero_()
        module.dense.bias.copy_(scale_shift_gate.repeat_interleave(config.expert_width))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or id(module) in modulations:
            continue
        depth = config.vision.depth if name.startswith("vision") else config.depth
        ends_block = name.endswith(_ENDS_OF_BLOCKS)
        module.weight.copy_(
            normal(module.weight, (module.in_features * (2 * depth if ends_block else 1)) ** -0.5)
        )
        if module.bias is not None:
            module.bias.zero_()
    patches, positions = (
        model.vision.embeddings.patch_embedding,
        model.vision.embeddings.position_embedding,
    )
    patches.weight.copy_(normal(patches.weight, patches.weight[0].numel() ** -0.5))
    assert patches.bias is not None
    patches.bias.zero_()
    positions.weight.copy_(normal(positions.weight, config.vision.width**-0.5))
    embeddings = model.language.embed_tokens.weight
    rows = normal(embeddings, 1.0)
    rows[number_tokens] = number_features(len(number_tokens), embeddings.shape[1])
    embeddings.copy_(rows / math.sqrt(embeddings.shape[1]))


@dataclass(frozen=True)
class TinyCommand:
    """An untrained tiny pi0.5 for a data set: `chunkrl train --policy.kind pi` trains it from scratch."""

    dataset: Annotated[str, tyro.conf.Positional]
    """LeRobot data set: a folder or a Hub repository id; every camera of it is an input."""
    folder: Annotated[str, tyro.conf.Positional]
    """The new checkpoint's folder."""
    horizon: int = 10
    """Actions per chunk."""
    cameras: bool = True
    """Whether the data set's cameras are inputs."""
    width: int = 64
    """Width of the prefix and of the action expert."""
    depth: int = 3
    """Layers of each."""
    seed: int = 0
    """Determines the weights."""


def make_tiny(command: TinyCommand) -> PiPolicy:
    """Writes the checkpoint of `command` and returns its policy; raises ChunkRLError for data without a state."""
    data = ChunkDataset(command.dataset, ChunkSettings(command.horizon))
    if not data.state_dim:
        raise ChunkRLError(f"{command.dataset} has no state, and the tiny pi0.5 reads it from the prompt")
    recipe = tiny_recipe(
        data.state_dim,
        data.action_dim,
        command.horizon,
        data.cameras if command.cameras else (),
        command.width,
        command.depth,
    )
    policy = tiny_policy(recipe, data.state_statistics(), data.action_statistics(), command.seed)
    save_pretrained(policy, command.folder)
    return policy


def main(arguments: list[str] | None = None) -> None:
    """The command of the module's text."""
    command = tyro.cli(TinyCommand, prog="python -m chunkrl.models.pi.tiny", args=arguments)
    try:
        policy = make_tiny(command)
    except ChunkRLError as error:
        sys.exit(f"error: {error}")
    count = sum(p.numel() for p in policy.parameters())
    print(f"{command.folder}: an untrained pi0.5 of {count:,} parameters")


if __name__ == "__main__":
    main()
