"""PaliGemma's SentencePiece tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from chunkrl.errors import CheckpointError
from chunkrl.install import MissingExtraError

TOKENIZER_FILE = "paligemma_tokenizer.model"
TOKENIZER_SOURCE = "gs://big_vision/paligemma_tokenizer.model"
PAD_TOKEN = 0


class Tokenizer(Protocol):
    """What prompts need of a tokenizer."""

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Token ids of a text, with the beginning-of-sequence token first where asked."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model file.

    Raises:
        CheckpointError: no such file, not a SentencePiece model, or not of `vocab_size` pieces.
        MissingExtraError: sentencepiece is not installed.
    """

    def __init__(self, path: str | Path, vocab_size: int) -> None:
        try:
            import sentencepiece  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError("the PaliGemma tokenizer", "sentencepiece", "pi") from error
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"there is no tokenizer at {path}; fetch {TOKENIZER_SOURCE} to that place")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.path.read_bytes())
        except RuntimeError as error:
            raise CheckpointError(f"{path} is not a SentencePiece model; fetch {TOKENIZER_SOURCE}") from error
        size = self._processor.GetPieceSize()
        if size != vocab_size:
            raise CheckpointError(
                f"{path} has {size:,} pieces and the model {vocab_size:,}: it is another model's tokenizer; "
                f"the published pi models use {TOKENIZER_SOURCE}"
            )

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Token ids of a text, with the beginning-of-sequence token first where asked."""
        return self._processor.Encode(text, add_bos=add_bos)


def cached_tokenizer() -> Path:
    """Where `chunkrl download` puts the tokenizer: below `$CHUNKRL_CACHE`, or `~/.cache/chunkrl`."""
    chosen = os.environ.get("CHUNKRL_CACHE") or Path.home() / ".cache" / "chunkrl"
    return Path(chosen).expanduser() / "tokenizer" / TOKENIZER_FILE


def find_tokenizer(explicit: str | Path | None, checkpoint: Path | None) -> Path:
    """The tokenizer file: the path given, or the checkpoint folder's, or the cache's.

    Raises:
        CheckpointError: none is there; the message lists where it was looked for.
    """
    if explicit is not None:
        return Path(explicit)
    beside = [] if checkpoint is None else [checkpoint / TOKENIZER_FILE]
    candidates = [*beside, cached_tokenizer()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"no PaliGemma tokenizer at {' or '.join(map(str, candidates))}; "
        f"fetch it (chunkrl download tokenizer, or {TOKENIZER_SOURCE} to one of these places) or give its path"
    )
