"""Camera images to the model's input: resized without distortion, padded with black, in [-1, 1]."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.config import ResizeMode

_FIXED_POINT = 2.0**22


def prepare_images(images: Tensor, size: int, mode: ResizeMode, camera: str) -> Tensor:
    """uint8 [B, 3, height, width] -> float32 [B, 3, size, size] in [-1, 1].

    "antialias" is the openpi data pipeline's: what Pillow's bilinear filter gives, to the grey level, and on any
    device. "bilinear" has no antialiasing, as in LeRobot and openpi's PyTorch code. "lerobot_0.4" fills up with
    -3 in the model's range: LeRobot 0.4 pads with -1 before it scales [0, 1] to [-1, 1], and policies were
    trained that way.

    Raises:
        ChunkRLError: another dtype or shape; the message names the camera.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ChunkRLError(
            f"camera '{camera}': images are {images.dtype} {list(images.shape)}; the policy takes uint8 "
            "[B, 3, height, width] with values 0 to 255"
        )
    height, width = images.shape[-2:]
    pixels = images.float() / 255 * 2 - 1
    if (height, width) != (size, size):
        ratio = max(height / size, width / size)
        # a very wide or tall image keeps one line of pixels (data/resize does the same)
        new_height, new_width = max(1, int(height / ratio)), max(1, int(width / ratio))
        if mode == "antialias":
            pixels = _resize_as_pillow(images, new_height, new_width).float() / 255 * 2 - 1
        else:
            pixels = F.interpolate(pixels, (new_height, new_width), mode="bilinear")
        top, left = (size - new_height) // 2, (size - new_width) // 2
        bars = (left, size - new_width - left, top, size - new_height - top)
        pixels = F.pad(pixels, bars, value=-3.0 if mode == "lerobot_0.4" else -1.0)
    return pixels


def _resize_as_pillow(images: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize, rows first, each pass rounded to whole grey levels.

    float64 holds the fixed-point sums exactly, so this equals Pillow's integer arithmetic (images more than twice
    as tall as wide excepted: some Pillow versions resize their columns first).
    """
    rows = _fixed_point_weights(images.shape[-1], width).to(images.device)
    columns = _fixed_point_weights(images.shape[-2], height).to(images.device)
    pixels = _to_grey_levels(images.double() @ rows.T)
    return _to_grey_levels(columns @ pixels)


def _to_grey_levels(sums: Tensor) -> Tensor:
    return (sums / _FIXED_POINT + 0.5).floor().clamp(0, 255)


@lru_cache(maxsize=64)
def _fixed_point_weights(size_in: int, size_out: int) -> Tensor:
    """Triangle filter as wide as an output pixel (at least as an input pixel): integers in float64 [out, in]."""
    scale = size_in / size_out
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale
    position = torch.arange(size_in, dtype=torch.float64) + 0.5
    weights = (1 - (position - centre[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights * _FIXED_POINT + 0.5).floor()
