"""`chunkrl config import FILE`: another project's configuration into files that chunkrl's commands take."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from chunkrl.cli.hiserl import UNKNOWN, Imported, KeyRead, import_hiserl
from chunkrl.config import read_values
from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text
from chunkrl.files.output_folder import check_file
from chunkrl.integration.config import ConfigCommand

_COMMANDS = {"train.json": "train", "learner.json": "learner", "actor.json": "actor"}
_CURE = "name a configuration of LeRobot's HIL-SERL"


def run_config(command: ConfigCommand) -> None:
    """Writes the files and says what became of every key.

    Raises:
        ChunkRLError: no such file, one that cannot be read, or a file that would be written over.
    """
    if command.action != "import" or not command.file:
        raise ChunkRLError("say what to do: chunkrl config import FILE")
    source = Path(command.file)
    try:
        found = import_hiserl(read_values(source, ChunkRLError, _CURE))
    except ChunkRLError as error:
        raise ChunkRLError(f"{source}: {error}") if str(source) not in str(error) else error from error
    folder = Path(command.output_dir or source.with_suffix("").name)
    files = found.files()
    if "robot" in found.actor:
        found.actor["robot"] = str(folder / found.actor["robot"])
    for name in files:
        check_file(folder / name, command.overwrite)
    for name, values in files.items():
        write_text(folder / name, json.dumps(values, indent=2, allow_nan=False) + "\n")
    print(told(found))
    for name in files:
        if name in _COMMANDS:
            print(f"chunkrl {_COMMANDS[name]} --config {folder / name}")


def told(found: Imported) -> str:
    """Every key: what it became, why others are ignored, and last those that are not known, since they may matter."""
    known = [key for key in found.keys if key.here != UNKNOWN]
    groups = {
        "mapped": [key for key in known if key.is_mapped],
        "ignored": [key for key in known if not key.is_mapped],
        "not known": [key for key in found.keys if key.here == UNKNOWN],
    }
    lines = []
    for title, keys in groups.items():
        lines += [f"{title}: {len(keys)} of {len(found.keys)} keys", *map(_row, keys), ""] if keys else []
    return "\n".join(lines)


def _row(read: KeyRead) -> str:
    value = json.dumps(read.value)
    there = f"  {read.key} {value if len(value) < 40 else value[:36] + '...'}"
    return textwrap.fill(f"{there} -> {read.here}", 110, subsequent_indent="      ", break_long_words=False)
