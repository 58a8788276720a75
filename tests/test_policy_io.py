"""Saved policies: the same actions after loading, damage refused, noise of each row its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import image_episodes, random_episodes, that_are_read, write_dataset

from chunkrl import ChunkLevelOfflineRL
from chunkrl.algorithms.value_config import ValueFit
from chunkrl.data.action_encoding import ActionEncoding, EncodingKind
from chunkrl.data.hold_action import HoldAction
from chunkrl.errors import CheckpointError, ChunkRLError, DatasetError
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.value_head import ValueHead
from chunkrl.policies.chunk_policy import ChunkPolicy
from chunkrl.training.checkpoint import TENSORS, VALUES, load_state, save_state
from chunkrl.types import Observation

SMALL = NetworkConfig(hidden_dim=16, num_layers=1, image_channels=(8, 8), text_dim=8)


def train(root: Path, output: Path, **changes: Any) -> ChunkLevelOfflineRL:
    defaults: dict[str, Any] = {
        "dataset_dir": str(root),
        "action_horizon": 3,
        "action_dim": 2,
        "batch_size": 8,
        "num_updates": 3,
        "value_epochs": 0.5,
        "num_folds": 2,
        "network": SMALL,
        "fit": ValueFit(hidden_dim=16, num_layers=1),
        "device": "cpu",
        "output_dir": str(output),
    }
    run = ChunkLevelOfflineRL(**that_are_read(defaults, changes))
    run.train()
    return run


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "state": write_dataset(folder / "state", random_episodes(6)),
        "images": write_dataset(folder / "images", image_episodes(4), tasks=("push the cup", "pull the cup")),
    }


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def rows(observation: Observation, *chosen: int) -> Observation:
    part = observation.map(lambda tensor: tensor[list(chosen)])
    return Observation(part.images, part.state, tuple(observation.task[row] for row in chosen))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("state", {}),
    ("state", {"policy": PolicyConfig("gaussian", spread="fixed"), "use_state": True}),
    ("state", {"policy": PolicyConfig("flow", flow_steps=3)}),
    ("state", {"train_q": True}),
    ("state", {"train_q": True, "fit": ValueFit(hidden_dim=16, head=ValueHead("hl_gauss"))}),
    ("state", {"objective": "iql"}),
    ("images", {"train_q": True}),
    ("images", {"policy": PolicyConfig("flow"), "cameras": ("wrist",)}),
    ("images", {"use_state": False, "use_task": True, "cameras": ()}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_saved_and_loaded_policies_act_alike(
    roots: dict[str, Path], tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    if "cameras" in changes and kind == "images":
        names = {"wrist": "observation.images.wrist"}
        changes = changes | {"cameras": tuple(names[camera] for camera in changes["cameras"])}
    run = train(roots[kind], tmp_path / "run", **changes)
    ours, loaded = run.chunk_policy(), ChunkPolicy.load(tmp_path / "run" / "policy")
    assert isinstance(ours, ChunkPolicy) and loaded.spec == ours.spec
    assert loaded.action_horizon == 3 and loaded.image_sizes == ((32, 32),) * len(loaded.cameras)
    observation = run.dataset.batch(np.arange(4)).observation
    modes = ["mode", "sample"] + ["best_of_n"] * (ours.q is not None)
    assert ("best_of_n" in modes) == (changes.get("train_q", False) or changes.get("objective") == "iql")
    for mode in modes:
        first, second = (
            policy.act(observation, generators(0, 1, 2, 3), mode, num_candidates=5)  # type: ignore[arg-type]
            for policy in (ours, loaded)
        )
        assert first.shape == (4, 3, 2)
        assert torch.equal(first, second)
        assert not first.requires_grad
        low, high = run.dataset.datasets[0].table.action.min(0), run.dataset.datasets[0].table.action.max(0)
        assert (first.numpy() >= low).all() and (first.numpy() <= high).all()
    run.save(tmp_path / "again")
    assert (tmp_path / "again" / TENSORS).read_bytes() == (tmp_path / "run" / "policy" / TENSORS).read_bytes()


def reaching(length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Somewhere in a wide space, moving by (1, -0.5) a step; actions are the next positions, the third a gripper."""
    start = rng.uniform(-100, 100, size=2)
    position = (start + np.arange(length + 1)[:, None] * [1.0, -0.5]).astype(np.float32)
    gripper = rng.integers(0, 2, (length, 1)).astype(np.float32)
    return {
        "observation.state": position[:-1],
        "action": np.concatenate([position[1:], gripper], axis=1),
        "next.success": np.arange(length) == length - 1,
    }


@pytest.mark.parametrize("kind", ["delta", "relative"])
def test_a_policy_of_encoded_actions_acts_in_the_datas_units(tmp_path: Path, kind: EncodingKind) -> None:
    rng = np.random.default_rng(0)
    root = write_dataset(tmp_path / "data", [reaching(6, rng) for _ in range(6)])
    encoding = ActionEncoding(kind, action_dims=(0, 1))
    hold = HoldAction("absolute")
    run = train(root, tmp_path / "run", action_dim=3, encoding=encoding, hold=hold, train_q=True)
    loaded = ChunkPolicy.load(tmp_path / "run" / "policy")
    assert loaded.spec.encoding == encoding
    state = torch.tensor([[1000.0, 0.0], [-50.0, 70.0]])  # far from all data: what is encoded is not
    observation = Observation(state=state, task=("push", "push"))
    step = torch.tensor([1.0, -0.5])
    for mode in ("mode", "sample", "best_of_n"):
        ours, theirs = (
            policy.act(observation, generators(0, 1), mode, 4)  # type: ignore[arg-type]
            for policy in (run.chunk_policy(), loaded)
        )
        assert torch.equal(ours, theirs)
        moved = ours[..., :2] - state[:, None]
        if kind == "delta":  # the data's only step, to which samples are clipped
            expected = step * torch.arange(1, 4)[:, None]
            torch.testing.assert_close(moved, expected.expand(2, 3, 2), rtol=0, atol=1e-3)
        else:  # between the first and the last of the data's three steps
            low, high = torch.minimum(step, 3 * step), torch.maximum(step, 3 * step)
            assert (moved >= low - 1e-3).all() and (moved <= high + 1e-3).all()
        assert (ours[..., 2] >= 0).all() and (ours[..., 2] <= 1).all()
    sees = {"use_state": False, "use_task": True}
    blind = train(root, tmp_path / "blind", action_dim=3, encoding=encoding, hold=hold, **sees)
    with pytest.raises(DatasetError, match="needs a state"):
        blind.chunk_policy().act(Observation(task=("push",)), [])


@pytest.fixture(scope="module")
def run(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ChunkLevelOfflineRL:
    return train(roots["state"], tmp_path_factory.mktemp("run") / "run", train_q=True)


def test_noise_depends_on_each_rows_generator_alone(run: ChunkLevelOfflineRL) -> None:
    policy = run.chunk_policy()
    observation = run.dataset.batch(np.arange(3)).observation
    for mode in ("sample", "best_of_n"):
        torch.manual_seed(0)
        together = policy.act(observation, generators(7, 8, 9), mode, 4)  # type: ignore[arg-type]
        torch.manual_seed(1)  # the global generator has no part in it
        order = policy.act(rows(observation, 2, 0), generators(9, 7), mode, 4)  # type: ignore[arg-type]
        torch.testing.assert_close(order, together[[2, 0]])
        other = policy.act(observation, generators(7, 8, 10), mode, 4)  # type: ignore[arg-type]
        torch.testing.assert_close(other[:2], together[:2])
        with pytest.raises(ChunkRLError, match="a generator for each of 3 observations, got 1"):
            policy.act(observation, generators(7), mode, 4)  # type: ignore[arg-type]
    sample = policy.act(observation, generators(7, 8, 9), "sample")
    assert not torch.equal(sample[2], policy.act(observation, generators(7, 8, 10), "sample")[2])


def test_best_of_n_takes_the_candidate_with_the_highest_score(run: ChunkLevelOfflineRL) -> None:
    policy = run.chunk_policy()
    assert isinstance(policy, ChunkPolicy) and policy.q is not None
    observation = run.dataset.batch(np.arange(5)).observation
    noise = torch.stack([torch.randn((6, 3, 2), generator=g) for g in generators(*range(5))])
    candidates = policy.policy.sample(observation, 6, noise)
    score = policy.q(observation, candidates)
    best = policy.act(observation, generators(*range(5)), "best_of_n", 6)
    for row in range(5):
        assert torch.equal(best[row], candidates[row, int(score[row].argmax())])


def test_best_of_n_without_q_is_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    run = train(roots["state"], tmp_path / "run", objective="behaviour_cloning")
    observation = run.dataset.batch(np.arange(1)).observation
    with pytest.raises(ChunkRLError, match="--train-q"):
        run.chunk_policy().act(observation, generators(0), "best_of_n")


def test_observations_that_do_not_fit_are_refused(run: ChunkLevelOfflineRL) -> None:
    policy = run.chunk_policy()
    for state in (None, torch.zeros(1, 5)):
        with pytest.raises(ChunkRLError, match="needs a state of 3 values"):
            policy.act(Observation(state=state, task=("push",)), generators(0))


def test_damaged_folders_are_refused(run: ChunkLevelOfflineRL, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        ChunkPolicy.load(folder)
    run.save(folder)
    whole = load_state(folder)
    for name in (TENSORS, VALUES):
        run.save(folder)
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name} is missing: .*copy"):
            ChunkPolicy.load(folder)
    for missing in ("policy", "q", "spec_json"):
        save_state(folder, {key: value for key, value in whole.items() if key != missing})
        with pytest.raises(CheckpointError, match=r"does not fit|not a saved policy"):
            ChunkPolicy.load(folder)
    whole["spec_json"]["shape"]["horizon"] = 7
    save_state(folder, whole)
    with pytest.raises(CheckpointError, match="does not fit its own description"):
        ChunkPolicy.load(folder)
    whole["spec_json"]["network"]["image_dim"] = 128
    save_state(folder, whole)
    with pytest.raises(CheckpointError, match=r"another version of chunkrl.*image_dim"):
        ChunkPolicy.load(folder)
    assert run.trainer is not None and run.trainer.run_dir is not None
    last = run.trainer.run_dir / "checkpoints" / f"{run.trainer.update:07d}"
    with pytest.raises(CheckpointError, match="not a saved policy"):
        ChunkPolicy.load(last)
