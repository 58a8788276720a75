"""Which parameters train: chosen by glob patterns on their names, and reported by part of the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from chunkrl.errors import ChunkRLError
from chunkrl.models.name_patterns import EXCLUDE, match_names

ALL = ("*",)


@dataclass(frozen=True)
class PartCount:
    """Parameters (scalars) of one top-level part of a model."""

    trained: int
    frozen: int


@dataclass(frozen=True)
class TrainableReport:
    """What a selection trains; `str` is a table.

    parts: by the first component of the parameters' names. warning: what looks like a mistake, or empty.
    """

    parts: dict[str, PartCount]
    warning: str = ""

    @property
    def num_trained(self) -> int:
        """Parameters that train."""
        return sum(part.trained for part in self.parts.values())

    @property
    def num_frozen(self) -> int:
        """Parameters that do not."""
        return sum(part.frozen for part in self.parts.values())

    def __str__(self) -> str:
        rows = [(name, f"{part.trained:,}", f"{part.frozen:,}") for name, part in self.parts.items()]
        rows = [
            ("part", "trained", "frozen"),
            *rows,
            ("all", f"{self.num_trained:,}", f"{self.num_frozen:,}"),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{name:<{widths[0]}}  {on:>{widths[1]}}  {off:>{widths[2]}}" for name, on, off in rows]
        return "\n".join([*lines, f"warning: {self.warning}"] if self.warning else lines)


def count_trainable(module: nn.Module) -> TrainableReport:
    """The report of a module as it is."""
    parts: dict[str, PartCount] = {}
    for name, parameter in module.named_parameters():
        part = parts.get(key := name.split(".")[0], PartCount(0, 0))
        on = parameter.numel() * parameter.requires_grad
        parts[key] = PartCount(part.trained + on, part.frozen + parameter.numel() - on)
    return TrainableReport(parts)


def select_trainable(module: nn.Module, patterns: tuple[str, ...]) -> TrainableReport:
    """Freezes what the patterns do not choose. What is frozen already stays so: a pi model freezes what reaches
    no output, `apply_lora` the weights under its updates.

    Args:
        patterns: globs on parameter names, `*` also matches dots; a leading `-` excludes.

    Raises:
        ChunkRLError: a pattern matches no parameter, or chooses only frozen ones; or nothing would train.
    """
    parameters = dict(module.named_parameters())
    able = {name for name, parameter in parameters.items() if parameter.requires_grad}
    chosen = match_names(patterns, parameters, "parameter") & able
    for pattern in patterns:
        named = match_names((pattern,), parameters, "parameter")
        if not pattern.startswith(EXCLUDE) and not named & able:
            raise ChunkRLError(
                f"pattern '{pattern}' matches only parameters that are frozen already, as {min(named)}: the model "
                "does not use them, or LoRA stands in for them; drop the pattern"
            )
    if not chosen:
        raise ChunkRLError(
            f"the selection {list(patterns)} freezes everything; choose something, as '*', to exclude from it"
        )
    for name in able - chosen:
        parameters[name].requires_grad_(False)
    report = count_trainable(module)
    if chosen == able and patterns != ALL:
        return TrainableReport(report.parts, f"the selection {list(patterns)} freezes nothing")
    return report
