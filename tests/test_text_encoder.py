"""Texts in small networks: each distinct one is encoded once, as if it were alone."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from chunkrl.data.normalize import Normalizer
from chunkrl.models.config import NetworkConfig
from chunkrl.models.encoders import TEXT_ROWS, ObservationEncoder, ObservationSpec, text_blocks, word_ids
from chunkrl.types import Observation

CONFIG = NetworkConfig(text_dim=16, text_buckets=64, text_tokens=6)
TEXTS = (
    "push the cup",
    "push the red cup",
    "",
    "close the drawer",
    "open it " * 9,
    "push the cup",
    "PUSH, the cup!",
)


def make_encoder() -> ObservationEncoder:
    torch.manual_seed(0)
    normalizer = Normalizer.identity(1)
    return ObservationEncoder(ObservationSpec(use_task=True), CONFIG, normalizer)


def encode(encoder: ObservationEncoder, texts: tuple[str, ...]) -> Tensor:
    return encoder(encoder.prepare(Observation(task=texts)))


def encode_padded(encoder: ObservationEncoder, texts: tuple[str, ...]) -> Tensor:
    """Every row by itself, padded to the longest text that there may be: what blocks of distinct texts save."""
    assert encoder.text is not None
    rows = [word_ids(text, CONFIG.text_buckets, CONFIG.text_tokens) for text in texts]
    ids = torch.tensor([row + [0] * (CONFIG.text_tokens - len(row)) for row in rows])
    outputs, _ = encoder.text.gru(encoder.text.embed(ids))
    last = outputs[torch.arange(len(rows)), [len(row) - 1 for row in rows]]
    return torch.nn.functional.gelu(last)


def test_hashed_words() -> None:
    ids = word_ids("Push the CUP, now", 64, 5)
    assert ids == word_ids("push the cup now", 64, 5) and len(ids) == 4
    assert word_ids("", 64, 5) == word_ids("!", 64, 5) == [0]
    assert word_ids("push " * 40, 64, 5) == [ids[0]] * 5
    assert all(0 < bucket < 64 for bucket in ids)


@pytest.mark.parametrize("training", [True, False])
def test_features_and_gradients_are_those_of_every_row_by_itself(training: bool) -> None:
    encoder = make_encoder()
    encoder.train(training)
    weights = torch.randn(len(TEXTS), CONFIG.text_dim)
    found, gradients = [], []
    for function in (encode, encode_padded):
        encoder.zero_grad()
        found.append(function(encoder, TEXTS))
        (found[-1] * weights).sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)
    assert len(gradients[0]) == len(gradients[1]) == 5
    for once, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(once, padded)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from([f"{verb} {'very ' * n}soon" for verb in "abcdefg" for n in range(5)]), max_size=40
    )
)
def test_a_text_does_not_depend_on_the_others(others: list[str]) -> None:
    """To the bit: whoever else is in a policy's batch is chance."""
    encoder = make_encoder().eval()
    alone, among = encode(encoder, ("a very soon",)), encode(encoder, (*others, "a very soon"))
    assert among.shape == (len(others) + 1, CONFIG.text_dim)
    assert torch.equal(among[-1], alone[0])


def test_blocks_hold_each_distinct_text_once() -> None:
    texts = tuple(f"task {number}" for number in range(TEXT_ROWS + 3)) * 2 + ("longer by a lot",)
    blocks, rows = text_blocks(texts, 4096, 32, training=False)
    assert [tuple(block.shape) for block in blocks] == [(TEXT_ROWS, 2)] * 2 + [(TEXT_ROWS, 4)]
    assert rows.tolist() == [*range(TEXT_ROWS + 3)] * 2 + [2 * TEXT_ROWS]
    for text, row in zip(texts, rows.tolist(), strict=True):
        assert blocks[row // TEXT_ROWS][row % TEXT_ROWS].tolist() == word_ids(text, 4096, 32)
    assert int((blocks[1] != 0).any(1).sum()) == 3
    (block,), rows = text_blocks(texts, 4096, 32, training=True)
    assert block.shape == (TEXT_ROWS + 4, 4) and rows.tolist() == [*range(TEXT_ROWS + 3)] * 2 + [
        TEXT_ROWS + 3
    ]
    assert block[0].tolist() == [*word_ids("task 0", 4096, 32), 0, 0]
