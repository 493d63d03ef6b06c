"""`wove.carry`: variables in pickles."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

import pytest

import wove
from wove import SerializationError
from wove.protocol import carried
from wove.protocol.pickling import dumps, loads

HERE: ContextVar[str] = ContextVar("HERE")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "_carried", [])


def test_it_gives_the_variable_back() -> None:
    assert wove.carry(HERE) is HERE and wove.carry(HERE) is HERE
    context = Context()
    assert carried.carried_values(context) == {}
    context.run(HERE.set, "x")
    assert carried.carried_values(context) == {HERE: "x"}


def test_only_context_variables() -> None:
    with pytest.raises(TypeError, match="a ContextVar is needed, not str"):
        wove.carry("request_id")  # type: ignore[arg-type]


def test_a_variable_of_a_module_is_found_there() -> None:
    wove.carry(HERE)
    assert loads(dumps({HERE: 1}, label="it"), label="it") == {HERE: 1}


def test_one_that_is_not_global_cannot_travel() -> None:
    local = wove.carry(ContextVar[int]("local"))
    with pytest.raises(SerializationError, match="'local' cannot travel: it is not a global"):
        dumps(local, label="it")


def test_one_of_a_module_that_is_not_there_has_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("only_at_home")
    module.REQUEST = wove.carry(ContextVar("REQUEST", default="-"))
    module.BARE = wove.carry(ContextVar[str]("BARE"))
    monkeypatch.setitem(sys.modules, "only_at_home", module)
    pickled = pickle.dumps([module.REQUEST, module.BARE])
    monkeypatch.delitem(sys.modules, "only_at_home")

    request, bare = pickle.loads(pickled)
    assert request is not module.REQUEST and request.name == "REQUEST" and request.get() == "-"
    with pytest.raises(LookupError):
        bare.get()
    assert pickle.loads(pickled) == [request, bare]
    assert pickle.loads(pickle.dumps(request)) is request


def test_variables_of_a_script(script: Callable[..., Any]) -> None:
    done = script("""
        import wove
        from contextvars import ContextVar

        request = wove.carry(ContextVar("request", default="none"))
        other = ContextVar("other", default="none")
        wove.config(environments={"pool": {"executor": "stdio"}})
        request.set("7")
        other.set("8")

        with wove.weave() as w:
            @w.do(environment="pool")
            def plain():
                return request.get(), other.get()

            @w.do([1], environment="pool")
            async def later(item):
                return request.get(), other.get()

            @w.do(environment="pool")
            def generated():
                yield request.get()

        print(w.result.plain, w.result.later, w.result.generated)
    """)
    assert done.stdout == "('7', 'none') [('7', 'none')] ['7']\n"
    assert done.stderr == ""
