"""Make a script of a documentation page, and hold what it prints against what the page says.

The rules a page is written by:

- Every ``python`` block runs, in order, as one script per page. It keeps the page's line numbers, so a traceback points
  into the page.
- A ``text`` block right after a ``python`` block is exactly what that block prints; ``...`` stands for anything within
  a line.
- A ``python`` block whose first line is a comment naming a file (``# wove_config.py``) is written to that file instead,
  before the script starts.
- A line of a ``bash`` block that starts the worker of a backend (``rq worker ...``) runs beside the script: see
  stage.py.
- ``bash`` blocks may hold ``make TARGET``, ``pip install "./wove[EXTRA]"`` (a checkout or a wheel, never the index),
  ``wove ...`` and the like, as `check_command` knows them. So may the lines of a ``dockerfile`` block, and
  ``ExecStart`` of an ``ini`` block, a systemd unit.
"""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import wove

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_MARK = "-- block of line "
_FILE = re.compile(r"# ([\w/]+\.py)\n")
_WORKER = re.compile(
    r"(rq worker|celery|arq|taskiq worker|dask worker|python -m wove\.integrations\.\w+|python \w+_worker\.py)( |$)"
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, the line (from 1) of its opening fence, its text, and whether it follows
    the block before it with nothing but blank lines between."""

    language: str
    line: int
    text: str
    adjacent: bool


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of *page*, in order."""
    found: list[Block] = []
    lines = page.splitlines()
    between = "start"
    number = 0
    while number < len(lines):
        line = lines[number]
        if match := re.fullmatch(r"(`{3,})(.*)", line):
            end = next((n for n in range(number + 1, len(lines)) if lines[n] == match[1]), None)
            if end is None:
                raise ValueError(f"line {number + 1}: this block never ends")
            text = "\n".join(lines[number + 1 : end]) + "\n"
            found.append(Block(match[2].strip(), number + 1, text, not between.strip()))
            number, between = end + 1, ""
        elif re.match(r"\s+`{3,}", line):
            raise ValueError(
                f"line {number + 1}: an indented block would not be run; start it at the margin"
            )
        else:
            between += line
            number += 1
    return found


@dataclass(frozen=True, slots=True)
class Page:
    """A page as a script, the files and workers it wants beside it, and what each of its blocks must print."""

    script: str
    files: dict[str, str]
    expected: dict[int, str]
    commands: list[str]
    workers: list[str]

    @classmethod
    def read(cls, text: str) -> Page:
        script = [""] * len(text.splitlines())
        files: dict[str, str] = {}
        expected: dict[int, str] = {}
        commands: list[str] = []
        blocks = blocks_of(text)
        ran: Block | None = None
        for block in blocks:
            previous, ran = ran, None
            match block.language:
                case "python" if named := _FILE.match(block.text):
                    files[named[1]] = block.text
                case "python":
                    script[block.line - 1] = f"print('{_MARK}{block.line}', flush=True)"
                    script[block.line : block.line + block.text.count("\n")] = (
                        block.text.splitlines()
                    )
                    ran = block
                case "text" if previous and block.adjacent:
                    expected[previous.line] = block.text
                case "bash":
                    lines = (
                        line.partition("#")[0].strip() for line in joined(block.text).splitlines()
                    )
                    commands += [line for line in lines if line]
                case "ini":
                    commands += _commands_of_unit(block.text)
                case "dockerfile":
                    commands += _commands_of_image(block.text)
                case "json":
                    json.loads(block.text)
                case "text" | "toml" | "yaml":
                    pass
                case directive if directive.startswith("{"):  # Sphinx checks those
                    pass
                case other:
                    raise ValueError(
                        f"line {block.line}: nobody knows how to check a block of {other!r}"
                    )
        workers = [command for command in commands if _WORKER.match(command)]
        others = [command for command in commands if command not in workers]
        return cls("\n".join(script) + "\n", files, expected, others, workers)

    def differences(self, stdout: str) -> list[str]:
        """Where *stdout* is not what the page says."""
        parts = re.split(rf"^{_MARK}(\d+)\n", stdout, flags=re.MULTILINE)
        printed = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))
        found = []
        for line, expected in self.expected.items():
            if not _agrees(expected, printed.get(line, "")):
                found.append(
                    f"the block of line {line} should print\n{expected}but prints\n{printed.get(line)}"
                )
        return found


def _agrees(expected: str, printed: str) -> bool:
    pattern = ".*?".join(re.escape(part) for part in expected.rstrip().split("..."))
    return (
        re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.rstrip().splitlines()))
        is not None
    )


def joined(text: str) -> str:
    """*text* with the lines put together that a backslash takes apart."""
    return re.sub(r"\\\n\s*", "", text)


def _commands_of_unit(text: str) -> list[str]:
    unit = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as its own documentation says to do it
    unit.read_string(joined(text))
    return [unit["Service"]["ExecStart"]]


def _commands_of_image(text: str) -> list[str]:
    commands: list[str] = []
    for line in joined(text).splitlines():
        instruction, _, rest = line.partition(" ")
        match instruction:
            case "RUN":
                commands.append(rest)
            case "CMD":
                commands.append(shlex.join(json.loads(rest)))
            case "FROM" | "WORKDIR" | "COPY" | "USER" | "EXPOSE" | "#" | "":
                pass
            case other:
                raise ValueError(f"nobody knows the instruction {other!r}")
    return commands


def check_command(command: str) -> str | None:
    """What is wrong with the shell *command* of a page; ``None`` when it is one that works."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    match shlex.split(command):
        case ["make", target]:
            return None if target in targets else f"the Makefile has no target {target}"
        case ["pip", "install", *_, what]:
            wheel = rf"\S*/wove-{re.escape(wove.__version__)}-py3-none-any\.whl"
            named = re.fullmatch(rf"(?:\./wove|{wheel})(?:\[([\w,-]+)\])?", what)
            extras = set((named[1] or "").split(",")) - {""} if named else {what}
            unknown = extras - set(project["optional-dependencies"])
            return f"there is no extra {', '.join(sorted(unknown))}" if unknown else None
        case ["dask", "scheduler", *_] | [_, "dask", "scheduler", *_] | ["ray", "start", "--head"]:
            return None
        case ["python", "-m", "wove.backend_worker"]:
            return None
        case ["python", "-m", module, *_] if module.startswith("examples."):
            path = ROOT.joinpath(*module.split("."))
            there = path.with_suffix(".py").exists() or path.is_dir()
            return None if there else f"there is no example {module}"
        case [program, *arguments] if program.rpartition("/")[2] == "wove":
            return _check_arguments(arguments)
        case _:
            return "nobody knows how to check this command"


def _check_arguments(arguments: list[str]) -> str | None:
    from wove.cli import make_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            make_parser().parse_args(arguments)
    except SystemExit:
        return said.getvalue()
    return None
