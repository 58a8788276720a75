"""Versions of the weights, for ever."""

from __future__ import annotations

import json
from pathlib import Path

from chunkrl.errors import TransportError
from chunkrl.files.atomic import write_text
from chunkrl.files.json_files import read_json


class VersionCounter:
    """Versions that rise over all restarts of a learner, so that a version names one set of weights for ever.

    path: a small file in the run's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._last = 0
        if self._path.exists():
            last = read_json(self._path, dict, TransportError, "restore it").get("version")
            if type(last) is not int or not 0 <= last < 2**62:
                raise TransportError(f"{self._path}: version {last!r} is no number from 0: restore it")
            self._last = last

    def next(self) -> int:
        """A version that no push had before; on the disk before it is returned."""
        write_text(self._path, json.dumps({"version": self._last + 1}))
        self._last += 1
        return self._last
