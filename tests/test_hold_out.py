"""Episodes that nothing is trained on: which they are, and that no network, statistic or label of a run sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chunk_data import open_chunks, random_episodes, settings, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from chunkrl import ChunkLevelOfflineRL
from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.chunk_settings import FrameSettings
from chunkrl.data.formats import without
from chunkrl.data.hold_out import held_out_episodes, held_out_places, split
from chunkrl.data.label_rules import LabelRule
from chunkrl.errors import ChunkRLError, DatasetError
from chunkrl.progress import silent


def test_one_of_every_five_is_held_out() -> None:
    places = held_out_places(100, 0.2)
    assert (places // 5).tolist() == list(range(20))
    assert len(set((places % 5).tolist())) == 5  # not always the same one: sources may take turns


@given(st.integers(1, 60), st.integers(0, 40), st.floats(0.01, 0.99))
def test_what_is_held_out_stays_while_data_grow(num: int, more: int, part: float) -> None:
    places = held_out_places(num, part)
    assert abs(len(places) - num * part) < 2
    assert (np.diff(places) > 0).all() and (places < num).all()
    later = held_out_places(num + more, part)
    assert later[later < num].tolist() == places.tolist()


def episodes_of(data: ChunkDataset) -> list[int]:
    return data.table.episode_ids.tolist()


def sides(root: Path, part: float, labels: LabelRule = LabelRule()) -> tuple[ChunkDataset, ChunkDataset]:
    chunks = ChunkSettings(3, labels=labels, frames=FrameSettings(held_out=part))
    trained, held = (ChunkDataset(root, chunks, held_out=side, progress=silent) for side in (False, True))
    return trained, held


def test_the_two_sides_are_the_data_set(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(10))
    trained, held = sides(root, 0.2)
    assert episodes_of(held) == held_out_places(10, 0.2).tolist()
    assert sorted(episodes_of(trained) + episodes_of(held)) == list(range(10))
    whole = open_chunks(root)
    for side in (trained, held):
        assert side.table.description.whole_fingerprint == whole.fingerprint != side.fingerprint
        rows = np.isin(whole.table.episode_of(np.arange(whole.num_frames)), episodes_of(side))
        np.testing.assert_array_equal(side.table.action, whole.table.action[rows])
        np.testing.assert_array_equal(
            side.frame_labels.success, whole.frame_labels.success[episodes_of(side)]
        )
    assert trained.fingerprint != held.fingerprint


def test_setting_an_episode_aside_moves_no_other(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(10))
    whole = open_chunks(root).table.description
    for bad in range(10):
        held = {episode.index for episode in split(without(whole, frozenset([bad])), 0.2, True).episodes}
        assert held == set(held_out_places(10, 0.2).tolist()) - {bad}
        assert held == held_out_episodes(without(whole, frozenset([bad])), 0.2)


@pytest.mark.parametrize("part", [-0.1, 1.0, float("nan")])
def test_other_parts_are_refused(tmp_path: Path, part: float) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(3))
    with pytest.raises(DatasetError, match="0 or more and below 1"):
        open_chunks(root, frames=FrameSettings(held_out=part))


def test_both_sides_need_an_episode(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(1))
    assert held_out_places(1, 0.9).tolist() == [0]
    with pytest.raises(DatasetError, match=r"--held-out 0.9 leaves no episode of 1 to train on"):
        open_chunks(root, frames=FrameSettings(held_out=0.9))
    with pytest.raises(DatasetError, match="no episode is held out of 1"):
        ChunkDataset(root, ChunkSettings(3), held_out=True, progress=silent)


def test_lists_of_successes_name_episodes_of_both_sides(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(10))
    (tmp_path / "list.txt").write_text("\n".join(str(number) for number in range(0, 10, 3)))
    for side in sides(root, 0.2, LabelRule(success_file=str(tmp_path / "list.txt"))):
        assert side.frame_labels.success.tolist() == [number % 3 == 0 for number in episodes_of(side)]
        assert side.frame_labels.rule.success_episodes == (0, 3, 6, 9)
    with pytest.raises(DatasetError, match=r"no episodes \[12\]"):
        sides(root, 0.2, LabelRule(success="episodes", success_episodes=(0, 12)))


def test_training_is_the_same_whatever_is_held_out(tmp_path: Path) -> None:
    episodes = random_episodes(10)
    first = write_dataset(tmp_path / "first", episodes)
    for place in held_out_places(10, 0.2):
        other = random_episodes(1, seed=100 + place, lengths=(12, 13))[0]
        episodes[place] = other | {"action": 50 * other["action"]}
    second = write_dataset(tmp_path / "second", episodes)
    found = [
        ChunkLevelOfflineRL(**settings(root, tmp_path / f"run-{root.name}", held_out=0.2))
        for root in (first, second)
    ]
    states = [run.train().policy.state_dict() for run in found]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert [len(run.dataset) for run in found] == [len(sides(first, 0.2)[0])] * 2
    plain = ChunkLevelOfflineRL(**settings(first, tmp_path / "plain")).train().policy.state_dict()
    assert any((plain[name] != states[0][name]).any() for name in plain)


def test_values_of_other_episodes_are_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", random_episodes(10))
    ChunkLevelOfflineRL(**settings(root, tmp_path / "values", objective="value")).train()
    with pytest.raises(ChunkRLError, match=r"not of these 8 episodes of it: .*--held-out.*the same ones"):
        ChunkLevelOfflineRL(**settings(root, tmp_path / "run", values=str(tmp_path / "values"), held_out=0.2))
