"""Chunk policies from cross-fitted advantages, used as weights or as text in the prompt: the default method.

Phase `value` trains V on outcomes (`value_learner`); then every start is labelled once; phase `policy` clones.
(`critic` lies between, if wanted, and `distil` behind: best-of-N as training.) The advantage is used in one of two
ways:

- `weight`: advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177), weights exp(beta A). For a policy of
  flow matching the loss is the weighted flow loss, and nothing asks for log pi: V takes no entropy term.
- `condition`: RECAP (pi*0.6, arXiv 2511.14759) and the advantage-conditioned pi0.5 document: the advantage's bin
  stands in the prompt, and inference asks for the highest (`conditioning`).

What differs from these papers:
1. V is cross-fitted: an episode's values come from a network that never saw it (`cross_fit`);
2. V lies between the data's lowest and highest return (sigmoid or HL-Gauss): it cannot diverge, and with dropout
   and noise on the state it memorises less;
3. as a weight, the advantage is a TD(lambda) return minus V, standardised to deviation `advantage_scale`, and the
   weights are balanced over strata of time and value (`balance`);
4. a chunk is one decision: one weight, or one label, for H actions.
Behaviour cloning is this algorithm with `use="none"`; cloning of the successes adds `data="successes"`; the
shuffled controls permute the advantages. For best-of-N at action time a critic of chunks learns the advantages
(`advantage_critic`).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from chunkrl import ranks
from chunkrl.algorithms import advantages as adv
from chunkrl.algorithms import losses
from chunkrl.algorithms.advantage_bins import Shuffle, label_bins
from chunkrl.algorithms.advantage_critic import LABEL as Q_LABEL
from chunkrl.algorithms.advantage_critic import AdvantageCritic
from chunkrl.algorithms.balance import Strata, first_rows, make_strata
from chunkrl.algorithms.base import Metrics, Networks, Phase, only_finite
from chunkrl.algorithms.best_of_n import QEnsemble
from chunkrl.algorithms.conditioning import condition_text, trained_texts
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig, DistilConfig, HumanRule
from chunkrl.algorithms.distil import best_chunks, distil_metrics, mixture, with_best_chunks
from chunkrl.algorithms.human_chunks import forced_metrics, human_chunks
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.algorithms.value_labels import ValueLabels, label_metrics
from chunkrl.algorithms.value_learner import ValueLearner, microbatches
from chunkrl.algorithms.weights import (
    WeightRule,
    normalized,
    spread_metrics,
    starved_warnings,
    to_weights,
)
from chunkrl.data.collection import ChunkData
from chunkrl.data.draws import draw_rates, share_weights, starts_by_share, starts_by_weight, trained_starts
from chunkrl.data.large_arrays import keep
from chunkrl.errors import ChunkRLError
from chunkrl.progress import Progress, silent
from chunkrl.training.checkpoint import load_trained_state, trained_state
from chunkrl.training.config import OptimConfig
from chunkrl.training.distributed import shard
from chunkrl.training.optim import Ema, Optimizer, autocast
from chunkrl.types import ChunkTransition

_LOG = logging.getLogger(__name__)

Use = Literal["weight", "condition", "none"]


@dataclass(frozen=True)
class CrossFittedConfig:
    """Settings of the algorithm.

    policy_updates, value_updates: updates of the two phases; no policy update makes it a value model alone.
    beta: temperature of the weights exp(beta A). num_folds: K, 1 turns cross-fitting off.
    use: what becomes of the advantage. shuffled: the control. data: starts the policy clones.
    train_q: also train Q(x, A) for best-of-N. conditioning: the labels in the prompt.
    ema_decay: of the policy's average, which is deployed; 0: none.
    critic_updates, relabel_interval: value updates before each policy update, and policy updates between two
        labellings by them (0: values are fixed after their phase).
    microbatch_size: rows whose activations are in memory at once; None: the whole batch.
    keep_values: values stay after their phase, to label data that grow.
    human: what becomes of chunks that a human made, as weights and as labels alike (`human_chunks`).
    balance: how the weights are shared out over the data.
    distil: best of N chunks of the trained policy, distilled into it (uses `weight`).
    """

    policy_updates: int
    value_updates: int
    beta: float = 1.0
    num_folds: int = 5
    use: Use = "weight"
    shuffled: bool = False
    data: Literal["all", "successes"] = "all"
    train_q: bool = False
    fit: ValueFit = ValueFit()
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    ema_decay: float = 0.0
    critic_updates: int = 0
    relabel_interval: int = 0
    microbatch_size: int | None = None
    keep_values: bool = False
    human: HumanRule = "high"
    balance: BalanceConfig = BalanceConfig()
    distil: DistilConfig = DistilConfig()

    def __post_init__(self) -> None:
        if (self.critic_updates > 0) != (self.relabel_interval > 0):
            raise ChunkRLError(
                "critic_updates and relabel_interval go together: values that go on learning change nothing until "
                "the data is labelled anew"
            )
        if self.critic_updates and self.fit.fold_order != "together":
            raise ChunkRLError(
                "values that learn beside the policy (critic_updates) train together: use --fit.fold-order together"
            )
        if self.fit.draw == "weight" and (self.use == "condition" or self.relabel_interval):
            raise ChunkRLError(
                "--fit.draw weight is of weights that stay: use uniform with advantage_conditioned and with "
                "--relabel-interval"
            )
        if self.use == "condition" and self.conditioning.edges == "strata" and self.balance.kind != "strata":
            raise ChunkRLError(
                "--conditioning.edges strata labels within the strata of --balance.kind strata: leave --balance.kind "
                "out, or use --conditioning.edges quantiles"
            )
        if self.microbatch_size is not None and self.microbatch_size < 1:
            raise ChunkRLError(f"microbatch_size is {self.microbatch_size}; it must be at least 1")
        if self.needs_q and self.value_updates == 0:
            raise ChunkRLError(
                "--train-q and --distil.* train Q as long as values are trained: --value-updates 0 would leave it as "
                "it was born; leave that out"
            )
        if self.distil.num_candidates and (self.use != "weight" or self.shuffled or self.critic_updates):
            raise ChunkRLError(
                "--distil.num-candidates weights the chunks that a finished Q prefers: use it with --objective "
                "cross_fitted, and without --critic-updates"
            )

    @property
    def uses_values(self) -> bool:
        """Whether anything needs V."""
        return self.use != "none" or self.needs_q or self.policy_updates == 0

    @property
    def needs_q(self) -> bool:
        """Whether anything needs Q."""
        return self.train_q or self.distil.num_candidates > 0

    @property
    def distil_updates(self) -> int:
        """Updates of the phase `distil`."""
        return self.distil.num_updates(self.policy_updates)


class CrossFittedAdvantage:
    """The algorithm of this module; see `CrossFittedConfig`.

    labels_from: values of an earlier run on the same data, in place of the value phase.
    sample_weights: float [len], of every start, in place of equal weights where nothing uses values.
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
        sample_weights: np.ndarray | None = None,
    ) -> None:
        self.config, self.device, self.seed = config, device, seed
        self._dataset, self._given, self._sample_weights = dataset, labels_from, sample_weights
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
        num_updates = config.policy_updates + config.distil_updates
        if config.needs_q:
            if self.policy.trains_features and num_updates > 0:
                raise ChunkRLError(
                    "--train-q and --distil.* train Q before the policy, on vision tokens and text embeddings that "
                    "the policy's training would change: freeze them (--pi.train expert, expert_and_last_layers:N, "
                    "lora or lora_and_expert), or use --objective iql, which trains Q beside the policy"
                )
            self.critic = AdvantageCritic(
                networks,
                config.fit.head,
                config.num_folds,
                value_optim,
                config.value_updates,
                device,
                config.microbatch_size,
            )
        shard(self.policy)  # after the critics have copied its blocks
        self._policy_optimizer: Optimizer | None = None
        if num_updates > 0:
            self._policy_optimizer = Optimizer([self.policy.parameters()], optim, num_updates)
        trained = [(name, p) for name, p in self.policy.named_parameters() if p.requires_grad]
        self._ema = Ema(trained, config.ema_decay) if config.ema_decay > 0 else None
        self.labels: dict[str, np.ndarray] = {}
        self._num_policy_updates = 0
        self._warned, self._silent_tasks = False, set[str]()  # what was said of the weights
        self._choose_starts()

    def _choose_starts(self) -> None:
        """What is trained on of the data as they are."""
        config, dataset = self.config, self._dataset
        self._trained = self._subset = trained_starts(dataset)  # a phase of the policy draws from the second
        if config.data == "successes":
            positions = np.flatnonzero(dataset.success)
            if self._trained is not None:
                positions = self._trained[dataset.success[self._trained]]
            self._subset = keep(dataset.cache_dir, positions)
        if self._subset is not None and len(self._subset) == 0:
            raise ChunkRLError(
                f"{dataset.name} has no successful episode to clone: say with --success which are, or use "
                "--objective behaviour_cloning"
            )

    def phases(self) -> tuple[Phase, ...]:
        """`value` (if anything needs values, and none are given), `critic` (if anything needs Q), `policy`, and
        `distil` (where it is asked for)."""
        config, values = self.config, self.values
        policy = Phase(
            "policy",
            config.policy_updates,
            subset=self._subset,
            next_observation=config.critic_updates > 0
            and values is not None
            and values.uses_next_observation,
            batch_multiple=1 + config.critic_updates,
        )
        phases = [policy]
        if config.distil_updates:
            distil = Phase("distil", config.distil_updates, self._subset, next_observation=False)
            phases = [policy, distil] if config.policy_updates else [distil]
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

    def start_phase(self, name: str, progress: Progress = silent) -> Metrics:
        """After `value`: labels every start with its held-out value, advantage, and weight or bin. Before `distil`:
        also with the chunk that Q prefers."""
        metrics: Metrics = {}
        if name != "value" and not self.labels:
            metrics = self._equal_weights() if not self.config.uses_values else self._label(progress)
            self._attach()
        keeps = self.config.critic_updates > 0 or self.config.keep_values
        if name != "value" and self.values is not None and not keeps:
            self.values.finish()
        if name in ("policy", "distil") and self.critic is not None:
            self.critic.finish()
        if name == "distil" and "best_chunk" not in self.labels:
            metrics |= self._distil(progress)
            self._attach()
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
            metrics |= self._label(silent) if self.config.uses_values else self._equal_weights()
            self._attach()
        return metrics

    def _equal_weights(self) -> Metrics:
        """All alike, or those that were given, with mean 1 over what is drawn."""
        weight = np.ones(len(self._dataset), dtype=np.float32)
        metrics: Metrics = {}
        if self._sample_weights is not None:
            rates = draw_rates(self._dataset, self._trained)
            weight, size = normalized(self._sample_weights, rates)
            metrics = {"weight/effective_sample_size": size}
            more, spread = spread_metrics(weight, self._dataset, rates, None)
            self._warn_once(starved_warnings(spread, None))
            metrics |= more
        self.labels["weight"] = weight
        return metrics

    def _equal_until_distilled(self) -> None:
        """The policy whose chunks are distilled clones the data: `labels` keep the weights for what comes then."""
        self._dataset.attach("weight", np.ones(len(self._dataset), np.float32))

    def _attach(self) -> None:
        config = self.config
        self.labels = {key: keep(self._dataset.cache_dir, values) for key, values in self.labels.items()}
        for key, values in self.labels.items():
            self._dataset.attach(key, values)
        if self.labels and config.distil.clones_first and "best_chunk" not in self.labels:
            self._equal_until_distilled()
            return
        if self.labels and config.use == "condition":
            self._share_out()
        if self.labels and config.fit.draw == "weight" and config.use == "weight":
            self._subset, left = starts_by_weight(
                self._dataset, self._trained, self.labels["weight"], self.seed
            )
            self._dataset.attach("weight", left)

    def _share_out(self) -> None:
        """Gives positives their share of what is drawn; of the loss, where labels change while the policy trains."""
        conditioning, data = self.config.conditioning, self._dataset
        if conditioning.positive_share is None:
            return
        high = self.labels["advantage_bin"] == conditioning.highest
        if self.config.relabel_interval:
            data.attach("weight", share_weights(data, self._trained, high, conditioning.positive_share))
        else:
            self._subset = starts_by_share(data, self._trained, high, conditioning.positive_share, self.seed)

    def update(self, name: str, batch: ChunkTransition) -> Metrics:
        """One update of phase `name`; batch [B]."""
        batch = batch.to(self.device)
        if name == "value":
            assert self.values is not None
            return self.values.update(batch)
        if name == "critic":
            assert self.critic is not None
            return self.critic.update(batch)
        if name == "distil":
            batch = with_best_chunks(batch)
        return self._update_policy_and_values(batch)

    def _update_policy_and_values(self, batch: ChunkTransition) -> Metrics:
        config, metrics = self.config, {}
        if config.critic_updates:
            assert self.values is not None
            size = len(batch.actions) // (1 + config.critic_updates)
            for number in range(config.critic_updates):
                metrics |= self.values.update(batch.rows(slice(number * size, (number + 1) * size)))
            batch = batch.rows(slice(config.critic_updates * size, None))
            if self._num_policy_updates % config.relabel_interval == config.relabel_interval - 1:
                self.values.relabel()
                metrics |= only_finite(self._label(silent))
                self._attach()
        self._num_policy_updates += 1
        return metrics | self._update_policy(batch)

    def _update_policy(self, batch: ChunkTransition) -> Metrics:
        assert self._policy_optimizer is not None, "there are no policy updates"
        self.policy.train()
        size = len(batch.actions)
        condition = self._conditions(batch)
        sums: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for rows in microbatches(size, self.config.microbatch_size):
            part = batch.rows(rows)
            mask = part.action_mask
            if "loss_steps" in part.labels:
                mask = mask & part.labels["loss_steps"]
            with autocast(self.device):
                asked = None if condition is None else condition[rows]
                lost = self.policy.imitation_loss(part.observation, part.actions, mask, asked)
                loss = losses.policy_loss(part.labels["weight"], lost.per_chunk)
            self._policy_optimizer.backward(loss * (len(part.actions) / size))
            _add(sums, "loss/policy", float(loss.detach()) * len(part.actions), len(part.actions))
            _add(sums, "loss/imitation", float(lost.per_chunk.detach().sum()), len(part.actions))
            self._add_by_bin(sums, part, lost.per_chunk.detach())
            for key, (total, count) in lost.parts.items():
                _add(sums, key, total, count)
        lr = self._policy_optimizer.lr
        norm = self._policy_optimizer.apply()
        if self._ema is not None:
            self._ema.update()
        means: Metrics = {
            key: total / count for key, (total, count) in ranks.sum_counts(sums).items() if count
        }
        return means | {"grad_norm/policy": norm, "lr/policy": lr}

    def _conditions(self, batch: ChunkTransition) -> list[str] | None:
        if self.config.use != "condition":
            return None
        return trained_texts(batch.labels["advantage_bin"].cpu(), self.config.conditioning)

    def _add_by_bin(
        self, sums: dict[str, tuple[float, int]], part: ChunkTransition, loss: torch.Tensor
    ) -> None:
        if self.config.use != "condition":
            return
        num_bins = self.config.conditioning.num_bins
        bins = part.labels["advantage_bin"]
        for label in range(num_bins):
            chosen = loss[bins == label]
            name = condition_text(label, num_bins).split()[-1]
            _add(sums, f"flow_loss/advantage_{name}", float(chosen.sum()), len(chosen))

    def _label(self, progress: Progress) -> Metrics:
        labels, config = self._given, self.config
        if labels is None:
            assert self.values is not None
            labels = self.values.label(progress)
        metrics = label_metrics(labels, self._dataset, config.fit.time_out, config.num_folds > 1)
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
        if config.use == "none":
            return metrics
        return metrics | self._use(labels, rates)

    def _use(self, labels: ValueLabels, rates: np.ndarray | None) -> Metrics:
        """What becomes of the advantages: weights or bins."""
        config, data = self.config, self._dataset
        metrics: Metrics = {}
        advantage = labels.advantage
        if config.fit.past_advantage:
            advantage = advantage + self._past_advantage(labels.value)
        if config.shuffled and config.use == "weight":
            advantage = adv.shuffle_between(advantage, self.seed, self._trained)
        human = human_chunks(data, config.human)
        forced = None if human is None else human.forced
        if human is not None and human.loss_steps is not None:
            self.labels["loss_steps"] = human.loss_steps
        if config.use == "condition":
            return metrics | self._use_labels(labels, advantage, rates, forced)
        if forced is not None:
            drawn = forced if rates is None else forced & (rates > 0)
            metrics |= forced_metrics(drawn, advantage, rates)
        self.labels["weight"], more = self._weights(advantage, labels.value, rates, forced)
        return metrics | more

    def _warn_once(self, messages: Sequence[str]) -> None:
        """What is said of the first weights: values that go on learning give new ones again and again."""
        for message in () if self._warned else messages:
            _LOG.warning("%s", message)
        self._warned = True

    def _use_labels(
        self,
        labels: ValueLabels,
        advantage: np.ndarray,
        rates: np.ndarray | None,
        forced: np.ndarray | None,
    ) -> Metrics:
        config = self.config
        strata = None
        if config.conditioning.edges == "strata":
            strata = self._strata(labels.value, rates, None)
        bins, metrics = label_bins(
            self._dataset,
            advantage,
            labels.returns,
            config.conditioning,
            rates,
            forced,
            strata,
            Shuffle(self.seed, self._trained) if config.shuffled else None,
        )
        self.labels |= bins
        return {**metrics}

    def _weights(
        self, advantage: np.ndarray, value: np.ndarray, rates: np.ndarray | None, forced: np.ndarray | None
    ) -> tuple[np.ndarray, Metrics]:
        """Weights float32 [len] from advantages and held-out V float [len]; rates and forced as of `to_weights`."""
        config, fit = self.config, self.config.fit
        strata = self._strata(value, rates, forced)
        rule = WeightRule(config.beta, fit.advantage_scale, fit.weight_clip, config.balance.success_mix)
        weight, metrics = to_weights(advantage, rule, rates, forced, strata)
        where, spread = spread_metrics(weight, self._dataset, rates, strata)
        self._warn_once(starved_warnings(spread, config.balance))
        return weight, {**metrics, **where}

    def _past_advantage(self, value: np.ndarray) -> np.ndarray:
        """What is added to advantages for what came before: c (V(x) - V(x_0)), float32 [len]; value: V."""
        scale = np.float32(self.config.fit.past_advantage)
        return scale * (value - value[first_rows(self._dataset)])

    def _distil(self, progress: Progress) -> Metrics:
        """Labels every start with the policy's chunk that Q prefers, and how likely it stands in place of the
        recorded one; the weight becomes that of the mixture of both."""
        assert self.critic is not None
        data, config, labels = self._dataset, self.config, self.labels
        with self.critic.at_work() as critics, self.deployed():
            asked = config.distil.num_candidates, self.seed, self.device
            best = best_chunks(self.policy, critics, data, self._trained, *asked, progress)
        rates = draw_rates(data, self._trained)
        unit = self.critic.unit(labels["advantage"], self._trained, rates)
        human = human_chunks(data, config.human)
        won = best.q > best.q_recorded
        if human is not None:
            won &= ~human.forced
        gain, mean_gain = (unit * (q - best.q_recorded) for q in (best.q, best.q_mean))
        advantage = labels["advantage"] + np.where(won, gain, 0.0)
        if config.fit.past_advantage:
            advantage = advantage + self._past_advantage(labels["value"])
        forced = None if human is None else human.forced
        weight, metrics = self._weights(advantage, labels["value"], rates, forced)
        self.labels |= mixture(weight, labels["weight"], won, config.distil.share) | {
            "best_chunk": best.chunk
        }
        return metrics | distil_metrics(won, gain, mean_gain, rates)

    def _strata(
        self, value: np.ndarray, rates: np.ndarray | None, forced: np.ndarray | None
    ) -> Strata | None:
        if self.config.balance.kind == "none":
            return None
        rewards = adv.step_rewards(self._dataset)
        strata = make_strata(
            self._dataset, value, rewards, rates, forced, self.config.balance, self._silent_tasks
        )
        self._silent_tasks.update(strata.silent)
        self.labels["stratum"] = strata.index
        return strata

    def deployed(self) -> AbstractContextManager[None]:
        """See `Algorithm.deployed`."""
        return nullcontext() if self._ema is None else self._ema.applied()

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

    def _parts(self) -> Mapping[str, Any]:
        parts: dict[str, Any] = {}
        if self._policy_optimizer is not None:
            parts["policy_optimizer"] = self._policy_optimizer
        if self._ema is not None:
            parts["ema"] = self._ema
        if self.values is not None:
            parts["values"] = self.values
        if self.critic is not None:
            parts["critic"] = self.critic
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Trained parameters, optimisers, folds and labels."""
        labels = {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in self.labels.items()}
        parts = {key: part.state_dict() for key, part in self._parts().items()}
        own = {
            "policy": trained_state(self.policy),
            "labels": labels,
            "num_policy_updates": self._num_policy_updates,
            "data": self._dataset.digest(),
        }
        return parts | own

    def take_networks(self, state: dict[str, Any]) -> None:
        """See `Algorithm.take_networks`."""
        load_trained_state(self.policy, state["policy"])
        if self._policy_optimizer is not None and "policy_optimizer" in state:
            self._policy_optimizer.load_state_dict(state["policy_optimizer"] | {"num_applied": 0})
        if self._ema is not None:  # of a run that kept none, the average begins with its policy
            own = {name: p.detach().float() for name, p in self.policy.named_parameters() if p.requires_grad}
            self._ema.load_state_dict(state.get("ema", own))
        taken = "training" in state.get("values", {}) and self._given is None
        if self.values is not None and taken:
            self.values.take_networks(state["values"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; the labels are attached to the data set again, or made anew where its episodes
        are not those that were saved."""
        load_trained_state(self.policy, state["policy"])
        for key, part in self._parts().items():
            part.load_state_dict(state[key])
        self._num_policy_updates = state["num_policy_updates"]
        self.labels = {key: tensor.numpy() for key, tensor in state.get("labels", {}).items()}
        if self.labels and state["data"] != self._dataset.digest():
            self._label(silent) if self.config.uses_values else self._equal_weights()
        self._attach()


def _add(sums: dict[str, tuple[float, int]], key: str, total: float, count: int) -> None:
    before, number = sums[key]
    sums[key] = (before + total, number + count)
