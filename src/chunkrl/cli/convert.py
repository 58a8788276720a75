"""`chunkrl convert SOURCE TARGET`: a policy of any layout to a folder for LeRobot, stock or with our plug-in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from chunkrl.errors import CheckpointError
from chunkrl.models.pi.config import PromptFormat
from chunkrl.models.plugin_files import PLUGIN_TYPE


@dataclass(frozen=True)
class ConvertCommand:
    """A pi0 or pi0.5 checkpoint (openpi JAX, openpi PyTorch, LeRobot) to a LeRobot folder, strictly. With --plugin
    any policy, to one for the plug-in."""

    source: Annotated[str, tyro.conf.Positional] = ""
    """Checkpoint folder, or Hub repository owner/name."""
    target: Annotated[str, tyro.conf.Positional] = ""
    """The new LeRobot folder."""
    recipe: str | None = None
    """pi0_libero, pi05_libero, pi0_base, pi05_base or a JSON file; default: as the folder says (openpi's do not)."""
    cameras: tuple[str, ...] = ()
    """Cameras of the robot in the model's order (base recipes)."""
    state_dim: int = 0
    """Values of the robot's state (base recipes)."""
    action_dim: int = 0
    """Values of an action (base recipes)."""
    prompt_format: PromptFormat | None = None
    """The prompt's format of a LeRobot folder that does not say it: pi05_state (0.5.0), pi05_padded_state (0.4)."""
    asset_id: str | None = None
    """Which norm stats, where an openpi folder has several."""
    tokenizer: str | None = None
    """SentencePiece file that goes along; default: the folder's or the cache's where there is one."""
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    """Precision of the weights."""
    revision: str | None = None
    """Revision of the Hub repository."""
    plugin: bool = False
    """For LeRobot with the plug-in lerobot_policy_chunkrl, and not for stock LeRobot: as runs write theirs now."""
    overwrite: bool = False
    """Replace what is at the target."""


def convert(command: ConvertCommand) -> None:
    """Prints what the checkpoint holds against what the model needs, then writes the folder.

    Raises:
        CheckpointError: the checkpoint is not a whole model of its recipe, or the target is in the way.
        MissingExtraError: reading it needs a package that is not installed.
    """
    import torch

    from chunkrl.models.pi.actor import PiActor
    from chunkrl.models.pi.checkpoint import (
        check_target,
        find_recipe,
        inspect_pretrained,
        load_pretrained,
        save_pretrained,
    )
    from chunkrl.models.pi.recipes import choose_recipe
    from chunkrl.models.plugin_files import plugin_files
    from chunkrl.training.checkpoint import VALUES

    if not command.source or not command.target:
        raise CheckpointError("give the checkpoint and the new folder: chunkrl convert SOURCE TARGET")
    check_target(command.target, command.overwrite)  # before minutes of reading
    if (Path(command.source) / VALUES).is_file():
        _convert_small(command)
        return
    recipe = None
    if command.recipe is not None:
        recipe = choose_recipe(command.recipe, command.cameras, command.state_dim, command.action_dim)
    elif command.cameras or command.state_dim or command.action_dim:
        raise CheckpointError(
            "--cameras, --state-dim and --action-dim belong to --recipe pi0_base or pi05_base"
        )
    if command.prompt_format is not None:
        recipe = recipe or find_recipe(command.source, command.revision, command.prompt_format)
        recipe = replace(recipe, settings=replace(recipe.settings, prompt_format=command.prompt_format))
    report = inspect_pretrained(command.source, recipe, command.revision)
    print(report.summary())
    policy = load_pretrained(
        command.source,
        recipe=recipe,
        asset_id=command.asset_id,
        tokenizer=command.tokenizer,
        dtype=None if command.dtype == "stored" else getattr(torch, command.dtype),
        revision=command.revision,
    )
    plugin = plugin_files(PiActor(policy)) if command.plugin else None
    folder = save_pretrained(policy, command.target, overwrite=command.overwrite, plugin=plugin)
    settings = policy.recipe.settings
    print(f"prompt format {settings.prompt_format}, cameras {', '.join(settings.cameras)}")
    absent = "absent: give them when loading; stock LeRobot refuses the folder"
    print(f"norm stats: {absent if policy.norm_stats is None else 'written'}")
    print(f"tokenizer: {'absent: chunkrl download tokenizer' if policy.tokenizer is None else 'written'}")
    print(
        f"{folder}: a LeRobot folder of type {PLUGIN_TYPE if command.plugin else policy.recipe.config.kind}"
    )


def _convert_small(command: ConvertCommand) -> None:
    """A small policy: the files beside it are all that changes."""
    from chunkrl.run.policy_io import load_policy

    given = [command.recipe, command.prompt_format, command.asset_id, command.tokenizer, command.revision]
    if not command.plugin or any(value is not None for value in given):
        raise CheckpointError(
            f"{command.source} is a small policy, of no type that stock LeRobot has: give --plugin (and nothing that "
            "is for pi checkpoints), and run it with the plug-in lerobot_policy_chunkrl"
        )
    load_policy(command.source).save(command.target)
    print(f"{command.target}: a LeRobot folder of type {PLUGIN_TYPE}")
