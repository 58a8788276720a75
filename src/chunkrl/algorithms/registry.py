"""The methods: what each objective of `chunkrl train` is, can do, and reads.

To add a method, write one file that has `build(inputs: MethodInputs) -> ChunkAlgorithm`, and name it here. No other
place knows methods by name: whoever must tell them apart asks for a capability. Without torch: help is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

CRITICS = "critics"
"""Among what a method reads: the settings that a policy's family has for V and Q."""

VALUE_TRAINING = (
    *("critic_horizon", "value_epochs", "value_updates", "value_lr"),
    *("fit.hidden_dim", "fit.num_layers", "fit.dropout", "fit.noise"),
    *("fit.target_rate", "fit.head", "fit.fold_order", "fit.return_range"),
)
"""How V and Q are trained; their other settings say what they are trained for."""
_FITTED = (
    *("gamma", "reward", "num_folds", "value_videos"),
    *("fit.lam", "fit.n_step", "fit.time_out", "fit.target"),
    *("fit.num_critics", "fit.aggregate", "fit.quantile"),
    *VALUE_TRAINING,
    CRITICS,
)
_VALUES = (*_FITTED, "values", "train_q", "value_updates_per_update", "relabel_interval")
_POLICY = ("ema_decay", "microbatch_size")
_WEIGHTS = ("beta", "fit.advantage_scale", "fit.weight_clip", "fit.draw", "fit.past_advantage", "balance")
_JOINT = (
    *("gamma", "reward", "critic_horizon", "beta", "lambda_v", "lambda_pi", "value_lr", "relabel_interval"),
    *("value_videos", "fit.time_out", "ema_decay"),
    CRITICS,
)


@dataclass(frozen=True)
class Method:
    """An objective.

    name: of --objective. module: has `build`. summary: for help texts. reads: settings beside those of every run, of
        `TrainConfig`, "fit" for all of a part. reads_for_q: with --train-q alone.
    trains_policy: or values alone. gives_values: every frame gets a value and an advantage.
    weighs: chunks get balanced weights. conditions: the prompt gets labels.
    of_successes: learns from successful episodes alone. needs_success: without one there is nothing to learn.
    grows: learns from data that grow. takes_init: begins with another run's networks.
    cross_fits: values are held out by folds. joint: values and policy train together, on networks of one size.
    takes_candidates: Q may decide between the chunks of another policy.
    is_control: what its labels decide by is permuted.
    """

    name: str
    module: str
    summary: str
    reads: tuple[str, ...]
    reads_for_q: tuple[str, ...] = ()
    trains_policy: bool = True
    gives_values: bool = True
    weighs: bool = False
    conditions: bool = False
    of_successes: bool = False
    needs_success: bool = True
    grows: bool = True
    takes_init: bool = True
    cross_fits: bool = True
    joint: bool = False
    takes_candidates: bool = False
    is_control: bool = False

    @property
    def learns_online(self) -> bool:
        """Whether `chunkrl learner` trains it, on data that grow."""
        return self.grows and self.trains_policy and not self.is_control

    def build(self, inputs: Any) -> Any:
        """The algorithm of `MethodInputs`."""
        return import_module(self.module).build(inputs)

    def reads_setting(self, path: str, train_q: bool = False) -> bool:
        """Whether the method reads the setting `path` ("fit.lam") of those that are not every run's."""
        reads = (*self.reads, *(self.reads_for_q if train_q else ()))
        return any(path == read or path.startswith(f"{read}.") for read in reads)


def _control(method: Method, name: str, summary: str) -> Method:
    """The same method on labels that decide by chance."""
    return replace(
        method,
        name=name,
        summary=summary,
        is_control=True,
        reads=tuple(r for r in method.reads if r != "distil"),
    )


_WEIGHTED = Method(
    "cross_fitted",
    "chunkrl.algorithms.weighted",
    "default: weights by the advantage",
    (*_VALUES, *_POLICY, *_WEIGHTS, "human_chunks", "distil"),
    weighs=True,
)
_CONDITIONED = Method(
    "advantage_conditioned",
    "chunkrl.algorithms.conditioned",
    "the advantage in a pi policy's prompt",
    (*_VALUES, *_POLICY, "fit.past_advantage", "human_chunks", "conditioning", "balance"),
    conditions=True,
)
_CLONING = Method(
    "behaviour_cloning",
    "chunkrl.algorithms.cloning",
    "control: all chunks alike",
    (*_POLICY, "train_q", "sample_weights"),
    reads_for_q=_VALUES,  # Q for best-of-N is fitted on advantages
    gives_values=False,
    needs_success=False,
)

_ALL = (
    _WEIGHTED,
    _CONDITIONED,
    Method(
        "iql",
        "chunkrl.algorithms.iql",
        "chunk-level IQL",
        (*_JOINT, "num_folds", "balance", "iql"),
        weighs=True,
        grows=False,
        takes_init=False,
        joint=True,
        takes_candidates=True,
    ),
    Method(
        "document",
        "chunkrl.algorithms.document",
        "the chunk-level document's exact objective",
        _JOINT,
        grows=False,
        takes_init=False,
        cross_fits=False,
        joint=True,
    ),
    _CLONING,
    replace(
        _CLONING,
        name="success_cloning",
        summary="control: the successful episodes alone",
        reads=(*_POLICY, "train_q"),
        # its policy draws successes alone, of which V would learn on
        reads_for_q=tuple(n for n in _VALUES if n not in ("value_updates_per_update", "relabel_interval")),
        of_successes=True,
        needs_success=True,
    ),
    _control(_WEIGHTED, "shuffled_advantages", "control: cross_fitted on shuffled advantages"),
    _control(_CONDITIONED, "shuffled_conditioning", "control: advantage_conditioned on shuffled labels"),
    Method(
        "value",
        "chunkrl.algorithms.cross_fitted",
        "values alone",
        (
            *(
                name
                for name in _VALUES
                if name not in ("values", "train_q", "value_updates_per_update", "relabel_interval")
            ),
            "microbatch_size",
        ),
        trains_policy=False,
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
