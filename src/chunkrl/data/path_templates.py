"""The path templates of info.json (`data_path`, `video_path`), which come from strangers, filled in."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

from chunkrl.data.metadata import Info
from chunkrl.errors import DatasetError

_INTEGERS = ("episode_chunk", "episode_index", "chunk_index", "file_index")
_LONGEST_NAME, _MOST_PARTS = 255, 12  # bytes of a name; names of a path
_WIDTH = re.compile(r"(0?[1-9]\d?)?d?", re.ASCII)  # at most 99 digits: a width of 10**8 would fill the memory


def fill(root: Path, info: Info, what: str, values: dict[str, int | str]) -> Path:
    """A path in the data set's folder.

    what: the template, by its name in info.json. values: of the fields that the layout knows.

    Raises:
        DatasetError: the template is missing, has other fields or formats, or leaves the folder.
    """
    template = info.video_path if what == "video_path" else info.data_path
    if template is None:
        raise DatasetError(f"{info.file}: '{what}' is missing, but the data set has video columns: add it")
    fault = _fault(template, values)
    relative = Path() if fault else Path(template.format(**values))
    # A data set from elsewhere must not make us read files outside it.
    if not fault and (relative.is_absolute() or ".." in relative.parts or "\0" in str(relative)):
        fault = "leaves the data set's folder"
    elif (
        any(len(part.encode()) > _LONGEST_NAME for part in relative.parts)
        or len(relative.parts) > _MOST_PARTS
    ):
        fault = "names a file that no file system has"
    if fault:
        raise DatasetError(f"{info.file}: '{what}' is {template!r}, which {fault}: correct it")
    return root / relative


def _fault(template: str, values: dict[str, int | str]) -> str | None:
    """What is wrong with a template: fields are names alone (no attributes, no entries), formats short integers'."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return f"is no template ({error})"
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in values:
            return f"has the field {name!r}, known are {', '.join(values)}"
        if conversion or not _WIDTH.fullmatch(form or "") or (form and name not in _INTEGERS):
            return f"writes {name!r} in another way than a short integer, such as 06d"
    return None
