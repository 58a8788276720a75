"""Cross-fitted values, then a policy: what weighted, conditioned and plain cloning have in common.

Phase `value` trains V on outcomes (`value_learner`), `critic` Q for best-of-N, if wanted; then every start is
labelled once, and phase `policy` clones (`policy_step`). What becomes of the labels is the method's own: `weighted`,
`conditioned`, `cloning`. Without updates of a policy it is objective `value`.

What differs from the papers that the methods name:
1. V is cross-fitted: an episode's values come from a network that never saw it (`cross_fit`);
2. V lies between the data's lowest and highest return (sigmoid or HL-Gauss): it cannot diverge, and with dropout
   and noise on the state it memorises less;
3. a chunk is one decision: one weight, or one label, for H actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from chunkrl.algorithms.advantages import shuffle_between
from chunkrl.algorithms.base import MethodInputs, Networks
from chunkrl.algorithms.best_of_n import QEnsemble
from chunkrl.algorithms.best_of_n_critic import LABEL as Q_LABEL
from chunkrl.algorithms.best_of_n_critic import AdvantageCritic
from chunkrl.algorithms.human_chunks import human_chunks
from chunkrl.algorithms.policy_step import PolicyStep
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.value_labels import ValueLabels, label_metrics
from chunkrl.algorithms.value_learner import ValueLearner
from chunkrl.algorithms.weight_spread import StarvedOnce
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import draw_rates, trained_starts
from chunkrl.data.large_arrays import keep
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress, silent
from chunkrl.training.algorithm import Metrics, Phase, only_finite
from chunkrl.training.config import OptimConfig
from chunkrl.training.distributed import shard
from chunkrl.types import ChunkTransition


@dataclass(frozen=True)
class CrossFittedConfig:
    """Settings that the methods share.

    policy_updates, value_updates: updates of the two phases. num_folds: K, 1 turns cross-fitting off.
    train_q: also train Q(x, A) for best-of-N. fit: of the values.
    ema_decay: of the policy's average, which is deployed; 0: none.
    value_updates_per_update, relabel_interval: value updates before each policy update, and policy updates between
        two labellings by them (0: values are fixed after their phase).
    microbatch_size: rows whose activations are in memory at once; None: the whole batch.
    keep_values: values stay after their phase, to label data that grow.
    shuffled: the control: what the labels decide by is permuted over the starts.
    """

    policy_updates: int
    value_updates: int
    num_folds: int = 5
    train_q: bool = False
    fit: ValueFit = ValueFit()
    ema_decay: float = 0.0
    value_updates_per_update: int = 0
    relabel_interval: int = 0
    microbatch_size: int | None = None
    keep_values: bool = False
    shuffled: bool = False

    def __post_init__(self) -> None:
        if (self.value_updates_per_update > 0) != (self.relabel_interval > 0):
            raise ChunkRLError(
                "value_updates_per_update and relabel_interval go together: values that go on learning change "
                "nothing until the data is labelled again"
            )
        if self.value_updates_per_update and self.fit.fold_order != "together":
            raise ChunkRLError(
                "values that learn alongside the policy (value_updates_per_update) train together: use "
                "--fit.fold-order together"
            )
        if self.microbatch_size is not None and self.microbatch_size < 1:
            raise ChunkRLError(f"microbatch_size is {self.microbatch_size}; it must be at least 1")
        if self.needs_q and self.value_updates == 0:
            raise ChunkRLError(
                "--train-q and --distil.* train Q as long as values are trained: --value-updates 0 would leave it as "
                "it was born; leave that out"
            )

    @property
    def uses_values(self) -> bool:
        """Whether anything needs V."""
        return True

    @property
    def needs_q(self) -> bool:
        """Whether anything needs Q."""
        return self.train_q

    @property
    def total_policy_updates(self) -> int:
        """Updates of the policy in all phases."""
        return self.policy_updates


class CrossFittedMethod:
    """See the module; a method overrides `_use`, what becomes of the labels.

    labels_from: values of an earlier run on the same data, in place of the value phase.
    """

    def __init__(
        self,
        config: CrossFittedConfig,
        networks: Networks,
        optim: OptimConfig,
        dataset: ChunkData,
        seed: int,
        device: torch.device,
        value_optim: OptimConfig | None = None,
        labels_from: ValueLabels | None = None,
    ) -> None:
        self.config: Any = config  # of the method's own class
        self.device, self.seed = device, seed
        self._dataset, self._given = dataset, labels_from
        self.policy = networks.policy().to(device)
        self.values: ValueLearner | None = None
        self.critic: AdvantageCritic | None = None
        value_optim = value_optim or optim
        if config.uses_values and (labels_from is None or config.needs_q):
            self.values = ValueLearner(
                config.fit,
                networks,
                value_optim,
                dataset,
                config.num_folds,
                config.value_updates,
                seed,
                device,
                config.microbatch_size,
            )
            if labels_from is not None:
                self.values.finish()  # it says the folds of Q alone
        num_updates = config.total_policy_updates
        if config.needs_q:
            self.critic = self._make_critic(networks, value_optim, num_updates)
        shard(self.policy)  # after the critics have copied its blocks
        self.step = PolicyStep(
            self.policy, optim, num_updates, config.ema_decay, config.microbatch_size, device
        )
        self.labels: dict[str, np.ndarray] = {}
        self._num_policy_updates = 0
        self._starved = StarvedOnce()
        self._choose_starts()

    def _make_critic(self, networks: Networks, optim: OptimConfig, num_updates: int) -> AdvantageCritic:
        config = self.config
        if self.policy.trains_features and num_updates > 0:
            raise ChunkRLError(
                "--train-q and --distil.* train Q before the policy, on vision tokens and text embeddings that "
                "the policy's training would change: freeze them (--pi.train expert, expert_and_last_layers:N, "
                "lora or lora_and_expert), or use --objective iql, which trains Q alongside the policy"
            )
        return AdvantageCritic(
            networks,
            config.fit.head,
            config.num_folds,
            optim,
            config.value_updates,
            self.device,
            config.microbatch_size,
        )

    def _choose_starts(self) -> None:
        """What is trained on of the data as they are; a phase of the policy draws from the second."""
        self._trained = self._subset = trained_starts(self._dataset)

    def phases(self) -> tuple[Phase, ...]:
        """`value` (if anything needs V, and none is given), `critic` (if anything needs Q), and the policy's."""
        config, values = self.config, self.values
        phases = list(self._policy_phases())
        if config.needs_q:
            phases.insert(0, Phase("critic", config.value_updates, self._trained, next_observation=False))
        if values is not None and self._given is None:
            num_networks = config.num_folds * config.fit.num_critics
            passes = num_networks if config.fit.fold_order == "one_by_one" else 1
            value = Phase(
                "value",
                config.value_updates * passes,
                self._trained,
                values.uses_next_observation,
                num_passes=passes,
            )
            phases.insert(0, value)
        return tuple(phases)

    def _policy_phases(self) -> tuple[Phase, ...]:
        config, values = self.config, self.values
        next_observation = (
            config.value_updates_per_update > 0 and values is not None and values.uses_next_observation
        )
        multiple = 1 + config.value_updates_per_update
        return (Phase("policy", config.policy_updates, self._subset, next_observation, multiple),)

    def start_phase(self, name: str, progress: Progress = silent) -> Metrics:
        """After `value`: labels every start with its held-out value and advantage, and what the method makes of
        them."""
        metrics: Metrics = {}
        if name != "value" and not self.labels:
            metrics = self._label(progress)
            self._attach()
        keeps = self.config.value_updates_per_update > 0 or self.config.keep_values
        if name != "value" and self.values is not None and not keeps:
            self.values.finish()
        if name not in ("value", "critic") and self.critic is not None:
            self.critic.finish()
        return metrics

    def grow(self, data: ChunkData) -> Metrics:
        """See `Algorithm.grow`: once the data is labelled, new starts get their values, and all starts the weights or
        bins that follow from all of them."""
        if self._given is not None or self.critic is not None:
            raise ChunkRLError(
                "--values, --train-q and --distil.* are of data that stay: leave them out where data grow"
            )
        self._dataset = data
        data.detach_all()  # what was attached before, on the part that was there
        self._choose_starts()
        metrics: Metrics = {} if self.values is None else self.values.grow(data)
        if self.labels:
            metrics |= self._label(silent)
            self._attach()
        return metrics

    def _attach(self) -> None:
        self.labels = {key: keep(self._dataset.cache_dir, values) for key, values in self.labels.items()}
        for key, values in self.labels.items():
            self._dataset.attach(key, values)

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One update of phase `name`; batch [B]."""
        batch = batch.to(self.device)
        if name == "value":
            assert self.values is not None
            return self.values.update(batch)
        if name == "critic":
            assert self.critic is not None
            return self.critic.update(batch)
        return self._update_policy_and_values(batch)

    def _update_policy_and_values(self, batch: ChunkTransition) -> Metrics:
        config, metrics = self.config, {}
        if config.value_updates_per_update:
            assert self.values is not None
            size = len(batch.actions) // (1 + config.value_updates_per_update)
            for number in range(config.value_updates_per_update):
                metrics |= self.values.update(batch.rows(slice(number * size, (number + 1) * size)))
            batch = batch.rows(slice(config.value_updates_per_update * size, None))
            if self._num_policy_updates % config.relabel_interval == config.relabel_interval - 1:
                self.values.relabel()
                metrics |= only_finite(self._label(silent))
                self._attach()
        self._num_policy_updates += 1
        return metrics | self._update_policy(batch)

    def _update_policy(self, batch: ChunkTransition) -> Metrics:
        return self.step.update(batch)

    def _label(self, progress: Progress) -> Metrics:
        labels, config = self._given, self.config
        if labels is None:
            assert self.values is not None
            labels = self.values.label(progress)
        cross_fitted = config.num_folds > 1 and labels.held_out
        metrics = label_metrics(labels, self._dataset, config.fit.time_out, cross_fitted)
        if self._given is None and self.values is not None:
            metrics |= self.values.target_metrics(labels)
        rates = draw_rates(self._dataset, self._trained)
        self.labels = {
            "value": labels.value,
            "value_seen": labels.value_seen,
            "return": labels.returns,
            "advantage": labels.advantage,
            "weight": np.ones(len(labels.advantage), dtype=np.float32),
        }
        if self.critic is not None:
            self.labels[Q_LABEL] = self.critic.targets(labels.advantage, self._trained, rates)
        return metrics | self._use(labels, rates)

    def _use(self, labels: ValueLabels, rates: np.ndarray | None) -> Metrics:
        """What becomes of the values and advantages, added to `self.labels`. rates: of `draws.draw_rates`."""
        return {}

    def _forced_by_human(self) -> np.ndarray | None:
        """bool [len], chunks that a human's rule forces high, None where there are none; the steps that the policy's
        loss counts of them become a label."""
        human = human_chunks(self._dataset, self.config.human)
        if human is None:
            return None
        if human.loss_steps is not None:
            self.labels["loss_steps"] = human.loss_steps
        return human.forced

    def _control(self, decides: np.ndarray) -> np.ndarray:
        """What a method's labels decide by, [len]; permuted over the starts that are trained on for a control."""
        return shuffle_between(decides, self.seed, self._trained) if self.config.shuffled else decides

    def deployed(self) -> AbstractContextManager[None]:
        """See `Algorithm.deployed`."""
        return self.step.deployed()

    def held_out_rank_correlation(self) -> float | None:
        """See `Algorithm.held_out_rank_correlation`."""
        return None if self.values is None else self.values.held_out_rank_correlation()

    def trained_networks(self) -> Mapping[str, nn.Module]:
        """See `Algorithm.trained_networks`."""
        found: dict[str, nn.Module] = {"policy": self.policy}
        if self.values is not None:
            found |= self.values.trained_networks()
        return found if self.critic is None else found | {"Q": self.critic.networks}

    def rehearse(self, num_starts: int) -> float:
        """See `Algorithm.rehearse`."""
        if self.values is None or self._given is not None:
            return 0.0
        self._given, seconds = self.values.rehearse(num_starts)
        return seconds

    def q_ensemble(self) -> QEnsemble | None:
        """Q for best-of-N, where it was trained for that."""
        return self.critic.ensemble() if self.critic is not None and self.config.train_q else None

    def _parts(self) -> dict[str, Any]:
        parts = {"values": self.values, "critic": self.critic}
        return {key: part for key, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Trained parameters, optimisers, folds and labels."""
        labels = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in self.labels.items()}
        parts = {key: part.state_dict() for key, part in self._parts().items()}
        own = {
            "labels": labels,
            "num_policy_updates": self._num_policy_updates,
            "data": self._dataset.digest(),
        }
        return self.step.state_dict() | parts | own

    def take_networks(self, state: dict[str, Any]) -> None:
        """See `Algorithm.take_networks`."""
        self.step.take_networks(state)
        taken = "training" in state.get("values", {}) and self._given is None
        if self.values is not None and taken:
            self.values.take_networks(state["values"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the labels are attached to the data set again, or made again where its
        episodes are not those that were saved."""
        self.step.load_state_dict(state)
        for key, part in self._parts().items():
            part.load_state_dict(state[key])
        self._num_policy_updates = state["num_policy_updates"]
        self.labels = {key: tensor.numpy() for key, tensor in state.get("labels", {}).items()}
        if self.labels and state["data"] != self._dataset.digest():
            self._label(silent)
        self._attach()


def shared_settings(inputs: MethodInputs) -> dict[str, Any]:
    """The run's settings that `CrossFittedConfig` has."""
    settings = inputs.settings
    return {
        "policy_updates": inputs.num_updates if inputs.method.trains_policy else 0,
        "value_updates": inputs.value_updates,
        "num_folds": settings.num_folds,
        "train_q": settings.train_q,
        "fit": settings.fit,
        "ema_decay": settings.ema_decay,
        "value_updates_per_update": settings.value_updates_per_update,
        "relabel_interval": settings.relabel_interval,
        "microbatch_size": settings.microbatch_size,
        "keep_values": inputs.keep_values,
        "shuffled": inputs.method.is_control,
    }


def build(inputs: MethodInputs) -> CrossFittedMethod:
    """Objective `value`: V of every start, and no policy."""
    return CrossFittedMethod(
        CrossFittedConfig(**shared_settings(inputs)), *inputs.networks_and_data(), *inputs.values()
    )
