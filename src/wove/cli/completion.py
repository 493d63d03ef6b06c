"""``wove completion bash|zsh|fish``: a script by which a shell completes commands and options.

The script is made of the parser of the command line, so that it knows each command and option there is. It asks
nothing when a user presses Tab.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, cast

from wove.cli.terminal import new_command

__all__ = ["SHELLS", "add_parser", "script_for"]

EXAMPLES: Final = """\
examples:
  eval "$(wove completion bash)"                                      in ~/.bashrc
  eval "$(wove completion zsh)"                                       in ~/.zshrc, after compinit
  wove completion fish > ~/.config/fish/completions/wove.fish"""


class Word(NamedTuple):
    """One word that may come next.

    Attributes:
        text: The command or option.
        help: One line.
        takes_file: Whether the word after it is the path of a file.
    """

    text: str
    help: str
    takes_file: bool


def add_parser(new: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``completion`` to the commands; *new* is the ``add_parser`` of argparse."""
    parser = new_command(
        new,
        "completion",
        help="print a script by which a shell completes commands",
        description="Print a script by which your shell completes commands and options.",
        examples=EXAMPLES,
    )
    parser.add_argument("shell", choices=list(SHELLS))
    parser.set_defaults(run=_run)


def _run(chosen: argparse.Namespace) -> int:
    from wove.cli import make_parser

    print(script_for(chosen.shell, make_parser()), end="")  # noqa: T201
    return 0


def script_for(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script of *shell* (a key of `SHELLS`) for the command line of *parser*."""
    return SHELLS[shell](parser)


def _levels(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, list[Word]]]:
    """Yield each command, such as ``"worker http"``, and the words that may follow it."""
    words: list[Word] = []
    below: list[tuple[str, argparse.ArgumentParser]] = []

    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]  # there is no public way
        if action.option_strings:
            takes_file = action.metavar == "FILE"
            words += [Word(text, action.help or "", takes_file) for text in action.option_strings]
            continue

        choices: Any = action.choices or ()  # of subcommands, their parsers by name
        for choice in choices:
            sub = cast("object", choices[choice] if isinstance(choices, Mapping) else None)
            help_text = ""
            if isinstance(sub, argparse.ArgumentParser):
                help_text = " ".join((sub.description or "").split()).partition(". ")[0]
                below.append((choice, sub))
            words.append(Word(str(choice), help_text, False))

    yield path, words
    for name, sub in below:
        yield from _levels(sub, f"{path} {name}".strip())


class _Parts(NamedTuple):
    """The pieces of a script for bash or zsh, as patterns of ``case``."""

    commands: str
    files: str
    cases: str


def _parts(parser: argparse.ArgumentParser, case: Callable[[list[Word]], str]) -> _Parts:
    levels = list(_levels(parser))
    files = {word.text for _, words in levels for word in words if word.takes_file}
    return _Parts(
        "|".join(shlex.quote(path) for path, _ in levels if path),
        "|".join(sorted(files)),
        "\n".join(f"        {shlex.quote(path)}) {case(words)} ;;" for path, words in levels),
    )


def _bash(parser: argparse.ArgumentParser) -> str:
    parts = _parts(
        parser, lambda words: f"words={shlex.quote(' '.join(word.text for word in words))}"
    )
    return f"""\
_wove() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="" word words=""
    case "$previous" in
        {parts.files}) COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{command:+$command }}$word" in
            {parts.commands}) command="${{command:+$command }}$word" ;;
        esac
    done
    case "$command" in
{parts.cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _wove wove
"""


def _zsh(parser: argparse.ArgumentParser) -> str:
    def case(words: list[Word]) -> str:
        described = (shlex.quote(f"{_escaped(word.text)}:{word.help}") for word in words)
        return f"described=({' '.join(described)})"

    parts = _parts(parser, case)
    return f"""\
#compdef wove
_wove() {{
    local command="" word
    local -a described
    case "$words[CURRENT-1]" in
        {parts.files}) _files; return ;;
    esac
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "${{command:+$command }}$word" in
            {parts.commands}) command="${{command:+$command }}$word" ;;
        esac
    done
    case "$command" in
{parts.cases}
    esac
    _describe wove described || _files
}}
compdef _wove wove
"""


def _escaped(text: str) -> str:
    return text.replace(":", "\\:")


def _fish(parser: argparse.ArgumentParser) -> str:
    lines = ["complete -c wove -f"]

    for path, words in _levels(parser):
        parts = path.split()
        conditions = [f"__fish_seen_subcommand_from {part}" for part in parts]
        commands = [word.text for word in words if not word.text.startswith("-")]
        if commands:
            conditions.append(f"not __fish_seen_subcommand_from {' '.join(commands)}")
        condition = shlex.quote("; and ".join(conditions))

        for word in words:
            name = word.text.lstrip("-")
            kind = {0: "-a", 1: "-s", 2: "-l"}[len(word.text) - len(name)]
            file = " -r -F" if word.takes_file else ""
            help_text = f" -d {shlex.quote(word.help)}" if word.help else ""
            lines.append(f"complete -c wove -n {condition} {kind} {name}{file}{help_text}")

    return "\n".join(lines) + "\n"


SHELLS: Final[dict[str, Callable[[argparse.ArgumentParser], str]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
