"""What a script defines travels to a worker process, which does not run the script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_DEFINITIONS = """
import abc, dataclasses, enum, functools, json, sys, threading
from typing import *

import wove
from wove import weave

wove.config(environments={"pool": {"executor": "stdio", "executor_config": {"processes": 1}}})

@functools.lru_cache(maxsize=10, typed=True)
def cached(n):
    return n if n < 2 else cached(n - 1) + cached(n - 2)

@functools.singledispatch
def show(x):
    return "object"

@show.register
def _(x: int):
    return "int"

@show.register(list)
def _(x):
    return "list of " + show(x[0])

class Methods:
    @functools.singledispatchmethod
    def kind(self, x):
        return "object"

    @kind.register
    def _(self, x: int):
        return "int"

class Lazy:
    guard = threading.Lock()

    @functools.cached_property
    def value(self):
        with self.guard:
            return 5

class Locked:
    def __init__(self):
        self.lock = threading.RLock()

    def __get__(self, instance, owner=None):
        with self.lock:
            return 7

class HasLocked:
    x = Locked()

def synchronized(function):
    lock = threading.Lock()

    @functools.wraps(function)
    def call(*args):
        with lock:
            return function(*args)

    return call

@synchronized
def locked(n):
    return n

UserId = NewType("UserId", int)
P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

class Box(Generic[T]):
    __slots__ = ("value",)

    def __init__(self, value: T):
        self.value = value

class Colour(enum.Enum):
    RED = 1

class Pair(NamedTuple):
    a: int
    b: UserId = 3

class Document(TypedDict):
    a: int

class Private:
    __slots__ = ("a", "__hidden", "__weakref__")

    def __init__(self):
        self.a, self.__hidden = 1, 2

    def hidden(self):
        return self.__hidden

class Inherits(Private):
    __slots__ = {"q": "documented"}

@dataclasses.dataclass(slots=True, frozen=True, order=True)
class Point:
    x: int
    tags: list = dataclasses.field(default_factory=list)

class Base(abc.ABC):
    __slots__ = ("k",)

    @abc.abstractmethod
    def f(self): ...

class Concrete(Base):
    __slots__ = ()

    def f(self):
        return 9

class Sentinel:
    def __reduce__(self):
        return "MISSING"

MISSING = Sentinel()

def annotated(x: UserId, f: Callable[P, T]) -> Box[T]:
    return Box(x)

if sys.version_info >= (3, 12):
    exec("type Json = dict[str, Json] | int\\ntype Two[X] = tuple[X, X]\\n"
         "def generic[U: int](x: U, j: Json, p: Two[int]) -> U: return x\\n")
else:
    def generic(x, j, p): return x
"""

_CALLS = {
    "a cached function": "cached(10) == 55",
    "its parameters": "cached.cache_parameters() == {'maxsize': 10, 'typed': True}",
    "single dispatch": "(show(1), show([1]), show('')) == ('int', 'list of int', 'object')",
    "dispatching methods": "(Methods().kind(1), Methods().kind('')) == ('int', 'object')",
    "a cached property and a lock of the class": "Lazy().value == 5",
    "a descriptor with a lock": "HasLocked().x == 7",
    "a decorator with a lock": "locked(3) == 3",
    "a new type": "UserId(3) == 3 and UserId.__name__ == 'UserId'",
    "parameters of types": "(P.__name__, T.__name__, Ts.__name__) == ('P', 'T', 'Ts')",
    "annotations": "annotated(1, 2).value == 1",
    "a generic class with slots": "Box[int](3).value == 3 and not hasattr(Box(3), '__dict__')",
    "an enumeration": "Colour(1) is Colour.RED",
    "a named tuple": "Pair(1).b == 3",
    "a typed dict": "Document(a=1)['a'] == 1",
    "private slots": "Private().hidden() == 2 and not hasattr(Private(), '__dict__')",
    "documented slots": "Inherits.__slots__ == {'q': 'documented'} and Inherits().hidden() == 2",
    "a dataclass with slots": "Point(1) < Point(2) and not hasattr(Point(1), '__dict__')",
    "an abstract class with slots": "Concrete().f() == 9 and not hasattr(Concrete(), '__dict__')",
    "a sentinel": "MISSING is not None",
    "a generic function": "generic(1, 2, 3) == 1",
}

_VALUES = {
    "Point(1)": "same == Point(1)",
    "Colour.RED": "same is Colour.RED",
    "Pair(1)": "same == (1, 3) and type(same) is Pair",
    "Box(2)": "type(same) is Box and same.value == 2",
    "Private()": "same.hidden() == 2",
    "MISSING": "same is MISSING",
    "UserId": "same(3) == 3",
    "list[Point]": "same == list[Point]",
}

_SCRIPT = """
found = {}
for name, call in calls.items():
    @functools.wraps(lambda: None)
    def one(): ...
    exec(f"def one(): return {call}")
    try:
        with weave() as w:
            w.do(environment="pool")(one)
        found[name] = w.result.one
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
for text, check in values.items():
    try:
        with weave(value=eval(text)) as w:
            @w.do(environment="pool")
            def same(value):
                return value
        same = w.result.same
        found[text] = eval(check)
    except Exception as error:
        found[text] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each case in one run of the script."""
    script: Path = tmp_path_factory.mktemp("script") / "script.py"
    cases = f"calls = {_CALLS!r}\nvalues = {_VALUES!r}\n"
    script.write_text(f"{_DEFINITIONS}\n{cases}{_SCRIPT}")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("case", [*_CALLS, *_VALUES])
def test_it_travels(found: dict[str, Any], case: str) -> None:
    assert found[case] is True


def test_what_travels_by_name_only_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import wove, decimal\nfrom wove import weave\n"
        "from wove.protocol.pickling import dumps, loads\n"
        "class Kind(int):\n    __slots__ = ()\n    def __reduce__(self): return 'ONLY'\n"
        "ONLY = Kind(3)\n"
        "try: dumps([ONLY], label='the arguments')\n"
        "except Exception as error: print(error)\n"
        "class Wrong:\n    def __reduce__(self): return 'OTHER'\n"
        "try: loads(b'c__main__\\nnowhere\\n.', label='the result')\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    sent, received = done.stdout.splitlines()
    assert "[0]" in sent and "'ONLY' is an instance of 'Kind'" in sent
    assert "define it in a module" in sent and "version" not in sent
    assert "'nowhere' was pickled by its name in the script" in received
    assert "version" not in received


def test_tracebacks_of_functions_by_value_name_their_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import traceback, wove\nfrom wove import weave\n"
        "wove.config(environments={'pool': {'executor': 'stdio', 'executor_config': {'processes': 1}}})\n"
        "try:\n"
        "    with weave() as w:\n"
        "        @w.do(environment='pool')\n"
        "        def one():\n"
        "            raise ValueError('here')  # the line\n"
        "except ValueError as error:\n"
        "    print(error.__cause__)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert f'File "{script}", line 8, in one' in done.stdout
    assert "raise ValueError('here')  # the line" in done.stdout
