"""What a run noted of its settings, read back as it was: an earlier release did not know all of those of now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from chunkrl.algorithms.config import BalanceConfig
from chunkrl.config import record_of, with_defaults
from chunkrl.data.label_rules import NO_LABELS
from chunkrl.errors import ChunkRLError
from chunkrl.files.json_files import read_json
from chunkrl.run.config import TrainConfig
from chunkrl.run.switches import switched_off

T = TypeVar("T")
Training = TypeVar("Training", bound=TrainConfig)


def noted_config(
    cls: type[T],
    path: Path,
    error: type[ChunkRLError] = ChunkRLError,
    cure: str = "give another file, or correct it",
) -> T:
    """The configuration in a file that a run wrote, which has every setting of its release: of a training, of a
    command that has one's under `train`, or of another command, whose settings that came later stand at their
    defaults. Raises `error` as `load_config`."""
    said = read_json(path, dict, error, cure)
    config = record_of(cls, said, str(path), error, cure)
    if isinstance(config, TrainConfig):
        return _as_it_was(config, said)
    train = getattr(config, "train", None)
    if isinstance(train, TrainConfig):
        return replace(config, train=_as_it_was(train, said.get("train", {})))  # type: ignore[type-var]
    return config


def _as_it_was(config: Training, said: Mapping[str, Any]) -> Training:
    """config, read from `said`, the settings that a run noted: what nothing reads stands at its default, and what is
    not noted is what that release did. How weights were balanced, and over which starts; what guidance led away from;
    labels that were read.
    """
    # an earlier release's defaults, or what nothing read
    config = with_defaults(config, (*config.unread(), *switched_off(config)))
    if config.method.weighs and "balance" not in said:
        config = replace(config, balance=BalanceConfig("none"))
    elif config.method.weighs and config.balance.kind != "none" and "failures" not in said["balance"]:
        config = replace(config, balance=replace(config.balance, failures="together"))
    elif config.method.conditions:  # of the strata it reads the places alone
        config = replace(config, balance=replace(config.balance, failures=BalanceConfig.failures))
    if config.method.reads_setting("conditioning") and "guidance_from" not in said.get("conditioning", {}):
        config = replace(config, conditioning=replace(config.conditioning, guidance_from="unlabelled"))
    if "labels" not in said.get("labels", {}):  # from before files of labels were found
        config = replace(config, labels=replace(config.labels, labels=NO_LABELS), additional_labels=())
    return config
