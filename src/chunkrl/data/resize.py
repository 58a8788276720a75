"""Images at another size, kept in shape: what is over becomes black bars, as the pi models take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkrl.errors import DatasetError

if TYPE_CHECKING:  # settings hold a Resize, and help texts need no more of it than its fields
    import numpy as np


@dataclass(frozen=True)
class Resize:
    """height, width: of the result. antialias: as Pillow's bilinear filter (openpi's training data), else
    bilinear between the four nearest pixels (LeRobot, openpi's PyTorch code)."""

    height: int
    width: int
    antialias: bool = True

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise DatasetError(f"images of {self.height} x {self.width} pixels: both must be at least 1")

    @property
    def name(self) -> str:
        """A file name for images of this kind."""
        return f"{self.height}x{self.width}" + ("" if self.antialias else "-bilinear")

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB [h, w, 3] -> uint8 RGB [height, width, 3]."""
        import numpy as np

        height, width = picture.shape[:2]
        if (height, width) == (self.height, self.width):
            return picture
        ratio = max(height / self.height, width / self.width)
        inner = (max(1, int(height / ratio)), max(1, int(width / ratio)))
        result = np.zeros((self.height, self.width, 3), np.uint8)
        top, left = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
        scaled = _antialiased(picture, inner) if self.antialias else _bilinear(picture, inner)
        result[top : top + inner[0], left : left + inner[1]] = scaled
        return result


def _antialiased(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _bilinear(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import numpy as np
    import torch  # late: torch takes seconds to import, and this is its only use here

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(pixels, size, mode="bilinear")
    return scaled[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
