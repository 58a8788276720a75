"""Task, state and condition to prompt tokens: the one place where prompts are made, training and inference alike.

Formats (the setting is saved with the checkpoint; a policy run with another one than it was trained with fails
without an error):

- `pi0`: the task's text, then a newline encoded apart.
- `pi05_state`: `Task: <task>, State: <bins>;` newline `Action: `, one bin 0..255 (or -1 below the range) for
  each dimension of the normalised state, as openpi writes it.
- `pi05_padded_state`: the same with the normalised state padded with zeros to the model's width (LeRobot).
- `pi05_no_state`: a pi0.5 whose prompt is that of `pi0` (openpi's `pi05_libero`).

A condition (for example `Advantage: positive`) follows the state, or the task (where there is no state, or where
the settings say so); it is never cut.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.models.pi.config import ConditionPlace, PromptFormat
from chunkrl.models.pi.tokenizer import PAD_TOKEN, Tokenizer

_LOG = logging.getLogger(__name__)
_NUM_BINS = 256


@dataclass(frozen=True)
class Prompt:
    """A prompt in parts: only `task` may be cut. `ending` is encoded apart from the text before it."""

    head: str
    task: str
    tail: str
    ending: str

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Token ids with the beginning-of-sequence token."""
        tokens = tokenizer.encode(self.head + self.task + self.tail, add_bos=True)
        return tokens + (tokenizer.encode(self.ending, add_bos=False) if self.ending else [])


def discretize_state(state: Tensor) -> Tensor:
    """Normalised state [...] -> bins int64 [...]: 256 equal bins of [-1, 1); below -1 gives -1, above gives 255."""
    edges = torch.linspace(-1, 1, _NUM_BINS + 1, dtype=torch.float64)[:-1]
    return torch.bucketize(state.double().cpu().contiguous(), edges, right=True) - 1


def build_prompt(
    prompt_format: PromptFormat,
    task: str,
    state: Tensor | None = None,
    padded_width: int = 32,
    condition: str = "",
    condition_place: ConditionPlace = "end",
) -> Prompt:
    """The prompt of one observation.

    Args:
        prompt_format: see the module's text.
        task: the task as the data set has it; underscores and newlines become spaces.
        state: normalised, unpadded state [S] (formats with state only).
        padded_width: width of the padded state.
        condition: text that the policy is conditioned on, never cut; empty for none.
        condition_place: after everything, or after the task.

    Raises:
        ChunkRLError: an empty task, or no state where the format writes it.
    """
    text = task.strip().replace("_", " ").replace("\n", " ")
    if not text:
        raise ChunkRLError("the observation has no task text; the policy's prompt starts with it")
    suffix = f", {condition}" if condition else ""
    if prompt_format in ("pi0", "pi05_no_state"):
        return Prompt(head="", task=text, tail=suffix, ending="\n")
    if state is None:
        raise ChunkRLError(f"prompt format '{prompt_format}' writes the state, but the observation has none")
    if prompt_format == "pi05_padded_state":
        state = torch.nn.functional.pad(state, (0, padded_width - len(state)))
    bins = " ".join(map(str, discretize_state(state).tolist()))
    state_text = f", State: {bins}"
    tail = suffix + state_text if condition_place == "task" else state_text + suffix
    return Prompt(head="Task: ", task=text, tail=f"{tail};\nAction: ", ending="")


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, max_tokens: int, cut_task: bool = False) -> list[int]:
    """Token ids, at most `max_tokens`.

    Raises:
        ChunkRLError: the prompt is longer and `cut_task` is False, or what must not be cut is too long already.
    """
    tokens = prompt.encode(tokenizer)
    if len(tokens) <= max_tokens:
        return tokens
    if not cut_task:
        raise ChunkRLError(
            f"the prompt has {len(tokens)} tokens and the model takes {max_tokens}: '{prompt.task}'; shorten the "
            "task, or set overlong_prompt to 'cut_task' (state and condition are then kept, the task loses words)"
        )
    words = prompt.task.split(" ")
    while len(tokens) > max_tokens and len(words) > 1:
        words.pop()
        tokens = replace(prompt, task=" ".join(words)).encode(tokenizer)
    if len(tokens) > max_tokens:
        raise ChunkRLError(
            f"the prompt has {len(tokens)} tokens with its task cut to one word, and the model takes {max_tokens}; "
            "the state or the condition is too long for this model"
        )
    _LOG.warning("prompt too long for %d tokens: task cut to '%s'", max_tokens, " ".join(words))
    return tokens


def pad_tokens(rows: Sequence[Sequence[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Token lists to (tokens int64 [B, L], mask bool [B, L]); L is the longest row's unless `length` is given.

    Padding has no effect on the model, so the shortest L is the cheapest.
    """
    width = max(map(len, rows)) if length is None else length
    tokens = torch.full((len(rows), width), PAD_TOKEN, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = True
    return tokens, mask
