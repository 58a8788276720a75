"""The page of one evaluation: rates of every task, its initial states, videos, and all that was set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.evaluation_result import (
    Evaluation,
    EvaluationSettings,
    Rate,
    suite_rate,
    task_rate,
    told_condition,
    told_mode,
)
from chunkrl.evaluation.evaluation_videos import MIME
from chunkrl.files.atomic import write_text
from chunkrl.files.regular_files import inside, open_regular
from chunkrl.report import charts
from chunkrl.report.distributions import Square, state_grid
from chunkrl.report.numbers import percent
from chunkrl.report.page import Card, Facts, Page, Section, Tile, VideoPlayer, notes_card
from chunkrl.report.tables import Cell, Row, Table, count_cell, interval_cell, rate_cell, speed_columns

PAGE_FILE = "report.html"


def write_page(folder: Path, evaluation: Evaluation) -> Path:
    """Writes `report.html`, whole or not at all; it loads nothing, videos included. Returns its path."""
    settings = evaluation.settings
    sections = [
        _task_section(evaluation),
        _video_section(folder, evaluation),
        _state_section(evaluation),
        _number_section(evaluation),
    ]
    title = f"chunkrl evaluate: {Path(settings.policy).name} on {_tasks(evaluation)}"
    path = folder / PAGE_FILE
    write_text(path, Page(title, [_tile(evaluation)], sections).render())
    return path


def _tasks(evaluation: Evaluation) -> str:
    envs = evaluation.settings.envs
    if len(envs) == 1:
        return envs[0]
    suites = sorted({env.split("/")[0] for env in envs})
    return f"{len(envs)} tasks" + (f" of {suites[0]}" if len(suites) == 1 else "")


def _numbers(rate: Rate) -> str:
    low, high = 100 * rate.interval.low, 100 * rate.interval.high
    return f"{rate.num_success}/{rate.num_episodes} · {percent(rate.rate)} [{low:.0f}, {high:.0f}]"


def _tile(evaluation: Evaluation) -> Tile:
    rate, settings = suite_rate(evaluation), evaluation.settings
    low, high = 100 * rate.interval.low, 100 * rate.interval.high
    detail = (
        f"95 % interval (Wilson) {low:.1f} to {high:.1f} %. {settings.exec_steps} of {settings.horizon} actions of "
        "each chunk executed."
    )
    claim = f"{rate.num_success} of {rate.num_episodes} episodes, {_tasks(evaluation)}"
    return Tile(f"{100 * rate.rate:.0f}", claim, detail, unit="% success")


def _videos(evaluation: Evaluation) -> dict[tuple[str, int], str]:
    """(env, seed) of every video -> its name on the page."""
    number = {env: i for i, env in enumerate(evaluation.settings.envs)}
    return {video.episode: f"video-{number[video.env]}-{video.seed}" for video in evaluation.videos}


def _states(evaluation: Evaluation) -> dict[str, str]:
    """Every task -> the name of its states on the page."""
    return {env: f"states-{i}" for i, env in enumerate(evaluation.settings.envs)}


def _task_section(evaluation: Evaluation) -> Section:
    rates = {env: task_rate(evaluation, env) for env in evaluation.settings.envs}
    names = _states(evaluation)
    rows = [
        charts.Row(env, rate.rate, rate.interval, _numbers(rate), link=f"#{names[env]}")
        for env, rate in rates.items()
    ]
    if len(rows) > 1:
        rate = suite_rate(evaluation)
        rows.insert(0, charts.Row("all tasks", rate.rate, rate.interval, _numbers(rate), emphasised=True))
    summary = "Success. " + "; ".join(f"{row.label} {row.text}" for row in rows)
    lead = (
        "Episodes that succeed. Whiskers: 95 % Wilson intervals. A task's name leads to its initial states."
    )
    return Section("Success", lead, [Card("Tasks", [charts.bar_chart(rows, summary)])])


def _video_section(folder: Path, evaluation: Evaluation) -> Section:
    cards, names = [], _videos(evaluation)
    for video in evaluation.videos:
        title = f"{video.env}, initial state {video.seed}"
        pill = ("good", "success") if video.success else ("bad", "failure")
        cure = "delete the file, and evaluate again"
        path = inside(folder, video.file, f"the video of {title}", ChunkRLError)
        if path.suffix[1:] not in MIME:
            raise ChunkRLError(f"{path}: videos are {', '.join(MIME)}: {cure}")
        with open_regular(path, ChunkRLError, cure) as stream:
            content = stream.read()
        note = (
            ""
            if video.as_evaluated
            else "Ended otherwise when it was counted: something is not deterministic."
        )
        shown = VideoPlayer(content, MIME[path.suffix[1:]], title)
        cards.append(Card(title, [shown], note, pill, name=names[video.episode]))
    lead = "Episodes run once more from the same state with the same noise; failures first."
    return Section("Videos", lead, cards, "grid small")


def _state_section(evaluation: Evaluation) -> Section:
    cards, names, videos = [], _states(evaluation), _videos(evaluation)
    for env in evaluation.settings.envs:
        rate = task_rate(evaluation, env)
        told = f"{rate.num_success} of {rate.num_episodes} succeed."
        cards.append(Card(env, [_state_grid(evaluation, env, videos)], told, name=names[env]))
    lead = (
        "Every initial state, in order: green where the episode succeeded. The same square is the same state in "
        "every evaluation with these tasks and this seed. The pointer shows which one it is. "
    )
    lead += (
        "A click on a framed square leads to its video."
        if videos
        else "chunkrl evaluate --videos N shows N of them on video, which a click here then leads to."
    )
    return Section("Initial states", lead, cards, "grid small")


def _state_grid(evaluation: Evaluation, env: str, videos: Mapping[tuple[str, int], str]) -> Markup:
    squares = []
    for episode in evaluation.episodes[env]:
        outcome = "success" if episode.success else "failure"
        told = f"initial state {episode.seed}: {outcome}, {episode.num_steps} steps"
        told += f", {episode.num_restarts} simulators lost" if episode.num_restarts else ""
        video = videos.get((env, episode.seed))
        told += ", on video" if video else ""
        squares.append(Square(float(episode.success), told, f"#{video}" if video else ""))
    rate = task_rate(evaluation, env)
    summary = f"{env}: {rate.num_success} of {rate.num_episodes} initial states end in success"
    return state_grid(squares, summary)


def _number_section(evaluation: Evaluation) -> Section:
    names = _states(evaluation)
    rows = [
        _number_row(
            Cell(env, link=f"#{names[env]}"),
            task_rate(evaluation, env),
            sum(e.num_restarts for e in evaluation.episodes[env]),
        )
        for env in names
    ]
    suite = [_number_row(Cell("all tasks"), suite_rate(evaluation), evaluation.num_restarts)]
    cards = [
        Card("All numbers", [Table(rows, suite if len(rows) > 1 else ())], wide=True),
        Card("What was run", [Facts(_facts(evaluation))], wide=True),
    ]
    if notes := _notes(evaluation):
        cards.append(notes_card(notes, wide=True))
    return Section("Numbers and settings", "", cards)


def _number_row(task: Cell, rate: Rate, num_restarts: int) -> Row:
    return {
        "task": task,
        "successes": count_cell(rate.num_success),
        "episodes": count_cell(rate.num_episodes),
        "success": rate_cell(rate.rate),
        "95 % interval": interval_cell(rate.interval),
        **speed_columns(rate.speed),
        "simulators lost": count_cell(num_restarts),
    }


def _facts(evaluation: Evaluation) -> dict[str, str]:
    settings = evaluation.settings
    limits = sorted(set(settings.max_steps))
    sampled = "sampled, " if settings.initial == "sampled" else ""
    facts = {
        "policy": settings.policy,
        "fingerprint": settings.fingerprint,
        "executed": f"{settings.exec_steps} of {settings.horizon} actions of each chunk",
        "chunk chosen by": told_mode(settings),
        "initial states": f"{settings.num_episodes} per task, {sampled}seed {settings.seed}",
        "time limit": " or ".join(str(limit) for limit in limits) + " steps",
        "state": settings.state,
        "images": _pictures(settings),
        "observations per policy call": str(settings.batch_size),
        "wall time": f"{evaluation.seconds / 60:.1f} minutes",
        "simulator processes": str(evaluation.num_workers or "none: all in the policy's own"),
        "simulators lost": str(evaluation.num_restarts),
    }
    if settings.flow_steps is not None:
        facts["Euler steps"] = str(settings.flow_steps)
        facts["asked for"] = told_condition(settings) or "nothing"
    if settings.assets:
        facts["meshes and textures"] = settings.assets
    if settings.device:
        facts["device"] = settings.device
    if settings.rename:
        facts["cameras renamed"] = ", ".join(f"{old} to {new}" for old, new in settings.rename)
    return facts


def _pictures(settings: EvaluationSettings) -> str:
    """What the policy saw."""
    if not settings.camera_size:
        return "none"
    drawn = f"{settings.camera_size} pixels, rendering {settings.rendering}"
    return f"{drawn}, OpenGL by {settings.opengl}" if settings.opengl else drawn


def _notes(evaluation: Evaluation) -> list[str]:
    notes = []
    if evaluation.settings.exec_steps < evaluation.settings.horizon:
        notes.append("Chunks were cut short: a Q of whole chunks speaks of another way to act.")
    if evaluation.num_restarts:
        notes.append(
            f"{evaluation.num_restarts} simulators crashed or hung; their episodes began again and count once."
        )
    return notes
