"""The command line: `chunkrl COMMAND --help` shows the options of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from chunkrl.cli.commands import COMMANDS, Command
from chunkrl.errors import ChunkRLError, TrainingStopped
from chunkrl.signals import outliving_terminal
from chunkrl.suggest import did_you_mean

__all__ = ["COMMANDS", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A ChunkRLError is printed as one message, exit status 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "--help-all"):
        from chunkrl.cli.help import usage

        print(usage())
        return
    if arguments[0] == "--version":
        from chunkrl.version import __version__

        print(__version__)
        return
    command = COMMANDS.get(arguments[0])
    if command is None:
        near = did_you_mean(arguments[0], COMMANDS)
        print(f"chunkrl: unknown command {arguments[0]!r}{near}; chunkrl --help lists all", file=sys.stderr)
        sys.exit(2)
    with outliving_terminal():
        _run_to_end(command, arguments)


def _run_to_end(command: Command, arguments: Sequence[str]) -> None:
    """The command, with exit statuses for its errors."""
    try:
        _run(command, arguments[1:])
    except ChunkRLError as error:
        print(f"chunkrl {arguments[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingStopped as stopped:
        print(f"chunkrl {arguments[0]}: {stopped}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(command: Command, arguments: Sequence[str]) -> None:
    if asked := {"-h", "--help", "--help-all"}.intersection(arguments):
        from chunkrl.cli.help import command_help

        print(command_help(command, "--help-all" in asked))
        return
    from chunkrl.cli.arguments import parse

    command(parse(command, arguments))
