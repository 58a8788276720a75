"""Paths in the settings of a run of steps: what lies in its folder is known by its place there, the rest by where it
is. So a run goes on from another working directory, by another name of its folder, and where that was moved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chunkrl.data.label_rules import AUTO_LABELS, NO_LABELS
from chunkrl.iterate.config import IterateConfig

_OUTPUTS = ("output_dir", "output")  # settings that say where a step writes
_LABEL_FILES = ("labels", "success_file", "subgoal_csv", "progress")


def located(text: str) -> str:
    """A path from here as one from anywhere; a text that is none, such as a name on the Hub, as it is."""
    path = Path(text).expanduser()
    return str(path.absolute()) if text and path.exists() else text


def with_located(config: IterateConfig) -> IterateConfig:
    """The settings with the paths of data, policies and files so that they are found from any working directory."""
    train, source = config.train, config.rollouts
    files = {name: getattr(train.labels, name) for name in _LABEL_FILES}
    labels = {n: located(file) for n, file in files.items() if file not in (AUTO_LABELS, NO_LABELS)}
    train = replace(
        train,
        init=None if train.init is None else located(train.init),
        dataset_dir=located(train.dataset_dir),
        additional_offline_dataset_paths=tuple(map(located, train.additional_offline_dataset_paths)),
        additional_labels=tuple(map(located, train.additional_labels)),
        labels=replace(train.labels, **labels),
        # a policy of another kind reads none
        **({} if train.pi0_config is None else {"pi0_checkpoints_dir": located(train.pi0_checkpoints_dir)}),
    )
    source = replace(
        source,
        actor=None if source.actor is None else located(source.actor),
        # it may be made later
        folder=None if source.folder is None else str(Path(source.folder).expanduser().absolute()),
    )
    return replace(config, train=train, rollouts=source)


@dataclass(frozen=True)
class Places:
    """root: the run's folder now. noted_root: as the noted settings name it; "" where they do not say."""

    root: Path
    noted_root: str = ""

    @staticmethod
    def of(folder: Path, root: Path, noted: Mapping[str, Any]) -> Places:
        """folder: of the step whose noted settings, by dotted name, these are."""
        inside = folder.resolve().relative_to(root.resolve()).parts
        for text in (noted.get(name) for name in _OUTPUTS):
            parts = Path(text).parts if isinstance(text, str) else ()
            if not parts:
                continue
            for end in range(len(parts) - len(inside), -1, -1):  # it writes into its folder, or deeper
                if parts[end : end + len(inside)] == inside:
                    return Places(root, str(Path(*parts[:end])))
        return Places(root)

    def same(self, there: Any, here: Any) -> bool:
        """Whether two values are one setting; there: as noted."""
        if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
            return all(map(self.same, there, here))
        if not (isinstance(there, str) and isinstance(here, str)):
            return there == here
        return there == here or self._place(there, self.noted_root) == self._place(here, "")

    def _place(self, text: str, noted_root: str) -> tuple[str, Path]:
        path = Path(text).expanduser()
        if noted_root and path.is_relative_to(noted_root):
            return "in the run", path.relative_to(noted_root)
        whole, root = Path(os.path.realpath(path)), Path(os.path.realpath(self.root))
        return ("in the run", whole.relative_to(root)) if whole.is_relative_to(root) else ("", whole)
