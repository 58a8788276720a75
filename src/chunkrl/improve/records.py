"""What `chunkrl improve` found, step by step, and results.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chunkrl.evaluation.verdict import Claim, Verdict
from chunkrl.files.atomic import write_text
from chunkrl.improve.diagnosis import DataFacts, Finding, ValueFacts
from chunkrl.improve.recipe import Recipe

RESULTS_FILE = "results.json"
_VERSION = 1


@dataclass(frozen=True)
class StepDone:
    """A step that is over. command: what repeats it by hand. seconds: it took; None: it was left out, for the reason
    `skipped`."""

    name: str
    command: str
    seconds: float | None
    skipped: str = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict on the recipe against its control.

    closer: how much nearer the recipe's policy is to what succeeded, as a part (.1: a tenth); interval: of it, 95 %.
    num_episodes: held-out successes that it rests on. reason: why nothing is claimed, or "".
    """

    claim: Claim
    reason: str
    closer: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    num_episodes: int = 0

    @staticmethod
    def of(found: Verdict) -> Judgement:
        """The judgement of a verdict."""
        low, high = math.expm1(found.interval.low), math.expm1(found.interval.high)
        return Judgement(found.claim, found.reason, math.expm1(found.closer), (low, high), found.num_episodes)


@dataclass(frozen=True)
class ImproveResult:
    """All that is known so far; None: it is not known yet. problems: of the data, which training passes over or not.
    chosen: the step whose policy is used; policy: the folder of its copy, "" until it is there."""

    steps: Sequence[StepDone]
    problems: Sequence[str] = ()
    data: DataFacts | None = None
    values: ValueFacts | None = None
    findings: Sequence[Finding] = ()
    recipe: Recipe | None = None
    judgement: Judgement | None = None
    chosen: str = ""
    policy: str = ""


def to_json(result: ImproveResult) -> Mapping[str, Any]:
    """What results.json holds."""
    return {"version": _VERSION, **asdict(result)}


def write_results(folder: Path, result: ImproveResult) -> Path:
    """Writes results.json, whole or not at all."""
    path = folder / RESULTS_FILE
    write_text(path, json.dumps(to_json(result), indent=1, allow_nan=False) + "\n")
    return path
