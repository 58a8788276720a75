"""`chunkrl verdict`: opens the episodes, asks both policies, says which is better, and draws the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np

from chunkrl.algorithms.balance import episode_steps
from chunkrl.data.collection import ChunkCollection
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.held_out import HeldOut, JudgedRun, given_held_out, own_held_out
from chunkrl.evaluation.verdict import (
    MARGIN,
    Judged,
    Verdict,
    distances,
    judge,
    judged_starts,
    nearness,
    policy_chunks,
)
from chunkrl.evaluation.verdict_config import VerdictCommand
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import as_json, read_json
from chunkrl.files.output_folder import begin_folder, check_file
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.progress import Progress
from chunkrl.report import charts
from chunkrl.report.numbers import percent, short_names, signed
from chunkrl.report.page import Card, Facts, Legend, Page, Section, Tile, notes_card
from chunkrl.report.records import Curve
from chunkrl.report.svg import Range
from chunkrl.run.build import choose_device
from chunkrl.run.policy_io import load_policy
from chunkrl.statistics import Interval

VERDICT_FILE, PAGE_FILE = "verdict.json", "verdict.html"
_PARTS = 10  # of an episode, in the chart
NOTES = (
    "Nearness to what succeeded is no success rate: a policy that does something better than anything recorded looks "
    "worse here. chunkrl trial and chunkrl evaluate count successes.",
    f"A difference below {MARGIN:.0%} is never a claim. How often claims were wrong on policies whose success is "
    'known: docs/results.md, "Which policy is better, told before a roll-out".',
)


def verdict(command: VerdictCommand, progress: Progress) -> Verdict:
    """Prints the verdict, writes it where asked, and returns it.

    Raises ChunkRLError with the cure: no runs, no held-out episodes or too few successes in them, other data,
    policies with other actions.
    """
    runs = [JudgedRun.read(command.run, "the run"), JudgedRun.read(command.against, "--against")]
    if Path(command.run).resolve() == Path(command.against).resolve():
        raise ChunkRLError(f"{command.run} is --against too: name two runs")
    if command.output_dir is not None:
        begin_folder(Path(command.output_dir), "verdict")
        check_file(
            Path(command.output_dir) / VERDICT_FILE,
            command.overwrite,
            lambda file: (
                read_json(file, dict, ChunkRLError, "delete it").get("settings") == _settings(command)
            ),
        )
    held = (
        given_held_out(runs, command.dataset_dir, command.labels, progress)
        if command.dataset_dir
        else own_held_out(runs, progress)
    )
    device = choose_device(command.device)
    policies = [load_policy(Path(run.folder) / "policy", device, with_q=False) for run in runs]
    _check_actions(runs, policies, held)
    judged = judged_starts(held.data[0], command.num_starts, min(p.action_horizon for p in policies))
    chunks = [
        policy_chunks(
            policy, data, judged, command.mode, command.batch_size, command.seed, progress, run.folder
        )
        for policy, data, run in zip(policies, held.data, runs, strict=True)
    ]
    found = judge(chunks, judged, nearness(held.data[0], judged), command.num_resamples, command.seed)
    names = (command.run, command.against)
    print("\n".join([*told(found, names, held.data[0]), *(f"note: {note}" for note in held.notes)]))
    if command.output_dir is not None:
        folder = Path(command.output_dir)
        content = {"settings": _settings(command), "verdict": _json(found), "episodes": held.name}
        content["notes"] = held.notes
        write_text(folder / VERDICT_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
        errors = [distances(chunk, judged.chunk, judged.mask) for chunk in chunks]
        write_text(folder / PAGE_FILE, _page(found, names, held, judged, errors).render())
        print(f"{folder / VERDICT_FILE}\n{folder / PAGE_FILE}")
    return found


def _settings(command: VerdictCommand) -> object:
    """What another verdict would differ in."""
    return as_json(asdict(replace(command, output_dir=None, overwrite=False, device="auto", batch_size=1)))


def _json(found: Verdict) -> object:
    known = [None if math.isnan(share) else share for share in found.coverage]
    return asdict(found) | {"coverage": known}


def _check_actions(runs: Sequence[JudgedRun], policies: Sequence[ActingPolicy], held: HeldOut) -> None:
    for run, policy, data in zip(runs, policies, held.data, strict=True):
        if policy.action_dim != data.action_dim:
            raise ChunkRLError(
                f"the policy of {run.folder} has {policy.action_dim} action values, {data.name} has "
                f"{data.action_dim}: name episodes of its robot"
            )


def told(found: Verdict, names: Sequence[str], data: ChunkCollection) -> list[str]:
    """The verdict in words."""
    nearer, low, high = (
        f"{signed(100 * math.expm1(x), 1)} %" for x in (found.closer, *astuple(found.interval))
    )
    first, second = names
    claim = {
        "better": f"{first} is better than {second}",
        "worse": f"{first} is worse than {second}",
        "cannot tell": f"cannot tell: {found.reason}",
    }[found.claim]
    return [
        claim,
        f"{found.num_starts} starts of {found.num_episodes} successful of {data.num_episodes} held-out episodes "
        f"({data.name})",
        f"median distance to what succeeded: {first} {found.distances[0]:.3f}, {second} {found.distances[1]:.3f} "
        f"(deviations of the actions); {first} is nearer by {nearer} [{low}, {high}]",
        f"covered by what was recorded near there: {first} {_share(found.coverage[0])}, {second} "
        f"{_share(found.coverage[1])}",
    ]


def _share(share: float) -> str:
    return "not known" if math.isnan(share) else percent(share)


def _page(
    found: Verdict, names: Sequence[str], held: HeldOut, judged: Judged, errors: Sequence[np.ndarray]
) -> Page:
    data, short = held.data[0], short_names(names)
    kind = {"better": "good", "worse": "bad", "cannot tell": "open"}[found.claim]
    claim = found.reason or f"than {short[1]}, on {found.num_episodes} held-out episodes that succeeded"
    tile = Tile(found.claim, claim, told(found, short, data)[2], kind)
    interval = Interval(math.expm1(found.interval.low), math.expm1(found.interval.high))
    nearer = math.expm1(found.closer)
    row = charts.Row(
        f"{short[0]} against {short[1]}", nearer, interval, f"{signed(100 * nearer, 1)} % nearer"
    )
    end = 1.1 * max(abs(interval.low), abs(interval.high), MARGIN)
    step, length = (x[judged.position] for x in episode_steps(data))
    part = np.minimum(_PARTS * step // np.maximum(length, 1), _PARTS - 1)
    there = [number for number in range(_PARTS) if (part == number).any()]
    tenths = [number + 1 for number in there]
    curves = [
        Curve(
            name,
            tenths,
            [float(np.median(error[part == number])) for number in there],
            "distance",
            "tenth of the episode",
        )
        for name, error in zip(short, errors, strict=True)
    ]
    difference = charts.difference_chart([row], Range(-end, end), f"{short[0]} against {short[1]}")
    along = charts.curve_chart(curves, "median distance to the recorded chunk along the episode")
    cards = [
        Card(
            "Nearer to what succeeded",
            [difference],
            f"What the distance of {short[1]} is above that of {short[0]}, %; 95 % interval over episodes.",
        ),
        Card(
            "Along the episode",
            [Legend([(f"s{number}", name, "") for number, name in enumerate(short)]), along],
            "Median distance to the recorded chunk, in deviations of the actions.",
        ),
        Card(
            "What it rests on",
            [
                Facts(
                    {
                        "episodes": f"{found.num_episodes} successful of {data.num_episodes} held out",
                        "starts": str(found.num_starts),
                        f"covered, {short[0]}": _share(found.coverage[0]),
                        f"covered, {short[1]}": _share(found.coverage[1]),
                        "data": data.name,
                    }
                )
            ],
        ),
        notes_card([*held.notes, *NOTES]),
    ]
    return Page(f"chunkrl verdict: {short[0]} against {short[1]}", [tile], [Section("Verdict", "", cards)])
