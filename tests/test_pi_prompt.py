"""Prompts, tokenizer, images and normalisation against openpi's own transforms."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pi_tiny import GOLDEN, TOKENIZER, CharacterTokenizer, max_difference, needs_golden
from PIL import Image
from torch import Tensor

from chunkrl.errors import CheckpointError, ChunkRLError
from chunkrl.models.pi.config import NormalizationMode, PromptFormat, ResizeMode
from chunkrl.models.pi.images import prepare_images
from chunkrl.models.pi.norm_stats import normalize, read_openpi, unnormalize
from chunkrl.models.pi.prompt import build_prompt, discretize_state, encode_prompt, pad_tokens
from chunkrl.models.pi.tokenizer import SentencePieceTokenizer, find_tokenizer

STATE_FORMATS: tuple[PromptFormat, ...] = ("pi05_state", "pi05_padded_state")
TEXT_FORMATS: tuple[PromptFormat, ...] = ("pi0", "pi05_no_state")


def golden_aux() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "aux/aux.npz") as file:
        return {name: file[name] for name in file.files}


class RecordingTokenizer(CharacterTokenizer):
    def __init__(self) -> None:
        self.calls: list[list[object]] = []

    def encode(self, text: str, add_bos: bool) -> list[int]:
        self.calls.append([text, add_bos])
        return super().encode(text, add_bos)


# ---- prompts


@needs_golden
def test_prompts_are_openpis() -> None:
    cases = json.loads((GOLDEN / "aux/prompts.json").read_text())
    assert len(cases) >= 3
    for case in cases:
        discrete = case["discrete_state_input"]
        for prompt_format in ("pi05_state",) if discrete else TEXT_FORMATS:
            tokenizer = RecordingTokenizer()
            state = torch.tensor(case["state"]) if discrete else None
            prompt = build_prompt(prompt_format, case["prompt"], state)
            tokens, mask = pad_tokens([encode_prompt(prompt, tokenizer, case["max_len"])], case["max_len"])
            assert tokenizer.calls == case["sentencepiece_calls"]
            assert tokens[0].tolist() == case["fake_tokens"]
            assert mask[0].int().tolist() == case["mask"]


@needs_golden
def test_state_bins_are_openpis() -> None:
    aux = golden_aux()
    bins = discretize_state(torch.from_numpy(aux["discretize_in"]))
    assert bins.tolist() == aux["discretize_out"].tolist()


def test_state_bins_in_closed_form() -> None:
    edges = torch.tensor([-1.001, -1.0, -1 + 1 / 128, 0.0, 1 - 1 / 128, 1.0, 7.0])
    assert discretize_state(edges).tolist() == [-1, 0, 1, 128, 255, 255, 255]


def test_each_format_in_full() -> None:
    state = torch.tensor([-1.0, 0.0])
    task = " put_the cup\naway "
    texts = {
        name: build_prompt(name, task, state, padded_width=4) for name in (*STATE_FORMATS, *TEXT_FORMATS)
    }
    joined = {name: (p.head + p.task + p.tail, p.ending) for name, p in texts.items()}
    assert joined == {
        "pi0": ("put the cup away", "\n"),
        "pi05_no_state": ("put the cup away", "\n"),
        "pi05_state": ("Task: put the cup away, State: 0 128;\nAction: ", ""),
        "pi05_padded_state": ("Task: put the cup away, State: 0 128 128 128;\nAction: ", ""),
    }
    with_condition = build_prompt("pi05_state", task, state, condition="Advantage: positive")
    assert with_condition.tail == ", State: 0 128, Advantage: positive;\nAction: "
    assert build_prompt("pi0", task, condition="Advantage: negative").tail == ", Advantage: negative"


@pytest.mark.parametrize("prompt_format", STATE_FORMATS)
def test_a_prompt_with_state_needs_one(prompt_format: PromptFormat) -> None:
    with pytest.raises(ChunkRLError, match="writes the state"):
        build_prompt(prompt_format, "push")


@pytest.mark.parametrize("task", ["", "  ", "\n_"])
def test_an_empty_task_is_an_error(task: str) -> None:
    with pytest.raises(ChunkRLError, match="task"):
        build_prompt("pi0", task.replace("_", ""))


@given(
    words=st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=40),
    condition=st.sampled_from(["", "Advantage: positive", "Advantage: negative"]),
    prompt_format=st.sampled_from([*STATE_FORMATS, *TEXT_FORMATS]),
)
def test_a_cut_never_removes_state_or_condition(
    words: list[str], condition: str, prompt_format: PromptFormat
) -> None:
    limit, tokenizer = 110, CharacterTokenizer()
    prompt = build_prompt(prompt_format, " ".join(words), torch.zeros(4), padded_width=6, condition=condition)
    whole = prompt.encode(tokenizer)
    cut = encode_prompt(prompt, tokenizer, limit, cut_task=True)
    assert len(cut) <= limit
    assert (cut == whole) == (len(whole) <= limit)
    kept = tokenizer.encode(prompt.tail + prompt.ending, add_bos=False)
    assert cut[len(cut) - len(kept) :] == kept
    head = tokenizer.encode(prompt.head + words[0], add_bos=True)
    assert cut[: len(head)] == head


def test_an_overlong_prompt_is_an_error_or_a_logged_cut(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = CharacterTokenizer()
    prompt = build_prompt("pi05_state", "push the red cup to the left", torch.zeros(2))
    with pytest.raises(ChunkRLError, match="takes 50"):
        encode_prompt(prompt, tokenizer, 50)
    with caplog.at_level(logging.WARNING):
        encode_prompt(prompt, tokenizer, 50, cut_task=True)
    assert "cut to 'push the" in caplog.text
    with pytest.raises(ChunkRLError, match="too long for this model"):
        encode_prompt(prompt, tokenizer, 20, cut_task=True)


# ---- tokenizer


def test_the_tokenizer_keeps_spaces_and_newlines() -> None:
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    tokenizer = SentencePieceTokenizer(TOKENIZER, 512)
    first = tokenizer.encode("Task: push, State: 1 2;\nAction: ", add_bos=True)
    assert first[0] == 2 and 2 not in first[1:]
    assert tokenizer.encode("Task: push, State: 1 2;\nAction: ", add_bos=False) == first[1:]
    assert len(tokenizer.encode("\n", add_bos=False)) == 1
    assert tokenizer.encode("a  b", False) != tokenizer.encode("a b", False)


def test_a_wrong_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="the tokenizer needs chunkrl[pi]")
    with pytest.raises(CheckpointError, match=r"512 pieces and the model 257,152"):
        SentencePieceTokenizer(TOKENIZER, 257152)
    with pytest.raises(CheckpointError, match="no tokenizer at"):
        SentencePieceTokenizer(tmp_path / "none.model", 512)
    (tmp_path / "bad.model").write_bytes(TOKENIZER.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        SentencePieceTokenizer(tmp_path / "bad.model", 512)


def test_where_the_tokenizer_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"paligemma_tokenizer\.model"):
        find_tokenizer(None, tmp_path)
    for folder in (tmp_path / "cache" / "tokenizer", tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "paligemma_tokenizer.model"
        file.touch()
        assert find_tokenizer(None, tmp_path) == file
    assert find_tokenizer("given.model", tmp_path) == Path("given.model")


# ---- normalisation


@needs_golden
@pytest.mark.parametrize(("name", "mode"), [("zscore", "mean_std"), ("quantile", "quantiles")])
def test_normalisation_is_openpis(name: str, mode: NormalizationMode) -> None:
    aux, stats = golden_aux(), read_openpi(GOLDEN / "aux/norm_stats/norm_stats.json").state
    x, y = torch.from_numpy(aux["x"]), torch.from_numpy(aux["y32"])
    assert max_difference(normalize(x, stats, mode, 1e-6), torch.from_numpy(aux[f"normalize_{name}"])) < 1e-12
    expected = torch.from_numpy(aux[f"unnormalize_{name}_32dim"])[:, :8]
    assert max_difference(unnormalize(y[:, :8], stats, mode, 1e-6), expected) < 1e-12


@pytest.mark.parametrize("mode", ["mean_std", "quantiles", "identity"])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_normalisation_and_its_inverse(mode: NormalizationMode, eps: float) -> None:
    stats = {
        "mean": torch.tensor([1.0, -2.0, 9.0]).double(),
        "std": torch.tensor([2.0, 0.5, 9.0]).double(),
        "q01": torch.tensor([-1.0, 4.0, 9.0]).double(),
        "q99": torch.tensor([3.0, 4.0, 9.0]).double(),
    }
    x = torch.tensor([[3.0, 4.0]])
    normed = normalize(x, stats, mode, eps)
    expected = {"mean_std": [1.0, 12.0], "quantiles": [1.0, -1.0], "identity": [3.0, 4.0]}[mode]
    torch.testing.assert_close(normed, torch.tensor([expected]).double(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(unnormalize(normed, stats, mode, eps), x.double())


# ---- images


@needs_golden
@pytest.mark.parametrize("index", [0, 1, 2])
def test_resizing_is_openpis(index: int) -> None:
    aux = golden_aux()

    def channels_first(name: str) -> Tensor:
        return torch.from_numpy(aux[f"resize{index}_{name}"]).permute(2, 0, 1)[None]

    image = channels_first("in")
    antialiased = prepare_images(image, 56, "antialias", "front")
    pil = channels_first("pil_56").float() / 255 * 2 - 1
    assert max_difference(antialiased, pil) <= 1e-6
    # The same filter without whole grey levels between: two roundings of half a level each, 2 / 255 apart.
    assert max_difference(antialiased, channels_first("jax_float_56")) <= 2.1 / 255
    bilinear = prepare_images(image, 56, "bilinear", "front")
    assert max_difference(bilinear, channels_first("torch_float_56")) <= 1e-5


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(8, 80), st.integers(0, 2**32 - 1))
def test_antialiased_resize_is_pillows(height: int, width: int, size: int, seed: int) -> None:
    ratio = max(height, width) / size
    new_height, new_width = int(height / ratio), int(width / ratio)
    # Pillow 13 resizes columns first where an image is more than twice as tall as wide; no camera's is.
    assume(new_height and new_width and (height, width) != (size, size) and height <= 2 * width)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR))
    out = prepare_images(torch.from_numpy(pixels).permute(2, 0, 1)[None], size, "antialias", "x")
    top, left = (size - new_height) // 2, (size - new_width) // 2
    inside = out[0, :, top : top + new_height, left : left + new_width].permute(1, 2, 0)
    assert ((inside + 1) / 2 * 255).round().to(torch.uint8).numpy().tolist() == expected.tolist()


def test_an_image_of_the_models_size_is_only_scaled() -> None:
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(1, 3, 4, 4) * 5
    for mode in ("antialias", "bilinear"):
        assert torch.equal(prepare_images(image, 4, mode, "x"), image.float() / 255 * 2 - 1)


def test_a_wide_image_gets_black_bars() -> None:
    image = torch.full((1, 3, 2, 4), 255, dtype=torch.uint8)
    bars: dict[ResizeMode, float] = {"antialias": -1.0, "bilinear": -1.0, "lerobot_0.4": -3.0}
    for mode, bar in bars.items():
        out = prepare_images(image, 8, mode, "x")
        assert (out[:, :, 2:6] == 1).all() and (out[:, :, :2] == bar).all() and (out[:, :, 6:] == bar).all()


@pytest.mark.parametrize(
    "image",
    [torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(3, 8, 8).byte()],
)
def test_other_images_are_refused(image: Tensor) -> None:
    with pytest.raises(ChunkRLError, match="camera 'wrist'"):
        prepare_images(image, 8, "antialias", "wrist")
