"""`chunkrl collect` with a learned policy: what it sees, what its data depend on, and what is resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")

from chunk_data import policy_of_one_update

from chunkrl.collect import command as collect
from chunkrl.collect import learned
from chunkrl.collect.command import RECORD, CollectConfig, collect_dataset
from chunkrl.data.frames import FrameTable
from chunkrl.envs.metaworld import CAMERA
from chunkrl.envs.scripted import MixtureConfig
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.progress import silent
from chunkrl.training.checkpoint import TENSORS
from chunkrl.types import Observation


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy on the state, after one update."""
    root = tmp_path_factory.mktemp("policy")
    collect_dataset(root / "data", CollectConfig(num_episodes=2, max_steps=8, num_workers=0))
    return policy_of_one_update(root / "data", root / "run", 4)


def config(policy: Path, **changes) -> CollectConfig:
    mixture = MixtureConfig(policy_share=1.0)
    asked = {"mixture": mixture, "num_episodes": 1, "max_steps": 5, "num_workers": 0, "policy": str(policy)}
    return CollectConfig(**(asked | changes))  # type: ignore[arg-type]


def test_another_policy_in_the_same_folder_is_not_gone_on_with(policy: Path, tmp_path: Path) -> None:
    ours, root = tmp_path / "policy", tmp_path / "data"
    shutil.copytree(policy, ours)
    collect_dataset(root, config(ours))
    record = json.loads((root / RECORD).read_text())
    assert record["policy"] == str(ours) and record["device"] == "cpu" and record["opengl"] == ""
    moved = tmp_path / "elsewhere"
    ours.rename(moved)
    collect_dataset(root, config(moved, num_episodes=2))  # the same one, wherever it lies
    weights = load_file(moved / TENSORS)
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, moved / TENSORS)
    with pytest.raises(
        DatasetError, match=r"2 episodes already, .*another policy_fingerprint \('[0-9a-f]{32}'"
    ):
        collect_dataset(root, config(moved, num_episodes=3))
    with pytest.raises(ChunkRLError, match=r"no-such is no folder"):
        collect_dataset(root, config(tmp_path / "no-such", num_episodes=3))


def test_pictures_of_another_opengl_and_actions_of_another_device_are_not_added(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they are is taken for granted here: neither a GPU nor OpenGL is needed to compare records."""
    asked = config(policy, max_steps=3)
    monkeypatch.setattr(collect, "opengl_library", lambda tasks: "egl")
    pictures = replace(asked, policy=None, mixture=MixtureConfig(), camera_size=16)
    for name, one in (("a", asked), ("b", pictures)):
        collect_dataset(tmp_path / name, one)
    more = replace(pictures, num_episodes=2)
    monkeypatch.setattr(collect, "opengl_library", lambda tasks: "osmesa")
    with pytest.raises(DatasetError, match=r"another opengl \('egl' there, 'osmesa' asked for\)"):
        collect_dataset(tmp_path / "b", more)
    monkeypatch.setattr("chunkrl.run.build.choose_device", lambda name: torch.device("cuda", 1))
    with pytest.raises(DatasetError, match=r"another device \('cpu' there, 'cuda' asked for\)"):
        collect_dataset(tmp_path / "a", replace(asked, num_episodes=2))


def test_records_of_before_opengl_and_device_were_noted_are_gone_on_with(tmp_path: Path) -> None:
    asked = CollectConfig(num_episodes=1, max_steps=3, num_workers=0)
    collect_dataset(tmp_path, asked)
    record = json.loads((tmp_path / RECORD).read_text())
    for name in ("assets", "opengl", "device", "policy_fingerprint", "rename"):
        del record[name]
    record["policy_mode"] = record.pop("mode")  # as it was called then
    (tmp_path / RECORD).write_text(json.dumps(record))
    collect_dataset(tmp_path, replace(asked, num_episodes=2))
    with pytest.raises(DatasetError, match="all that were asked for"):
        collect_dataset(tmp_path, replace(asked, num_episodes=2))
    assert collect_dataset(tmp_path, replace(asked, num_episodes=2), accept_complete=True) == 0
    with pytest.raises(DatasetError, match="all that were asked for"):  # there are more than these
        collect_dataset(tmp_path, asked, accept_complete=True)


def test_a_policy_without_cameras_collects_pictures(policy: Path, tmp_path: Path) -> None:
    collect_dataset(tmp_path / "plain", config(policy))
    collect_dataset(tmp_path / "seen", config(policy, camera_size=16))
    plain, seen = (FrameTable.open(tmp_path / name, progress=silent) for name in ("plain", "seen"))
    assert np.array_equal(plain.action, seen.action) and not plain.description.cameras
    assert seen.images(CAMERA, np.arange(5)).shape == (5, 3, 16, 16)


def test_a_policys_cameras_may_have_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(observation: Observation, generators: list[torch.Generator], mode: str) -> torch.Tensor:
        assert set(observation.images) == {"front"} and observation.images["front"].shape == (1, 3, 16, 16)
        return torch.full((1, 2, 4), 0.25)

    looking = {
        "cameras": ("front",),
        "image_sizes": ((16, 16),),
        "recorded_sizes": (),
        "own_image_size": None,
        "state_dim": 0,
        "action_dim": 4,
    }
    policy = SimpleNamespace(**looking, action_horizon=2, act=act)
    monkeypatch.setattr(learned, "load_policy", lambda *_: policy)
    asked = config(tmp_path, camera_size=16)
    with pytest.raises(
        ChunkRLError, match=f"needs the camera 'front', and MetaWorld has .*{CAMERA}.*--rename"
    ):
        collect_dataset(tmp_path / "a", asked)
    with pytest.raises(ChunkRLError, match="sees images of 16 pixels: collect with --camera-size 16"):
        collect_dataset(tmp_path / "b", replace(asked, camera_size=0, rename=(f"{CAMERA}=front",)))
    collect_dataset(tmp_path / "c", replace(asked, rename=(f"{CAMERA}=front",)))
    table = FrameTable.open(tmp_path / "c", progress=silent)
    assert (table.action == 0.25).all() and table.description.cameras == (CAMERA,)


def test_a_policy_is_loaded_once_where_simulators_change(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], learned.load_policy

    def counted(folder: str, *more) -> ActingPolicy:
        loaded.append(folder)
        return load(folder, *more)

    monkeypatch.setattr(learned, "load_policy", counted)
    several = {"env": "push-v3+reach-v3", "camera_size": 16, "num_episodes": 4, "max_steps": 2}
    collect_dataset(tmp_path / "d", config(policy, **several))
    assert loaded == [str(policy)]
