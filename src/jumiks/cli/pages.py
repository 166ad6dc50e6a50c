# SPDX-License-Identifier: Apache-2.0
"""`jumiks man` and `jumiks completion`, made from the parser.

argparse-manpage leaves out examples and exit statuses, and shtab the addresses that are served;
both would be needed at run time.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from .parser import COMMANDS, EXAMPLES, make_parser
from .usage import EXIT_STATUS

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print the manual page, or the script for a shell."""
    print(man_page() if options.command_name == "man" else SHELLS[options.shell](), end="")
    return 0


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command; "bridge out" is one within another."""
    return dict(_commands(make_parser(), ""))


def _commands(
    parser: argparse.ArgumentParser, before: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    found = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not found:
        yield before, parser
    for name, one in (pair for each in found for pair in each.choices.items()):
        yield from _commands(one, f"{before} {name}".lstrip())


def _begins() -> dict[str, list[str]]:
    """Return the words that a command can begin with, and those that can follow each."""
    found: dict[str, list[str]] = {}
    for name in commands():
        first, _, second = name.partition(" ")
        found.setdefault(first, []).extend([second] if second else [])
    return found


def _arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [each for each in parser._actions if each.dest != "help"]


# ---- the manual page ----


def _roff(text: str) -> str:
    # A dot or a quote at the start of a line would be taken for a request.
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("%%", "%")
    return "\\&" + text if text.startswith((".", "'")) else text


def _signature(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    names = ", ".join(action.option_strings)
    return f"{names} {value if action.nargs != 0 else ''}".strip() if names else str(value)


def _command_lines(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    usage = parser.format_usage().removeprefix("usage: ").split()
    yield f".SS {_roff(' '.join(usage))}"
    yield _roff(COMMANDS[name].long)
    for action in _arguments(parser):
        yield ".TP"
        yield f".B {_roff(_signature(action))}"
        yield _roff(action.help or "")
    yield ".PP"
    yield "Example:"
    yield ".RS"
    yield _roff(EXAMPLES[name])
    yield ".RE"


def man_page() -> str:
    """Return the manual page, in roff."""
    lines = [
        f'.TH JUMIKS 1 "" "jumiks {version("jumiks")}"',
        ".SH NAME",
        "jumiks \\- one\\-to\\-many messaging for processes on one Linux machine",
        ".SH SYNOPSIS",
        ".B jumiks",
        "COMMAND [ARGUMENT ...]",
        ".SH COMMANDS",
    ]
    for name, parser in commands().items():
        lines.extend(_command_lines(name, parser))
    lines.append(".SH EXIT STATUS")
    for status, words in EXIT_STATUS:
        lines += [".TP", f".B {status}", _roff(words)]
    return "\n".join(lines) + "\n"


# ---- completion ----


def _words(parser: argparse.ArgumentParser) -> list[str]:
    return [name for each in parser._actions for name in each.option_strings]


def _values() -> Iterator[tuple[str, str, argparse.Action]]:
    """Yield the options of each command that take a value."""
    for name, parser in commands().items():
        for action in _arguments(parser):
            for option in action.option_strings:
                if action.nargs != 0:
                    yield name, option, action


def _choices(action: argparse.Action) -> str:
    return " ".join(str(each) for each in action.choices or ())


def _positional(parser: argparse.ArgumentParser) -> list[str]:
    """Return the words that can be a command's argument, if they are known."""
    return [
        str(word)
        for each in _arguments(parser)
        if not each.option_strings and each.choices
        for word in each.choices
    ]


def _takes_address(parser: argparse.ArgumentParser) -> bool:
    return any(each.dest == "address" for each in _arguments(parser))


ADDRESSES: Final = (
    'awk \'$5 == "0005" && $4 == "00010000" && $8 ~ /^@/ { print $8 }\' /proc/net/unix'
)
"""Prints abstract addresses that are listened at, by sockets of our type (proc_pid_net(5))."""


def _bash_values() -> str:
    return "\n".join(
        f'        "{name}:{option}") words="{_choices(action)}" where='
        f"{' files=yes' if action.metavar == 'FILE' else ''} ;;"
        for name, option, action in _values()
    )


def _bash() -> str:
    begins = _begins()
    cases = "\n".join(
        f'        "{name}") words="{" ".join([*_words(parser), *_positional(parser)])}"'
        f"{' where=yes' if _takes_address(parser) else ''} ;;"
        for name, parser in commands().items()
    )
    inner = "\n".join(
        f'        {name}) command="{name} ${{COMP_WORDS[2]}}"; '
        f'[ "$COMP_CWORD" -ne 2 ] || words="{" ".join(words)}" ;;'
        for name, words in begins.items()
        if words
    )
    return f"""# bash completion for jumiks
_jumiks() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words="" where="" files=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(begins)} --help --version" -- "$current"))
        return
    fi
    local command="${{COMP_WORDS[1]}}"
    case "$command" in
{inner}
    esac
    case "$command" in
{cases}
    esac
    case "$command:${{COMP_WORDS[COMP_CWORD - 1]}}" in
{_bash_values()}
    esac
    # An abstract address, as the kernel lists them, or a path.
    if [ -n "$where" ] && [[ $current != -* ]]; then
        words="$({ADDRESSES})"
        files=yes
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [ -z "$files" ] || COMPREPLY+=($(compgen -f -- "$current"))
}}
complete -F _jumiks jumiks
"""


def _zsh() -> str:
    # zsh runs bash's own completion functions.
    return "#compdef jumiks\nautoload -U +X bashcompinit && bashcompinit\n" + _bash()


def _fish() -> str:
    lines = ["# fish completion for jumiks", "complete -c jumiks -f"]
    lines += [f"complete -c jumiks -n __fish_use_subcommand -a {name}" for name in _begins()]
    for name, words in _begins().items():
        if words:
            inside = f"complete -c jumiks -n '__fish_seen_subcommand_from {name}'"
            lines.append(f"{inside} -a '{' '.join(words)}'")
    for name, parser in commands().items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        inside = f"complete -c jumiks -n '{seen}'"
        for action in parser._actions:
            flags = " ".join(
                f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                for option in action.option_strings
            )
            if flags:
                value = " -r -F" if action.metavar == "FILE" else " -x"
                more = f" -a '{_choices(action)}'" if action.choices else ""
                lines.append(f"{inside} {flags}{value if action.nargs != 0 else ''}{more}")
        if words := _positional(parser):
            lines.append(f"{inside} -a '{' '.join(words)}'")
        if _takes_address(parser):
            served = re.sub(r'(["$])', r"\\\1", ADDRESSES)
            lines.append(f'{inside} -F -a "({served})"')
    return "\n".join(lines) + "\n"


SHELLS: Final = {"bash": _bash, "fish": _fish, "zsh": _zsh}
