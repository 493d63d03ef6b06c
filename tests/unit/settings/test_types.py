"""The types of `executor_config` have the keys that the executors take, and each key has its text."""

from __future__ import annotations

import ast
import inspect
from typing import Any, get_args, get_type_hints

import pytest

from wove.executors.backend.executor import KEYS as BACKEND_KEYS, PATIENCE_KEY
from wove.executors.network.executor import SHARED_KEYS, NetworkExecutor
from wove.executors.registry import BUILT_IN, executor_class
from wove.executors.stdio.executor import KEYS as STDIO_KEYS
from wove.graph.options import names
from wove.settings import types

DEFINITIONS = {
    name: definition
    for definition in get_args(types.EnvironmentDefinition)
    if hasattr(definition, "__required_keys__")
    for name in get_args(get_type_hints(definition)["executor"])
}


def keys_of(executor: str) -> set[str]:
    """The keys that the executor itself takes."""
    kind: Any = executor_class(executor, "test")
    if executor == "stdio":
        return set(STDIO_KEYS)
    if issubclass(kind, NetworkExecutor):
        return {*kind.KEYS, *SHARED_KEYS}
    adapter = kind.adapter_class
    return {*adapter.keys, *BACKEND_KEYS, *((PATIENCE_KEY,) if adapter.patient else ())}


def test_every_built_in_executor_has_a_definition() -> None:
    assert set(DEFINITIONS) == {"local", *BUILT_IN}


@pytest.mark.parametrize("executor", BUILT_IN)
def test_a_type_has_the_keys_of_its_executor(executor: str) -> None:
    definition = get_type_hints(DEFINITIONS[executor])
    assert set(definition["executor_config"].__annotations__) == keys_of(executor)


@pytest.mark.parametrize("executor", DEFINITIONS)
def test_a_definition_takes_the_options_of_an_environment(executor: str) -> None:
    definition = set(get_type_hints(DEFINITIONS[executor]))
    assert definition - {"executor", "executor_config"} == set(names("environment"))


def test_every_key_has_its_text() -> None:
    tree = ast.parse(inspect.getsource(types))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not node.name.endswith(("Config", "Timeouts")):
            continue
        for at, statement in enumerate(node.body):
            if isinstance(statement, ast.AnnAssign):
                text = node.body[at + 1] if at + 1 < len(node.body) else None
                assert isinstance(text, ast.Expr), ast.unparse(statement)
                assert str(ast.literal_eval(text.value)).endswith("."), ast.unparse(text)
