"""Makes `tiny_tokenizer.model`, the tokenizer of the tiny pi0.5 (`chunkrl.models.pi.tiny`).

    python -m chunkrl.models.pi.tiny_tokenizer            # writes it again, byte for byte the same

PaliGemma's tokenizer has 257,152 pieces and writes a number digit by digit: neither fits a model of a few
million parameters and prompts of 64 tokens. Here each state bin -1..255 is one piece with the space before it,
and so is each word of the task texts and each fixed part of the prompt; all other text falls back to bytes, so
that nothing is unknown.
"""

from __future__ import annotations

import io
from pathlib import Path

from chunkrl.install import MissingExtraError

TINY_TOKENIZER = Path(__file__).with_name("tiny_tokenizer.model")
NUM_BINS = 256
# A SentencePiece model writes a space as this mark.
_SPACE = "\u2581"
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:;'" + _SPACE
_PROMPT_PARTS = ("Task:", ", State:", ";\nAction: ", ", Advantage:", " positive", " negative", "\n", ",")
_TASK_WORDS = [
    "a",
    "and",
    "at",
    "backs",
    "basket",
    "bin",
    "box",
    "button",
    "close",
    "coffee",
    "dial",
    "disassemble",
    "door",
    "drawer",
    "goal",
    "hammer",
    "hand",
    "handle",
    "in",
    "insert",
    "into",
    "it",
    "lever",
    "lock",
    "nut",
    "of",
    "off",
    "on",
    "onto",
    "open",
    "out",
    "peg",
    "pick",
    "place",
    "plate",
    "press",
    "puck",
    "pull",
    "push",
    "reach",
    "shelf",
    "side",
    "slide",
    "soccer",
    "stick",
    "sweep",
    "the",
    "to",
    "topdown",
    "turn",
    "unlock",
    "unplug",
    "up",
    "wall",
    "window",
]


def bin_piece(number: int) -> str:
    """The piece of a state bin."""
    return f"{_SPACE}{number}"


def pieces() -> list[str]:
    """All pieces of more than a character, longest match first in an encoding."""
    words = [_SPACE + word for word in _TASK_WORDS]
    parts = [part.replace(" ", _SPACE) for part in _PROMPT_PARTS]
    return [*parts, *(bin_piece(number) for number in range(-1, NUM_BINS)), *words]


def vocab_size() -> int:
    """Pieces of the tokenizer: 4 controls, 256 bytes, and those of `pieces` and `_CHARACTERS`."""
    return 4 + 256 + len(pieces()) + len(_CHARACTERS)


def train(path: Path = TINY_TOKENIZER) -> None:
    """Write the tokenizer to `path` (padding 0, end 1, beginning 2, unknown 3, as PaliGemma has them)."""
    try:
        import sentencepiece  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("the tokenizer's training", "sentencepiece", "pi") from error
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([_CHARACTERS.replace(_SPACE, " ")] * 2),
        model_writer=model,
        model_type="char",
        vocab_size=vocab_size(),
        user_defined_symbols=pieces(),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


if __name__ == "__main__":
    train()
