"""What `chunkrl iterate` does: every round's steps in order, what they found, and the policy to use."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from chunkrl.config import save_config
from chunkrl.errors import ChunkRLError, TrainingStopped
from chunkrl.evaluation.config import EvaluateCommand
from chunkrl.evaluation.evaluation_result import read_evaluation
from chunkrl.files.atomic import remove_temporaries
from chunkrl.files.output_folder import begin_folder, check_folder, held, numbered, set_aside
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.iterate.checks import check_brought, make_plan
from chunkrl.iterate.config import CONFIG_FILE, ArmName, IterateConfig
from chunkrl.iterate.page import write_page
from chunkrl.iterate.places import with_located
from chunkrl.iterate.plan import ROLLOUTS, Plan
from chunkrl.iterate.records import ArmRun, IterateResult, Rollouts, RoundResult, Score, write_results
from chunkrl.iterate.rollouts import (
    check_there,
    collect,
    data_sources,
    fingerprints,
    label,
    read_rollouts,
    record,
)
from chunkrl.iterate.selection import choose, why_ended
from chunkrl.iterate.steps import check_sources, is_done, kept_if_refused, run_step, train_or_go_on
from chunkrl.iterate.table import format_result
from chunkrl.progress import Progress, silent
from chunkrl.report.commands import evaluate_policy
from chunkrl.run.build import label_rules


def iterate(config: IterateConfig, progress: Progress = silent) -> IterateResult:
    """Makes the rounds of all arms that are missing; results.json and report.html are as new as the last step.

    Raises ChunkRLError: settings, data or policies that do not fit, a folder of another run, a round without
    episodes, nothing that succeeded.
    """
    train = config.train
    if not train.output_dir:
        folder = train.resume or str(numbered("iterate"))
        config = replace(config, train=replace(train, output_dir=folder))
    config = with_located(config)
    plan = make_plan(config)
    resumes = train.resume is not None
    check_folder(plan.root, "iterate", resumes=resumes, overwrite=train.overwrite)
    if resumes and not (plan.root / CONFIG_FILE).is_file():
        raise ChunkRLError(f"--resume {train.resume}: there is no run of chunkrl iterate to resume")
    begin_folder(plan.root, "iterate", resumes=resumes, overwrite=train.overwrite)
    try:
        with held(plan.root, "iterate"):
            check_brought(plan)
            run = _Iteration(plan, progress)
            run.read()
            # what is refused before a step is done leaves the run's settings as they were
            with kept_if_refused(plan.root / CONFIG_FILE, unless=lambda: run.has_done_steps):
                _begin(config, plan, progress)
                for arm in config.arms:
                    run.make(arm)
            run.write()
    except TrainingStopped as stopped:
        stopped.cure = f"chunkrl iterate --resume {shlex.quote(str(plan.root))}"
        raise
    print(f"\n{format_result(run.result)}\n\nreport: {run.page}")
    return run.result


def _begin(config: IterateConfig, plan: Plan, progress: Progress) -> None:
    """Opens the run's folder. Raises ChunkRLError where it began with other data or another policy."""
    root, file = plan.root, plan.root / CONFIG_FILE
    check_sources(root, _sources(plan, progress), is_new=not file.is_file())
    remove_temporaries(root)
    fresh = replace(config.train, resume=None, output_dir="", overwrite=False)
    save_config(replace(config, train=fresh), file)


def _sources(plan: Plan, progress: Progress) -> dict[str, str]:
    """What each round begins with, by path: fingerprints of the pretrained policy, of data beside roll-outs."""
    if not plan.pretrained.is_dir():
        raise ChunkRLError(f"there is no pretrained policy at {plan.pretrained}: name its folder")
    found = {str(plan.pretrained): fingerprint((plan.pretrained,), progress)}
    settings = plan.config.train
    if settings.dataset_dir:
        paths = (settings.dataset_dir, *settings.additional_offline_dataset_paths)
        revisions = (settings.revision, *[None] * (len(paths) - 1))
        for path, revision, rule in zip(paths, revisions, label_rules(settings), strict=True):
            found |= data_sources(path, settings.mapping, revision, rule, progress)
    return found


class _NotDoneError(Exception):
    """A step is yet to be done."""


class _Iteration:
    """The arms so far.

    Attributes:
        has_done_steps: of those that were not done before.
        page: the report.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.has_done_steps = False
        self._plan, self._progress = plan, progress
        self._arms: dict[str, ArmRun] = {}
        self._notes: list[str] = []
        self._reads_only = False
        self.page = plan.root / "report.html"

    @property
    def result(self) -> IterateResult:
        """What is known."""
        arms = tuple(self._arms[arm] for arm in get_args(ArmName) if arm in self._arms)
        return IterateResult(arms, tuple(self._notes))

    def read(self) -> None:
        """What is done of all arms, those that are not asked for now included: before anything is done that other
        settings of theirs would refuse, and so that what is written from here on lacks nothing."""
        self._reads_only = True
        for arm in get_args(ArmName):
            if arm in self._plan.config.arms or (self._plan.root / arm).is_dir():
                with contextlib.suppress(_NotDoneError):
                    self.make(arm)
        self._reads_only = False

    def make(self, arm: ArmName) -> None:
        """All rounds of an arm, as far as they are not made; those that are stay, whatever would end them now."""
        plan, rounds, num_made = self._plan, list[RoundResult](), self._num_made(arm)
        by_states = plan.config.selection.by == "states"
        for number in range(max(plan.config.rounds, num_made) + 1):
            found = self._policy(arm, number, rounds)
            if by_states:
                found = replace(found, selection=self._evaluate(arm, number, "select").rate)
            ended = self._show(arm, [*rounds, found])
            goes_on = not ended or number < num_made
            if goes_on and self._rolls_out(arm, number):
                rollouts = self._roll_out(arm, number)
                selection = found.selection if by_states else rollouts.autonomous.rate
                found = replace(found, rollouts=rollouts, selection=selection)
                if not by_states:
                    self._note_other_tasks(arm, [*rounds, found])
                ended = self._show(arm, [*rounds, found])
            rounds.append(found)
            if ended and number >= num_made:
                break
        if not self._arms[arm].ended:
            self._arms[arm] = replace(self._arms[arm], ended=f"all {len(rounds) - 1} rounds are made")

    def _num_made(self, arm: ArmName) -> int:
        """Rounds whose policies are trained."""
        is_made = (self._is_done(arm, number, "train") for number in itertools.count(1))
        return sum(1 for _ in itertools.takewhile(bool, is_made))

    def _rolls_out(self, arm: ArmName, number: int) -> bool:
        """Whether a round's policy has roll-outs, or gets some."""
        return self._plan.rolls_out(arm, number) or self._is_done(arm, number, "label")

    def _is_done(self, arm: ArmName, number: int, name: str) -> bool:
        return is_done(self._plan.folder(arm, number), name)

    def _policy(self, arm: ArmName, number: int, before: list[RoundResult]) -> RoundResult:
        """A round's policy, trained and evaluated."""
        plan = self._plan
        data = [r for earlier in plan.trained_on(arm, number) if (r := before[earlier].rollouts) is not None]
        if number:
            self._train(arm, number, data)
        found = RoundResult(number, str(plan.policy(arm, number)), sum(r.rate.num_episodes for r in data))
        return replace(found, evaluation=self._evaluate(arm, number, "evaluate")) if plan.tasks else found

    def _step(
        self, arm: ArmName, number: int, name: str, config: Any, act: Callable[[], Any]
    ) -> dict[str, Any]:
        folder = self._plan.folder(arm, number)
        is_new = not self._is_done(arm, number, name)
        if is_new and self._reads_only:
            raise _NotDoneError
        if is_new:
            print(f"\n{folder}: {name}", flush=True)
        found = run_step(folder, name, config, act)
        self.has_done_steps |= is_new
        return found

    def _roll_out(self, arm: ArmName, number: int) -> Rollouts:
        """Episodes of a round's policy, labelled."""
        plan, progress = self._plan, self._progress
        folder = plan.folder(arm, number)
        if plan.actor is not None:
            actor = plan.record(arm, number)
            self._step(arm, number, "actor", actor, lambda: record(actor, folder / ROLLOUTS))
        elif plan.config.rollouts.folder is None:
            command = plan.collect(arm, number)
            self._step(arm, number, "collect", command, lambda: collect(command, progress))
        labels = plan.label(arm, number)

        def act() -> Mapping[str, Any]:
            check_there(plan.data(arm, number), plan.policy(arm, number))
            return label(labels, progress)

        noted = self._step(arm, number, "label", labels, act)
        found = replace(read_rollouts(noted, folder), data=labels.dataset)  # the run may have been moved
        for task, rate in found.tasks.items():
            if not rate.num_success:
                self._note(
                    f"{folder}: no success in {rate.num_episodes} roll-outs of {task!r}; the round goes on without"
                )
        return found

    def _train(self, arm: ArmName, number: int, data: list[Rollouts]) -> None:
        """A round's policy from the pretrained one, on all data so far."""
        plan, progress = self._plan, self._progress
        config = plan.train(arm, number, data)
        if config.method.needs_success:
            self._check_some_success(data)

        def act() -> dict[str, Any]:
            for rollouts, rule in zip(data, label_rules(config)[-len(data) :], strict=True):
                found = fingerprints(rollouts.data, config.mapping, None, rule, progress)
                for now, noted, what in zip(
                    found,
                    (rollouts.fingerprint, rollouts.labels),
                    ("", "the file of labels of "),
                    strict=True,
                ):
                    if now != noted:
                        raise ChunkRLError(
                            f"{what}{rollouts.data} is not what it was when its round was labelled: put it back, or "
                            "delete the folders of its round and of those after it"
                        )
            train_or_go_on(config, progress)
            return {"policy": str(plan.policy(arm, number))}

        self._step(arm, number, "train", config, act)

    def _check_some_success(self, data: list[Rollouts]) -> None:
        if self._plan.config.train.dataset_dir or any(rollouts.rate.num_success for rollouts in data):
            return
        episodes = sum(rollouts.rate.num_episodes for rollouts in data)
        raise ChunkRLError(
            f"{' and '.join(rollouts.data for rollouts in data)}: none of {episodes} episodes succeeds, so that "
            "nothing says what is better: begin with a better policy, ask for more episodes, or add demonstrations "
            "with --dataset-dir, in a new --output-dir"
        )

    def _evaluate(self, arm: ArmName, number: int, name: str) -> Score:
        """A round's policy from the states that are reported, or from those that it is chosen by."""
        command: EvaluateCommand = getattr(self._plan, name)(arm, number)

        def act() -> dict[str, Any]:
            evaluate_policy(command, self._progress)
            return {}

        self._step(arm, number, name, command, act)
        assert command.output_dir is not None
        return Score.of(read_evaluation(command.output_dir))

    def _show(self, arm: ArmName, rounds: list[RoundResult]) -> str:
        """Writes what is known with these rounds of an arm; returns why no further one begins, or ""."""
        scores = {found.round: found.selection for found in rounds if found.selection is not None}
        ended, chosen = why_ended(scores, self._plan.config.stop), choose(scores)
        known = self._arms.get(arm)
        if known is None or _extent(rounds) > _extent(known.rounds):
            self._arms[arm] = ArmRun(arm, tuple(rounds), chosen, ended)
            self.write()
        return ended

    def _note_other_tasks(self, arm: ArmName, rounds: Sequence[RoundResult]) -> None:
        """Says where the newest roll-outs are of other tasks than the first: their rates do not compare policies."""
        first, newest = rounds[0].rollouts, rounds[-1].rollouts
        if first is None or newest is None or first.outcomes.keys() == newest.outcomes.keys():
            return
        ours, theirs = (", ".join(map(repr, sorted(one.outcomes))) for one in (newest, first))
        self._note(
            f"{self._plan.folder(arm, rounds[-1].round)}: roll-outs of {ours}, those of the pretrained policy of "
            f"{theirs}: policies are chosen by rates of other tasks"
        )

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            print(f"warning: {text}", file=sys.stderr)

    def write(self) -> None:
        """results.json, the page, and links to the chosen policies."""
        if self._reads_only:
            return
        for arm, run in self._arms.items():
            if run.chosen is not None:
                _link(Path(run.rounds[run.chosen].policy), self._plan.root / arm / "policy")
        write_results(self._plan.root, self.result)
        write_page(self.page, self.result, self._plan)


def _extent(rounds: Sequence[RoundResult]) -> tuple[int, bool]:
    """How much is known of an arm."""
    return len(rounds), rounds[-1].rollouts is not None


def _link(target: Path, link: Path) -> None:
    """`link` points to the folder `target`, in place of what it pointed to; what is no link, such as a copy of a
    policy in a copied run, is kept beside it."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and not link.is_symlink():
        set_aside(link)
    relative = os.path.relpath(target.resolve(), link.parent.resolve())
    temporary = link.with_name(f".{link.name}.partial-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(relative, target_is_directory=True)
    temporary.replace(link)
