"""`Weave`: a workflow as a class, to be run, inherited and overridden."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, TypeGuard, TypeVar, Unpack, overload

from wove.engine.sources import is_iterable, is_task
from wove.graph.options import UNSET, TaskOptions, check_task_options, shown
from wove.graph.plan import DATA, Declaration
from wove.result import RESERVED

__all__ = ["Weave", "declarations_of"]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__wove_task__"


class _Marked:
    """The mark that `Weave.do` leaves on a method."""

    __slots__ = ("mapped", "options", "source")

    def __init__(self, source: Any, mapped: bool, options: dict[str, Any]) -> None:
        self.source = source
        self.mapped = mapped
        self.options = options


class Weave:
    """Base of workflows that are classes: the methods marked with ``@Weave.do`` are the tasks.

    A subclass inherits the tasks of its bases, mixins among them. A method of the same name replaces a
    task and keeps the options it does not set, whether it is marked again or not, and may call
    ``super()``. Tasks come in the order of the class bodies, the bases' first.

    Example:
        >>> class Report(Weave):
        ...     @Weave.do(retries=2)
        ...     def rows(self, day): return [day, day]
        ...     @Weave.do
        ...     def total(self, rows): return len(rows)
        >>> with weave(Report, day=1) as w:
        ...     pass
        >>> w.result.total
        2
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

        for name, marks in _marks_of(cls).items():
            if name in RESERVED or name == DATA:
                label = (
                    "the dict of all initial values"
                    if name == DATA
                    else "an attribute of the result"
                )
                raise NameError(f"{name!r} cannot name a task of {cls.__name__}: it is {label}")
            if not any(mark.mapped for mark in marks):
                check_task_options(
                    _merged(marks), mapped=False, label=f"task {name!r} of {cls.__name__}"
                )

    @overload
    @staticmethod
    def do(fn: F, /) -> F: ...

    @overload
    @staticmethod
    def do(
        source: str | Iterable[Any] | AsyncIterable[Any] = ..., /, **options: Unpack[TaskOptions]
    ) -> Callable[[F], F]: ...

    @staticmethod
    def do(source: Any = UNSET, /, **options: Unpack[TaskOptions]) -> Any:
        """Mark a method as a task; sources and options are those of `weave.do`.

        Raises:
            TypeError, ValueError: An option is wrong; the message names it.
        """
        if not options and _is_method(source):
            return _mark(source, UNSET, {})
        if source is not UNSET and not is_iterable(source):
            raise TypeError(
                f"@Weave.do maps over an iterable or the name of a task, not over {shown(source)}"
            )

        def decorate(fn: F) -> F:
            return _mark(fn, source, options)

        return decorate


def _is_method(value: object) -> bool:
    return is_task(value) or isinstance(value, classmethod)


def _mark(fn: F, source: Any, options: Any) -> F:
    name = getattr(fn, "__name__", type(fn).__name__)
    mapped = source is not UNSET
    # A method that replaces a mapped task may leave out the source, so that is not checked here.
    checked = check_task_options(options, mapped=True, label=f"task {name!r}") if options else {}
    try:
        setattr(fn, _MARK, _Marked(source if mapped else None, mapped, checked))
    except AttributeError:
        raise TypeError(f"@Weave.do marks methods, and {shown(fn)} cannot be marked") from None

    return fn


_PLAIN = _Marked(None, False, {})
"""Return the mark of a method that has none itself, but replaces a task."""


def _marks_of(cls: type) -> dict[str, list[_Marked]]:
    """Return the marks of each task of *cls*, the oldest definition first."""
    found: dict[str, list[_Marked]] = {}

    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            mark: object = getattr(value, _MARK, None)
            if mark is None:  # a staticmethod or classmethod around a marked function
                mark = getattr(getattr(value, "__func__", None), _MARK, None)
            if isinstance(mark, _Marked):
                found.setdefault(name, []).append(mark)
            elif name in found and value is None:  # as with __hash__ = None: the task is removed
                del found[name]
            elif name in found:
                found[name].append(_PLAIN)

    return found


def _merged(marks: list[_Marked]) -> dict[str, Any]:
    return {name: value for mark in marks for name, value in mark.options.items()}


def _is_workflow(value: object) -> TypeGuard[type[Weave]]:
    return isinstance(value, type) and issubclass(value, Weave)


def declarations_of(parent: object) -> dict[str, Declaration]:
    """Return the tasks of the class *parent*, bound to a new instance of it.

    Raises:
        TypeError: *parent* is not a subclass of `Weave`, needs arguments, or has a task that cannot be called.
    """
    if not _is_workflow(parent):
        raise TypeError(f"weave(...) takes a subclass of wove.Weave, not {shown(parent)}")
    cls = parent
    instance = _instance_of(cls)
    declarations: dict[str, Declaration] = {}

    for name, marks in _marks_of(cls).items():
        fn = getattr(instance, name)
        if not callable(fn):
            raise TypeError(
                f"task {name!r} of {cls.__name__} is replaced by {shown(fn)}, which cannot be called"
            )
        # The last definition with a source is the one that the later ones replace.
        at = max((i for i, mark in enumerate(marks) if mark.mapped), default=-1)
        mapped: Declaration | None = None
        if at >= 0:
            mapped = Declaration(
                fn, _merged(marks[: at + 1]), marks[at].source, mapped=True, name=name
            )
        if at < len(marks) - 1:
            declarations[name] = Declaration(fn, _merged(marks), name=name, replaces=mapped)
        elif mapped is not None:
            declarations[name] = mapped

    return declarations


def _instance_of(cls: type[Weave]) -> Weave:
    try:
        return cls()
    except TypeError as error:
        try:
            inspect.signature(cls).bind()
        except TypeError:
            raise TypeError(
                f"weave({cls.__name__}) makes the instance by itself, without arguments: {error}. "
                f"Give them defaults, or hand values to the tasks: weave({cls.__name__}, name=value)"
            ) from error
        raise
