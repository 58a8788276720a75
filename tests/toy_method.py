"""A method of one file, as one is added: it clones the chunks of the longer half of the episodes."""

from __future__ import annotations

import numpy as np

from chunkrl.algorithms.base import MethodInputs
from chunkrl.algorithms.cloning import Cloning, CloningConfig
from chunkrl.algorithms.cross_fitted import shared_settings
from chunkrl.algorithms.registry import Method

METHOD = Method(
    "long_cloning",
    "toy_method",
    "control: the longer half of the episodes",
    ("ema_decay", "microbatch_size"),
    gives_values=False,
    needs_success=False,
)


class LongCloning(Cloning):
    """See the module."""

    def _choose_starts(self) -> None:
        super()._choose_starts()
        lengths = np.bincount(self._dataset.episode)
        long = lengths >= np.median(lengths)
        self._subset = np.flatnonzero(long[self._dataset.episode])


def build(inputs: MethodInputs) -> LongCloning:
    """The method of `inputs`."""
    return LongCloning(
        CloningConfig(**shared_settings(inputs)), *inputs.networks_and_data(), *inputs.values()
    )
