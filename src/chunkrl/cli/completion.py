"""`chunkrl completion SHELL`: a script that completes commands, flags and choices without starting Python."""

from __future__ import annotations

import shlex

from chunkrl.cli.commands import COMMANDS
from chunkrl.cli.help import describe
from chunkrl.errors import ChunkRLError
from chunkrl.options import CompletionCommand
from chunkrl.settings import Setting, Settings
from chunkrl.suggest import did_you_mean

_EXTRA = ("--config", "--help", "--help-all")
SHELLS = ("bash", "zsh", "fish")

_BASH = """# chunkrl: eval "$(chunkrl completion {shell})"
_chunkrl() {{
    local command=${{COMP_WORDS[1]}} current=${{COMP_WORDS[COMP_CWORD]}} last=${{COMP_WORDS[COMP_CWORD-1]}} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "$command $last" in
{choices}
        esac
        if [ -z "$words" ]; then
            case "$current" in
                -*) case "$command" in
{flags}
                esac ;;
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _chunkrl chunkrl
"""


def print_completion(command: CompletionCommand) -> None:
    """Prints the script. Raises ChunkRLError where the shell is unknown."""
    if command.shell not in SHELLS:
        near = did_you_mean(command.shell, SHELLS)
        raise ChunkRLError(f"name your shell: chunkrl completion {'|'.join(SHELLS)}{near}")
    print(_fish() if command.shell == "fish" else _bash(command.shell), end="")


def _settings() -> dict[str, list[Setting]]:
    return {
        name: [s for s in Settings(command.options_class()()).all if s.flag]
        for name, command in COMMANDS.items()
    }


def _flags(setting: Setting) -> tuple[str, ...]:
    return (setting.flag, setting.off_flag) if setting.is_switch else (setting.flag,)


def _bash(shell: str) -> str:
    flags, choices = [], []
    for name, settings in _settings().items():
        words = " ".join([*(flag for s in settings for flag in _flags(s)), *_EXTRA])
        flags.append(f"                    {name}) words={shlex.quote(words)} ;;")
        for setting in settings:
            if setting.choices:
                pattern = shlex.quote(f"{name} {setting.flag}")
                choices.append(f"            {pattern}) words={shlex.quote(' '.join(setting.choices))} ;;")
    choices.append(f"            'completion completion') words={shlex.quote(' '.join(SHELLS))} ;;")
    script = _BASH.format(
        shell=shell,
        commands=shlex.quote(" ".join([*COMMANDS, "--help", "--version"])),
        flags="\n".join(flags),
        choices="\n".join(choices),
    )
    start = "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit\n" if shell == "zsh" else ""
    return start + script


def _fish() -> str:
    lines = ["# chunkrl: chunkrl completion fish > ~/.config/fish/completions/chunkrl.fish"]
    for name, command in COMMANDS.items():
        lines.append(
            f"complete -c chunkrl -n __fish_use_subcommand -f -a {name} -d {_quoted(command.summary)}"
        )
    for name, settings in _settings().items():
        start = f"complete -c chunkrl -n '__fish_seen_subcommand_from {name}'"
        for setting in settings:
            text = _quoted(describe(setting).split(". ")[0][:80])
            for flag in _flags(setting):
                given = "" if setting.is_switch else " -r"
                if setting.choices:
                    given += f" -f -a {_quoted(' '.join(setting.choices))}"
                lines.append(f"{start} -l {flag.removeprefix('--')}{given} -d {text}")
        lines += [f"{start} -l {flag.removeprefix('--')}" for flag in _EXTRA]
    lines.append(
        f"complete -c chunkrl -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'"
    )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """The text quoted for fish, which escapes quotes with backslashes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
