"""`--use-pi0-actions`: made once for every start, resumed, and used in two ways."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import identity_factory, open_chunks, write_dataset
from pi_tiny import ACTION_DIM, STATE_DIM, TOKENIZER, tiny_policy, tiny_recipe
from torch import Tensor

from chunkrl import ChunkLevelOfflineRL, TrainConfig
from chunkrl.algorithms.document import DocumentConfig, DocumentObjective
from chunkrl.algorithms.iql import ChunkIQL, IQLConfig
from chunkrl.data.chunks import ChunkDataset
from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.integration import pi_chunks
from chunkrl.integration.chunk_cache import ChunkRequest, cached_chunks, fingerprint
from chunkrl.integration.config import PiChunkConfig, PiUse
from chunkrl.integration.pi_chunks import check_fits, use_pi_chunks
from chunkrl.models.pi import PiPolicy, load_pretrained, save_pretrained
from chunkrl.progress import silent
from chunkrl.training.config import OptimConfig
from chunkrl.types import Observation

CAMERAS = ("observation.images.front", "observation.images.wrist")
NUM_STARTS = 15
CPU = torch.device("cpu")
# no clipping: it would couple the critic's step to the other losses' gradients
OPTIM = OptimConfig(grad_clip=1e9)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observation.state": rng.normal(size=(5, STATE_DIM)).astype(np.float32),
            "action": rng.normal(size=(5, ACTION_DIM)).astype(np.float32),
            "next.success": np.array([False] * 4 + [number % 2 == 0]),
            **{camera: rng.integers(0, 256, (5, 56, 56, 3), dtype=np.uint8) for camera in CAMERAS},
        }
        for number in range(3)
    ]
    return write_dataset(tmp_path_factory.mktemp("data") / "d", episodes, ("push", "pull"))


@pytest.fixture
def dataset(root: Path, tmp_path: Path) -> ChunkDataset:
    return open_chunks(root, cache_dir=tmp_path / "cache", cameras=())


def request(dataset: ChunkDataset, **settings: object) -> ChunkRequest:
    cameras = check_fits(dataset, tiny_recipe("pi05"), CAMERAS, CAMERAS)
    base = ChunkRequest("0" * 8, tiny_recipe("pi05").to_json(), cameras, 2, 3, 2, 0, "torch.float32", 4)
    return replace(base, **settings)


def never() -> PiPolicy:
    raise AssertionError("the policy is loaded though nothing is missing")


class StoppedError(Exception):
    pass


def stops_after(num_batches: int) -> Callable[[], PiPolicy]:
    """A policy that is interrupted after some batches."""
    policy, sample = tiny_policy("pi05"), PiPolicy.sample
    left = [num_batches]

    def limited(*arguments: object, **settings: object) -> Tensor:
        if left[0] == 0:
            raise StoppedError
        left[0] -= 1
        return sample(policy, *arguments, **settings)  # type: ignore[arg-type]

    policy.sample = limited  # type: ignore[method-assign]
    return lambda: policy


def test_chunks_are_the_policys_whatever_the_batch(dataset: ChunkDataset) -> None:
    chunks = cached_chunks(dataset, request(dataset), lambda: tiny_policy("pi05"), silent)
    assert chunks.shape == (NUM_STARTS, 2, 3, ACTION_DIM)
    policy, table = tiny_policy("pi05"), dataset.table
    for row in (0, 7, 14):
        images = {
            name: torch.from_numpy(table.images(camera, np.array([row])))
            for name, camera in zip(("front", "wrist"), CAMERAS, strict=True)
        }
        assert table.state is not None
        observation = Observation(images, torch.from_numpy(table.state[[row]]), table.task_text(row))
        noise = np.random.default_rng([0, row]).standard_normal((1, 2, 10, 32), dtype=np.float32)
        expected = policy.sample(observation, 2, 2, noise=torch.from_numpy(noise))[0, :, :3]
        torch.testing.assert_close(torch.from_numpy(np.array(chunks[row])), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(chunks[:, 0] - chunks[:, 1]).max() > 1e-3  # the samples differ


def test_made_once(dataset: ChunkDataset) -> None:
    first = np.array(cached_chunks(dataset, request(dataset), lambda: tiny_policy("pi05"), silent))
    assert np.array_equal(cached_chunks(dataset, request(dataset, batch_size=5), never, silent), first)
    for change in ({"seed": 1}, {"fingerprint": "1"}, {"flow_steps": 3}, {"num_samples": 1}, {"horizon": 2}):
        assert request(dataset, **change).key() != request(dataset).key()


@pytest.mark.parametrize("num_batches", [0, 1, 3])
def test_interrupted_and_resumed(dataset: ChunkDataset, tmp_path: Path, num_batches: int) -> None:
    shown: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        shown.append(done)

    with pytest.raises(StoppedError):
        cached_chunks(dataset, request(dataset), stops_after(num_batches), silent)
    with pytest.raises(AssertionError):
        cached_chunks(dataset, request(dataset), never, silent)  # half of it is not taken for all
    resumed = cached_chunks(dataset, request(dataset), lambda: tiny_policy("pi05"), progress)
    assert shown[0] == 4 * num_batches
    assert shown[-1] == NUM_STARTS
    fresh = open_chunks(dataset.table.description.root, cache_dir=tmp_path / "other", cameras=())
    whole = cached_chunks(fresh, request(fresh), lambda: tiny_policy("pi05"), silent)
    assert np.array_equal(resumed, whole)


def killed_on_the_way(root: Path, cache: Path) -> None:
    """Runs in a process of its own: dies without any clean-up in its third batch."""
    dataset = open_chunks(root, cache_dir=cache, cameras=())
    policy, sample, left = tiny_policy("pi05"), PiPolicy.sample, [2]

    def dying(*arguments: object, **settings: object) -> Tensor:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return sample(policy, *arguments, **settings)  # type: ignore[arg-type]

    policy.sample = dying  # type: ignore[method-assign]
    cached_chunks(dataset, request(dataset), lambda: policy, silent)


def test_killed_and_resumed(root: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=killed_on_the_way, args=(root, tmp_path / "k")
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    shown: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        shown.append(done)

    found = []
    for cache, show in (("k", progress), ("whole", silent)):
        dataset = open_chunks(root, cache_dir=tmp_path / cache, cameras=())
        found.append(cached_chunks(dataset, request(dataset), lambda: tiny_policy("pi05"), show))
    assert shown[0] == 8
    assert np.array_equal(*found)


def test_chunks_that_are_not_finite_name_their_place(dataset: ChunkDataset) -> None:
    policy, sample = tiny_policy("pi05"), PiPolicy.sample

    def damaged(*arguments: object, **settings: object) -> Tensor:
        chunks = sample(policy, *arguments, **settings)  # type: ignore[arg-type]
        chunks[2] = torch.nan
        return chunks

    policy.sample = damaged  # type: ignore[method-assign]
    dataset.starts = dataset.starts[4:]  # rows 4, 5, 6: frame 1 of the second episode
    with pytest.raises(ChunkRLError, match="episode 1, frame 1 is NaN"):
        cached_chunks(dataset, request(dataset), lambda: policy, silent)


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"0123")
    before = fingerprint((tmp_path / "a",), silent)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint((tmp_path / "b",), silent) == before
    (tmp_path / "b" / "weights").write_bytes(b"0124")
    assert fingerprint((tmp_path / "b",), silent) != before
    (tmp_path / "a" / "weights").rename(tmp_path / "a" / "other")
    assert fingerprint((tmp_path / "a",), silent) != before


def test_policies_that_do_not_fit(root: Path, dataset: ChunkDataset) -> None:
    recipe = tiny_recipe("pi05")
    assert check_fits(dataset, recipe, CAMERAS[::-1], CAMERAS) == (
        ("front", CAMERAS[1]),
        ("wrist", CAMERAS[0]),
    )
    short = replace(recipe, config=replace(recipe.config, horizon=2))
    with pytest.raises(ChunkRLError, match=r"2 actions and --action-horizon is 3"):
        check_fits(dataset, short, CAMERAS, CAMERAS)
    with pytest.raises(ChunkRLError, match=r"6 action and 8 state values"):
        check_fits(dataset, tiny_recipe("pi05", action_dim=6), CAMERAS, CAMERAS)
    for cameras in (None, CAMERAS[:1], ("front", "top")):
        with pytest.raises(ChunkRLError, match=r"--pi0\.cameras"):
            check_fits(dataset, recipe, cameras, CAMERAS)


# ---- in place of the recorded chunks


def test_replaced_chunks_keep_reward_and_next_observation(root: Path, dataset: ChunkDataset) -> None:
    chunks = np.random.default_rng(1).normal(size=(NUM_STARTS, 3, ACTION_DIM)).astype(np.float32)
    recorded, digest = dataset.batch(np.arange(NUM_STARTS)), dataset.digest()
    dataset.replace_actions(chunks)
    dataset.action_source = "replace 1"
    replaced = dataset.batch(np.arange(NUM_STARTS))
    assert np.array_equal(replaced.actions.numpy(), chunks)
    assert bool(replaced.action_mask.all()) and not bool(recorded.action_mask.all())
    for name in ("reward", "discount", "covered_steps", "terminated", "critic_mask", "index"):
        assert torch.equal(getattr(replaced, name), getattr(recorded, name))
    assert dataset.digest() != digest  # a run on recorded chunks is not resumed on these
    with pytest.raises(ValueError, match="shape"):
        dataset.replace_actions(chunks[1:])


# ---- as candidates


def learner(dataset: ChunkDataset, **settings: Any) -> ChunkIQL:
    torch.manual_seed(0)
    config = IQLConfig(num_updates=2, **settings)
    return ChunkIQL(config, identity_factory(dataset), OPTIM, dataset, 0, CPU)


def parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_q_learns_from_the_recorded_chunk_only(dataset: ChunkDataset) -> None:
    learnt = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        dataset.attach("candidates", rng.normal(size=(NUM_STARTS, 2, 3, ACTION_DIM)).astype(np.float32))
        algorithm = learner(dataset)
        algorithm.update("joint", dataset.batch(np.arange(8)))
        learnt.append([parameters(m) for m in (algorithm.critic, algorithm.value, algorithm.policy)])
    (critic, value, policy), (critic_2, value_2, policy_2) = learnt
    assert torch.equal(critic, critic_2)
    assert not torch.equal(value, value_2)
    assert not torch.equal(policy, policy_2)


class SumOfActions(torch.nn.Module):
    """Q(x, A) = the sum of A's values, twice."""

    def forward_prepared(self, prepared: object, actions: Tensor) -> Tensor:
        return actions.sum(dim=(-1, -2)).expand(2, *actions.shape[:-2])


def test_targets_in_closed_form(dataset: ChunkDataset) -> None:
    rng = np.random.default_rng(0)
    candidates = rng.normal(size=(NUM_STARTS, 4, 3, ACTION_DIM)).astype(np.float32)
    dataset.attach("candidates", candidates)
    algorithm = learner(dataset)
    algorithm.target.networks = torch.nn.ModuleList([SumOfActions()])
    batch = dataset.batch(np.arange(NUM_STARTS))
    value = torch.linspace(-1, 1, NUM_STARTS)[None]
    chunks = np.concatenate([batch.actions.numpy()[:, None], candidates], axis=1)
    q = chunks.sum(axis=(2, 3))
    asked = torch.from_numpy(chunks)
    target = algorithm._target_q({}, asked)
    torch.testing.assert_close(target[0], torch.from_numpy(q).T)
    chosen, advantage = algorithm._policy_targets(value, target, asked, {}, batch)
    best = q.argmax(axis=1)
    assert 0 < (best > 0).sum() < NUM_STARTS  # both kinds are there
    assert np.array_equal(chosen.actions.numpy(), chunks[np.arange(NUM_STARTS), best])
    assert torch.equal(chosen.action_mask, batch.action_mask | torch.from_numpy(best > 0)[:, None])
    torch.testing.assert_close(advantage, torch.from_numpy(q.max(axis=1)) - value[0])
    error = q - value.numpy()[0][:, None]
    weighted = np.where(error < 0, 0.3, 0.7) * error**2
    loss, _ = algorithm._value_loss(value, target, {}, batch)
    assert float(loss) == pytest.approx(weighted[batch.critic_mask.numpy()].mean(), rel=1e-5)


def test_the_documents_value_takes_no_candidates(dataset: ChunkDataset) -> None:
    dataset.attach("candidates", np.zeros((NUM_STARTS, 1, 3, ACTION_DIM), dtype=np.float32))
    with pytest.raises(ChunkRLError, match="--objective iql"):
        DocumentObjective(DocumentConfig(), identity_factory(dataset), OPTIM, dataset, 0, CPU)


# ---- from the settings


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    save_pretrained(tiny_policy("pi05"), tmp_path / "bare")
    policy = load_pretrained(tmp_path / "bare", tokenizer=TOKENIZER)
    save_pretrained(policy, tmp_path / "checkpoints" / "tiny")
    return tmp_path / "checkpoints"


def config(root: Path, checkpoints: Path, pi0: PiChunkConfig, **settings: object) -> TrainConfig:
    base = TrainConfig(
        dataset_dir=str(root),
        output_dir=str(checkpoints.parent / "run"),
        action_horizon=3,
        batch_size=4,
        num_updates=3,
        num_folds=1,
        cameras=(),
        device="cpu",
        use_pi0_actions=True,
        pi0_config="tiny",
        pi0_checkpoints_dir=str(checkpoints),
        pi0=pi0,
    )
    return replace(base, **settings)


@pytest.mark.parametrize("use", ["replace", "candidates"])
def test_training_on_a_policys_chunks(
    root: Path, checkpoints: Path, use: PiUse, monkeypatch: pytest.MonkeyPatch
) -> None:
    pi0 = PiChunkConfig(use, num_candidates=2, cameras=CAMERAS, flow_steps=2)
    settings = config(root, checkpoints, pi0, objective="iql")
    run = ChunkLevelOfflineRL(settings)
    batch = run.dataset.batch(np.arange(3))
    if use == "candidates":
        assert batch.labels["candidates"].shape == (3, 2, 3, ACTION_DIM)
    else:
        assert bool(batch.action_mask.all())
    run.train()
    # the same settings find the chunks and load no policy; the run resumes on them
    monkeypatch.setattr(pi_chunks, "load_pretrained", lambda *_, **__: never())
    again = ChunkLevelOfflineRL(replace(settings, resume=settings.output_dir))
    assert torch.equal(again.dataset.batch(np.arange(3)).actions, batch.actions)
    again.train()


def test_settings_that_cannot_be_used(root: Path, checkpoints: Path) -> None:
    with pytest.raises(ChunkRLError, match="--objective iql"):
        ChunkLevelOfflineRL(config(root, checkpoints, PiChunkConfig("candidates")))
    with pytest.raises(CheckpointError, match="chunkrl download pi05_libero"):
        ChunkLevelOfflineRL(config(root, checkpoints, PiChunkConfig(), pi0_config="pi05_libero"))
    with pytest.raises(ChunkRLError, match=r"--pi0\.cameras"):
        ChunkLevelOfflineRL(config(root, checkpoints, PiChunkConfig()))
    shutil.copytree(checkpoints / "tiny", checkpoints / "bare")
    for file in ("chunkrl_pi.json", "config.json"):
        (checkpoints / "bare" / file).unlink()
    with pytest.raises(CheckpointError, match=r"give --pi0\.recipe"):
        ChunkLevelOfflineRL(config(root, checkpoints, PiChunkConfig(), pi0_config="bare"))


def test_the_tokenizer_is_missed_before_anything_is_read(
    dataset: ChunkDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "none"))
    save_pretrained(tiny_policy("pi05"), tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="chunkrl download tokenizer"):
        use_pi_chunks(dataset, tmp_path / "tiny", PiChunkConfig(cameras=CAMERAS), CPU, silent)
