"""Action encodings: closed forms, inverses, chunks and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chunk_data import episode, open_chunks, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.data import chunk_statistics, normalize
from chunkrl.data.action_encoding import ActionEncoding, EncodingKind
from chunkrl.data.chunk_settings import ColumnMapping
from chunkrl.data.hold_action import HoldAction
from chunkrl.data.label_rules import LabelRule
from chunkrl.data.normalize import compute_statistics
from chunkrl.errors import DatasetError

ABSOLUTE = HoldAction("absolute")


def test_closed_form() -> None:
    actions = torch.tensor([[1.0, 10, 5], [2, 30, 6], [4, 60, 7]])
    state = torch.tensor([0.5, 100.0, 9.0, -1.0])
    relative = ActionEncoding("relative", (0, 1), (3, 1)).encode(actions, state)
    assert relative.tolist() == [[2, -90, 5], [3, -70, 6], [5, -40, 7]]
    delta = ActionEncoding("delta", (0, 1), (3, 1)).encode(actions, state)
    assert delta.tolist() == [[2, -90, 5], [1, 20, 6], [2, 30, 7]]
    assert ActionEncoding().encode(actions, None) is actions


@settings(max_examples=60)
@given(
    st.sampled_from(["absolute", "delta", "relative"]),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 99),
    st.booleans(),
)
def test_decoding_inverts_encoding(kind: EncodingKind, horizon: int, dim: int, seed: int, some: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(2, 3, horizon, dim, generator=generator)
    state = torch.randn(2, 1, dim + 2, generator=generator).expand(2, 3, dim + 2)
    before = actions.clone()
    dims = tuple(torch.randperm(dim, generator=generator)[: max(1, dim - 1)].tolist())
    encoding = ActionEncoding(kind, dims, tuple(d + 2 for d in dims)) if some else ActionEncoding(kind)
    encoded = encoding.encode(actions, state)
    torch.testing.assert_close(encoding.decode(encoded, state), actions, rtol=1e-5, atol=1e-5)
    assert torch.equal(actions, before)
    untouched = [d for d in range(dim) if some and d not in dims]
    assert torch.equal(encoded[..., untouched], actions[..., untouched])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return write_dataset(tmp_path / "set", [episode(n, True, rng) for n in (5, 3)])


@pytest.mark.parametrize("kind", ["delta", "relative"])
def test_chunks_are_encoded_after_padding(dataset: Path, kind: EncodingKind) -> None:
    plain = open_chunks(dataset, hold=ABSOLUTE)
    encoded = open_chunks(dataset, hold=ABSOLUTE, encoding=ActionEncoding(kind))
    index = np.arange(len(plain))
    a, b = plain.batch(index), encoded.batch(index)
    torch.testing.assert_close(
        encoded.encoding.decode(b.actions, b.observation.state), a.actions, rtol=1e-5, atol=1e-6
    )
    if kind == "delta":  # the hold action moves nothing
        assert not b.actions[~b.action_mask].any()
    assert torch.equal(encoded[3].actions, b.actions[3])


def test_statistics_are_of_what_batches_carry(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = open_chunks(dataset)
    np.testing.assert_array_equal(plain.action_statistics().mean, compute_statistics(plain.table.action).mean)
    encoded = open_chunks(dataset, hold=ABSOLUTE, encoding=ActionEncoding("relative"))
    batch = encoded.batch(np.arange(len(encoded)))
    real = batch.actions[batch.action_mask].numpy()
    monkeypatch.setattr("chunkrl.data.chunk_statistics.BLOCK_STARTS", 3)
    found = encoded.action_statistics()
    np.testing.assert_allclose(found.mean, real.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.std, real.std(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.max, real.max(axis=0))
    assert found.count == len(real)


def test_statistics_are_kept_for_what_they_are_of(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta, relative = (ActionEncoding(kind) for kind in ("delta", "relative"))
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"encoding": delta},
        {"encoding": relative},
        {"encoding": ActionEncoding("relative", (1,), (0,))},
        {"encoding": relative, "horizon": 2},
        {"encoding": relative, "episodes": [1]},
        {"encoding": relative, "mapping": ColumnMapping(state_key=("action",))},
    )

    def means() -> list[np.ndarray]:
        opened = [open_chunks(dataset, hold=ABSOLUTE, **variant) for variant in variants]
        return [np.concatenate([d.action_statistics().mean, d.state_statistics().mean]) for d in opened]

    first = means()
    assert len({mean.tobytes() for mean in first}) == len(variants)
    monkeypatch.setattr(normalize, "compute_statistics", None)
    monkeypatch.setattr(chunk_statistics, "compute_statistics", None)
    for mean, again in zip(first, means(), strict=True):
        np.testing.assert_array_equal(mean, again)


def test_statistics_of_other_labels_are_others(dataset: Path) -> None:
    cut = [episode(6, True, np.random.default_rng(1)) | {"next.success": np.arange(6) == 2}]
    split = write_dataset(dataset.parent / "cut", cut)
    relative = ActionEncoding("relative")
    # a success in the middle ends chunks there; with --success all they go on to the episode's end
    counts = [
        open_chunks(split, hold=ABSOLUTE, encoding=relative, labels=LabelRule(success=rule))
        .action_statistics()
        .count
        for rule in ("auto", "all")
    ]
    assert counts == [2 * (3 + 2 + 1), 4 * 3 + 2 + 1]


def test_what_does_not_fit_is_refused(dataset: Path) -> None:
    def refused(match: str, hold: HoldAction = ABSOLUTE, **encoding: object) -> None:
        with pytest.raises(DatasetError, match=match):
            open_chunks(dataset, 2, hold=hold, encoding=ActionEncoding(**encoding))  # type: ignore[arg-type]

    refused("use one of", kind="other")
    refused("pair up", kind="delta", action_dims=(0,), state_dims=(0, 1))
    refused("pair up", kind="delta", state_dims=(0,))
    refused(r"states have 3", kind="delta", action_dims=(0,), state_dims=(3,))
    refused(r"2 values", kind="relative", action_dims=(0, 0))
    refused(r"2 values", kind="relative", action_dims=(2,))
    refused("hold.control absolute", kind="relative", hold=HoldAction())
    with pytest.raises(DatasetError, match="needs a state"):
        ActionEncoding("delta").encode(torch.zeros(1, 2), None)
