"""The card of a policy on the Hub: README.md, made from its folder, its run and its evaluations."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from chunkrl.config import changed_settings
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.evaluation.compare import arm_results, few_states, group
from chunkrl.evaluation.evaluation_result import Evaluation, EvaluationSettings, read_evaluation, told_mode
from chunkrl.evaluation.results import by_task, compare_arms
from chunkrl.files.json_files import as_json, read_json
from chunkrl.models.acting_policy import ASKED
from chunkrl.models.plugin_files import CONFIG_FILE, PLUGIN_TYPE
from chunkrl.policies.registry import family_in
from chunkrl.report import markdown
from chunkrl.report.comparison import difference_table, number_table
from chunkrl.report.numbers import signed
from chunkrl.report.run import run_warnings, value_quality_of
from chunkrl.report.run_facts import data_table, trained_facts
from chunkrl.report.tables import Table
from chunkrl.report.training_run import TrainingRun
from chunkrl.run.folder import FREE
from chunkrl.version import __version__

_PATH = re.compile(r'(?<![\w.:/])(?:~|/[\w.-]+)/[^\s,;()"]*')
TAGS = ("robotics", "chunkrl", "LeRobot", "offline-rl")
_INSTEAD = (
    "chunkrl acts as it was trained; chunkrl convert FOLDER NEW --plugin makes a folder that LeRobot runs so, with "
    "chunkrl's plug-in."
)


@dataclass(frozen=True)
class CardRequest:
    """What a card needs to know besides what it is of.

    revision: of the Hub; None: main. base_url: where the checkpoint that the policy began with was fetched.
    """

    repo_id: str
    licence: str
    revision: str | None = None
    base_url: str | None = None

    @property
    def name(self) -> str:
        """Without the account."""
        return self.repo_id.partition("/")[2]

    def front(self, library: str, **more: Any) -> markdown.Markdown:
        """The metadata that the Hub reads."""
        values: dict[str, Any] = {"license": self.licence, "library_name": library, **more}
        return markdown.front_matter({name: value for name, value in values.items() if value})


@dataclass(frozen=True)
class _LeRobot:
    """notes: sentences. lines: commands; none where LeRobot would run it otherwise than it was trained."""

    notes: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Card:
    """What the template shows of the policy's folder."""

    name: str
    policy: Mapping[str, str]
    lerobot: _LeRobot | None
    chunkrl: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """What it shows of the run."""

    data: Table
    labels: Mapping[str, str]
    trained: Mapping[str, str]
    settings: Mapping[str, str]
    values: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Evaluation:
    """And of evaluations. name: this policy's among them."""

    name: str
    lead: str
    numbers: Table
    differences: Table | None
    facts: Mapping[str, str]
    notes: tuple[str, ...]


def card_of_policy(
    request: CardRequest, folder: Path, run: TrainingRun | None, evaluations: Sequence[str], fingerprint: str
) -> str:
    """README.md of the policy in `folder`, front matter included.

    run: that made it, where it is there. evaluations: folders of `chunkrl evaluate`, or NAME=FOLDER; one of them of
    the policy, whose `fingerprint` it says.

    Raises:
        ChunkRLError: no evaluation is of this policy, or they are not of the same states.
    """
    family = family_in(folder)
    base = request.base_url or ""
    policy = {**_inputs(folder), **family.told_of(folder)}
    if base:
        policy["began with"] = base
    chunks = "A policy that acts in chunks of actions" if run is None else _summary(run)
    install = f"pip install '.[{family.extra}]'" if family.extra else "pip install ."
    at = "" if request.revision is None else f" --revision {request.revision}"
    differences = family.stock_differences(folder)
    stock = _config(folder).get("type") not in (None, PLUGIN_TYPE) and not differences
    card = _Card(
        request.name,
        policy,
        _lerobot(request, folder, differences, install),
        (f"{install}  # in a checkout of chunkrl", f"chunkrl pull {request.repo_id}{at}"),
    )
    hub_base = base.removeprefix("hf://").partition("@")[0] if base.startswith("hf://") else ""
    return markdown.render(
        "policy.md",
        front=request.front(
            "lerobot" if stock else "chunkrl", pipeline_tag="robotics", tags=list(TAGS), base_model=hub_base
        ),
        summary=f"{chunks}, saved by chunkrl.",
        card=card,
        folder=json.dumps(request.name),
        run=None if run is None else _of_run(run),
        evaluation=_of_evaluations(evaluations, fingerprint) if evaluations else None,
        version=__version__,
    )


def _summary(run: TrainingRun) -> str:
    tasks = sorted({task for part in run.data for task in part.dataset.tasks})
    told = f'"{tasks[0]}"' if len(tasks) == 1 else f"{len(tasks)} tasks"
    kind = run.config.policy.kind
    return f"A {kind} policy for {told}, trained offline ({run.config.objective.replace('_', ' ')})"


# ---- of the folder


def _config(folder: Path) -> dict[str, Any]:
    """LeRobot's config.json; empty where the folder has none."""
    file = folder / CONFIG_FILE
    return read_json(file, dict, CheckpointError, "copy the folder again") if file.is_file() else {}


def _inputs(folder: Path) -> dict[str, str]:
    config = _config(folder)
    facts = {}
    for kind in ("input", "output"):
        features = config.get(f"{kind}_features")
        for name, feature in features.items() if isinstance(features, dict) else ():
            shape = feature.get("shape") if isinstance(feature, dict) else None
            facts[name] = (
                f"{kind}, {' x '.join(map(str, shape)) if isinstance(shape, list) else 'of any shape'}"
            )
    if isinstance(config.get("chunk_size"), int):
        facts["actions per chunk"] = str(config["chunk_size"])
    return facts


def _lerobot(request: CardRequest, folder: Path, differences: list[str], install: str) -> _LeRobot | None:
    kind = _config(folder).get("type")
    # LeRobot's commands fetch main
    path = request.repo_id if request.revision is None else request.name
    run_it = (
        f"lerobot-eval --policy.path={path} --env.type=ENV           # in a simulator",
        f"lerobot-rollout --policy.path={path} --robot.type=ROBOT    # on a robot, from LeRobot 0.6",
    )
    if kind == PLUGIN_TYPE:
        note = "With chunkrl's plug-in, which acts as chunkrl does:"
        return _LeRobot(
            (note,), (f"{install} plugins/lerobot_policy_chunkrl  # in a checkout of chunkrl", *run_it)
        )
    if kind is None:
        return None
    if differences:
        told = "; ".join(differences)
        return _LeRobot((f"Stock LeRobot runs it otherwise than it was trained: it {told}. {_INSTEAD}",), ())
    return _LeRobot(("Stock LeRobot runs it as it was trained:",), ("pip install 'lerobot[pi]'", *run_it))


# ---- of the run


def _of_run(run: TrainingRun) -> _Run:
    quality = value_quality_of(run)
    values = {}
    if quality is not None and run.config.cross_fits:
        values = {
            "rank correlation with the return": signed(quality.held_out, 2).removeprefix("+"),
            "the same on episodes that they had trained on": signed(quality.seen, 2).removeprefix("+"),
            "calibration error, in units of returns": f"{quality.calibration.error:.3f}",
        }
    labels = {}
    for part in run.data:
        found = part.dataset.frame_labels
        rule, file = found.rule, f", from {found.file}" if found.file else ""
        labels[Path(part.dataset.name).name] = (
            f"success by {rule.success}, sub-goals by {rule.subgoal}, rewards by {rule.step_reward}{file}"
        )
    trained = {name: _without_paths(text) for name, text in trained_facts(run).items()}
    notes = tuple(map(_without_paths, (*run.notes, *run_warnings(run, quality))))
    return _Run(data_table(run, lambda root: Path(root).name), labels, trained, _settings(run), values, notes)


def _settings(run: TrainingRun) -> dict[str, str]:
    """Settings that differ from their defaults, but where files are."""
    names = [name for name in changed_settings(run.config) if name not in FREE]
    return {name: _told(operator.attrgetter(name)(run.config)) for name in names}


def _told(value: Any) -> str:
    return _without_paths(
        value if isinstance(value, str) else json.dumps(as_json(_plain(value), default=str))
    )


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _without_paths(text: str) -> str:
    """Files and folders of this machine by their names alone."""
    return _PATH.sub(lambda found: Path(found[0]).name, text)


# ---- of evaluations


def _of_evaluations(given: Sequence[str], fingerprint: str) -> _Evaluation:
    found = {name: read_evaluation(folder) for name, folder in _named(given).items()}
    own = [name for name, evaluation in found.items() if evaluation.settings.fingerprint == fingerprint]
    if not own:
        raise ChunkRLError(
            f"--evaluation {' '.join(given)}: none is of this policy (fingerprint {fingerprint}): evaluate the "
            "folder that is pushed (chunkrl evaluate --policy), or leave them out"
        )
    name = own[0]
    if len(found) == 1:
        arms, differences = arm_results({name: [found[name]]}), []
    else:
        order = [name, *(other for other in found if other != name)]
        methods = group([f"{other}={_named(given)[other]}" for other in order])
        arms = arm_results(methods)
        differences = compare_arms(arms, name, order[1:])
    lead = (
        f'"{name}" is this policy, the others stand for comparison. '
        if differences
        else "Success of this policy in simulation. "
    )
    return _Evaluation(
        name,
        f"{lead}Intervals are of 95 %, of one training seed.",
        number_table(by_task(arms)),
        difference_table(differences) if differences else None,
        _asked(found, name),
        tuple(few_states(differences)),
    )


def _named(given: Sequence[str]) -> dict[str, str]:
    """Name -> folder, the folder's own name where none is given."""
    names: dict[str, str] = {}
    for text in given:
        name, folder = ("", text) if Path(text).exists() or "=" not in text else text.split("=", 1)
        name = name or Path(folder).resolve().name
        if name in names:
            raise ChunkRLError(
                f"--evaluation {names[name]} and {folder} are both named {name}: give NAME=FOLDER for one of them"
            )
        names[name] = folder
    return names


def _asked(found: Mapping[str, Evaluation], name: str) -> dict[str, str]:
    settings: EvaluationSettings = found[name].settings
    facts = {
        "initial states": f"{settings.num_episodes} a task, seed {settings.seed}",
        "executed": f"{settings.exec_steps} of {settings.horizon} actions of each chunk",
        "chunk chosen by": ", ".join(
            text if len(found) == 1 else f"{other}: {text}"
            for other, text in ((other, told_mode(e.settings)) for other, e in found.items())
        ),
    }
    for setting in ASKED:
        if getattr(settings, setting) is not None:
            facts[setting.replace("_", " ")] = str(getattr(settings, setting))
    return facts
