"""What a benchmark keeps between its calls is made with one set of settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chunkrl.errors import ChunkRLError
from chunkrl.files.atomic import write_text

SETTINGS_FILE = "settings.json"


def refuse_other_settings(record: str, wrong: Sequence[str]) -> None:
    """record: which it is, for people. wrong: the settings in which it is not what is asked for now.

    Raises:
        ChunkRLError: there are any.
    """
    if wrong:
        raise ChunkRLError(
            f"{record} was run with other settings ({', '.join(wrong)}): use another --results and --output-dir"
        )


def check_settings(folder: Path, settings: Mapping[str, Any], kept: str) -> None:
    """Notes in `folder` what is kept there is made with, before anything is.

    kept: pattern of what is there once something is made.

    Raises:
        ChunkRLError: it was made with other settings, or does not say with which.
    """
    path = folder / SETTINGS_FILE
    now = json.loads(json.dumps(settings))  # tuples as lists, as they are read back
    if path.is_file():
        known = json.loads(path.read_text())
        wrong = sorted(name for name in known.keys() | now.keys() if known.get(name) != now.get(name))
        if wrong:
            told = ", ".join(f"{name} {known.get(name)!r}, now {now.get(name)!r}" for name in wrong)
            raise ChunkRLError(
                f"{folder} was made with other settings ({told}): use those, or another --output-dir"
            )
    elif any(folder.glob(kept)):
        raise ChunkRLError(f"{folder} does not say how what it has was made: use another --output-dir")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now) + "\n")
