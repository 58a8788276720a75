"""Images of a MuJoCo scene with OpenGL and without a display: one rendering context per process.

A second context in one process gave blank or garbage images (measured with OSMesa), so it is refused: environments
with cameras run in processes of their own (`chunkrl.envs.workers`). What is drawn is checked before it is used.
"""

from __future__ import annotations

import ctypes.util
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chunkrl.envs.software_geometry import MjData, MjModel, import_mujoco
from chunkrl.errors import ChunkRLError

Rendering = Literal["default", "fast"]
BACKENDS = ("osmesa", "egl", "glfw")
LEAST_DEVIATION = 2.0  # of an image's values from their mean, of 255; a scene in view has 30 to 60
MAX_GEOMS = 5000
DEBIAN_PACKAGES = "libosmesa6 libgl1 libglib2.0-0"

_current: OffscreenRenderer | None = None


class RenderError(ChunkRLError):
    """An image that shows nothing, or rubbish: it must not be evaluated on or recorded."""


def choose_backend() -> str:
    """The OpenGL library: `MUJOCO_GL` where it is set, else EGL on a machine with a GPU, else OSMesa (software).

    Raises:
        ChunkRLError: there is none (says how to install one), or `MUJOCO_GL` names something else.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        if chosen == "glx":
            return "glfw"
        if chosen not in BACKENDS:
            raise ChunkRLError(
                f"MUJOCO_GL={chosen} draws nothing: use one of {', '.join(BACKENDS)}, or unset it"
            )
        return chosen
    if sys.platform == "darwin":
        return "glfw"
    gpus = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev/dri").glob("renderD*")]
    if gpus and ctypes.util.find_library("EGL"):
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise ChunkRLError(
        f"no OpenGL library for images: apt-get install {DEBIAN_PACKAGES} (software rendering), or use a "
        "machine with a GPU and EGL; an environment without cameras needs neither"
    )


def _make_context(backend: str, width: int, height: int) -> Any:
    try:
        if backend == "glfw":
            module = importlib.import_module("mujoco.rendering.classic.gl_context")
        else:
            module = importlib.import_module(f"mujoco.{backend}")
        context = module.GLContext(width, height)
        context.make_current()
        return context
    except Exception as error:  # ImportError, AttributeError, RuntimeError: each library has its own ways
        raise _unusable(backend, error) from error


def _unusable(backend: str, error: Exception) -> ChunkRLError:
    return ChunkRLError(
        f"OpenGL by {backend} does not work here ({type(error).__name__}: {error}): apt-get install "
        f"{DEBIAN_PACKAGES}, and unset MUJOCO_GL or set MUJOCO_GL=osmesa before Python starts"
    )


class OffscreenRenderer:
    """Draws the cameras of one model. It owns the process's rendering context until `close`."""

    def __init__(self, model: MjModel, max_size: int, rendering: Rendering = "default") -> None:
        """
        Args:
            max_size: largest side of an image, pixels.
            rendering: `default`: as the model says, with shadows, reflections and multisampling, which is how
                robosuite draws; `fast`: without these three.

        Raises:
            ChunkRLError: this process draws already, or OpenGL does not work here.
        """
        global _current  # noqa: PLW0603 (the limit is the process's)
        if _current is not None:
            raise ChunkRLError(
                "this process has a rendering context already, and a second one draws garbage: close the other "
                "environment with cameras first, or run each in a worker process (num_workers of at least 1)"
            )
        mujoco = self._mujoco = import_mujoco()
        self._model, self._max_size = model, max_size
        model.vis.global_.offwidth = model.vis.global_.offheight = max_size
        if rendering == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        backend = choose_backend()
        self._gl = _make_context(backend, max_size, max_size)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        if rendering == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except mujoco.FatalError as error:
            self._gl.free()
            raise _unusable(backend, error) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._option.geomgroup[0] = 0  # collision shapes, in robosuite's models
        self._option.geomgroup[1] = 1  # what is to be seen
        _current = self

    def draw(self, data: MjData, camera: int, size: int) -> np.ndarray:
        """The view of camera number `camera`, uint8 [size, size, 3], first row at the bottom as OpenGL has it.

        Raises:
            RenderError: the image is blank.
        """
        if not 1 <= size <= self._max_size:
            raise ValueError(f"an image's side must be 1 to {self._max_size} pixels, got {size}")
        mujoco = self._mujoco
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturbation, self._camera, everything, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(viewport, self._scene, self._context)
        picture = np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, viewport, self._context)
        check_image(picture, f"camera {self._model.camera(camera).name!r}")
        return picture

    def check(self, data: MjData, camera: int, size: int) -> None:
        """Draws the same twice, which a broken context does not do.

        Raises:
            RenderError: the images differ, or are blank.
        """
        if not np.array_equal(self.draw(data, camera, size), self.draw(data, camera, size)):
            raise RenderError(
                f"{self._model.camera(camera).name!r} was drawn twice and came out differently: this process's "
                "rendering context is broken; start a new process, one with cameras each"
            )

    def close(self) -> None:
        """Frees the context; another one may be made then."""
        global _current  # noqa: PLW0603
        if _current is self:
            self._context.free()
            self._gl.free()
            _current = None


def check_image(picture: np.ndarray, what: str) -> None:
    """Raises RenderError for an image [height, width, 3] that shows next to nothing."""
    deviation = float(picture.std())
    if not deviation >= LEAST_DEVIATION:  # NaN too
        raise RenderError(
            f"{what} gave a blank image (standard deviation {deviation:.2f} of 255, mean {picture.mean():.1f}): "
            "the rendering context is broken; start a new process, and check MUJOCO_GL (chunkrl doctor)"
        )
