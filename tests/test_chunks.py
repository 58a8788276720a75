"""Chunk semantics: closed forms, and a slow loop that follows the document."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import episode, open_chunks, random_episodes, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chunkrl.data.chunk_semantics import chunk_reward, chunk_steps, cut_segments
from chunkrl.data.hold_action import HoldAction
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.loader import ChunkLoader
from chunkrl.errors import DatasetError
from chunkrl.types import ChunkTransition, Observation


def counting(length: int, first: int, **columns: np.ndarray) -> dict[str, np.ndarray]:
    """An episode whose state and first action value are the row's number in the data set."""
    rows = np.arange(first, first + length, dtype=np.float32)
    zeros = np.zeros_like(rows)
    return {
        "observation.state": rows[:, None],
        "action": np.stack([rows, 10 + rows], axis=1),
        "next.reward": zeros,
        "next.success": zeros.astype(bool),
    } | columns


def flags(length: int, *at: int) -> np.ndarray:
    found = np.zeros(length, dtype=bool)
    found[list(at)] = True
    return found


@pytest.fixture(scope="module")
def two_episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows 0 to 4: success at the last action. Rows 5 to 9: time ran out."""
    root = tmp_path_factory.mktemp("data") / "two"
    reward = np.array([1, 2, 3, 4, 5], dtype=np.float32)
    good = counting(5, 0, **{"next.success": flags(5, 4), "next.reward": reward})
    return write_dataset(root, [good, counting(5, 5, **{"next.reward": reward})])


def rows_of(observation: Observation) -> list[int]:
    assert observation.state is not None
    return observation.state[:, 0].int().tolist()


def test_terminal_and_time_out_closed_form(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes, horizon=3, gamma=0.5)
    assert len(dataset) == 10  # every frame is a start
    batch = dataset.batch(np.arange(10))
    # a success: k = min(H, T - t); its chunks that hold the last action have terminated
    # a time-out: no observation after the last action is stored, so k = min(H, T - 1 - t)
    assert batch.covered_steps.tolist() == [3, 3, 3, 2, 1, 3, 3, 2, 1, 0]
    assert batch.terminated.tolist() == [False, False, True, True, True] + [False] * 5
    assert batch.truncated.tolist() == [False] * 5 + [False, False, True, True, True]
    assert batch.discount.tolist() == [0.125, 0.125, 0, 0, 0, 0.125, 0.125, 0.25, 0.5, 1.0]
    assert batch.critic_mask.tolist() == [True] * 9 + [False]
    assert rows_of(batch.observation) == list(range(10))
    # x' of a terminated chunk is multiplied by 0; the others stand k frames later
    assert rows_of(batch.next_observation) == [3, 4, 4, 4, 4, 8, 9, 9, 9, 9]
    assert batch.action_mask.sum(1).tolist() == [3, 3, 3, 2, 1, 3, 3, 3, 2, 1]
    assert batch.reward.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert batch.episode_index.tolist() == [0] * 5 + [1] * 5
    assert batch.frame_index.tolist() == [0, 1, 2, 3, 4] * 2
    assert dataset.success.tolist() == [True] * 5 + [False] * 5


def test_sum_of_rewards_counts_the_critics_steps(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes, horizon=3, gamma=0.5, reward="sum")
    reward = dataset.batch(np.arange(10)).reward.tolist()
    assert reward[:5] == [1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2 + 1.25, 4 + 2.5, 5]
    # the last action of a time-out is in no reward: what it led to is not stored
    assert reward[5:] == [1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2, 4, 0]


def test_critic_horizon_shorter_than_the_chunk(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes, horizon=3, gamma=0.5, reward="sum", critic_horizon=2)
    batch = dataset.batch(np.arange(10))
    # rows 0 to 4 end in success, 5 to 9 in a time-out; k = min(2, what is left)
    assert batch.covered_steps.tolist() == [2, 2, 2, 2, 1, 2, 2, 2, 1, 0]
    assert batch.terminated.tolist() == [False, False, False, True, True] + [False] * 5
    assert batch.truncated.tolist() == [False] * 8 + [True, True]
    assert batch.discount.tolist() == [0.25, 0.25, 0.25, 0, 0, 0.25, 0.25, 0.25, 0.5, 1.0]
    assert batch.reward.tolist() == [2, 3.5, 5, 6.5, 5, 2, 3.5, 5, 4, 0]
    assert batch.critic_mask.tolist() == [True] * 9 + [False]
    assert rows_of(batch.next_observation) == [2, 3, 4, 4, 4, 7, 8, 9, 9, 9]
    _policy_is_as_without(two_episodes, batch)


def test_critic_horizon_longer_than_the_chunk(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes, horizon=3, gamma=0.5, reward="sum", critic_horizon=4)
    batch = dataset.batch(np.arange(10))
    assert batch.covered_steps.tolist() == [4, 4, 3, 2, 1, 4, 3, 2, 1, 0]
    assert batch.terminated.tolist() == [False, True, True, True, True] + [False] * 5
    assert batch.truncated.tolist() == [False] * 6 + [True] * 4
    assert batch.discount.tolist() == [1 / 16, 0, 0, 0, 0, 1 / 16, 0.125, 0.25, 0.5, 1.0]
    reward = batch.reward.tolist()
    assert reward[:5] == [1 + 1 + 0.75 + 0.5, 2 + 1.5 + 1 + 0.625, 3 + 2 + 1.25, 4 + 2.5, 5]
    assert reward[5:] == [1 + 1 + 0.75 + 0.5, 2 + 1.5 + 1, 3 + 2, 4, 0]
    assert rows_of(batch.next_observation) == [4, 4, 4, 4, 4, 9, 9, 9, 9, 9]
    _policy_is_as_without(two_episodes, batch)
    # beyond every episode: each chunk is credited with all that followed it
    endless = open_chunks(two_episodes, horizon=3, gamma=1.0, reward="sum", critic_horizon=99)
    assert endless.batch(np.arange(10)).reward.tolist() == [15, 14, 12, 9, 5, 10, 9, 7, 4, 0]
    with pytest.raises(DatasetError, match="critic_horizon is 0"):
        open_chunks(two_episodes, critic_horizon=0)


def _policy_is_as_without(root: Path, batch: ChunkTransition) -> None:
    plain = open_chunks(root, horizon=3).batch(batch.index.numpy())
    assert torch.equal(batch.actions, plain.actions)
    assert torch.equal(batch.action_mask, plain.action_mask)


def test_never_bootstraps_from_itself(two_episodes: Path) -> None:
    for horizon in (1, 2, 5):
        batch = open_chunks(two_episodes, horizon=horizon).batch(np.arange(10))
        itself = np.array(rows_of(batch.observation)) == np.array(rows_of(batch.next_observation))
        bootstraps = (batch.critic_mask & (batch.discount > 0)).numpy()
        assert not (itself & bootstraps).any()
        assert (batch.covered_steps.numpy() == 0).sum() == 1  # the time-out's last frame alone


def test_horizon_one(two_episodes: Path) -> None:
    batch = open_chunks(two_episodes, horizon=1, gamma=0.5).batch(np.arange(10))
    assert batch.covered_steps.tolist() == [1] * 9 + [0]
    assert batch.action_mask.all()
    assert batch.discount.tolist() == [0.5] * 4 + [0] + [0.5] * 4 + [1.0]
    assert rows_of(batch.next_observation) == [1, 2, 3, 4, 4, 6, 7, 8, 9, 9]


def test_horizon_longer_than_one_episode_but_not_all(tmp_path: Path) -> None:
    short = counting(2, 0, **{"next.success": flags(2, 1)})
    root = write_dataset(tmp_path / "d", [short, counting(5, 2)])
    batch = open_chunks(root, horizon=5, gamma=0.5).batch(np.arange(7))
    assert batch.covered_steps.tolist() == [2, 1, 4, 3, 2, 1, 0]
    assert batch.action_mask.sum(1).tolist() == [2, 1, 5, 4, 3, 2, 1]
    assert batch.terminated.tolist() == [True, True] + [False] * 5
    with pytest.raises(DatasetError, match=r"longer than every episode .*longest: 5 frames.*shorter horizon"):
        open_chunks(root, horizon=6)


def test_episodes_never_mix(two_episodes: Path) -> None:
    for horizon in (1, 3, 5):
        batch = open_chunks(two_episodes, horizon=horizon).batch(np.arange(10))
        first = batch.actions[..., 0]
        real = torch.where(batch.action_mask, first, first[:, :1])
        assert ((real >= 5) == (batch.episode_index == 1)[:, None]).all()
        next_rows = np.array(rows_of(batch.next_observation))
        assert ((next_rows >= 5) == (batch.episode_index.numpy() == 1)).all()


@pytest.mark.parametrize(
    ("hold", "padding"),
    [
        (HoldAction("delta", (-1,)), [0.0, 14.0]),
        (HoldAction("delta", ()), [0.0, 0.0]),
        (HoldAction("delta", (0,)), [4.0, 0.0]),
        (HoldAction("absolute"), [4.0, 14.0]),
    ],
)
def test_padding_holds_the_last_action(two_episodes: Path, hold: HoldAction, padding: list[float]) -> None:
    batch = open_chunks(two_episodes, horizon=3, hold=hold).batch(np.array([3, 4]))
    assert batch.actions[0].tolist() == [[3, 13], [4, 14], padding]
    assert batch.actions[1].tolist() == [[4, 14], padding, padding]
    assert batch.action_mask.tolist() == [[True, True, False], [True, False, False]]


def test_gripper_outside_the_action_is_refused(two_episodes: Path) -> None:
    with pytest.raises(DatasetError, match=r"gripper_dims .*\b7\b.* 2 values"):
        open_chunks(two_episodes, hold=HoldAction("delta", (7,)))


def test_frames_after_a_success_are_a_segment_of_their_own(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", [counting(6, 0, **{"next.success": flags(6, 2)})])
    dataset = open_chunks(root, horizon=3, gamma=0.5)
    batch = dataset.batch(np.arange(6))
    assert batch.covered_steps.tolist() == [3, 2, 1, 2, 1, 0]
    assert batch.terminated.tolist() == [True, True, True, False, False, False]
    assert batch.reward.tolist() == [1, 1, 1, 0, 0, 0]  # one success is counted once
    assert rows_of(batch.next_observation)[3:] == [5, 5, 5]
    assert batch.action_mask.sum(1).tolist() == [3, 2, 1, 3, 2, 1]
    assert dataset.frame_labels.after_success.tolist() == [False] * 3 + [True] * 3


def test_failure_declared_terminal_does_not_bootstrap(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes, horizon=3, gamma=0.5, labels=LabelRule(failure_terminal=True))
    batch = dataset.batch(np.arange(5, 10))
    assert batch.covered_steps.tolist() == [3, 3, 3, 2, 1]
    assert batch.discount.tolist() == [0.125, 0.125, 0, 0, 0]
    assert batch.reward.tolist() == [0.0] * 5
    assert batch.critic_mask.all()


def test_item_equals_batch_row(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes, horizon=3)
    dataset.attach("weight", np.arange(10, dtype=np.float32))
    batch = dataset.batch(np.arange(10))
    for row in (0, 4, 9, -1):
        item = dataset[row]
        for field in fields(item):
            ours, theirs = getattr(item, field.name), getattr(batch, field.name)
            if isinstance(ours, Tensor):
                assert torch.equal(ours, theirs[row]), field.name
        assert item.observation.task == "push"
        assert item.observation.state is not None and batch.observation.state is not None
        assert torch.equal(item.observation.state, batch.observation.state[row])
        assert item.labels["weight"] == row % 10
    with pytest.raises(IndexError):
        dataset[10]


def test_chosen_episodes_alone_start_chunks(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes, horizon=2, episodes=[1])
    assert len(dataset) == 5
    assert dataset.batch(np.arange(5)).episode_index.tolist() == [1] * 5
    assert dataset[0].frame_index == 0
    with pytest.raises(DatasetError, match=r"no episode .*\[2\].*has 2"):
        open_chunks(two_episodes, episodes=[2])


def test_settings_out_of_range(two_episodes: Path) -> None:
    for bad in ({"horizon": 0}, {"gamma": 0.0}, {"gamma": 1.5}, {"reward": "mean"}):
        with pytest.raises(DatasetError):
            open_chunks(two_episodes, **bad)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"no camera 'top'"):
        open_chunks(two_episodes, cameras=["top"])


def test_loader_is_a_function_of_seed_and_update(two_episodes: Path) -> None:
    dataset = open_chunks(two_episodes)
    loader = ChunkLoader(dataset, 3, seed=1)
    assert loader.updates_per_epoch == 3
    drawn = [loader.batch(update).index.tolist() for update in range(6)]
    again = ChunkLoader(dataset, 3, seed=1)
    assert [again.batch(update).index.tolist() for update in (5, 0, 3)] == [drawn[5], drawn[0], drawn[3]]
    epoch = {index for batch in drawn[:3] for index in batch}
    assert len(epoch) == 9  # one pass draws nothing twice
    assert ChunkLoader(dataset, 3, seed=2).batch(0).index.tolist() != drawn[0]
    subset = ChunkLoader(dataset, 64, seed=0, subset=[2, 4])
    assert sorted(subset.batch(0).index.tolist()) == [2, 4]  # a smaller data set gives smaller batches


def slow_chunk(
    start: int, horizon: int, gamma: float, kind: str, data: dict[str, np.ndarray], ends: list[int]
) -> dict[str, Any]:
    """One transition by a loop over its steps. ends: the last row of the start's episode."""
    last = ends[start]
    mask, reward, powers, subgoal = [], 0.0, 0, False
    terminated = reached_end = False
    for i in range(horizon):
        row = start + i
        inside = row <= last and not terminated
        mask.append(inside)
        if not inside:
            continue
        ended = bool(data["terminated"][row])
        if row == last and not ended:
            reached_end = True  # what this action led to was not stored
            continue
        reward += gamma**powers * float(data["reward"][row])
        subgoal = subgoal or bool(data["subgoal"][row])
        powers += 1
        terminated = ended
    return {
        "action_mask": mask,
        "covered_steps": powers,
        "reward": float(subgoal) if kind == "any" else reward,
        "discount": 0.0 if terminated else gamma**powers,
        "terminated": terminated,
        "truncated": reached_end,
        "next_row": start if terminated else start + powers,
    }


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[int], dict[str, np.ndarray]]:
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    num = sum(lengths)
    terminated = draw(st.lists(st.booleans(), min_size=num, max_size=num))
    subgoal = draw(st.lists(st.booleans(), min_size=num, max_size=num))
    reward = draw(st.lists(st.integers(-2, 2), min_size=num, max_size=num))
    data = {"terminated": np.array(terminated), "subgoal": np.array(subgoal)}
    return lengths, data | {"reward": np.array(reward, dtype=np.float32)}


@settings(max_examples=150)
@given(recordings(), st.integers(1, 9), st.sampled_from([0.5, 0.9, 1.0]))
def test_property_against_the_slow_loop(
    recording: tuple[list[int], dict[str, np.ndarray]], horizon: int, gamma: float
) -> None:
    lengths, data = recording
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    segments = cut_segments(data["terminated"], starts, np.array(lengths))
    rows = np.arange(sum(lengths))
    steps = chunk_steps(rows, horizon, segments)
    ends = np.repeat(starts + np.array(lengths) - 1, lengths).tolist()
    for kind in ("any", "sum"):
        reward = chunk_reward(kind, steps, data["reward"], data["subgoal"], gamma)
        for row in rows:
            slow = slow_chunk(int(row), horizon, gamma, kind, data, ends)
            assert steps.action_mask[row].tolist() == slow["action_mask"]
            assert steps.covered_steps[row] == slow["covered_steps"]
            assert steps.terminated[row] == slow["terminated"]
            assert steps.truncated[row] == slow["truncated"]
            assert reward[row] == pytest.approx(slow["reward"], abs=1e-5)
            if not slow["terminated"]:
                assert steps.next_row[row] == slow["next_row"]


def test_batch_follows_the_slow_loop(tmp_path: Path) -> None:
    episodes = random_episodes(5)
    rng = np.random.default_rng(1)
    episodes.append(episode(6, False, rng, **{"next.success": flags(6, 1)}))
    dataset = open_chunks(write_dataset(tmp_path / "d", episodes), horizon=4, gamma=0.8)
    labels, table = dataset.frame_labels, dataset.table
    data = {"terminated": labels.terminated, "subgoal": labels.subgoal, "reward": labels.reward}
    ends = np.repeat(table.episode_start + table.episode_length - 1, table.episode_length).tolist()
    batch = dataset.batch(np.arange(len(dataset)))
    for row in range(len(dataset)):
        slow = slow_chunk(row, 4, 0.8, "any", data, ends)
        assert batch.discount[row].item() == pytest.approx(slow["discount"])
        assert batch.reward[row].item() == slow["reward"]
        assert batch.critic_mask[row].item() == (slow["covered_steps"] > 0)
        for i, real in enumerate(slow["action_mask"]):
            if real:
                assert batch.actions[row, i].tolist() == table.action[row + i].tolist()
