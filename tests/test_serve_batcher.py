"""Chunks that are made together are those that each client would have alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import image_episodes, settings, write_dataset
from pi_tiny import observation as pi_observation
from pi_tiny import tiny_policy
from torch import Tensor

from chunkrl import ChunkLevelOfflineRL, load_policy
from chunkrl.errors import ChunkRLError, ObservationError
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.models.config import NetworkConfig, PolicyConfig
from chunkrl.models.pi.actor import PiActor
from chunkrl.serve.batcher import Answer, Batcher, BatchSettings, noise_seed
from chunkrl.types import Observation

ROWS = 6
FOREVER_S = 1e6


def trained(folder: Path, kind: Any) -> tuple[ActingPolicy, list[Observation]]:
    """A small policy and what robots see: two cameras, state and task."""
    episodes = image_episodes(ROWS)
    tasks = ("push the cup", "pull the cup")
    network = NetworkConfig(hidden_dim=8, num_layers=1, image_channels=(8,), text_dim=4)
    own: dict[str, Any] = {"network": network, "objective": "behaviour_cloning", "num_updates": 2}
    run = ChunkLevelOfflineRL(
        **settings(
            write_dataset(folder / "data", episodes, tasks), folder / "run", policy=PolicyConfig(kind), **own
        )
    )
    run.train()
    policy = load_policy(folder / "run" / "policy")
    seen = [
        Observation({name: e[name][0] for name in policy.cameras}, e["observation.state"][0], tasks[i % 2])  # type: ignore[arg-type]
        for i, e in enumerate(episodes)
    ]
    return policy, seen


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActingPolicy, list[Observation]]:
    return trained(tmp_path_factory.mktemp("gaussian"), "gaussian")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActingPolicy, list[Observation]]:
    return trained(tmp_path_factory.mktemp("flow"), "flow")


@pytest.fixture(scope="module")
def pi() -> tuple[ActingPolicy, list[Observation]]:
    batch = pi_observation(ROWS, tasks=("push the red cup", "pull") * (ROWS // 2))
    rows = [replace(batch.map(lambda tensor, i=i: tensor[i]), task=batch.task[i]) for i in range(ROWS)]
    return PiActor(tiny_policy("pi05")), rows


def ask(policy: ActingPolicy, how: BatchSettings, *asked: tuple[Observation, int]) -> list[Any]:
    """What each gets, all of them waiting when the policy begins: answers, or what is raised."""

    async def all_of_them() -> list[Any]:
        batcher = Batcher(policy, how, lambda: len(asked))
        waiting = [asyncio.create_task(batcher.ask(*each)) for each in asked]
        task = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*waiting, return_exceptions=True)
        task.cancel()
        return found

    return asyncio.run(all_of_them())


def alone(policy: ActingPolicy, observation: Observation, seed: int, mode: Any) -> np.ndarray:
    with torch.inference_mode():
        return policy.act(observation, [torch.Generator().manual_seed(seed)], mode).float().numpy()


@pytest.mark.parametrize("mode", ["mode", "sample"])
@pytest.mark.parametrize("kind", ["gaussian", "flow", "pi"])
def test_together_or_not_the_chunk_is_the_clients_own(
    kind: str, mode: Any, request: pytest.FixtureRequest
) -> None:
    """One after another to the bit; in one forward pass within 1e-5, as matrix products round by their rows."""
    policy, seen = request.getfixturevalue(kind)
    asked = [(observation, seed) for seed, observation in enumerate(seen)]
    expected = [alone(policy, *each, mode) for each in asked]
    assert not any(np.array_equal(expected[0], chunk) for chunk in expected[1:])
    apart = ask(policy, BatchSettings(mode, together=False, wait_s=FOREVER_S), *asked)
    assert [answer.num_rows for answer in apart] == [1] * ROWS
    assert all(np.array_equal(answer.actions, chunk) for answer, chunk in zip(apart, expected, strict=True))
    together = ask(policy, BatchSettings(mode, together=True, wait_s=FOREVER_S), *asked)
    assert [answer.num_rows for answer in together] == [ROWS] * ROWS
    for answer, chunk in zip(together, expected, strict=True):
        assert answer.actions.dtype == np.float32 and answer.actions.shape == chunk.shape
        assert np.abs(answer.actions - chunk).max() <= 1e-5


def test_what_has_another_form_is_another_pass(gaussian: tuple[ActingPolicy, list[Observation]]) -> None:
    policy, seen = gaussian
    first = next(iter(seen[0].images))
    transposed = replace(seen[1], images={n: p.transpose(2, 0, 1) for n, p in seen[1].images.items()})  # type: ignore[call-arg]
    wrong = replace(seen[2], images={**seen[2].images, first: seen[2].images[first] / 255})
    state = np.array(seen[3].state)
    lost = replace(seen[3], state=np.full_like(state, np.nan))  # type: ignore[arg-type]
    found = ask(
        policy, BatchSettings(wait_s=FOREVER_S), *((o, 0) for o in (seen[0], transposed, wrong, lost))
    )
    assert [type(one) for one in found] == [Answer, Answer, ObservationError, ObservationError]
    assert found[0].num_rows == found[1].num_rows == 2  # channels first or last are one form
    assert "values 0 to 1" in str(found[2]) and "NaN" in str(found[3])


class Moody:
    """Fails where a row's state is 13, gives NaN where it is 7; `rows`: of each pass."""

    def __init__(self, policy: ActingPolicy) -> None:
        self.takes, self.rows = policy.takes, []

    def act(self, observation: Observation, generators: Any, mode: Any, num_candidates: int) -> Tensor:
        state = observation.state
        assert state is not None
        self.rows.append(len(state))
        if (state == 13).any():
            raise RuntimeError("unlucky")
        return torch.where(state[:, :1, None] == 7, torch.nan, state[:, :1, None].expand(-1, 3, 2))


def test_the_one_at_fault_fails_alone(gaussian: tuple[ActingPolicy, list[Observation]]) -> None:
    policy, seen = gaussian
    moody: Any = Moody(policy)

    def with_state(value: float) -> Observation:
        return replace(seen[0], state=np.full_like(np.array(seen[0].state), value))  # type: ignore[arg-type]

    asked = [(with_state(value), 0) for value in (1, 13, 2, 7)]
    good, failed, other, infinite = ask(moody, BatchSettings(wait_s=FOREVER_S), *asked)
    assert moody.rows == [4, 1, 1, 1, 1]
    assert (good.actions == 1).all() and (other.actions == 2).all()
    assert type(failed) is RuntimeError
    assert type(infinite) is ChunkRLError and "NaN or infinite" in str(infinite)


def test_nobody_waits_for_clients_that_are_not_there(
    gaussian: tuple[ActingPolicy, list[Observation]],
) -> None:
    """`ask` says that as many clients are there as ask: with a wait of days it would not end otherwise. A full batch
    waits for nobody either."""
    policy, seen = gaussian
    (answer,) = ask(policy, BatchSettings(wait_s=FOREVER_S), (seen[0], 0))
    assert answer.num_rows == 1

    async def two_of_many() -> list[Answer]:
        batcher = Batcher(policy, BatchSettings(size=2, wait_s=FOREVER_S), lambda: 99)
        task = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*(batcher.ask(observation, 0) for observation in seen[:4]))
        task.cancel()
        return found

    assert [answer.num_rows for answer in asyncio.run(two_of_many())] == [2, 2, 2, 2]


def test_who_is_gone_is_not_answered(gaussian: tuple[ActingPolicy, list[Observation]]) -> None:
    policy, seen = gaussian
    counted: Any = Moody(policy)

    async def one_leaves() -> Answer:
        batcher = Batcher(counted, BatchSettings(wait_s=FOREVER_S), lambda: 2)
        leaving, staying = (asyncio.create_task(batcher.ask(observation, 0)) for observation in seen[:2])
        await asyncio.sleep(0)  # both ask
        leaving.cancel()
        await asyncio.sleep(0)
        task = asyncio.create_task(batcher.run())
        answer = await staying
        task.cancel()
        return answer

    assert asyncio.run(one_leaves()).num_rows == 1
    assert counted.rows == [1]


def test_noise_is_a_clients_own() -> None:
    seeds = {noise_seed(*place) for place in np.ndindex(3, 5, 7)}
    assert len(seeds) == 3 * 5 * 7 and all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seed(1, 2, 3) == noise_seed(1, 2, 3)
