"""Choosing modules and parameters by glob patterns on their names; a pattern that matches nothing is an error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from chunkrl.errors import ChunkRLError

EXCLUDE = "-"
_NUM_SUGGESTIONS = 5


def match_names(patterns: Sequence[str], names: Iterable[str], what: str) -> set[str]:
    """Names that at least one pattern matches and no excluding pattern does; the order of patterns is free.

    Args:
        patterns: shell globs, `*` also matches dots; a leading `-` excludes.
        what: the kind of names, for errors.

    Raises:
        ChunkRLError: a pattern matches nothing; names what is there under similar names.
    """
    names = list(names)
    chosen: set[str] = set()
    excluded: set[str] = set()
    for pattern in patterns:
        glob = pattern.removeprefix(EXCLUDE)
        matched = {name for name in names if fnmatchcase(name, glob)}
        if not matched:
            raise ChunkRLError(f"pattern '{pattern}' matches no {what}; {_suggest(glob, names)}")
        (excluded if pattern.startswith(EXCLUDE) else chosen).update(matched)
    return chosen - excluded


def _suggest(glob: str, names: Sequence[str]) -> str:
    """Names like the pattern's, layers' numbers written as `*` so that one stands for all layers."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    close = difflib.get_close_matches(glob, kinds, _NUM_SUGGESTIONS, cutoff=0.4) or kinds[:_NUM_SUGGESTIONS]
    return f"names that are there: {', '.join(close)}" if close else "there are none to choose from"
