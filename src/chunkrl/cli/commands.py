"""The commands: where the options of each stand, what runs them, and which options its short help shows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command.

    options: MODULE:CLASS of its options, a module that imports quickly. run: MODULE:FUNCTION that takes them, and a
    `Progress` where `shows_progress`. common: the options of its short help, by flag without hyphens; (): all.
    resumed: MODULE:FUNCTION that takes the folder that --resume names, and the names of the options that are given
    besides, and returns the options of the run there; "": it has no such option.
    """

    name: str
    summary: str
    options: str
    run: str
    shows_progress: bool = True
    common: tuple[str, ...] = ()
    resumed: str = ""

    def options_class(self) -> type:
        """The record of its options."""
        return _load(self.options)

    def resumed_options(self, run: Path, given: Collection[str]) -> Any:
        """The options of the run in the folder `run`, to resume it. given: names of options that are given."""
        return _load(self.resumed)(run, given)

    def __call__(self, options: Any) -> None:
        """Runs it."""
        run = _load(self.run)
        if self.shows_progress:
            from chunkrl.progress import ProgressBars

            run(options, ProgressBars())
        else:
            run(options)


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


_DATA = ("dataset-dir", "success", "success-episodes", "success-file", "labels", "cameras", "resize")
_POLICY = ("objective", "policy.kind", "pi0-config", "pi.train")
_PAGE = ("browser", "run", "order", "address")
_RUN = ("output-dir", "batch-size", "lr", "seed", "device", "init", "resume", "overwrite")

_COMMANDS = (
    Command(
        "improve",
        "a better policy from a data set in one command, step by step, with a verdict and a page",
        "chunkrl.improve.config:ImproveConfig",
        "chunkrl.improve.command:improve",
        common=(
            *(
                "policy",
                "output-dir",
                "dry-run",
                "success",
                "success-episodes",
                "success-file",
                "labels",
            ),
            *("objective", "held-out", "action-horizon", "num-epochs", "num-updates", "batch-size", "lr"),
            *("policy.kind", "pi.train", "seed", "device", "resume", "overwrite"),
        ),
        resumed="chunkrl.improve.config:resumed_improvement",
    ),
    Command(
        "demo",
        "the main job on MetaWorld: collect, train, compare, report",
        "chunkrl.options:DemoConfig",
        "chunkrl.demo.command:run_demo",
        shows_progress=False,
    ),
    Command(
        "collect",
        "mixed-quality episodes of scripts and policies in a simulator, as a LeRobot data set",
        "chunkrl.collect.config:CollectCommand",
        "chunkrl.collect.command:collect",
    ),
    Command(
        "inspect",
        "what a LeRobot data set holds, and every problem in it",
        "chunkrl.data.inspect_config:InspectCommand",
        "chunkrl.browser.command:inspect",
        common=(
            *_PAGE,
            "json",
            "images",
            "horizon",
            "success",
            "success-episodes",
            "success-file",
            "labels",
            "state-key",
            "action-key",
            "image-keys",
        ),
    ),
    Command(
        "label",
        "success, rewards, sub-goals and returns by rule or by hand, beside the data",
        "chunkrl.label.config:LabelCommand",
        "chunkrl.browser.command:label",
        common=(
            *(
                *_PAGE,
                "blank",
                "success",
                "success-episodes",
                "success-file",
                "success-key",
                "subgoal",
                "subgoal-key",
                "step-reward",
                "gamma",
            ),
            *("output", "export", "replay.suite", "state-key", "action-key", "skip-bad-episodes"),
        ),
    ),
    Command(
        "train",
        "a better chunk policy from a LeRobot data set",
        "chunkrl.run.config:TrainCommand",
        "chunkrl.run.command:train",
        common=(
            *_DATA,
            *("action-horizon", "action-dim"),
            *_POLICY,
            *("use-pi0-actions", "value-epochs", "num-epochs", "num-updates"),
            *_RUN,
            "dry-run",
        ),
        resumed="chunkrl.run.folder:resumed_command",
    ),
    Command(
        "evaluate",
        "a trained policy in simulators, from fixed initial states",
        "chunkrl.evaluation.config:EvaluateCommand",
        "chunkrl.report.commands:evaluate_policy",
    ),
    Command(
        "compare",
        "finished evaluations against each other, state by state",
        "chunkrl.evaluation.config:CompareCommand",
        "chunkrl.report.commands:compare",
        shows_progress=False,
    ),
    Command(
        "verdict",
        "which of two runs is better, from episodes that neither was trained on",
        "chunkrl.evaluation.verdict_config:VerdictCommand",
        "chunkrl.report.verdict:verdict",
        common=(
            "against",
            "dataset-dir",
            "success",
            "labels",
            "mode",
            "num-starts",
            "output-dir",
            "overwrite",
        ),
    ),
    Command(
        "trial",
        "policies against each other on a robot or in a simulator, blind, until it is decided",
        "chunkrl.trial.config:TrialCommand",
        "chunkrl.trial.command:run_trial",
        common=(
            *("env", "robot", "output-dir", "overwrite", "error", "max-pairs", "seed", "exec-steps"),
            *("mode", "max-steps", "keys", "device"),
        ),
    ),
    Command(
        "iterate",
        "rounds of roll-outs and training on them, each again from the pretrained policy",
        "chunkrl.iterate.config:IterateConfig",
        "chunkrl.iterate.command:iterate",
        common=(
            *(
                "init",
                "pi0-config",
                "rounds",
                "arms",
                "collect.env",
                "collect.num-episodes",
                "rollouts.actor",
            ),
            *(
                "rollouts.folder",
                "rollouts.share",
                "evaluation.env",
                "evaluation.num-episodes",
                "selection.by",
            ),
            *(
                "dataset-dir",
                "objective",
                "policy.kind",
                "num-updates",
                "output-dir",
                "seed",
                "device",
                "resume",
            ),
        ),
        resumed="chunkrl.iterate.config:resumed_iteration",
    ),
    Command(
        "learner",
        "trains while actors send episodes, and sends them newer weights",
        "chunkrl.online.learner.config:LearnerConfig",
        "chunkrl.online.learner.learner:run_learner",
        common=(
            *("dataset-dir", "init", "objective", "policy.kind", "pi0-config", "listen.address"),
            *(
                "listen.token-file",
                "replay.root",
                "replay.capacity-steps",
                "online.share",
                "online.start-episodes",
            ),
            *("online.updates-per-step", "online.push-s", "evaluation.env", "num-updates"),
            *("output-dir", "batch-size", "lr", "device", "resume"),
        ),
        resumed="chunkrl.online.learner.config:resumed_learner",
    ),
    Command(
        "actor",
        "a policy acts online, a human corrects, every step goes to the learner",
        "chunkrl.online.actor.command:ActorCommand",
        "chunkrl.online.actor.session:run_actor",
        shows_progress=False,
        common=(
            *("policy", "env", "robot", "output-dir", "actor-id", "connect.address", "connect.token-file"),
            *(
                "offline",
                "send-only",
                "num-episodes",
                "seed",
                "max-steps",
                "rate-hz",
                "exec-steps",
                "mode",
            ),
            *("keys", "confirm", "corrector", "camera-size", "device"),
        ),
    ),
    Command(
        "serve",
        "a policy for robots that speak openpi's websocket protocol",
        "chunkrl.serve.config:ServeCommand",
        "chunkrl.serve.command:serve_policy",
        shows_progress=False,
        common=(
            *("policy", "listen.address", "listen.token-file", "listen.tls-certificate", "listen.tls-key"),
            *("rename", "ignore", "task", "action-dim", "mode", "condition", "guidance", "device"),
        ),
    ),
    Command(
        "report",
        "one HTML page of a training run: data, curves, values, advantages, frames",
        "chunkrl.report.config:ReportCommand",
        "chunkrl.report.commands:report",
    ),
    Command(
        "export-values",
        "a run's values as files that LeRobot's own training weights by",
        "chunkrl.report.config:ExportValuesCommand",
        "chunkrl.report.export_values:export_values",
    ),
    Command(
        "download",
        "pretrained pi0 and pi0.5 checkpoints",
        "chunkrl.integration.config:DownloadCommand",
        "chunkrl.integration.download:download",
    ),
    Command(
        "push",
        "a policy with its card, or a data set, to the Hugging Face Hub",
        "chunkrl.publish.config:PushCommand",
        "chunkrl.publish.push:push",
    ),
    Command(
        "pull",
        "a policy or a data set from the Hugging Face Hub, verified",
        "chunkrl.publish.config:PullCommand",
        "chunkrl.publish.pull:pull",
    ),
    Command(
        "convert",
        "a pi checkpoint of any layout to a LeRobot folder",
        "chunkrl.cli.convert:ConvertCommand",
        "chunkrl.cli.convert:convert",
        shows_progress=False,
    ),
    Command(
        "config",
        "another project's configuration into files for these commands",
        "chunkrl.integration.config:ConfigCommand",
        "chunkrl.cli.config_import:run_config",
        shows_progress=False,
    ),
    Command(
        "manifest",
        "whether a policy, checkpoint or run is still what was written",
        "chunkrl.options:ManifestCommand",
        "chunkrl.cli.manifest:check_manifests",
        shows_progress=False,
    ),
    Command(
        "doctor",
        "what is installed, and what is missing",
        "chunkrl.options:DoctorConfig",
        "chunkrl.cli.doctor:run_doctor",
        shows_progress=False,
    ),
    Command(
        "completion",
        "commands and flags for the Tab key of bash, zsh or fish",
        "chunkrl.options:CompletionCommand",
        "chunkrl.cli.completion:print_completion",
        shows_progress=False,
    ),
)
COMMANDS = {command.name: command for command in _COMMANDS}
