# SPDX-License-Identifier: Apache-2.0
"""The command bench, and the pages: help, manual, completion."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from support.api import FOREIGN_ENVIRONMENT, sockaddr
from support.base import DEADLINE
from support.command import JUMIKS, command, finish, run
from support.servers import Server

from jumiks.cli import main
from jumiks.cli.pages import _roff, commands
from jumiks.cli.parser import EXAMPLES
from jumiks.cli.usage import EXIT_STATUS

PRELOADED = [f"{name}={os.environ[name]}" for name in ("LD_PRELOAD",) if name in os.environ]
IN_SHELL = shlex.join(["env", *PRELOADED, *JUMIKS])
"""The command as a line of a shell into which no sanitizer may be loaded."""


@pytest.mark.slow  # it measures for seconds
def test_bench_measures_this_machine_and_loses_nothing() -> None:
    status, output, errors = run("bench", "--self", "--seconds", "1")
    assert (status, errors) == (0, "")
    lines = output.decode().splitlines()
    assert len(lines) == 6
    assert all("msg/s" in line and "LOST" not in line for line in lines[:5])
    assert lines[2].startswith("64 B, as arrays, 1 client ")
    assert "p50" in lines[5]


@pytest.mark.parametrize(("message", "speed"), [(b"message", b"[1-9].*"), (b"", b"0 ?")])
def test_bench_counts_what_comes_from_a_server(address: str, message: bytes, speed: bytes) -> None:
    with Server(address) as server, command("bench", address, "--seconds", "100") as bench:
        server.wait_for_clients(1, DEADLINE)
        server.publish_many([message] * 100)
        server.drain(DEADLINE)
        server.close()
        status, output, _ = finish(bench)
    assert status == 0
    assert re.match(rb"100 messages in [\d.]+ s: .* msg/s, %bB/s, missed 0$" % speed, output)


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    assert f"example:\n  {EXAMPLES[name]}" in capsys.readouterr().out


def test_there_is_an_example_for_each_command() -> None:
    assert set(EXAMPLES) == set(commands())


def test_the_manual_page_has_all_commands_options_and_exit_statuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["man"])
    page = capsys.readouterr().out.replace("\\-", "-").replace("\\&", "")
    for name, parser in commands().items():
        assert f".SS jumiks {name}" in page
        assert EXAMPLES[name].replace("\\", "\\e") in page
        for action in parser._actions:
            for option in action.option_strings:
                assert option in page or action.dest == "help"
    for status in (0, 1, 2, 3, 4, 5, 129, 130, 141):
        assert f".B {status}\n" in page


@pytest.mark.parametrize("text", [".TP of no request", "'quoted' at the start"])
def test_no_line_of_the_manual_page_is_taken_for_a_request(text: str) -> None:
    assert _roff(text) == "\\&" + text


@pytest.mark.no_core
@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man to format it")
def test_the_manual_page_is_sound_roff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["man"])
    file = tmp_path / "jumiks.1"
    file.write_text(capsys.readouterr().out)
    done = subprocess.run(
        ["man", "--warnings", "-l", file],
        capture_output=True,
        text=True,
        check=True,
        env=FOREIGN_ENVIRONMENT,
    )
    assert done.stderr == ""
    assert "EXIT STATUS" in done.stdout


COMPLETIONS = {
    ("jumiks", "sta"): {"status"},
    ("jumiks", "serve", "--max-l"): {"--max-lag"},
    ("jumiks", "serve", "@x", "--on-lag", ""): {"disconnect", "block", "skip"},
    ("jumiks", "completion", "z"): {"zsh"},
    ("jumiks", "bridge", "st"): {"status"},
    ("jumiks", "bridge", "out", "--max-b"): {"--max-bytes"},
    ("jumiks", "listen", "--delivery", "f"): {"framed"},
    # An address may be a file; the value of an option is none, unless it says so.
    ("jumiks", "listen", "a-f"): {"a-file"},
    ("jumiks", "serve", "@x", "--max-lag", "a-f"): set(),
    ("jumiks", "bridge", "status", "--creds", "a-f"): {"a-file"},
}


def has(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no {shell} here")


def shell_says(shell: str, script: str, folder: Path) -> list[str]:
    """The lines that a script prints, in a folder with one file."""
    (folder / "a-file").touch()
    done = subprocess.run(
        [shell, "/dev/stdin"],
        input=script,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**FOREIGN_ENVIRONMENT, "HOME": str(folder)},
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def ask_as_bash_does(words: Sequence[str]) -> str:
    return f"""
    COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
    COMPREPLY=(); _jumiks; printf '%s\\n' "${{COMPREPLY[@]}}"
    """


def completions(
    shell: str, begin: str, ask: Callable[[Sequence[str]], str], folder: Path
) -> dict[tuple[str, ...], set[str]]:
    """What one shell makes of all the words."""
    lines = shell_says(shell, begin + "".join(f"{ask(w)}\necho END\n" for w in COMPLETIONS), folder)
    ends = [number for number, line in enumerate(lines) if line == "END"]
    begins = [0, *(end + 1 for end in ends)]
    # fish has a description behind a tab.
    found = [
        {line.split()[0] for line in lines[b:e] if line} for b, e in zip(begins, ends, strict=False)
    ]
    return dict(zip(COMPLETIONS, found, strict=True))


@pytest.mark.no_core
@has("bash")
def test_bash_completes(tmp_path: Path) -> None:
    begin = f'eval "$({IN_SHELL} completion bash)"\n'
    assert completions("bash", begin, ask_as_bash_does, tmp_path) == COMPLETIONS


@pytest.mark.no_core
@has("zsh")
def test_zsh_completes(tmp_path: Path) -> None:
    begin = f"""
    autoload -U compinit; compinit -D -u
    eval "$({IN_SHELL} completion zsh)"
    [[ $_comps[jumiks] == *_jumiks* ]] || exit 1
    emulate sh
    """
    said = completions("zsh", begin, ask_as_bash_does, tmp_path)
    # zsh itself leaves out the words that do not begin as the last one does.
    fitting = {
        words: {w for w in found if w.startswith(words[-1])} for words, found in said.items()
    }
    assert fitting == COMPLETIONS


def test_fish_is_told_which_options_take_a_value() -> None:
    _, output, _ = run("completion", "fish")
    lines = output.decode().splitlines()
    (flag,) = [line for line in lines if " listen' -l json" in line]
    (option,) = [line for line in lines if " listen' -l count" in line]
    assert flag.endswith(" -l json")
    assert option.endswith(" -l count -x")


@pytest.mark.no_core
@has("fish")
def test_fish_completes(tmp_path: Path) -> None:
    begin = f"{IN_SHELL} completion fish | source\n"
    ask = lambda words: f"complete -C '{' '.join(words)}'"  # noqa: E731
    assert completions("fish", begin, ask, tmp_path) == COMPLETIONS


@pytest.mark.no_core
@pytest.mark.parametrize(
    "shell", [pytest.param(each, marks=has(each)) for each in ("bash", "fish")]
)
def test_the_addresses_that_are_served_are_completed(
    shell: str, address: str, tmp_path: Path
) -> None:
    words = ("jumiks", "listen", address[:-2])
    script = f'eval "$({IN_SHELL} completion bash)"' + ask_as_bash_does(words)
    if shell == "fish":
        script = f"{IN_SHELL} completion fish | source; complete -C '{' '.join(words)}'"
    with Server(address), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(sockaddr(f"{address}-other"))  # not ours
        other.listen()
        assert [line.split()[0] for line in shell_says(shell, script, tmp_path)] == [address]


@pytest.mark.parametrize("name", ["", "bridge", *commands()])
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_terminal_and_80_columns(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(80, min(columns, 80))
    examples = [number for number, line in enumerate(lines) if line == "example:"]
    options = [number for number, line in enumerate(lines) if line == "options:"]
    assert name == "bridge" or examples < options


def test_help_has_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for status, words in EXIT_STATUS:
        assert f"{status} {words}" in told


def test_the_version_is_asked_for_in_two_ways(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("-v", "--version"):
        with pytest.raises(SystemExit) as caught:
            main([word])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"jumiks {version('jumiks')}\n"


@pytest.mark.no_core
@pytest.mark.parametrize("shell", ["fish", "zsh"])
def test_the_other_shells_have_all_words(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    script = capsys.readouterr().out
    for name in commands():
        for word in name.split():
            assert word in script
    assert "on-lag" in script
