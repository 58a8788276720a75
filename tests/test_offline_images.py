"""Training on images of several cameras, text and state, and on any subset of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import image_episodes, open_chunks, that_are_read, write_dataset
from lerobot_folder import write_lerobot_folder

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.cross_fit import labelling_batch_size
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.data.frames import FrameTable
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError
from chunkrl.models.config import NetworkConfig
from chunkrl.models.encoders import ImageEncoder, shift_images

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SMALL = NetworkConfig(hidden_dim=16, num_layers=1, image_channels=(8, 8), text_dim=8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "d"
    return write_dataset(folder, image_episodes(4), tasks=("push the cup", "pull the cup"))


def make(root: Path, output: Path, **changes: Any) -> ChunkLevelOfflineRL:
    defaults: dict[str, Any] = {
        "dataset_dir": str(root),
        "action_horizon": 3,
        "action_dim": 2,
        "batch_size": 4,
        "num_updates": 2,
        "value_epochs": 0.4,
        "num_folds": 2,
        "network": SMALL,
        "fit": ValueFit(hidden_dim=16, num_layers=1),
        "device": "cpu",
        "output_dir": str(output),
    }
    return ChunkLevelOfflineRL(**that_are_read(defaults, changes))


@pytest.mark.parametrize("objective", ["cross_fitted", "iql", "document"])
def test_images_text_and_state_train(root: Path, tmp_path: Path, objective: str) -> None:
    run = make(root, tmp_path / "run", objective=objective)
    before = {name: p.detach().clone() for name, p in run.policy.named_parameters()}
    assert run.policy.encoder.spec.cameras == (FRONT, WRIST)
    assert run.policy.encoder.spec.use_task and run.policy.encoder.spec.state_dim == 3
    run.train()
    # train() builds its networks again from the seed: the same ones
    moved = {name for name, p in run.policy.named_parameters() if not torch.equal(p, before[name])}
    assert {"encoder.images.0.temperature", "encoder.images.1.temperature"} <= moved
    assert "encoder.text.embed.weight" in moved
    assert run.trainer is not None
    assert all(np.isfinite(v) for points in run.trainer.history.values() for _, v in points)


def test_every_input_reaches_the_policy(root: Path, tmp_path: Path) -> None:
    run = make(root, tmp_path / "run", objective="behaviour_cloning")
    observation = run.dataset.batch(np.arange(2)).observation
    base = run.policy(observation)
    assert observation.state is not None
    changed = [
        observation.map(lambda t: t),
        type(observation)(observation.images, observation.state + 1, observation.task),
        type(observation)(observation.images, observation.state, ("pull it", "pull it")),
        *(
            type(observation)(
                dict(observation.images) | {camera: 255 - observation.images[camera]},
                observation.state,
                observation.task,
            )
            for camera in (FRONT, WRIST)
        ),
    ]
    same = [torch.equal(base, run.policy(other)) for other in changed]
    assert same == [True, False, False, False, False]


def test_unused_cameras_are_not_decoded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    start_images = FrameTable.start_images

    def counted(self: FrameTable, camera: str, rows: np.ndarray) -> Callable[[], np.ndarray]:
        asked.append(camera)
        return start_images(self, camera, rows)

    monkeypatch.setattr(FrameTable, "start_images", counted)
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    make(root, tmp_path / "none", cameras=()).train()
    assert asked == []
    make(root, tmp_path / "one", cameras=(WRIST,)).train()
    assert set(asked) == {WRIST}
    assert not list((tmp_path / "cache").rglob("*front*"))
    assert list((tmp_path / "cache").rglob("*wrist*"))


def test_documents_layout_with_pictures_trains(tmp_path: Path) -> None:
    """v2.1, `observation/image`, `reward`, `subgoal`: as the chunk-level document describes its data."""
    folder = write_lerobot_folder(
        tmp_path / "d", "v2.1", naming="document", camera="image", size=(32, 32), lengths=(6, 5, 6, 7)
    )
    run = make(folder.root, tmp_path / "run")
    labels = run.dataset.frame_labels
    assert labels.rule.success == "reward" and labels.rule.subgoal == "column"
    item = run.dataset.datasets[0][0]
    (picture,) = item.observation.images.values()
    assert picture.shape == (3, 32, 32) and picture.dtype == torch.uint8
    run.train()
    assert (tmp_path / "run" / "policy").is_dir()


def test_pictures_are_labelled_in_small_batches(root: Path) -> None:
    assert labelling_batch_size(open_chunks(root)) <= 64
    assert labelling_batch_size(open_chunks(root, cameras=())) == 4096


def test_networks_that_see_nothing_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ChunkRLError, match="would see nothing"):
        make(root, tmp_path / "x", cameras=(), use_state=False, use_task=False)
    with pytest.raises(ChunkRLError, match="no camera 'top'"):
        make(root, tmp_path / "x", cameras=("top",))


def test_labels_rule_reaches_the_data(root: Path, tmp_path: Path) -> None:
    run = make(root, tmp_path / "x", labels=LabelRule(success="all"))
    assert run.dataset.frame_labels.success.all()


def test_image_channels_are_a_setting() -> None:
    encoder = ImageEncoder((8, 16))
    widths = [module.out_channels for module in encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert widths == [8, 16]
    assert encoder(torch.zeros(2, 3, 20, 24)).shape == (2, 32)
    with pytest.raises(ChunkRLError, match="multiples of 8"):
        NetworkConfig(image_channels=(12, 16))


def test_images_are_shifted_in_training_alone() -> None:
    rows = torch.arange(5.0)[:, None].expand(5, 6)
    columns = torch.arange(6.0).expand(5, 6)
    images = torch.stack([rows, columns, rows * 6 + columns]).expand(64, 3, 5, 6)
    torch.manual_seed(0)
    moved = shift_images(images, 2)
    offsets = set()
    for image in moved:
        row, column = int(image[0, 2, 0]) - 2, int(image[1, 0, 2]) - 2  # what stands in the middle
        offsets.add((row, column))
        wanted = [(np.arange(5) + row).clip(0, 4), (np.arange(6) + column).clip(0, 5)]
        np.testing.assert_array_equal(image[2], images[0, 2][np.ix_(*wanted)])
    assert {row for row, _ in offsets} == {column for _, column in offsets} == {-2, -1, 0, 1, 2}

    encoder = ImageEncoder((8, 16), shift=2)
    images = torch.rand(4, 3, 24, 24)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))
