"""The card of a data set on the Hub: README.md, made from what `chunkrl inspect` finds."""

from __future__ import annotations

from pathlib import Path

from chunkrl.data.inspect import DatasetReport, make_report
from chunkrl.data.inspect_config import InspectCommand
from chunkrl.progress import Progress
from chunkrl.report import markdown
from chunkrl.report.card import CardRequest
from chunkrl.report.numbers import percent
from chunkrl.report.tables import Table, count_cell
from chunkrl.version import __version__

_MOST_TASKS = 100


def card_of_dataset(request: CardRequest, folder: Path, progress: Progress) -> str:
    """README.md of the data set in `folder`, front matter included.

    Raises:
        DatasetError: there is nothing to report on.
    """
    report = make_report(InspectCommand(str(folder), images=False), progress)
    tasks = list(report.tasks.items())
    cameras = [
        {
            "camera": camera.name,
            "stored as": camera.dtype,
            "height": count_cell(camera.size[0]),
            "width": count_cell(camera.size[1]),
        }
        for camera in report.cameras
    ]
    notes = list(report.notes)
    if report.num_bad_episodes:
        notes.insert(
            0,
            f"{report.num_bad_episodes} episodes have problems, which `chunkrl inspect` names; they count nowhere",
        )
    at = "" if request.revision is None else f" --revision {request.revision}"
    return markdown.render(
        "dataset.md",
        front=request.front(
            "",
            task_categories=["robotics"],
            tags=["LeRobot", "chunkrl"],
            configs=[{"config_name": "default", "data_files": "data/*/*.parquet"}],
        ),
        name=request.name,
        summary=f"Recordings of a robot in LeRobot's format {report.version}.",
        report=_facts(report),
        cameras=Table(cameras) if cameras else None,
        tasks=Table([{"task": t, "episodes": count_cell(number)} for t, number in tasks[:_MOST_TASKS]])
        if tasks
        else None,
        more_tasks=max(len(tasks) - _MOST_TASKS, 0),
        notes=notes,
        lines=(
            f"lerobot-train --dataset.repo_id={request.repo_id} --policy.type=act",
            f"chunkrl pull {request.repo_id} --what dataset{at}",
            f"chunkrl train --dataset-dir {request.name}",
        ),
        version=__version__,
    )


def _facts(report: DatasetReport) -> dict[str, str]:
    facts = {
        "robot": report.robot_type or "not said",
        "episodes": str(report.num_episodes),
        "frames": f"{report.num_frames} at {report.fps:g} per second",
        "action": f"{report.action[0]}, {report.action[1]} values",
    }
    if report.state is not None:
        facts["state"] = f"{report.state[0]}, {report.state[1]} values"
    if report.rewards is not None:
        success, rules = report.rewards.success_rate, report.rewards.rules
        facts["successful"] = f"{percent(round(success, 3))} of the episodes, success by {rules[0]}"
    return facts
