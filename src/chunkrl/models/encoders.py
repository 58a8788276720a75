"""Encoders of observations (images, state, text; any subset) and of action chunks.

An encoder works in two steps: `prepare` turns a typed Observation into plain tensors (normalised state,
float images, word ids) without any learned parameter, so that many networks can share it; `forward` maps
those tensors to features.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chunkrl.data.normalize import Normalizer
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig
from chunkrl.types import Observation

Prepared = dict[str, Tensor]
TEXT_ROWS = 8  # of a block of texts where nothing is trained
MOST_VALUES = 2**16  # of a state or an action
STATE_CLIP = 10.0  # standard deviations; a sensor glitch must not dominate the features


@dataclass(frozen=True)
class ObservationSpec:
    """What the networks see. cameras: names; state_dim: S (0: no state); use_task: the task's text."""

    cameras: tuple[str, ...] = ()
    state_dim: int = 0
    use_task: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.state_dim <= MOST_VALUES or len(set(self.cameras)) != len(self.cameras):
            raise ChunkRLError(
                f"state_dim is {self.state_dim}, cameras are {list(self.cameras)}: give a width from 0 to "
                f"{MOST_VALUES} and each camera once"
            )
        if not self.cameras and self.state_dim == 0 and not self.use_task:
            raise ChunkRLError("the networks would see nothing: choose cameras, state or task")


def mlp(in_dim: int, out_dim: int, config: NetworkConfig, layer_norm: bool = False, dropout: float = 0.0):
    """`num_layers` hidden layers of `hidden_dim`, then a linear output."""
    layers: list[nn.Module] = []
    for index in range(config.num_layers):
        layers.append(nn.Linear(in_dim if index == 0 else config.hidden_dim, config.hidden_dim))
        if layer_norm:
            layers.append(nn.LayerNorm(config.hidden_dim))
        layers.append(nn.GELU())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(config.hidden_dim, out_dim))
    return nn.Sequential(*layers)


def shift_images(images: Tensor, most: int) -> Tensor:
    """Each image moved by a random whole number of pixels in [-most, most] along rows and columns, its border
    repeated: float [B, C, H, W]. Augmentation of Yarats et al. 2021 (DrQ, arXiv 2004.13649)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    return torch.stack(
        [
            image[:, row : row + height, column : column + width]
            for image, (row, column) in zip(padded, offsets, strict=True)
        ]
    )


class ImageEncoder(nn.Module):
    """Where in the image things are: convolutions with GroupNorm, then spatial softmax (Levine et al. 2016, arXiv
    1504.00702) with a learned temperature for each keypoint.

    Input float [B, 3, H, W] in [-1, 1], any size from 4 pixels; output [B, 2 * channels[-1]]: the keypoints' rows,
    then their columns, in [-1, 1]. Nothing else passes: what else an image holds serves to memorise a few hundred
    episodes. channels: of the convolutions; shift: of `shift_images`, in training.
    """

    def __init__(self, channels: tuple[int, ...], shift: int = 0) -> None:
        super().__init__()
        self.shift = shift
        blocks: list[nn.Module] = []
        previous = 3
        for width in channels:
            convolution = (
                nn.Conv2d(previous, width, 3, stride=2, padding=1)
                if blocks
                else nn.Conv2d(previous, width, 8, stride=4, padding=2)
            )
            blocks += [convolution, nn.GroupNorm(8, width), nn.GELU()]
            previous = width
        self.convolutions = nn.Sequential(*blocks)
        # from 1, as GroupNorm's features would have it, the softmax is flat and the first gradients are small
        self.temperature = nn.Parameter(torch.full((previous, 1), 5.0))

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, 3, H, W] in [-1, 1]."""
        if self.training and self.shift:
            images = shift_images(images, self.shift)
        # channels last is faster on a processor: 0.13 against 0.15 s, there and back, for 128 images of 128 pixels
        features = self.convolutions(images.contiguous(memory_format=torch.channels_last))
        height, width = features.shape[-2:]
        weights = (features.flatten(2) * self.temperature).softmax(-1)  # [B, C, h*w]
        rows = torch.linspace(-1, 1, height, device=images.device).repeat_interleave(width)
        columns = torch.linspace(-1, 1, width, device=images.device).repeat(height)
        return torch.cat([(weights * rows).sum(-1), (weights * columns).sum(-1)], dim=-1)


def word_ids(text: str, num_buckets: int, num_words: int) -> list[int]:
    """Stable hash buckets 1.. of the first `num_words` words, at least one: [0] where there is no word.

    Hashing needs no vocabulary file, no download and never meets an unknown word.
    """
    digests = [
        hashlib.blake2b(word.encode(), digest_size=8).digest()
        for word in re.findall(r"[a-z0-9]+", text.lower())[:num_words]
    ]
    return [1 + int.from_bytes(digest, "big") % (num_buckets - 1) for digest in digests] or [0]


def text_blocks(
    texts: Sequence[str], num_buckets: int, num_words: int, training: bool
) -> tuple[list[Tensor], Tensor]:
    """Each distinct text once, as blocks of word ids int64 [N, L], 0 where a text has ended; and where each of
    `texts` [B] is among all blocks' rows, int64 [B].

    In training one block holds all. Otherwise blocks have `TEXT_ROWS` rows, the last ones 0, of texts of equally many
    words: a product of matrices rounds by the number of its rows, and what a policy does must not depend on which
    other tasks are in the batch.
    """
    ids = {text: word_ids(text, num_buckets, num_words) for text in dict.fromkeys(texts)}
    groups: list[list[str]] = [list(ids)]
    if not training:
        by_length: dict[int, list[str]] = defaultdict(list)
        for text, words in ids.items():
            by_length[len(words)].append(text)
        groups = [
            group[first : first + TEXT_ROWS]
            for group in by_length.values()
            for first in range(0, len(group), TEXT_ROWS)
        ]
    blocks: list[Tensor] = []
    row_of: dict[str, int] = {}
    num_rows = 0
    for group in groups:
        longest = max(len(ids[text]) for text in group)
        rows = [ids[text] + [0] * (longest - len(ids[text])) for text in group]
        rows += [] if training else [[0] * longest] * (TEXT_ROWS - len(group))
        row_of |= {text: num_rows + row for row, text in enumerate(group)}
        blocks.append(torch.tensor(rows))
        num_rows += len(rows)
    return blocks, torch.tensor([row_of[text] for text in texts])


class TextEncoder(nn.Module):
    """Embeds hashed words and reads them in order with a GRU: int64 [N, L] -> [N, out_dim]."""

    def __init__(self, num_buckets: int, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_buckets, out_dim, padding_idx=0)
        self.gru = nn.GRU(out_dim, out_dim, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [N, L], 0 is padding; the output at the last word of each text."""
        outputs, _ = self.gru(self.embed(tokens))
        last = ((tokens != 0).sum(-1) - 1).clamp(min=0)
        return outputs[torch.arange(len(tokens), device=tokens.device), last]


class ObservationEncoder(nn.Module):
    """Features of an observation: concatenated image, state and text features.

    Args:
        spec: which inputs there are.
        config: sizes.
        state_normalizer: of the state; its statistics are part of the checkpoint.
    """

    def __init__(self, spec: ObservationSpec, config: NetworkConfig, state_normalizer: Normalizer) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.state_normalizer = state_normalizer
        self.images = nn.ModuleList(
            ImageEncoder(config.image_channels, config.image_shift) for _ in spec.cameras
        )
        self.text = TextEncoder(config.text_buckets, config.text_dim) if spec.use_task else None
        image_dim = 2 * config.image_channels[-1]
        self.out_dim = (
            len(spec.cameras) * image_dim + spec.state_dim + (config.text_dim if spec.use_task else 0)
        )

    def prepare(self, observation: Observation) -> Prepared:
        """Plain tensors of a batched observation, on the encoder's device; learns nothing."""
        device = self.state_normalizer.device
        prepared: Prepared = {}
        for index, camera in enumerate(self.spec.cameras):
            if camera not in observation.images:
                raise ChunkRLError(
                    f"the policy needs camera {camera!r}; the observation has {list(observation.images)}"
                )
            prepared[f"image{index}"] = observation.images[camera].to(device).float() / 127.5 - 1.0
        if self.spec.state_dim:
            state = observation.state
            if state is None or state.shape[-1] != self.spec.state_dim:
                found = None if state is None else tuple(state.shape)
                raise ChunkRLError(f"the policy needs a state of {self.spec.state_dim} values; got {found}")
            normalized = self.state_normalizer.normalize(state.to(device).float())
            prepared["state"] = normalized.clamp(-STATE_CLIP, STATE_CLIP)
        if self.spec.use_task:
            texts = observation.task if isinstance(observation.task, tuple) else (observation.task,)
            sizes = self.config.text_buckets, self.config.text_tokens
            blocks, rows = text_blocks(texts, *sizes, training=self.training)
            prepared |= {f"tokens{number}": block.to(device) for number, block in enumerate(blocks)}
            prepared["text"] = rows.to(device)
        return prepared

    def forward(self, prepared: Mapping[str, Tensor]) -> Tensor:
        """prepared: from `prepare`; returns features [B, out_dim]."""
        parts = [encoder(prepared[f"image{index}"]) for index, encoder in enumerate(self.images)]
        if self.spec.state_dim:
            parts.append(prepared["state"])
        if self.text is not None:
            blocks = [tokens for name, tokens in prepared.items() if name.startswith("tokens")]
            features = torch.cat([self.text(block) for block in blocks])
            parts.append(F.gelu(features)[prepared["text"]])
        return torch.cat(parts, dim=-1)


class ActionEncoder(nn.Module):
    """Features of an action chunk: normalised and flattened, [B, H, A] -> [B, H * A].

    Padded steps are seen as the hold actions that they are; there is no mask to read (see data/chunks).
    """

    def __init__(self, action_horizon: int, action_dim: int, action_normalizer: Normalizer) -> None:
        super().__init__()
        self.action_normalizer = action_normalizer
        self.out_dim = action_horizon * action_dim

    def forward(self, actions: Tensor) -> Tensor:
        """actions: float [B, H, A] in the data's units."""
        return self.action_normalizer.normalize(actions).clamp(-STATE_CLIP, STATE_CLIP).flatten(-2)
