"""Camera images to the model's input: resized without distortion, padded with black, in [-1, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.config import ResizeMode


def prepare_images(images: Tensor, size: int, mode: ResizeMode, camera: str) -> Tensor:
    """uint8 [B, 3, height, width] -> float32 [B, 3, size, size] in [-1, 1].

    "antialias" is the openpi data pipeline's (Pillow's bilinear filter, to one grey level), rounded to whole
    grey levels as there; "bilinear" has no antialiasing, as LeRobot's and openpi's PyTorch code.

    Raises:
        ChunkRLError: another dtype or shape; the message names the camera.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ChunkRLError(
            f"camera '{camera}': images are {images.dtype} {list(images.shape)}; the policy takes uint8 "
            "[B, 3, height, width] with values 0 to 255"
        )
    height, width = images.shape[-2:]
    pixels = images.float()
    if (height, width) != (size, size):
        ratio = max(height / size, width / size)
        new_height, new_width = int(height / ratio), int(width / ratio)
        antialias = mode == "antialias"
        pixels = F.interpolate(
            pixels, (new_height, new_width), mode="bilinear", align_corners=False, antialias=antialias
        )
        if antialias:
            pixels = pixels.round().clamp(0, 255)
        top, left = (size - new_height) // 2, (size - new_width) // 2
        pixels = F.pad(pixels, (left, size - new_width - left, top, size - new_height - top))
    return pixels / 255 * 2 - 1
