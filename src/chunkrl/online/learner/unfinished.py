"""An episode that has not ended yet: its steps, and what becomes of the images of one that is long."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np

from chunkrl.errors import DatasetError, RecordError
from chunkrl.online.link.records import StepRecord
from chunkrl.online.link.spool_files import write_all

_STEP_BYTES = 4096
"""The size of a step without its images, about."""


class StepImages:
    """Images of an episode's steps, in order, a file for each camera; they take no memory.

    folder: where the files are, on a disk with as much space as the raw images take. They have no names, so that a
    kill leaves none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._num_steps = 0

    def __len__(self) -> int:
        return self._num_steps

    def append(self, images: Mapping[str, np.ndarray]) -> None:
        """Adds a step's images: camera -> uint8 [height, width, 3].

        Raises:
            RecordError: other cameras or sizes than the first step's.
            DatasetError: the disk is full, ...: nothing may be appended any more.
        """
        sizes = {name: image.shape for name, image in images.items()}
        if self._num_steps and sizes != self._sizes:
            raise RecordError(
                f"step {self._num_steps} has the cameras {sizes}, the first step has {self._sizes}"
            )
        try:
            if not self._num_steps:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._sizes = sizes
                for name in sizes:
                    made = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # see close
                    self._files[name] = made
            for name, image in images.items():
                write_all(self._files[name].fileno(), np.ascontiguousarray(image).tobytes())
        except OSError as error:
            raise DatasetError(
                f"{self._folder}: the images of a long episode wait there until it is stored: "
                f"{error.strerror or error}; free as much space as its images take; nothing is lost"
            ) from error
        self._num_steps += 1

    def of_step(self, index: int) -> dict[str, np.ndarray]:
        """A step's images, read again."""
        images = {}
        for name, size in self._sizes.items():
            num_bytes = int(np.prod(size))
            data = os.pread(self._files[name].fileno(), num_bytes, index * num_bytes)
            images[name] = np.frombuffer(data, np.uint8).reshape(size)
        return images

    def columns(self) -> dict[str, np.ndarray]:
        """Camera -> uint8 [T, height, width, 3] of all steps, mapped and not read."""
        return {
            name: np.memmap(self._files[name], np.uint8, "r", shape=(self._num_steps, *size))
            for name, size in self._sizes.items()
        }

    def close(self) -> None:
        """Gives the space back, also that of `columns` once these are gone."""
        for file in self._files.values():
            file.close()


@dataclass
class Unfinished:
    """The episode that an actor is in. position: the next number to read. num_bytes: memory that its steps take.
    images: of its first steps, where memory is too small for them; these steps have none."""

    position: int
    steps: list[StepRecord] = field(default_factory=list)
    num_bytes: int = 0
    images: StepImages | None = None

    def add(self, step: StepRecord) -> None:
        """The next step."""
        self.steps.append(step)
        self.num_bytes += _STEP_BYTES + sum(image.nbytes for image in step.images.values())

    def spill(self, folder: Path) -> None:
        """Takes all images out of memory, into files in `folder`. Raises as `StepImages.append`."""
        self.images = images = self.images or StepImages(folder)
        for index in range(len(images), len(self.steps)):
            images.append(self.steps[index].images)
            self.steps[index] = replace(self.steps[index], images={})
        self.num_bytes = _STEP_BYTES * len(self.steps)

    def whole_steps(self) -> Iterator[StepRecord]:
        """The steps as they came."""
        for index, step in enumerate(self.steps):
            if self.images is None or index >= len(self.images):
                yield step
            else:
                yield replace(step, images=self.images.of_step(index))

    def clear(self) -> None:
        """Before the next episode."""
        self.steps.clear()
        self.num_bytes = 0
        if self.images is not None:
            self.images.close()
            self.images = None
