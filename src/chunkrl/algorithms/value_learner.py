"""Cross-fitted values of chunk starts, and the advantages that follow from them.

Every fold's network (or `ValueFit.num_critics` of them) learns from the other folds' episodes and speaks for its own
(`cross_fit`). V regresses the Monte-Carlo return, or bootstraps over the steps that the data set's critic covers from
an average of itself. Once it is trained, every start is labelled with its held-out value, and advantages follow along
whole episodes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from chunkrl import ranks
from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms.base import Networks
from chunkrl.algorithms.cross_fit import CrossFitted, assign_folds, label_values
from chunkrl.algorithms.fold_training import FoldTraining
from chunkrl.algorithms.growth import EpisodeRows, carry, extend_folds, warn_outside
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.value_labels import (
    ValueLabels,
    known_outcomes,
    monte_carlo_returns,
    warn_of_success_alone,
)
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import trained_starts
from chunkrl.data.large_arrays import by_blocks, keep
from chunkrl.data.returns import n_step_returns
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress, silent
from chunkrl.statistics import spearman
from chunkrl.training.algorithm import Histogram, Metrics
from chunkrl.training.config import OptimConfig
from chunkrl.training.optim import autocast
from chunkrl.types import ChunkTransition

RECENT_BATCHES = 50  # that `held_out_rank_correlation` is of


class ValueLearner:
    """The K networks, their optimiser and their targets, on one data set; see the module's text.

    num_updates: of the value phase. microbatch_size: rows whose activations are in memory at once.

    Raises:
        ChunkRLError: the data gives values nothing to learn, or settings that contradict each other.
    """

    def __init__(
        self,
        fit: ValueFit,
        networks: Networks,
        optim: OptimConfig,
        data: ChunkData,
        num_folds: int,
        num_updates: int,
        seed: int,
        device: torch.device,
        microbatch_size: int | None = None,
    ) -> None:
        self.fit, self.device, self._num_folds = fit, device, num_folds
        self._microbatch_size = microbatch_size
        self.fold = assign_folds(data.frame_labels.success, num_folds, seed)
        if fit.target == "bootstrap":
            if data.reward_kind != "sum":
                raise ChunkRLError(
                    "values that bootstrap add up rewards: use --reward sum, or --fit.target monte_carlo"
                )
            self._check_unfinished(data)
        self._training: FoldTraining | None = FoldTraining(
            lambda: networks.value(fit.head),
            num_folds,
            optim,
            num_updates,
            device,
            fit.fold_order,
            fit.target_rate if fit.target == "bootstrap" else None,
            fit.num_critics,
        )
        self._labelled: tuple[np.ndarray, np.ndarray] | None = None
        self._recent: deque[Tensor] = deque(maxlen=RECENT_BATCHES)  # held-out V and its target, [2, n] each
        self._read(data)
        self.range = adv.return_range(self._counted_returns())
        if fit.return_range is not None:
            self.range = adv.ReturnRange(*fit.return_range)
        warn_outside(self._counted_returns(), self.range)
        warn_of_success_alone(data, self.known if fit.target == "monte_carlo" else None)
        self._attach_targets()

    def _read(self, data: ChunkData) -> None:
        """What is known of `data` without values."""
        fit, self._data = self.fit, data
        self._rows = EpisodeRows.of(data)
        self._step_reward = adv.step_rewards(data)
        self.returns = monte_carlo_returns(data, self._step_reward)
        adv.check_failures(data, self._step_reward, self.returns, fit.time_out)
        self.known = known_outcomes(data, fit.time_out)
        adv.check_outcomes(data.name, self.returns, self.known[data.starts])

    def _counted_returns(self) -> np.ndarray:
        """Returns of all frames but those after a success."""
        after = self._data.frame_labels.after_success
        return self.returns[~after] if after.any() else self.returns

    def _attach_targets(self) -> None:
        data = self._data
        self._attach("outcome", np.float32, lambda rows: self.range.to_unit(self.returns[data.starts[rows]]))
        self._attach("outcome_known", bool, lambda rows: self.known[data.starts[rows]])
        self._attach_folds()

    def grow(self, data: ChunkData) -> Metrics:
        """Learns from `data` from now. Episodes keep their folds, V keeps its range; `label` values new frames alone
        until `relabel` is called."""
        before = self._rows
        known = dict(zip(before.identities, self.fold.tolist(), strict=True))
        self._read(data)
        self.fold = extend_folds(known, self._rows.identities, data.frame_labels.success, self._num_folds)
        if self._labelled is not None:
            value, seen = (carry(values, before, self._rows) for values in self._labelled)
            self._labelled = value, seen
        self._attach_targets()
        return {"value/outside_range": warn_outside(self._counted_returns(), self.range)}

    def relabel(self) -> None:
        """The next `label` values all frames."""
        self._labelled = None

    def _check_unfinished(self, data: ChunkData) -> None:
        """Refuses rewards that no bootstrapped target would hold: what the last action of an unfinished episode led
        to is not stored, so its transition ends one step earlier."""
        last = data.segments.ends[~data.segments.terminated] - 1
        last = last[~data.frame_labels.after_success[last]]
        if self.fit.time_out == "failure" and adv.step_rewards(data)[last].any():
            raise ChunkRLError(
                "unfinished episodes of this data have a reward at their last action (a failure's penalty), which "
                "values that bootstrap do not see: say with --failure-terminal that these episodes failed, or use "
                "--fit.target monte_carlo"
            )

    def _attach(self, name: str, dtype: npt.DTypeLike, compute: Callable[[slice], np.ndarray]) -> None:
        data = self._data
        data.attach(name, by_blocks(data.cache_dir, len(data), dtype, compute))

    def _attach_folds(self) -> None:
        episode = self._data.episode
        self._attach("fold", np.int64, lambda rows: self.fold[episode[rows]])

    @property
    def uses_next_observation(self) -> bool:
        """Whether batches must carry x_{t+k}."""
        return self.fit.target == "bootstrap"

    @property
    def training(self) -> FoldTraining:
        """The networks while they learn; there are none once that is finished."""
        assert self._training is not None, "values that are finished learn no more"
        return self._training

    @property
    def networks(self) -> CrossFitted:
        """The K networks, until they are finished."""
        return self.training.networks

    def update(self, batch: ChunkTransition) -> Metrics:
        """One update of every fold's network, batch [B] on the device.

        `loss/value_held_out` is of the rows that a network may not train on, beside `loss/value` and, like it, with
        dropout and noise: where it rises while the other falls, the networks memorise.
        """
        training, networks = self.training, self.networks
        networks.train()
        trains, learnable = networks.trains_on(batch.labels["fold"]), self._learnable(batch)
        mask, unseen = trains & learnable, ~trains & learnable
        # of the whole batch: the gradients of the processes are averaged, whatever each has to learn from
        recent: list[Tensor] = []
        counts = ranks.sum_over_ranks(mask.sum(dim=1)).clamp(min=1) / ranks.world_size()
        first: Any = networks.networks[0]
        rows = list(microbatches(len(batch.actions), self._microbatch_size))
        parts = [batch.rows(own) for own in rows]
        prepared = [first.prepare(part.observation) for part in parts]
        following = self._prepare_following(parts)
        total = held_out = 0.0
        norms = []
        for k, optimizer in training.optimizers.items():
            targets = [self._target(k, part, then) for part, then in zip(parts, following, strict=True)]
            network: Any = networks.networks[k]
            for own, inputs, target in zip(rows, prepared, targets, strict=True):
                with autocast(self.device):
                    outputs = network.outputs(inputs)
                losses = self.fit.head.loss(outputs, target)
                loss = (losses * mask[k, own]).sum() / counts[k]
                optimizer.backward(loss)
                total += float(loss.detach())
                held_out += float((losses.detach() * unseen[k, own]).sum())
                if k % self.fit.num_critics == 0:
                    told = torch.stack([self.fit.head.value(outputs.detach()), target.float()])
                    recent.append(told[:, unseen[k, own]])
            norms.append(optimizer.apply())
        if recent:
            self._recent.append(torch.cat(recent, dim=1))
        folds = list(training.optimizers)
        training.end_update()
        metrics: Metrics = {
            "loss/value": ranks.mean_over_ranks(total / len(folds)),
            "grad_norm/value": math.hypot(*norms),
        }
        num_unseen = int(ranks.sum_over_ranks(unseen[folds].sum()))
        if num_unseen:
            mean = ranks.mean_over_ranks(held_out) * ranks.world_size() / num_unseen
            metrics["loss/value_held_out"] = mean
        return metrics

    def held_out_rank_correlation(self) -> float | None:
        """See `Algorithm.held_out_rank_correlation`: of this process's rows, with dropout and noise."""
        if not self._recent:
            return None
        value, target = torch.cat(list(self._recent), dim=1).cpu().numpy()
        found = spearman(value, target) if len(value) > 1 else math.nan
        return None if math.isnan(found) else found

    def trained_networks(self) -> dict[str, nn.Module]:
        """V and its averages, until they are finished."""
        if self._training is None:
            return {}
        found: dict[str, nn.Module] = {"V": self._training.networks}
        targets = self._training.targets
        return found if targets is None else found | {"average of V": targets}

    def rehearse(self, num_starts: int) -> tuple[ValueLabels, float]:
        """Labels that nothing learned, and the seconds that labelling a start takes, measured on `num_starts`."""
        positions = np.arange(min(num_starts, len(self._data)))
        self.networks.eval()
        began = time.monotonic()
        label_values(self.networks, self._data, self.device, silent, self._score, positions)
        seconds = (time.monotonic() - began) / len(positions)
        rng = np.random.default_rng(0)
        span = self.range.low, self.range.high
        value, seen = (rng.uniform(*span, len(self._data)).astype(np.float32) for _ in range(2))
        advantage = rng.normal(size=len(self._data)).astype(np.float32)
        return ValueLabels(value, seen, self.returns, advantage), seconds

    def _learnable(self, batch: ChunkTransition) -> Tensor:
        """bool [B]: rows with a target."""
        return batch.critic_mask if self.uses_next_observation else batch.labels["outcome_known"]

    @torch.no_grad()
    def _prepare_following(self, parts: Sequence[ChunkTransition]) -> list[Any]:
        """What the averages read of x_{t+k}, of each part; None where there are no averages."""
        targets = self.training.targets
        if targets is None:
            return [None] * len(parts)
        first: Any = targets.networks[0]
        return [first.prepare(part.next_observation) for part in parts]

    @torch.no_grad()
    def _target(self, k: int, batch: ChunkTransition, following: Any) -> Tensor:
        """The target of network k, in [0, 1], [B]."""
        targets = self.training.targets
        if targets is None:
            return batch.labels["outcome"]
        with targets.at_work(k) as average:
            value = average.forward_prepared(following)  # type: ignore[operator]
        ends = batch.truncated & (self.fit.time_out == "failure")
        discount = torch.where(ends, 0.0, batch.discount)
        low, high = self.range.low, self.range.high
        target = batch.reward + discount * (low + (high - low) * value)
        return ((target - low) / (high - low)).clamp(0, 1)

    def frame_values(self, progress: Progress = silent) -> tuple[np.ndarray, np.ndarray]:
        """V of every start, as returns: by the network that never saw its episode, and by those that did
        (each float [len])."""
        if self.training.num_passes > 1:
            self.training.end_turn()  # its moments make room
        new = None if self._labelled is None else np.flatnonzero(np.isnan(self._labelled[0]))
        held_out, seen = label_values(
            self.networks, self._data, self.device, progress, self._score, positions=new
        )
        values = self.range.from_unit(held_out), self.range.from_unit(seen)
        if new is not None and self._labelled is not None:
            for all_values, own in zip(self._labelled, values, strict=True):
                all_values[new] = own[new]
            values = self._labelled
        folder = self._data.cache_dir
        self._labelled = keep(folder, values[0]), keep(folder, values[1])
        return self._labelled

    def _score(self, prepared: Any, _: ChunkTransition) -> Tensor:
        """V of each fold's networks together, [K, B]."""
        name = "outputs" if self.fit.of_distribution else "forward_prepared"
        found = self.networks.each(lambda v: getattr(v, name)(prepared))
        return self.fit.combine(self.networks.by_fold(found).float())

    def label(self, progress: Progress) -> ValueLabels:
        """Values and advantages of every start; what is not trained on (`draws.trained_starts`) has advantage 0."""
        data, fit = self._data, self.fit
        if len(data) != data.num_frames:
            raise ValueError("cross-fitted labels need every frame of the data set as a start")
        value, seen = self.frame_values(progress)
        advantage = adv.frame_advantages(value, self._step_reward, data, fit)
        return ValueLabels(value, seen, self.returns, keep(data.cache_dir, advantage))

    def target_metrics(self, labels: ValueLabels) -> Metrics:
        """How targets that bootstrap are distributed over what is trained on, with the labels' values after the
        rewards. Where they are returns, `label_metrics` has them."""
        data, fit = self._data, self.fit
        if fit.target == "monte_carlo":
            return {}
        steps, trained = data.critic_horizon, trained_starts(data)
        targets = n_step_returns(
            labels.value, self._step_reward, data.segments, data.gamma, steps, fit.time_out
        )
        return {"value/target": Histogram.of(targets if trained is None else targets[trained])}

    def finish(self) -> None:
        """Drops the networks and all that they learned with: the labels stand in for them, so neither memory nor
        checkpoints of the policy's training pay for them."""
        self._training = None

    def state_dict(self) -> dict[str, Any]:
        """Folds, and until they are finished the networks in training."""
        state: dict[str, Any] = {
            "fold": torch.from_numpy(self.fold),
            "episodes": list(self._rows.identities),
            "range": [self.range.low, self.range.high],
            "ensemble": [self._num_folds, self.fit.num_critics],
        }
        return state if self._training is None else state | {"training": self._training.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the folds are attached to the data set again. Where the data have other
        episodes than when it was saved, those of both keep their folds."""
        if "training" in state:
            self.training.load_state_dict(state["training"])
        else:
            self.finish()
        self._take_folds(state)

    def take_networks(self, state: dict[str, Any]) -> None:
        """Goes on from the values of another run: networks, moments, averages, range, and the folds of the episodes
        that both have. Learning rates begin again. state: of `state_dict`, from before that run finished its values.
        """
        ours = [self._num_folds, self.fit.num_critics]
        theirs = state.get("ensemble", ours)  # states of before did not say
        if theirs != ours:
            raise ChunkRLError(
                f"the values to begin with are of {theirs[0]} folds with {theirs[1]} critics each, and these of "
                f"{ours[0]} with {ours[1]}: another network would be asked of each episode. Use --num-folds "
                f"{theirs[0]} --fit.num-critics {theirs[1]}"
            )
        span, asked = list(state["range"]), self.fit.return_range
        if asked is not None and list(asked) != span:
            raise ChunkRLError(
                f"the values to begin with say returns from {span[0]:g} to {span[1]:g}, which their outputs "
                f"stand for, and --fit.return-range {asked[0]:g} {asked[1]:g} asks for others: leave it out"
            )
        self.training.take_networks(state["training"])
        self._take_folds(state)
        warn_outside(self._counted_returns(), self.range)

    def _take_folds(self, state: dict[str, Any]) -> None:
        known = dict(zip(state["episodes"], state["fold"].tolist(), strict=True))
        self.fold = extend_folds(
            known, self._rows.identities, self._data.frame_labels.success, self._num_folds
        )
        self.range = adv.ReturnRange(*state["range"])
        self._labelled = None
        self._attach_targets()


def microbatches(batch_size: int, microbatch_size: int | None) -> Iterator[slice]:
    """Rows of a batch in parts of at most `microbatch_size`; None: all at once."""
    size = batch_size if microbatch_size is None else microbatch_size
    for begin in range(0, batch_size, size):
        yield slice(begin, min(begin + size, batch_size))
