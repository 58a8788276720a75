"""The command line: `chunkrl COMMAND --help` shows every option of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from chunkrl.config import load_config
from chunkrl.errors import ChunkRLError
from chunkrl.progress import ProgressBars

USAGE = """usage: chunkrl COMMAND [options]

  demo       the main job on MetaWorld: collect, train, compare, report
  collect    mixed-quality episodes of scripts and policies in a simulator, as a LeRobot data set
  inspect    what a LeRobot data set holds, and every problem in it
  label      success, rewards, sub-goals and returns by rule, beside the data
  train      a better chunk policy from a LeRobot data set
  evaluate   a trained policy in simulators, from fixed initial states
  compare    finished evaluations against each other, state by state
  iterate    rounds of roll-outs and training on them, each again from the pretrained policy
  learner    trains while actors send episodes, and sends them newer weights
  actor      a policy acts online, a human corrects, every step goes to the learner
  report     one HTML page of a training run: data, curves, values, advantages, frames
  download   pretrained pi0 and pi0.5 checkpoints
  convert    a pi checkpoint of any layout to a LeRobot folder
  manifest   whether a policy, checkpoint or run is still what was written
  doctor     what is installed, and what is missing

chunkrl COMMAND --help shows the options; every command takes --config FILE.json."""


def _parse(
    cls: type, name: str, arguments: Sequence[str], resumed: Callable[[Path, set[str]], Any] | None = None
) -> Any:
    """A configuration from flags, on top of `--config FILE` where given, or else of the run that `--resume` names.

    resumed: (run, names of the flags) -> the run's configuration.
    """
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    default = cls()
    if "--config" in arguments:
        position = arguments.index("--config")
        if position + 1 == len(arguments):
            raise ChunkRLError("--config needs a file")
        default = load_config(cls, arguments[position + 1])
        del arguments[position : position + 2]
    elif resumed is not None and (run := _value_of("--resume", arguments)) is not None:
        given = {a[2:].split("=")[0].replace("-", "_") for a in arguments if a.startswith("--")}
        default = resumed(Path(run), given)
    return tyro.cli(cls, prog=f"chunkrl {name}", args=arguments, default=default)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What follows the flag, None where it is not given or says None."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
        if argument == flag and position + 1 < len(arguments) and arguments[position + 1] != "None":
            return arguments[position + 1]
    return None


def _demo(arguments: Sequence[str]) -> None:
    from chunkrl.demo import run_demo
    from chunkrl.options import DemoConfig

    run_demo(_parse(DemoConfig, "demo", arguments))


def _collect(arguments: Sequence[str]) -> None:
    from chunkrl.envs.collect import collect
    from chunkrl.envs.collect_config import CollectCommand

    collect(_parse(CollectCommand, "collect", arguments), ProgressBars())


def _inspect(arguments: Sequence[str]) -> None:
    from chunkrl.data.inspect import inspect_dataset
    from chunkrl.data.inspect_config import InspectCommand

    inspect_dataset(_parse(InspectCommand, "inspect", arguments), ProgressBars())


def _label(arguments: Sequence[str]) -> None:
    from chunkrl.data.label_command import label_dataset
    from chunkrl.data.label_config import LabelCommand

    label_dataset(_parse(LabelCommand, "label", arguments), ProgressBars())


def _train(arguments: Sequence[str]) -> None:
    from chunkrl.commands import train
    from chunkrl.train_config import TrainConfig

    train(_parse(TrainConfig, "train", arguments, _resumed_run), ProgressBars())


def _resumed_run(run: Path, given: set[str]) -> Any:
    from chunkrl.training.run_folder import resumed_config

    return resumed_config(run, given)


def _evaluate(arguments: Sequence[str]) -> None:
    from chunkrl.evaluation.config import EvaluateCommand
    from chunkrl.evaluation.evaluate_command import evaluate_policy

    evaluate_policy(_parse(EvaluateCommand, "evaluate", arguments), ProgressBars())


def _iterate(arguments: Sequence[str]) -> None:
    from chunkrl.iterate.command import iterate
    from chunkrl.iterate.config import IterateConfig, resumed_iteration

    iterate(_parse(IterateConfig, "iterate", arguments, resumed_iteration), ProgressBars())


def _learner(arguments: Sequence[str]) -> None:
    from chunkrl.online.learner import run_learner
    from chunkrl.online.learner_config import LearnerConfig, resumed_learner

    run_learner(_parse(LearnerConfig, "learner", arguments, resumed_learner), ProgressBars())


def _actor(arguments: Sequence[str]) -> None:
    from chunkrl.online.actor_command import ActorCommand
    from chunkrl.online.actor_session import run_actor

    run_actor(_parse(ActorCommand, "actor", arguments))


def _compare(arguments: Sequence[str]) -> None:
    from chunkrl.evaluation.compare_command import compare
    from chunkrl.evaluation.config import CompareCommand

    compare(_parse(CompareCommand, "compare", arguments))


def _report(arguments: Sequence[str]) -> None:
    from chunkrl.evaluation.config import ReportCommand
    from chunkrl.evaluation.run_report import report

    report(_parse(ReportCommand, "report", arguments), ProgressBars())


def _download(arguments: Sequence[str]) -> None:
    from chunkrl.integration.config import DownloadCommand
    from chunkrl.integration.download import download

    download(_parse(DownloadCommand, "download", arguments), ProgressBars())


def _convert(arguments: Sequence[str]) -> None:
    from chunkrl.integration.convert import ConvertCommand, convert

    convert(_parse(ConvertCommand, "convert", arguments))


def _manifest(arguments: Sequence[str]) -> None:
    from chunkrl.manifest_command import check_manifests
    from chunkrl.options import ManifestCommand

    check_manifests(_parse(ManifestCommand, "manifest", arguments))


def _doctor(arguments: Sequence[str]) -> None:
    from chunkrl.doctor import run_doctor
    from chunkrl.options import DoctorConfig

    run_doctor(_parse(DoctorConfig, "doctor", arguments))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": _demo,
    "collect": _collect,
    "inspect": _inspect,
    "label": _label,
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "iterate": _iterate,
    "learner": _learner,
    "actor": _actor,
    "report": _report,
    "download": _download,
    "convert": _convert,
    "manifest": _manifest,
    "doctor": _doctor,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A ChunkRLError is printed as one message, exit status 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        from chunkrl import __version__

        print(__version__)
        return
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"chunkrl: unknown command {arguments[0]!r}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    try:
        command(arguments[1:])
    except ChunkRLError as error:
        print(f"chunkrl {arguments[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
