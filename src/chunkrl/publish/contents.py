"""What of a folder is pushed: a policy's files by its manifest, a data set's by its metadata, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from chunkrl.data.formats import describe
from chunkrl.files.regular_files import open_regular
from chunkrl.integration.upload import CARD, Upload, UploadError
from chunkrl.manifest import whole_files
from chunkrl.report.numbers import compact

_TEXTS = (".json", ".jsonl")
_LARGEST_TEXT = 1 << 26
_SHOWN = 25
_PATH = re.compile(r'"((~|/[\w.-]+)/[\w.-][^"]*)"')  # a JSON text


def policy_files(folder: Path) -> list[Upload]:
    """All that manifests list, verified, in the order of names.

    Raises:
        CheckpointError: a file is missing or changed, or there is no manifest.
        UploadError: a text names a path of this machine.
    """
    return _checked(folder, whole_files(folder))


def dataset_files(folder: Path) -> list[Upload]:
    """Metadata, and the data and video files that it names.

    Raises:
        DatasetError: the data set is damaged. UploadError: as `policy_files`.
    """
    description = describe(folder)
    root = description.root
    for feature in description.features.values():
        if feature.dtype == "video" and any(feature.name not in e.videos for e in description.episodes):
            raise UploadError(
                f"{root}: the videos of '{feature.name}' are not known ({feature.fault or 'some are missing'}): "
                "correct meta/info.json, or take the camera out of it"
            )
    named = {episode.data_file for episode in description.episodes}
    named |= {span.file for episode in description.episodes for span in episode.videos.values()}
    meta = [path for path in (root / "meta").rglob("*") if path.suffix in (*_TEXTS, ".parquet")]
    names = sorted({path.relative_to(root).as_posix() for path in (*named, *meta)})
    return _checked(root, [name for name in names if "/." not in f"/{name}"])


def left_out(folder: Path, files: Iterable[Upload]) -> list[str]:
    """Names in the folder itself that nothing of is pushed."""
    kept = {file.name.split("/")[0] for file in files}
    return sorted(path.name for path in folder.iterdir() if path.name not in kept)


def listing(files: Sequence[Upload], there: Iterable[str] = ()) -> str:
    """A line a file with its size, and all together; there: names of those that need not be sent."""
    there = set(there)
    width = max(len(file.name) for file in files)
    lines = [
        f"  {file.name:<{width}}  {_size(file.size):>9}{'  already there' if file.name in there else ''}"
        for file in files[:_SHOWN]
    ]
    if len(files) > _SHOWN:
        lines.append(f"  and {len(files) - _SHOWN} more")
    return "\n".join([*lines, f"  {len(files)} files, {_size(sum(file.size for file in files))}"])


def check_no_paths(text: str, where: str, folder: Path) -> None:
    """Raises UploadError where a text says where this user, this command or `folder` is on this machine."""
    for here in (Path.home(), Path.cwd(), folder.resolve().parent):
        if len(here.parts) > 1 and f"{here}/" in text:
            raise UploadError(f"{where} would say {here}, which is this machine's: name things without it")


def _size(number: int) -> str:
    return f"{number} B" if number < 1000 else f"{compact(number).replace('k', ' k').replace('M', ' M')}B"


def _checked(folder: Path, names: Sequence[str]) -> list[Upload]:
    for name in names:
        file = folder / name
        if file.suffix in _TEXTS and file.stat().st_size <= _LARGEST_TEXT:
            _check_text(file)
    return [Upload(name, folder / name) for name in names if name != CARD]


def _check_text(file: Path) -> None:
    """Raises UploadError where a text of a JSON file is an absolute path whose first folder is here."""
    with open_regular(file, UploadError, "copy the folder again") as stream:
        content = stream.read().decode("utf-8", "replace")
    for found in _PATH.finditer(content):
        if Path(found[2]).expanduser().is_dir():
            raise UploadError(
                f"{file} says {found[1]!r}, a path of this machine, which others need not know: take it out (then "
                f"`chunkrl manifest {file.parent} --renew`, where there is a manifest)"
            )
