"""How a value network's outputs stand for a value, and the loss that teaches them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from chunkrl.errors import ChunkRLError

if TYPE_CHECKING:  # its fields are settings, which are read without torch
    import torch
    from torch import Tensor

ValueKind = Literal["scalar", "sigmoid", "hl_gauss"]
_MARGIN = 4.0  # deviations of the smoothing that lie beyond the range of targets


@dataclass(frozen=True)
class ValueHead:
    """kind: `scalar`, one real number, squared error; `sigmoid`, a logit of a value in [0, 1], cross-entropy;
    `hl_gauss`, a categorical distribution over [0, 1], cross-entropy to the target smoothed by a Gaussian
    (Imani and White 2018; "Stop Regressing", arXiv 2403.03950).

    num_bins: of hl_gauss. sigma: the smoothing's deviation in bin widths. The bins reach four deviations beyond
    [0, 1], so that no smoothed target is cut off: a cut would pull values at the ends inwards.
    """

    kind: ValueKind = "sigmoid"
    num_bins: int = 201
    sigma: float = 0.75

    def __post_init__(self) -> None:
        if self.kind not in get_args(ValueKind):
            raise ChunkRLError(f"value head {self.kind!r}: use one of {', '.join(get_args(ValueKind))}")
        if (
            not 0 < self.sigma < math.inf
            or self.num_bins > 2**16
            or self.num_bins <= 2 * _MARGIN * self.sigma + 2
        ):
            raise ChunkRLError(
                f"a value head of {self.num_bins} bins with sigma {self.sigma} bin widths: sigma must be positive, "
                f"and there must be more than {2 * _MARGIN * self.sigma + 2:.0f} bins"
            )

    @property
    def num_outputs(self) -> int:
        """O, outputs of a network with this head."""
        return self.num_bins if self.kind == "hl_gauss" else 1

    def _edges(self, device: torch.device) -> Tensor:
        import torch

        width = 1.0 / (self.num_bins - 2 * _MARGIN * self.sigma)
        margin = _MARGIN * self.sigma * width
        return torch.linspace(-margin, 1 + margin, self.num_bins + 1, device=device)

    def value(self, outputs: Tensor) -> Tensor:
        """outputs [..., B, O] -> values float32 [..., B]; an expectation for hl_gauss."""
        outputs = outputs.float()
        if self.kind == "scalar":
            return outputs.squeeze(-1)
        if self.kind == "sigmoid":
            return outputs.squeeze(-1).sigmoid()
        edges = self._edges(outputs.device)
        return (outputs.softmax(-1) * (edges[1:] + edges[:-1]) / 2).sum(-1)

    def quantile(self, probabilities: Tensor, level: float) -> Tensor:
        """probabilities [..., B, O] of hl_gauss -> the value in [0, 1] below which `level` of the mass lies, float32
        [..., B]; the mass of a bin is spread evenly over it."""
        edges, below = self._edges(probabilities.device), probabilities.float().cumsum(-1)
        bins = (below < level * below[..., -1:]).sum(-1, keepdim=True).clamp(max=self.num_bins - 1)
        mass = probabilities.float().gather(-1, bins)
        part = (level * below[..., -1:] - (below.gather(-1, bins) - mass)) / mass.clamp(min=1e-12)
        width = edges[1] - edges[0]
        return (edges[bins] + width * part.clamp(0, 1)).squeeze(-1).clamp(0, 1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Per-row loss float32 [..., B]. outputs: [..., B, O]; target: [B] or [..., B], in [0, 1] but for scalar."""
        import torch.nn.functional as F

        outputs, target = outputs.float(), target.detach().float().expand(outputs.shape[:-1])
        if self.kind == "scalar":
            return (outputs.squeeze(-1) - target).square()
        if self.kind == "sigmoid":
            return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), target, reduction="none")
        return -(self.smoothed(target) * outputs.log_softmax(-1)).sum(-1)

    def smoothed(self, target: Tensor) -> Tensor:
        """Targets [...] -> probabilities [..., O]: the Gaussian's mass in every bin."""
        edges = self._edges(target.device)
        scale = self.sigma * (edges[1] - edges[0]) * math.sqrt(2.0)
        cdf = ((edges - target[..., None]) / scale).erf()
        mass = cdf[..., 1:] - cdf[..., :-1]
        return mass / (cdf[..., -1:] - cdf[..., :1])
