"""Every step of `chunkrl improve` as the configuration of an existing command, so that it can be repeated by hand."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from chunkrl.data.inspect_config import InspectCommand
from chunkrl.data.label_rules import AUTO_LABELS, LabelRule
from chunkrl.evaluation.verdict_config import VerdictCommand
from chunkrl.improve.config import Asked, ImproveConfig
from chunkrl.improve.recipe import Recipe
from chunkrl.label.config import LabelCommand
from chunkrl.report.config import ReportCommand
from chunkrl.run.config import TrainConfig

STEPS = ("inspect", "labels", "values", "diagnosis", "train", "control", "verdict", "export")
STEP = "config"  # a step's configuration is config.json in its folder
COMMAND_FILE = "command.txt"
RUN, POLICY, PAGE_FILE = "run", "policy", "improve.html"


@dataclass(frozen=True)
class ExportStep:
    """source: the folder of the policy that is chosen. target: where its copy goes."""

    source: str
    target: str


@dataclass(frozen=True)
class Plan:
    """Steps' configurations.

    config: the command's. train: the settings of its trainings, with what the policy to improve decides. label_file:
    the file of labels that the data have, "" where a rule makes them. labels_told: what says who succeeded, for
    people. pretrained: the folder of the policy to improve.
    """

    config: ImproveConfig
    train: TrainConfig
    label_file: str = ""
    labels_told: str = ""
    pretrained: Path | None = None

    @property
    def root(self) -> Path:
        """The folder of all steps."""
        return Path(self.train.output_dir)

    @property
    def asked(self) -> Asked:
        """The method that was asked for."""
        return self.config.train.objective

    def folder(self, step: str) -> Path:
        """The folder of a step."""
        return self.root / f"{STEPS.index(step) + 1:02d}-{step}"

    def run(self, step: str) -> Path:
        """The folder of the training of a step."""
        return self.folder(step) / RUN

    def inspect(self) -> InspectCommand:
        """What the data hold, and their problems."""
        train = self.train
        return InspectCommand(
            self.config.data,
            horizon=train.action_horizon,
            labels=train.labels,
            mapping=train.mapping,
            revision=train.revision,
        )

    def label(self) -> LabelCommand | InspectCommand:
        """Labels by rule, into a file that all trainings read; or a look at those of the file that is there."""
        if self.label_file:
            return replace(self.inspect(), images=False, labels=self.labels)
        train = self.train
        return LabelCommand(
            self.config.data,
            rule=replace(train.labels, labels=AUTO_LABELS),
            output=str(self.folder("labels") / "labels.parquet"),
            mapping=train.mapping,
            revision=train.revision,
            skip_bad_episodes=train.frames.skip_bad_episodes,
            overwrite=True,  # by another rule, before anything was trained
        )

    @property
    def labels(self) -> LabelRule:
        """How all trainings read success: from one file, whatever is put beside the data meanwhile."""
        file = self.label_file or str(self.folder("labels") / "labels.parquet")
        return LabelRule(labels=file, human_key=self.train.labels.human_key)

    def training(self, step: str, objective: str) -> TrainConfig:
        """A training of the step by the method `objective`."""
        changed = replace(self.train, output_dir=str(self.run(step)), labels=self.labels)
        return changed.with_objective(objective)

    def values(self) -> TrainConfig:
        """The values alone; they begin with no policy."""
        return replace(self.training("values", "value"), init=None)

    def report(self) -> ReportCommand:
        """The page of the values."""
        return ReportCommand(
            str(self.run("values")), output=str(self.folder("diagnosis") / "values.html"), overwrite=True
        )

    def recipe(self, recipe: Recipe) -> TrainConfig:
        """The training that the diagnosis chose, on the values that were diagnosed."""
        config = self.training("train", recipe.objective)
        if config.method.gives_values:
            config = replace(config, values=str(self.run("values")))
        return config

    def control(self, recipe: Recipe) -> TrainConfig:
        """The same updates, episodes and seed without what the recipe adds."""
        assert recipe.control is not None
        return self.training("control", recipe.control)

    def verdict(self) -> VerdictCommand:
        """The recipe's run against the control's."""
        return VerdictCommand(
            str(self.run("train")),
            str(self.run("control")),
            seed=self.train.seed,
            device=self.train.device,
            output_dir=str(self.folder("verdict")),
        )

    def export(self, step: str) -> ExportStep:
        """The policy of a step as the one to use."""
        return ExportStep(str(self.run(step) / POLICY), str(self.root / POLICY))

    def command_line(self, step: str, command: str) -> str:
        """What repeats a step by hand."""
        return f"chunkrl {command} --config {shlex.quote(str(self.folder(step) / f'{STEP}.json'))}"
