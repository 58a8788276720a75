"""What `chunkrl improve` is going to do, with minutes and memory, before it does; nothing is written."""

from __future__ import annotations

from dataclasses import replace

from chunkrl.improve.diagnosis import diagnose
from chunkrl.improve.measure import measure_data
from chunkrl.improve.plan import POLICY, STEPS, Plan
from chunkrl.improve.recipe import OF_SUCCESSES, TABLE
from chunkrl.progress import Progress
from chunkrl.run.command import REHEARSED
from chunkrl.run.config import TrainConfig
from chunkrl.run.offline import ChunkLevelOfflineRL
from chunkrl.run.plan import TrainingPlan, minutes


def print_plan(plan: Plan, progress: Progress) -> None:
    """Says the steps, what is known of the data, and the plans of the trainings, each tried out for a few updates."""
    labels = plan.train.labels if not plan.label_file else plan.labels
    data = measure_data(replace(plan.train, labels=labels), plan.labels_told, progress)
    told = {
        "inspect": f"{data.num_episodes} episodes, {data.num_frames:,} frames: problems of the data",
        "labels": f"{data.num_success} episodes succeed, by {data.labels}",
        "values": f"of {data.num_trained} episodes, {data.num_held_out} are held out"
        if data.returns_differ
        else "left out: there is nothing for values to tell apart",
        "diagnosis": f"what they are worth, and the recipe ({TABLE})",
        "train": "the recipe",
        "control": "what it is compared with: the same updates, episodes and seed",
        "verdict": f"on {data.num_held_out_success} successes among the held-out episodes",
        "export": f"{plan.root / POLICY}",
    }
    for name in STEPS:
        print(f"  {plan.folder(name).name:<13} {told[name]}")
    findings = diagnose(data, None)
    for finding in findings:
        print(f"diagnosis: {finding}")
    if not any(finding.is_fatal for finding in findings):
        _print_trainings(
            plan,
            replace(plan.training("control", OF_SUCCESSES), labels=labels),
            data.returns_differ,
            progress,
        )
    print("nothing was written (--dry-run)")


def _print_trainings(plan: Plan, policy: TrainConfig, has_values: bool, progress: Progress) -> None:
    """policy: of the control; the recipe's updates take as long, and it has as many."""
    planned: list[tuple[str, int, TrainingPlan]] = []
    if has_values:
        values = replace(plan.values(), labels=policy.labels)
        planned.append(("values", 1, _planned(values, progress)))
    planned.append(("train, and control again", 2, _planned(policy, progress)))
    for name, _, found in planned:
        print(f"\n{name}:\n{found}")
    seconds = [found.seconds for _, _, found in planned]
    if all(one is not None for one in seconds):
        total = sum(times * (found.seconds or 0.0) for _, times, found in planned)
        print(f"\nall trainings: {minutes(total)} on this machine")


def _planned(config: TrainConfig, progress: Progress) -> TrainingPlan:
    frames = replace(config.frames, cache=False)  # a run keeps all images on the disk
    return ChunkLevelOfflineRL(replace(config, frames=frames), progress).plan(REHEARSED)
