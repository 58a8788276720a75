"""How long the help texts take: `python -m benchmarks.command_line`, in processor time and as a ratio to bare Python.

A quiet machine is not needed: processor time and the ratio hardly depend on what else runs.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from chunkrl.cli import COMMANDS

REPEATS = 5


def seconds(*arguments: str) -> float:
    """Processor time of Python with these arguments, s; the best of `REPEATS`."""
    taken = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def main() -> None:
    """Prints the table."""
    bare = seconds("-c", "pass")
    print(f"{'':<32}{'seconds':>10}{'x bare':>8}\n{'python -c pass':<32}{bare:>10.3f}{1.0:>8.1f}")
    rows = [("--help",), ("--version",), ("completion", "bash")]
    rows += [(name, flag) for name in COMMANDS for flag in ("--help", "--help-all")]
    for row in rows:
        taken = seconds("-m", "chunkrl.cli", *row)
        print(f"{'chunkrl ' + ' '.join(row):<32}{taken:>10.3f}{taken / bare:>8.1f}")


if __name__ == "__main__":
    main()
