"""Where a run goes, on all processes alike: a folder that is new, free, or that of the run that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chunkrl import ranks
from chunkrl.files.output_folder import RUNS, begin_folder, begin_numbered, held, numbered, stem_of
from chunkrl.run.config import TrainConfig
from chunkrl.run.folder import run_of
from chunkrl.run.parts import check_one_run


def begin_run(config: TrainConfig, resume: Path | None) -> Path:
    """The run's folder, ready to be written into (`chunkrl.files.output_folder`); all processes call it.

    resume: the checkpoint that it goes on from.

    Raises:
        OutputFolderError: the folder holds another run, or the one that it goes on from is parts of two.
    """
    resumed = None if resume is None else run_of(resume)
    if resumed is not None:
        check_one_run(resumed)
    if not config.output_dir and resumed is None:
        stem, number = stem_of(config.dataset_dir, config.objective), 0
        with ranks.main_first():
            if ranks.is_main():
                number = int(begin_numbered(stem).name.removeprefix(f"{stem}-"))
        return RUNS / f"{stem}-{ranks.from_main(number):03d}"
    folder = Path(config.output_dir or str(resumed))
    resumes = resumed is not None and resumed.resolve() == folder.resolve()
    with ranks.main_first():
        if ranks.is_main():
            begin_folder(folder, "train", resumes=resumes, overwrite=config.overwrite)
    return folder


def planned_folder(config: TrainConfig, resume: Path | None) -> str:
    """What `begin_run` is going to return, for people."""
    resumed = None if resume is None else run_of(resume)
    folder = config.output_dir or str(resumed or "")
    if not folder:
        folder = f"{numbered(stem_of(config.dataset_dir, config.objective))} (new, the next free number)"
    return folder if resume is None else f"{folder}, going on from {resume}"


@contextmanager
def held_by_main(run_dir: Path) -> Iterator[None]:
    """No other run trains there meanwhile; all processes of this one call it.

    Raises:
        OutputFolderError: one does.
    """
    with ExitStack() as resources:
        with ranks.main_first():
            if ranks.is_main():
                resources.enter_context(held(run_dir, "train"))
        yield
