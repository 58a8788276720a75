"""Cloning of chunks, of all data or of the successful episodes: the controls.

Objectives behaviour_cloning and success_cloning (filtered cloning). Every chunk counts alike, or as --sample-weights
say (RA-BC and the like). Values are trained only where Q is asked for, for best-of-N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from chunkrl.algorithms.base import MethodInputs
from chunkrl.algorithms.cross_fitted import CrossFittedConfig, CrossFittedMethod, shared_settings
from chunkrl.algorithms.weight_spread import GIVEN_CURE, spread_metrics
from chunkrl.algorithms.weights import normalized
from chunkrl.data.draws import draw_rates
from chunkrl.data.large_arrays import keep
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress
from chunkrl.training.algorithm import Metrics


@dataclass(frozen=True)
class CloningConfig(CrossFittedConfig):
    """data: the starts that the policy clones, all or those of successful episodes."""

    data: Literal["all", "successes"] = "all"

    @property
    def uses_values(self) -> bool:
        """Whether anything needs V."""
        return self.train_q


class Cloning(CrossFittedMethod):
    """The method of this module; see `CloningConfig`.

    sample_weights: float [len], of every start, in place of equal weights. Q, where it is trained, is of all
    starts alike.
    """

    config: CloningConfig

    def __init__(
        self, config: CloningConfig, *args: Any, sample_weights: np.ndarray | None = None, **kwargs: Any
    ) -> None:
        self._sample_weights = sample_weights
        super().__init__(config, *args, **kwargs)

    def _choose_starts(self) -> None:
        super()._choose_starts()
        dataset = self._dataset
        if self.config.data == "successes":
            positions = np.flatnonzero(dataset.success)
            if self._trained is not None:
                positions = self._trained[dataset.success[self._trained]]
            self._subset = keep(dataset.cache_dir, positions)
        if self._subset is not None and len(self._subset) == 0:
            raise ChunkRLError(
                f"{dataset.name} has no successful episode to clone: say with --success which are, or use "
                "--objective behaviour_cloning"
            )

    def _label(self, progress: Progress) -> Metrics:
        metrics = dict(super()._label(progress)) if self.config.uses_values else {}
        weight = np.ones(len(self._dataset), dtype=np.float32)
        if self._sample_weights is not None:
            rates = draw_rates(self._dataset, self._trained)
            weight, size = normalized(self._sample_weights, rates)
            metrics["weight/effective_sample_size"] = size
            more, spread = spread_metrics(weight, self._dataset, rates, None)
            self._starved.say(spread, GIVEN_CURE)
            metrics |= more
        self.labels["weight"] = weight
        return metrics


def build(inputs: MethodInputs) -> Cloning:
    """The method of `inputs`."""
    data = "successes" if inputs.method.of_successes else "all"
    config = CloningConfig(**shared_settings(inputs), data=data)
    return Cloning(
        config, *inputs.networks_and_data(), *inputs.values(), sample_weights=inputs.sample_weights
    )
