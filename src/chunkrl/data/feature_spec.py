"""What a column of a data set is, as `meta/info.json` describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chunkrl.errors import DatasetError

CAMERA_DTYPES = ("image", "video")
NUMBER_DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


@dataclass(frozen=True)
class FeatureSpec:
    """One feature of a data set, as `meta/info.json` describes it.

    dtype: a NumPy number type or bool, "string", or for cameras "image" (PNG in the parquet file) or "video"
        (mp4).
    shape: without the frame dimension; (1,) for a number per frame, (height, width, 3) for cameras.
    names: of the entries, as LeRobot has it: a list, a dict of lists, or None.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Sequence[str] | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (*CAMERA_DTYPES, *NUMBER_DTYPES, "string"):
            known = ", ".join((*NUMBER_DTYPES, "string", *CAMERA_DTYPES))
            raise DatasetError(f"feature dtype '{self.dtype}' is unknown: use one of {known}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.is_camera:
            if len(self.shape) != 3 or self.shape[2] != 3:
                raise DatasetError(f"a camera's shape is (height, width, 3), not {self.shape}")
            object.__setattr__(self, "names", self.names or ("height", "width", "channel"))
        if not self.shape or min(self.shape) < 1 or len(self.shape) > 5:
            raise DatasetError(
                f"feature shape {self.shape}: one to five positive sizes; (1,) for a single number"
            )
        if self.dtype == "string" and self.shape != (1,):
            raise DatasetError(f"a string feature has shape (1,), not {self.shape}")

    @property
    def is_camera(self) -> bool:
        """Whether frames are images, uint8 [height, width, 3]."""
        return self.dtype in CAMERA_DTYPES

    def to_json(self) -> dict[str, Any]:
        """The feature's entry in `meta/info.json`."""
        names = list(self.names) if isinstance(self.names, (list, tuple)) else self.names
        return {"dtype": self.dtype, "shape": list(self.shape), "names": names}
