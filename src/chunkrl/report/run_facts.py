"""The facts of a training run: its curves, its data, and what was trained with which settings."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from chunkrl.report.numbers import compact, words
from chunkrl.report.page import Card, Facts, Section
from chunkrl.report.records import Curve
from chunkrl.report.tables import Cell, Table, count_cell, rate_cell
from chunkrl.report.training_run import TrainingRun
from chunkrl.run.folder import beginning

# Metrics that are comparable share a panel; every other one has its own.
_PANELS = {
    "loss/value": "value loss",
    "value/rank_correlation": "rank correlation of V",
    "flow_loss/time": "flow loss by flow time",
    "flow_loss/advantage": "flow loss by bin",
    "grad_norm/": "gradient norms",
    "lr/": "learning rates",
    "advantage/share": "shares of the bins",
    "speed/seconds": "seconds between records",
    "memory/": "peak memory, GB",
}


def losses_recorded_once(run: TrainingRun) -> dict[str, str]:
    """Losses that no curve shows, since a short run records them once: name -> value."""
    names = dict.fromkeys(
        name for r in run.records for name in r.scalars if name.startswith(("loss/", "flow_loss/"))
    )
    points = {name: run.points(name)[1] for name in names}
    return {words(name.replace("/", ": ")): compact(v[0], 4) for name, v in points.items() if len(v) == 1}


def curves(run: TrainingRun) -> list[Curve]:
    """Everything that was recorded more than once, losses first."""
    names = list(dict.fromkeys(name for record in run.records for name in record.scalars))
    order = (
        "loss/",
        "flow_loss/",
        "grad_norm/",
        "lr/",
        "value/",
        "advantage/",
        "weight/",
        "speed/",
        "memory/",
    )
    rank = {prefix: i for i, prefix in enumerate(order)}
    names.sort(key=lambda name: rank.get(f"{name.split('/')[0]}/", len(order)))
    found = []
    for name in names:
        updates, values = run.points(name)
        if len(updates) < 2:
            continue
        prefix = next((p for p in _PANELS if name.startswith(p)), None)
        panel = _PANELS[prefix] if prefix else words(name.replace("/", ": "))
        label = words(name.removeprefix(prefix or "").split("/")[-1].strip("_").removesuffix("_gb"))
        found.append(Curve(label or "trained on", updates, values, panel=panel))
    return found


def settings_section(run: TrainingRun) -> Section:
    """The data sets, and what was trained with which settings and versions."""
    cards = [
        Card("Data", [data_table(run)], wide=True),
        Card("What was trained", [Facts(trained_facts(run))], wide=True),
    ]
    lead = f"All settings: {run.folder / 'config.json'}. {_state(run)}"
    return Section("Data and settings", lead, cards)


def data_table(run: TrainingRun, told: Callable[[str], str] = str) -> Table:
    """The data sets; told: of a data set's folder what is shown."""
    return Table(
        [
            {
                "data set": told(data.name),
                "task": ", ".join(data.tasks),
                "episodes": count_cell(data.num_episodes),
                "successful": rate_cell(round(float(data.frame_labels.success.mean()), 3)),
                "frames": count_cell(data.num_frames),
                "frames per second": Cell(f"{data.fps:g}", data.fps),
                "made by a human": rate_cell(round(float(data.frame_labels.human.mean()), 3)),
            }
            for data in (part.dataset for part in run.data)
        ]
    )


def _state(run: TrainingRun) -> str:
    """Whether it is finished, and the commands that go on or begin again, for what `chunkrl train` left."""
    begun = beginning(run.folder)
    if begun is not None and begun.command != "train":
        return ""
    if run.config.method.trains_policy and not (run.folder / "policy").is_dir():
        return f"It is not finished: chunkrl train --resume {run.folder} goes on."
    return f"The same once more, in a new folder: chunkrl train --config {run.folder / 'config.json'}."


def trained_facts(run: TrainingRun) -> dict[str, str]:
    """What was trained, with which settings and versions: names and texts."""
    config = run.config
    facts = {
        "objective": words(config.objective),
        "policy": config.policy.kind + (f" ({config.pi0_config})" if config.pi0_config else ""),
        "chunk": f"{config.action_horizon} actions of {config.action_dim} values",
        "folds": str(config.num_folds),
        "batch size": str(config.batch_size),
        "learning rate": f"{config.lr:g}, {config.schedule}",
        "discount": f"{config.gamma:g}",
        "beta": f"{config.beta:g}",
        "success rule": run.data[0].dataset.frame_labels.rule.success,
        "reward": config.reward,
        "seed": str(config.seed),
    }
    if run.records:
        first, last = run.records[0], run.records[-1]
        facts["updates"] = ", ".join(f"{phase} {count}" for phase, count in _updates_of_phases(run).items())
        facts["began"] = datetime.fromtimestamp(first.time, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        facts["minutes"] = compact(float(f"{(last.time - first.time) / 60:.3g}"))
    speed, memory = run.last("speed/samples_per_second"), run.last("memory/peak_resident_gb")
    if speed is not None and memory is not None:
        facts["samples per second, last"] = compact(float(f"{speed:.3g}"))
        facts["peak memory"] = f"{memory:.2f} GB"
    if (gpu := run.last("memory/peak_gpu_gb")) is not None:
        facts["peak GPU memory"] = f"{gpu:.2f} GB"
    return facts | dict(run.versions)


def _updates_of_phases(run: TrainingRun) -> dict[str, int]:
    """Updates of every phase, as far as recorded."""
    ends: dict[str, int] = {}
    for record in run.records:
        ends[record.phase] = record.update
    counts, before = {}, 0
    for phase, end in ends.items():
        counts[phase], before = end - before, end
    return counts
