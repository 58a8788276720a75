"""LIBERO's tasks, files, assets and images as far as they need no simulator: a package and a Hub made here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from chunkrl.envs import libero_package, libero_tasks, offscreen
from chunkrl.envs.libero import axis_angle
from chunkrl.envs.libero_tasks import find_task, initial_states, suite_tasks
from chunkrl.errors import ChunkRLError
from chunkrl.install import MissingExtraError

FILES = {
    "libero_spatial": ["put_the_cup_down", "lift_the_cup"],
    "libero_10": ["LIVING_ROOM_SCENE12_open_it"],
    "libero_90": ["KITCHEN_SCENE1_open_it", "KITCHEN_SCENE1_close_it", "KITCHEN_SCENE2_open_it"],
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package laid out as hf-libero is, found before any other; caches, home and variables are the test's own."""
    root = tmp_path / "site" / "libero" / "libero"
    (root / "benchmark").mkdir(parents=True)
    (root / "bddl_files").mkdir()
    (root.parent / "__init__.py").touch()
    (root / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {FILES}")
    monkeypatch.syspath_prepend(str(root.parent.parent))
    monkeypatch.delitem(sys.modules, "libero", raising=False)
    for cached in (libero_tasks._task_files, suite_tasks, initial_states):
        cached.cache_clear()
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("LIBERO_ASSETS", "LIBERO_CONFIG_PATH", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    yield root
    for cached in (libero_tasks._task_files, suite_tasks, initial_states):
        cached.cache_clear()


def test_tasks_follow_the_package_and_are_told_in_words() -> None:
    assert [task.name for task in suite_tasks("libero_spatial")] == ["libero_spatial/0", "libero_spatial/1"]
    assert find_task("libero_spatial/1").text == "lift the cup"
    assert find_task("libero_10/0").text == "open it"  # without the scene's name
    assert [find_task(name).max_steps for name in ("libero_spatial/0", "libero_10/0")] == [220, 520]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("libero_spatial/2", "libero_spatial/0 to libero_spatial/1"),
        ("libero_spatial/-1", "libero_spatial/0 to libero_spatial/1"),
        ("libero_spatial", "libero_spatial/0 to libero_spatial/1"),
        ("libero_spatula/0", "libero_spatial, libero_object, libero_goal, libero_10, libero_90"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(name: str, told: str) -> None:
    with pytest.raises(ChunkRLError, match=told):
        find_task(name)


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libero_tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"\[libero\]"):
        suite_tasks("libero_goal")


class _Touch:
    """Unpickled by anything but a careful reader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_initial_states_are_arrays_and_nothing_else(package: Path, tmp_path: Path) -> None:
    task = find_task("libero_spatial/0")
    task.initial_states_file.parent.mkdir(parents=True)
    states = np.arange(150.0).reshape(50, 3)
    torch.save(states, task.initial_states_file)
    np.testing.assert_array_equal(initial_states(task), states)
    initial_states.cache_clear()
    torch.save(_Touch(tmp_path / "touched"), task.initial_states_file)
    with pytest.raises(ChunkRLError, match=r"put_the_cup_down\.pruned_init"):
        initial_states(task)
    assert not (tmp_path / "touched").exists()


def _fill(folder: Path, without: str = "") -> Path:
    for name in libero_package.ASSET_FOLDERS:
        if name != without:
            (folder / name).mkdir(parents=True)
    return folder


def test_assets_are_taken_from_the_folder_that_is_named(tmp_path: Path, monkeypatch) -> None:
    assert libero_package.installed_assets() is None
    monkeypatch.setenv("LIBERO_ASSETS", str(_fill(tmp_path / "whole")))
    assert libero_package.find_assets() == tmp_path / "whole"
    monkeypatch.setenv("LIBERO_ASSETS", str(_fill(tmp_path / "part", without="textures")))
    with pytest.raises(ChunkRLError, match="it has no textures; name the folder"):
        libero_package.find_assets()


def test_a_fingerprint_is_of_names_and_sizes_wherever_the_folder_lies(tmp_path: Path) -> None:
    def written(name: str, **more: bytes) -> str:
        files = {"textures/plate.png": b"abc", "scenes/room/table.xml": b"<x/>"} | more
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
        return libero_package.assets_fingerprint(tmp_path / name)

    first = written("one")
    assert len(first) == 16 and first == written("two")
    # what the Hub's client adds, and what lies beside the folders, is no asset
    none = {".cache/huggingface/x": b"1", "textures/.lock": b"", "README.md": b"2"}
    assert first == written("three", **none)
    larger, one_more = written("four", **{"textures/plate.png": b"abcd"}), written("five", **{"a/b": b""})
    assert len({first, larger, one_more}) == 3
    (tmp_path / "six").mkdir()
    for name in ("textures", "scenes"):
        (tmp_path / "six" / name).symlink_to(tmp_path / "one" / name)
    assert libero_package.assets_fingerprint(tmp_path / "six") == first


def test_assets_come_from_the_hub_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def broken(repository: str, repo_type: str, local_dir: Path) -> None:
        asked.append((repository, repo_type))
        (local_dir / "scenes").mkdir()
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ChunkRLError, match=r"the line is dead.*: hf download .*export LIBERO_ASSETS=FOLDER"):
        libero_package.find_assets()
    assert asked == [("lerobot/libero-assets", "dataset")] and libero_package.installed_assets() is None

    def works(repository: str, repo_type: str, local_dir: Path) -> None:
        assert (local_dir / "scenes").is_dir(), "what was fetched before is kept"
        (local_dir / "scenes").rmdir()
        _fill(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", works)
    assert libero_package.find_assets() == tmp_path / "cache" / "libero" / "assets"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert libero_package.find_assets() == tmp_path / "cache" / "libero" / "assets"


def test_the_config_is_ours_unless_the_user_has_one(package: Path, tmp_path: Path, monkeypatch) -> None:
    libero_package._write_config()
    written = Path(libero_package.os.environ["LIBERO_CONFIG_PATH"]) / "config.yaml"
    assert written.is_relative_to(tmp_path / "cache")
    assert f'bddl_files: "{package / "bddl_files"}"' in written.read_text()
    assert not (tmp_path / "home" / ".libero").exists()
    users = tmp_path / "users" / "config.yaml"
    users.parent.mkdir()
    users.write_text("mine")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(users.parent))
    libero_package._write_config()
    assert users.read_text() == "mine"


def test_axis_and_angle_are_those_of_the_rotation() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_array_equal(axis_angle(np.array([1.0, 0, 0, 0])), np.zeros(3))
    np.testing.assert_allclose(axis_angle(np.array([half, 0, 0, half])), [0, 0, np.pi / 2])
    # the same rotation with the other sign: once around the other way, as openpi and LeRobot have it
    np.testing.assert_allclose(axis_angle(np.array([-half, 0, 0, -half])), [0, 0, -1.5 * np.pi])
    np.testing.assert_allclose(axis_angle(np.array([0.0, 1, 0, 0])), [np.pi, 0, 0])


def test_a_picture_of_nothing_is_refused() -> None:
    picture = np.full((8, 8, 3), 77, np.uint8)
    with pytest.raises(offscreen.RenderError, match=r"agentview gave a blank image.*mean 77.0"):
        offscreen.check_image(picture, "agentview")
    picture[:4] = 120
    offscreen.check_image(picture, "agentview")


def test_an_unsteady_context_is_found_out() -> None:
    class Unsteady(offscreen.OffscreenRenderer):
        def __init__(self) -> None:
            self._rng = np.random.default_rng(0)
            self._model = self

        def camera(self, number: int):
            return type("Camera", (), {"name": "agentview"})

        def draw(self, data, camera: int, size: int) -> np.ndarray:
            return self._rng.integers(256, size=(size, size, 3), dtype=np.uint8)

    with pytest.raises(offscreen.RenderError, match="'agentview' was drawn twice and came out differently"):
        Unsteady().check(None, 0, 8)


def test_the_opengl_library_is_chosen_or_its_lack_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(offscreen.Path, "glob", lambda self, pattern: iter(()))
    found = {"OSMesa": "libOSMesa.so.8"}
    monkeypatch.setattr(offscreen.ctypes.util, "find_library", found.get)
    assert offscreen.choose_backend() == "osmesa"
    found.clear()
    with pytest.raises(ChunkRLError, match="apt-get install libosmesa6"):
        offscreen.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    assert offscreen.choose_backend() == "egl"
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(ChunkRLError, match="MUJOCO_GL=off draws nothing"):
        offscreen.choose_backend()
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(offscreen.Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    found["EGL"] = "libEGL.so.1"
    assert offscreen.choose_backend() == "egl"
