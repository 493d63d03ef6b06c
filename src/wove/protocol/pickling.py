"""Python values to bytes and back: one copy of it for the whole project.

The C pickler holds the interpreter lock for as long as it runs, and so would a 100 MB argument for the better
part of a second, while every other thread of the process stands still. Therefore whatever is not small goes
through a file object written in Python: the pickler calls it for every frame of 64 KiB, and the unpickler for
every read, and at each call another thread can have the lock. Large values are moved in pieces meanwhile.

A pickle is *plain* when it holds nothing but the built-in scalars and containers. Such a pickle can be made
and loaded without running anybody's code, and it is certain to load on the other side.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from wove.errors import OTHER_WOVE, MissingDispatchFeatureError, SerializationError
from wove.protocol import by_value
from wove.protocol.limits import INLINE_BYTES, PIECE_BYTES

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "PROTOCOL",
    "NotPlainError",
    "Pickled",
    "declare_one_machine",
    "dumps",
    "dumps_plain",
    "is_picklable",
    "is_plain",
    "loads",
    "loads_plain",
]

#: Known to every supported Python version. The highest one may change under a sender's feet.
PROTOCOL: Final = 5

_Chunk = bytes | memoryview

_SCALARS: Final = frozenset({type(None), bool, int, float})
_TEXTS: Final = frozenset({str, bytes})
_SEQUENCES: Final = frozenset({list, tuple, set, frozenset})


class NotPlainError(ValueError):
    """The pickle refers to a class or function; see :func:`loads_plain`."""


class Pickled:
    """A pickle, in chunks.

    Attributes:
        chunks: The bytes, in order. Large ones are kept apart as they came.
        size: Bytes of all chunks together.
        plain: Whether the pickle is known to hold nothing but built-in scalars and containers.
    """

    __slots__ = ("chunks", "plain", "size")

    chunks: tuple[_Chunk, ...]
    size: int
    plain: bool

    def __init__(
        self, chunks: Sequence[_Chunk], *, size: int | None = None, plain: bool = False
    ) -> None:
        self.chunks = tuple(chunks)
        self.size = sum(len(chunk) for chunk in chunks) if size is None else size
        self.plain = plain

    def __repr__(self) -> str:
        return f"<Pickled {self.size} bytes in {len(self.chunks)}{' plain' if self.plain else ''}>"


def is_plain(value: object, budget: int = 200) -> bool:
    """Return whether *value* is small, and made of exact built-in scalars and containers only.

    Such a value is pickled inline: it takes microseconds, runs nobody's code and always loads again.

    Args:
        value: Anything.
        budget: How many nodes (scalars, containers, keys) are looked at before the answer is no.
    """
    kind = type(value)
    if kind in _SCALARS:
        return True
    room = INLINE_BYTES // 2  # a character is up to four bytes, and most are one
    pending = [value]
    while pending:
        node = pending.pop()
        budget -= 1
        kind = type(node)
        if kind in _TEXTS:
            room -= len(node)  # type: ignore[arg-type]  # a str or bytes
        elif kind is dict:
            budget -= len(node)  # type: ignore[arg-type]
            if budget >= 0:
                pending.extend(node)  # type: ignore[arg-type]
                pending.extend(node.values())  # type: ignore[attr-defined]
        elif kind in _SEQUENCES:
            if len(node) <= budget:  # type: ignore[arg-type]
                pending.extend(node)  # type: ignore[arg-type]
            else:
                return False
        elif kind not in _SCALARS:
            return False
        if budget < 0 or room < 0:
            return False

    return True


def dumps_plain(value: object) -> Pickled | None:
    """Pickle *value* if `is_plain` says so, in microseconds; ``None`` if not: use :func:`dumps`, in a thread."""
    return Pickled((pickle.dumps(value, PROTOCOL),), plain=True) if is_plain(value) else None


def dumps(value: object, *, label: str) -> Pickled:
    """Pickle *value*; by value where the other side could not import it (``__main__``, lambdas, closures).

    May be called from any thread, and lets the other threads run meanwhile.

    Args:
        value: Anything that cloudpickle takes.
        label: What it is, for the error: ``"the arguments of task 'pdf'"``.

    Raises:
        SerializationError: Some part of it cannot be pickled. The message names the part and its type.
        MissingDispatchFeatureError: It is not plain, and cloudpickle is not installed.
    """
    plain = dumps_plain(value)
    if plain is not None:
        return plain
    try:
        return _dump(value)
    except MissingDispatchFeatureError:
        raise
    except Exception as error:
        from wove.protocol.pickling_diagnostics import explain

        raise SerializationError(explain(value, label, error, is_picklable)) from error


def loads(pickled: Pickled | bytes, *, label: str) -> Any:
    """Return the value of a pickle.

    May be called from any thread, and lets the other threads run meanwhile.

    Args:
        pickled: What :func:`dumps` made, there or here.
        label: What it is, for the error: ``"the result of task 'pdf'"``.

    Raises:
        SerializationError: It cannot be rebuilt in this process. The message says what is missing.
    """
    try:
        return _load(pickled)
    except Exception as error:
        raise SerializationError(_why_not_loaded(label, error)) from error


def loads_plain(pickled: Pickled | bytes) -> Any:
    """Return the value of a plain pickle: no code is run, and nothing is imported.

    For small pickles that should not pay for a change of threads.

    Raises:
        NotPlainError: The pickle refers to a class or function, or is broken: use :func:`loads`.
    """
    data = pickled if isinstance(pickled, bytes) else b"".join(pickled.chunks)
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:
        raise NotPlainError(str(error)) from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise NotPlainError(f"{module_name}.{global_name}")


# --- writing ----------------------------------------------------------------------------------------------


class _Chunks:
    """The file that a pickler writes to. A Python method on purpose: see the top of this file."""

    def __init__(self) -> None:
        self.chunks: list[_Chunk] = []
        self.size = 0

    def write(self, data: Any) -> int:
        if type(data) is bytes:
            self.chunks.append(data)
            self.size += len(data)
            return len(data)

        # A bytearray, or a view of someone's buffer: it may change before it is sent, so take a copy.
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            self.chunks.append(bytes(view[start : start + PIECE_BYTES]))
        self.size += len(view)
        return len(view)


class _Nowhere:
    """A file that drops its data."""

    def write(self, data: Any) -> int:
        return len(data)


def _dump(value: object) -> Pickled:
    target = _Chunks()
    pickler = _pickler_type()(target, protocol=PROTOCOL)
    pickler.dump(value)
    chunks = target.chunks
    if target.size <= INLINE_BYTES:
        chunks = [b"".join(chunks)]
    return Pickled(chunks, size=target.size, plain=pickler.plain)


def is_picklable(value: object) -> bool:
    """Return whether `dumps` takes *value*. Takes as long as pickling it."""
    try:
        _pickler_type()(_Nowhere(), protocol=PROTOCOL).dump(value)
    except Exception:
        return False
    return True


_made_pickler: Any = None


def _pickler_type() -> Any:
    """cloudpickle's pickler, which also notices whether anything but built-in values passed through it."""
    global _made_pickler

    if _made_pickler is None:
        base: Any = _cloudpickle().Pickler
        override: Any = base.reducer_override

        class Pickler(base):  # type: ignore[misc]  # a base that is only known at run time
            plain = True
            own_locks: dict[int, object] | None = None

            def reducer_override(self, obj: Any) -> Any:
                # The C pickler asks for everything but the exact built-in scalars and containers.
                self.plain = False
                if isinstance(obj, (type, FunctionType)):
                    return self._reduce_definition(obj)
                if self.own_locks is not None and id(obj) in self.own_locks:
                    return by_value.new_lock(obj)
                if isinstance(obj, CodeType):
                    return by_value.keep_filename(obj, self.dispatch_table[CodeType](obj))
                reduced: Any = by_value.reduce_by_value(obj) or override(self, obj)
                return reduced

            def _reduce_definition(self, obj: Any) -> Any:
                reduced: Any = override(self, obj)
                if not issubclass(type(reduced), tuple) or reduced[0] is type:
                    return reduced
                if locks := by_value.find_own_locks(obj):
                    self.own_locks = (self.own_locks or {}) | {id(lock): lock for lock in locks}
                if isinstance(obj, type):
                    return by_value.keep_slots(obj, reduced)
                return by_value.reduce_singledispatch(obj) or reduced

        _made_pickler = Pickler

    return _made_pickler


def _cloudpickle() -> ModuleType:
    try:
        import cloudpickle
    except ImportError:
        raise MissingDispatchFeatureError from None
    module: ModuleType = cloudpickle
    return module


# --- reading ----------------------------------------------------------------------------------------------


class _Pieces:
    """The file that an unpickler reads from. Python methods on purpose: see the top of this file."""

    def __init__(self, chunks: Sequence[_Chunk]) -> None:
        self._chunks = [memoryview(chunk) for chunk in reversed(chunks)]

    def _take(self, size: int) -> memoryview:
        """At most *size* bytes; none when everything has been read."""
        while self._chunks:
            chunk = self._chunks[-1]
            if len(chunk) > size:
                self._chunks[-1] = chunk[size:]
                return chunk[:size]
            self._chunks.pop()
            if len(chunk):
                return chunk

        return memoryview(b"")

    def read(self, size: int) -> bytes:
        first = self._take(size)
        if len(first) == size:
            return bytes(first)
        parts = [first]
        missing = size - len(first)
        while missing and len(part := self._take(missing)):
            parts.append(part)
            missing -= len(part)

        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(target):
            part = self._take(min(PIECE_BYTES, len(target) - filled))
            if not len(part):
                break
            target[filled : filled + len(part)] = part
            filled += len(part)

        return filled

    def readline(self) -> bytes:
        # Only the text opcodes of protocols 0 to 2 ask for lines.
        line = bytearray()
        while not line.endswith(b"\n") and len(part := self._take(1)):
            line += part
        return bytes(line)


def _load(pickled: Pickled | bytes) -> Any:
    if isinstance(pickled, Pickled):
        if pickled.plain and len(pickled.chunks) == 1 and pickled.size <= INLINE_BYTES:
            return pickle.loads(pickled.chunks[0])
        chunks, size = pickled.chunks, pickled.size
    else:
        chunks, size = (pickled,), len(pickled)

    source = io.BytesIO(b"".join(chunks)) if size <= INLINE_BYTES else _Pieces(chunks)
    return _Unpickler(source).load()


# Classes that came by value and were built here; cloudpickle itself does not tell them from our own.
_rebuilt: Any = None


class _Unpickler(pickle.Unpickler):
    """Keeps a class that this process sent out by value as it is when it comes back.

    cloudpickle finds the original class again, and then sets all its attributes to the copies that came
    along: methods would lose touch with the globals of their module, and counters jump back.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == "__main__":
            return _find_in_main(super().find_class, global_name)
        if module_name == "cloudpickle.cloudpickle":
            found = super().find_class(module_name, global_name)
            if global_name in ("_make_skeleton_class", "_make_skeleton_enum"):
                return _noting_what_is_new(found)
            if global_name == "_class_setstate":
                return _sparing_our_own(found)
            return found

        return super().find_class(module_name, global_name)


def _find_in_main(find: Callable[[str, str], Any], name: str) -> Any:
    try:
        return find("__main__", name)
    except AttributeError:
        raise _NotInMainError(
            f"{name!r} was pickled by its name in the script (__main__), and no such name is defined by the main "
            f"program of this process. Objects of its kind do not travel by value: define it in a module that "
            f"both sides import, or create it inside the task"
        ) from None


class _NotInMainError(Exception):
    """A pickle refers to a name in ``__main__`` that does not exist here."""


def _rebuilt_classes() -> Any:
    global _rebuilt
    if _rebuilt is None:
        import weakref

        _rebuilt = weakref.WeakSet[type]()
    return _rebuilt


def _noting_what_is_new(make: Callable[..., type]) -> Callable[..., type]:
    def make_skeleton(*args: Any) -> type:
        from cloudpickle import cloudpickle

        tracker_id = args[-2]  # (..., class_tracker_id, extra) in both functions
        known = getattr(cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", {}).get(tracker_id)
        made = make(*args)
        if made is not known:
            _rebuilt_classes().add(made)
        return made

    return make_skeleton


def _sparing_our_own(set_state: Callable[[type, Any], type]) -> Callable[[type, Any], type]:
    def set_class_state(cls: type, state: Any) -> type:
        return set_state(cls, state) if cls in _rebuilt_classes() else cls

    return set_class_state


_one_machine = False


def declare_one_machine() -> None:
    """Say that all pickles of this process come from the same machine: errors then do not speak of two versions."""
    global _one_machine
    _one_machine = True


def _says_module_lacks(error: Exception) -> bool:
    """Whether *error* is what the unpickler raises when a module has no attribute of the name."""
    return isinstance(error, AttributeError) and "on <module " in str(error)


def _why_not_loaded(label: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if error.name.partition(".")[0] == "cloudpickle":
            return f"cannot rebuild {label} without cloudpickle. {MissingDispatchFeatureError()}"
        if error.name.partition(".")[0] == "wove":
            return (
                f"cannot rebuild {label}: the module {error.name!r} is missing there. {OTHER_WOVE}."
            )
        return (
            f"cannot rebuild {label}: the module {error.name!r} cannot be imported there. "
            f"Install it there, or make it importable (PYTHONPATH, working directory)."
        )

    if isinstance(error, _NotInMainError):
        return f"cannot rebuild {label}: {error}."
    if isinstance(error, ImportError) or _says_module_lacks(error):
        advice = "Define it at the top level of the module, not at run time or below a condition."
        if not _one_machine:
            advice = f"If the code there is another version, bring both sides to the same version. {advice}"
        return f"cannot rebuild {label}: {error}. {advice}"

    return (
        f"cannot rebuild {label}: {type(error).__name__}: {error}. "
        f"Its class must survive pickle.loads(pickle.dumps(...)); send plain data where it does not."
    )
