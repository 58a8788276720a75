"""What `chunkrl improve` does: its steps in order, what they found, and the policy to use."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from chunkrl.config import record_of, save_config
from chunkrl.data.inspect import make_report, to_text
from chunkrl.errors import ChunkRLError, TrainingStopped
from chunkrl.evaluation.verdict import MIN_SUCCESSES
from chunkrl.files.atomic import remove_temporaries, write_text
from chunkrl.files.output_folder import begin_folder, check_folder, held
from chunkrl.improve.checks import check_recipe, make_plan
from chunkrl.improve.config import CONFIG_FILE, WEIGHTED, ImproveConfig
from chunkrl.improve.diagnosis import DataFacts, ValueFacts, diagnose
from chunkrl.improve.dry_run import print_plan
from chunkrl.improve.export import copy_policy
from chunkrl.improve.measure import measure_data, measure_values
from chunkrl.improve.page import write_page
from chunkrl.improve.plan import COMMAND_FILE, PAGE_FILE, STEP, STEPS, Plan
from chunkrl.improve.recipe import TABLE, Recipe, choose_recipe
from chunkrl.improve.records import ImproveResult, Judgement, StepDone, write_results
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.iterate.rollouts import data_sources
from chunkrl.iterate.steps import (
    check_same,
    check_sources,
    has_checkpoint,
    is_done,
    read_step,
    run_step,
    train_or_go_on,
)
from chunkrl.label.command import label_dataset
from chunkrl.label.config import LabelCommand
from chunkrl.progress import Progress, silent
from chunkrl.report.commands import report
from chunkrl.report.verdict import verdict
from chunkrl.run.config import TrainConfig

T = TypeVar("T")


def improve(config: ImproveConfig, progress: Progress = silent) -> ImproveResult | None:
    """Makes the steps that are missing; results.json and improve.html are as new as the last one. None: a dry run.

    Raises ChunkRLError: settings, data or policy that do not fit, data that do not say who succeeded or in which
    nobody does, a folder of another run.
    """
    plan = make_plan(config)
    if config.dry_run:
        print_plan(plan, progress)
        return None
    root, overwrite = plan.root, config.train.overwrite
    resumes = (root / CONFIG_FILE).is_file() and not overwrite
    if config.train.resume is not None and not resumes:
        raise ChunkRLError(f"--resume {config.train.resume}: there is no run of chunkrl improve to resume")
    check_folder(root, "improve", resumes=resumes, overwrite=overwrite)
    begin_folder(root, "improve", resumes=resumes, overwrite=overwrite)
    try:
        with held(root, "improve"):
            _begin(plan, progress, resumes)
            run = _Improvement(plan, progress)
            run.make()
    except TrainingStopped as stopped:
        stopped.cure = f"chunkrl improve --resume {shlex.quote(str(root))}"
        raise
    print(f"\npage: {root / PAGE_FILE}\npolicy: {run.result.policy}")
    return run.result


def _begin(plan: Plan, progress: Progress, resumes: bool) -> None:
    """Opens the folder. Raises ChunkRLError where something was trained there with other settings, on other data or
    from another policy; before that, what was found is found again."""
    root, config = plan.root, plan.config
    fresh = replace(config, train=replace(config.train, resume=None, output_dir="", overwrite=False))
    has_trained = any(_has_trained(plan, step) for step in ("values", "train"))
    if resumes and has_trained:
        check_same(root / CONFIG_FILE, fresh)
    elif resumes:
        for step in ("inspect", "labels"):
            (plan.folder(step) / f"{STEP}.done.json").unlink(missing_ok=True)
    train = plan.train
    sources = data_sources(config.data, train.mapping, train.revision, train.labels, progress)
    if plan.pretrained is not None:
        sources[str(plan.pretrained)] = fingerprint((plan.pretrained,), progress)
    check_sources(root, sources, is_new=not (resumes and has_trained))
    remove_temporaries(root)
    save_config(fresh, root / CONFIG_FILE)


def _has_trained(plan: Plan, step: str) -> bool:
    """Whether a training was done, or left something to go on from; one whose settings were refused did not begin."""
    return has_checkpoint(plan.run(step)) or is_done(plan.folder(step), STEP)


class _Improvement:
    """The steps so far."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._plan, self._progress = plan, progress
        self.result = ImproveResult(())

    def make(self) -> None:
        """All steps, as far as they are not made."""
        self._inspect()
        data = self._labels()
        self._know(data=data, findings=diagnose(data, None))
        if fatal := [finding for finding in self.result.findings if finding.is_fatal]:
            raise ChunkRLError(f"{self._plan.config.data}: {fatal[0]}")
        recipe = self._choose(data, self._values(data))
        self._train(recipe)
        self._export(self._judge(data, recipe))

    # ---- one step

    def _step(
        self, name: str, command: str, config: Any, act: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Does a step unless it is done; returns what it found. command: of chunkrl, or a line of another program."""
        folder = self._plan.folder(name)
        line = command if " " in command else self._plan.command_line(name, command)
        done = folder / f"{STEP}.done.json"
        if not is_done(folder, STEP):
            self._say(name, line)
            write_text(folder / COMMAND_FILE, line + "\n")
        found = run_step(folder, STEP, config, act)
        self._note(StepDone(name, line, float(read_step(done)["seconds"])))
        return found

    def _skip(self, name: str, why: str) -> None:
        self._say(name, f"left out: {why}")
        self._note(StepDone(name, "", None, why))

    def _say(self, name: str, text: str) -> None:
        print(f"\nstep {STEPS.index(name) + 1} of {len(STEPS)}: {name}: {text}", flush=True)

    def _note(self, step: StepDone) -> None:
        self._know(steps=(*self.result.steps, step))

    def _know(self, **found: Any) -> None:
        """Takes up what was found, and writes all of it."""
        self.result = replace(self.result, **found)
        write_results(self._plan.root, self.result)
        write_page(self._plan, self.result)

    # ---- the steps

    def _inspect(self) -> None:
        command = self._plan.inspect()

        def act() -> Mapping[str, Any]:
            found = make_report(command, self._progress)
            print(to_text(found))
            return {"problems": [problem.message for problem in found.problems], "notes": found.notes}

        found = self._step("inspect", "inspect", command, act)
        self._know(problems=tuple(found["problems"]))

    def _labels(self) -> DataFacts:
        plan, progress = self._plan, self._progress
        command = plan.label()

        def act() -> Mapping[str, Any]:
            if isinstance(command, LabelCommand):
                label_dataset(command, progress)
            return asdict(measure_data(replace(plan.train, labels=plan.labels), plan.labels_told, progress))

        name = "label" if isinstance(command, LabelCommand) else "inspect"
        found = self._step("labels", name, command, act)
        data = _read(DataFacts, found, plan.folder("labels"))
        print(
            f"{data.num_success} of {data.num_episodes} episodes succeed, by {data.labels}; {data.num_held_out} are "
            f"held out, {data.num_held_out_success} of which succeed"
        )
        return data

    def _values(self, data: DataFacts) -> ValueFacts | None:
        if not data.returns_differ:
            for name in ("values", "diagnosis"):
                self._skip(name, "there is nothing for values to tell apart")
            return None
        self._training("values", self._plan.values())
        return self._diagnose()

    def _diagnose(self) -> ValueFacts:
        """What the values are worth, and their page."""
        plan, progress = self._plan, self._progress
        command = plan.report()

        def act() -> Mapping[str, Any]:
            report(command, progress)
            return asdict(measure_values(plan.run("values"), plan.training("train", WEIGHTED), progress))

        found = self._step("diagnosis", "report", command, act)
        return _read(ValueFacts, found, plan.folder("diagnosis"))

    def _choose(self, data: DataFacts, values: ValueFacts | None) -> Recipe:
        recipe = choose_recipe(data, values, self._plan.asked)
        check_recipe(recipe, data)
        findings = diagnose(data, values)
        for finding in findings:
            print(f"diagnosis: {finding}")
        beside = "" if recipe.control is None else f", beside {recipe.control}"
        print(f"recipe: {recipe.objective}{beside}: {recipe.reason} ({TABLE})", flush=True)
        self._know(values=values, findings=findings, recipe=recipe)
        return recipe

    def _train(self, recipe: Recipe) -> None:
        self._training("train", self._plan.recipe(recipe))
        if recipe.control is None:
            self._skip("control", "every episode succeeds, so that cloning all of them is the same")
        else:
            self._training("control", self._plan.control(recipe))

    def _training(self, name: str, config: TrainConfig) -> None:
        def act() -> Mapping[str, Any]:
            train_or_go_on(config, self._progress)
            return {}

        self._step(name, "train", config, act)

    def _judge(self, data: DataFacts, recipe: Recipe) -> Judgement:
        """The verdict, or why there is none."""
        command = self._plan.verdict()
        if recipe.control is None:
            judgement = Judgement("cannot tell", "there is nothing to compare with")
        elif not data.can_judge:
            why = (
                f"{data.num_held_out_success} held-out episodes succeed, and a verdict needs {MIN_SUCCESSES}"
            )
            judgement = Judgement("cannot tell", why)
        else:

            def act() -> Mapping[str, Any]:
                return asdict(Judgement.of(verdict(command, self._progress)))

            found = self._step("verdict", "verdict", command, act)
            judgement = _read(Judgement, found, self._plan.folder("verdict"))
        if not judgement.num_episodes:
            self._skip("verdict", judgement.reason)
        self._know(judgement=judgement)
        return judgement

    def _export(self, judgement: Judgement) -> None:
        """The recipe's policy, unless it is worse than the control's."""
        chosen = "control" if judgement.claim == "worse" else "train"
        step = self._plan.export(chosen)

        def act() -> Mapping[str, Any]:
            copy_policy(Path(step.source), Path(step.target), self._progress)
            return {}

        line = f"cp -rT {shlex.quote(step.source)} {shlex.quote(step.target)}"
        self._step("export", line, step, act)
        self._know(chosen=chosen, policy=step.target)


def _read(cls: type[T], found: Mapping[str, Any], folder: Path) -> T:
    """What a step found, as it is read back."""
    return record_of(
        cls, dict(found), str(folder), ChunkRLError, "delete this folder and call the same again"
    )
