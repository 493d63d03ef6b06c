"""The work on files: parse them, and measure what is in them. Plain Python, nothing of Wove's."""

from __future__ import annotations

import ast
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda)
# What adds a way through a function: McCabe's measure counts them, and one for the straight way.
BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.match_case,
    ast.comprehension,
)


class Measured(TypedDict):
    """What is known of one function."""

    name: str
    lines: int
    complexity: int


class FileReport(TypedDict):
    """What is known of one file; ``error`` says why it is not Python, and then the numbers are 0."""

    path: str
    error: str | None
    functions: int
    classes: int
    imports: int
    longest: Measured | None
    most_complex: Measured | None
    seconds: float


def analyse(path: str) -> FileReport:
    """Read and measure one file. It computes from start to end, so threads would only take turns."""
    began = time.thread_time()
    report: FileReport = {
        "path": path,
        "error": None,
        "functions": 0,
        "classes": 0,
        "imports": 0,
        "longest": None,
        "most_complex": None,
        "seconds": 0.0,
    }
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
    except (
        SyntaxError,
        ValueError,
    ) as error:  # some of the library's own test files are wrong on purpose
        report["error"] = f"{type(error).__name__}: {error}"
        return report
    nodes = list(ast.walk(tree))
    measured = [measure(node) for node in nodes if isinstance(node, FUNCTIONS)]
    report["functions"] = len(measured)
    report["classes"] = sum(isinstance(node, ast.ClassDef) for node in nodes)
    report["imports"] = sum(
        len(node.names) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))
    )
    report["longest"] = max(measured, key=lambda function: function["lines"], default=None)
    report["most_complex"] = max(
        measured, key=lambda function: function["complexity"], default=None
    )
    report["seconds"] = time.thread_time() - began
    return report


def measure(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Measured:
    """The length and the cyclomatic complexity of one function, without those inside it."""
    complexity = 1
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, SCOPES):
            continue
        if isinstance(node, BRANCHES):
            complexity += 1
        elif isinstance(node, ast.BoolOp):
            complexity += len(node.values) - 1
        pending.extend(ast.iter_child_nodes(node))
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    return {"name": function.name, "lines": lines, "complexity": complexity}


def digests(paths: Iterable[str]) -> list[str]:
    """What is in each file, in 64 characters."""
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
