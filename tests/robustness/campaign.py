"""Variants from seeds, tried and counted."""

from __future__ import annotations

import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401  # imported before processes are forked, rather than in each
import torch
import torch._dynamo  # optimisers import it late

from . import damage_files, damage_json, damage_media, damage_parquet, damage_tensors, data_probes, run_probes  # noqa: F401
from .damage import KINDS, Damage, damage, sorts_for, state_of
from .data_folders import DATA_FOLDERS, write_data_folder
from .outcomes import Found, Outcome
from .pi_folders import PI_FOLDERS, is_ours, pi_probes, write_pi_folder
from .run_folders import RUN_FOLDERS, write_evaluation_folder, write_run_folder
from .workers import run_jobs

TRIES = 30  # to find a file that a kind suits


@dataclass(frozen=True)
class Family:
    """Folders of one sort. write: makes the whole one of a name. truth: what it gives, of (name, folder, scratch).
    judge: of (damaged copy, truth, scratch). share: of all variants."""

    names: tuple[str, ...]
    write: Callable[[str, Path], Path]
    truth: Callable[[str, Path, Path], Any]
    judge: Callable[[Path, Any, Path], Found]
    share: float


def _by_probes(
    names: Iterable[str],
    write: Callable[[str, Path], Path],
    probes: Callable[[str, Path], run_probes.Probes],
    covered: Callable[[Path], bool],
    share: float,
) -> Family:
    return Family(
        tuple(names),
        write,
        partial(run_probes.truth_of, probes),
        partial(run_probes.judge_by, probes, covered),
        share,
    )


_OURS, _OTHERS = ([name for name in PI_FOLDERS if is_ours(name) == ours] for ours in (True, False))
FAMILIES: Mapping[str, Family] = {
    "data set": Family(tuple(DATA_FOLDERS), write_data_folder, data_probes.truth, data_probes.judge, 0.55),
    "run": _by_probes(RUN_FOLDERS, write_run_folder, run_probes.run_probes, run_probes.in_a_manifest, 0.22),
    "evaluation": _by_probes(
        ["evaluation"], write_evaluation_folder, run_probes.evaluation_probes, lambda file: False, 0.03
    ),
    "pi of ours": _by_probes(_OURS, write_pi_folder, pi_probes, lambda file: True, 0.1),
    "pi of others": _by_probes(_OTHERS, write_pi_folder, pi_probes, lambda file: False, 0.1),
}


@dataclass(frozen=True)
class Variant:
    """Number `number` of a seed; what it is follows from both. kinds: of damage, to draw from."""

    seed: int
    number: int
    family: str
    folder: str
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Tried:
    """A variant, what was damaged and what became of it."""

    variant: Variant
    damage: Damage | None
    found: Found
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For a file of results."""
        done = None if self.damage is None else asdict(self.damage)
        found = {"outcome": self.found.outcome.name, "detail": self.found.detail[:2000]}
        variant = {name: getattr(self.variant, name) for name in ("seed", "number", "family", "folder")}
        return variant | {"damage": done, "seconds": round(self.seconds, 3)} | found

    @classmethod
    def of(cls, variant: Variant, record: dict[str, Any]) -> Tried:
        """The inverse."""
        done = None if record["damage"] is None else Damage(**record["damage"])
        return cls(variant, done, Found(Outcome[record["outcome"]], record["detail"]), record["seconds"])


def variants(seed: int, count: int, kinds: Sequence[str] = ()) -> Iterator[Variant]:
    """The first `count` of a seed, families by their shares."""
    chosen = tuple(sorted(kinds or KINDS))
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        family = rng.choices(list(FAMILIES), [f.share for f in FAMILIES.values()])[0]
        yield Variant(seed, number, family, rng.choice(FAMILIES[family].names), chosen)


@dataclass(frozen=True)
class _Whole:
    """An undamaged folder that is not written to again. truth: what it gives. state, sorts: see `damage`."""

    root: Path
    truth: Any
    state: Mapping[str, object]
    sorts: list[str]


@cache
def _whole(family: str, folder: str, base: Path) -> _Whole:
    """Made once in each process."""
    root = FAMILIES[family].write(folder, base / "whole")
    scratch = base / "truth"
    scratch.mkdir(parents=True, exist_ok=True)
    truth = FAMILIES[family].truth(folder, root, scratch)
    shutil.rmtree(scratch)
    return _Whole(root, truth, state_of(root), sorts_for(root))


def try_variant(variant: Variant, scratch: Path, note: Callable[[Damage], None]) -> Found:
    """Damages a copy and judges what becomes of it.

    Every sort of damage that suits the folder comes about equally often, and every kind of a sort.
    """
    torch.set_num_threads(1)
    rng = random.Random(f"{variant.seed}/{variant.number}/damage")
    family = FAMILIES[variant.family]
    base = scratch.parent.parent / "wholes" / scratch.name / variant.family.replace(" ", "-") / variant.folder
    whole = _whole(variant.family, variant.folder, base)
    copy = scratch / "copy"
    shutil.copytree(whole.root, copy)
    sorts = [sort for sort in whole.sorts if any(name.startswith(f"{sort}/") for name in variant.kinds)]
    done = None
    for _ in range(TRIES if sorts else 0):
        sort = rng.choice(sorts)
        kind = rng.choice([name for name in variant.kinds if name.startswith(f"{sort}/")])
        done = damage(copy, kind, rng, whole.state)
        if done is not None:
            break
    if done is None:
        return Found(Outcome.RIGHT, "nothing to damage")
    note(done)
    try:
        return family.judge(copy, whole.truth, scratch)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "chunkrl" in f.filename][-3:]
        return Found(Outcome.FOREIGN, f"{type(error).__name__}: {str(error)[:300]} ({' '.join(ours)})")


def try_all(jobs: Sequence[Variant], num_workers: int, limit_s: float, scratch: Path) -> Iterator[Tried]:
    """Every variant, in the order they end."""
    for answer in run_jobs(try_variant, jobs, num_workers, limit_s, scratch / "work"):
        if answer.died and answer.note is None:
            raise RuntimeError(f"no whole folder for {answer.job}: {answer.died}")
        if answer.died:
            outcome = Outcome.HANG if answer.died == "hang" else Outcome.FOREIGN
            yield Tried(answer.job, answer.note, Found(outcome, answer.died), answer.seconds)
        else:
            yield Tried(answer.job, answer.note, answer.value, answer.seconds)


def table(tried: Sequence[Tried]) -> str:
    """Counts by family of damage and outcome, as Markdown."""
    shown = list(Outcome)
    counts: dict[str, Counter[Outcome]] = {}
    for one in tried:
        if one.damage is not None:
            row = f"{one.variant.family}: {one.damage.kind.split('/')[0]}"
            counts.setdefault(row, Counter())[one.found.outcome] += 1
    lines = ["| damage | tried | " + " | ".join(o.name.lower() for o in shown) + " |"]
    lines.append("|---" * (len(shown) + 2) + "|")
    whole: Counter[Outcome] = Counter()
    for row, found in sorted(counts.items()):
        whole += found
        lines.append(f"| {row} | {found.total()} | " + " | ".join(str(found[o]) for o in shown) + " |")
    lines.append(f"| **all** | {whole.total()} | " + " | ".join(str(whole[o]) for o in shown) + " |")
    return "\n".join(lines)
