"""`make test-robustness`: thousands of damaged folders; exit status 1 where one ends in a fault.

    PYTHONPATH=tests python -m robustness --seeds 0 1 2 --variants 1100

Results go to a file as they come; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import chunkrl

from .campaign import Tried, Variant, table, try_all, variants


def sources() -> str:
    """A digest of what is tried and of what tries it: results of other sources are not this command's."""
    digest = hashlib.sha256()
    for folder in (Path(chunkrl.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def tried_before(results: Path, jobs: list[Variant], digest: str) -> list[Tried]:
    """Those that an earlier, stopped command tried with the same sources."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    records = [record for record in map(json.loads, lines) if record["sources"] == digest]
    there = {(record["seed"], record["number"]): record for record in records}
    return [Tried.of(job, there[job.seed, job.number]) for job in jobs if (job.seed, job.number) in there]


def tell(one: Tried) -> None:
    """A fault, for people."""
    variant, done = one.variant, one.damage
    what = "" if done is None else f"{done.kind}, {done.file}: {done.what}"
    print(f"seed {variant.seed}, {variant.number}, {variant.folder}: {what}")
    print(f"    {one.found.outcome.name}: {one.found.detail}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="robustness", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", type=int, default=1100, help="of each seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that a variant may take")
    parser.add_argument("--kinds", nargs="*", default=[], help="of damage; default: all")
    parser.add_argument("--families", nargs="*", default=[], help="of folders; default: all")
    parser.add_argument("--results", type=Path, default=Path("build/robustness.jsonl"))
    chosen = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # some damage is to text
    jobs = [v for seed in chosen.seeds for v in variants(seed, chosen.variants, chosen.kinds)]
    jobs = [job for job in jobs if not chosen.families or job.family in chosen.families]
    digest = sources()
    done = tried_before(chosen.results, jobs, digest)
    known = {one.variant for one in done}
    jobs = [job for job in jobs if job not in known]
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    begin, total = time.monotonic(), len(jobs) + len(done)
    with tempfile.TemporaryDirectory() as scratch, chosen.results.open("a", encoding="utf-8") as results:
        os.environ["CHUNKRL_CACHE"] = f"{scratch}/cache"
        for number, one in enumerate(try_all(jobs, chosen.workers, chosen.limit, Path(scratch)), 1):
            results.write(json.dumps(one.to_json() | {"sources": digest}) + "\n")
            results.flush()
            done.append(one)
            if one.found.outcome.is_fault:
                tell(one)
            if number % 50 == 0 or number == len(jobs):
                left = (time.monotonic() - begin) / number * (len(jobs) - number)
                print(f"{len(done)} of {total}, {left / 60:.1f} min to go", file=sys.stderr, flush=True)
    print(table(done))
    sys.exit(any(one.found.outcome.is_fault for one in done))


if __name__ == "__main__":
    main()
