"""One task elsewhere, in the three ways in which tests wait for it.

>>> there_is, there_will_be, begin = ways("there")
>>> assert there_is(add_one, item=1) == 2
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from wove import weave

__all__ = ["Ways", "ways"]


class Ways(NamedTuple):
    """What `ways` makes.

    Attributes:
        there_is: ``there_is(fn, options=..., **values)``: what *fn* returns, as the one task of a weave.
        there_will_be: The same, on this loop.
        begin: That as an asyncio task.
    """

    there_is: Callable[..., Any]
    there_will_be: Callable[..., Any]
    begin: Callable[..., asyncio.Task[Any]]


def ways(environment: str) -> Ways:
    """The ways to have a task run in *environment*."""

    def there_is(
        fn: Callable[..., Any], /, *, options: dict[str, Any] | None = None, **values: Any
    ) -> Any:
        with weave(**values) as w:
            w.do(environment=environment, **(options or {}))(fn)
        return w.result.final

    async def there_will_be(
        fn: Callable[..., Any], /, *, options: dict[str, Any] | None = None, **values: Any
    ) -> Any:
        async with weave(**values) as w:
            w.do(environment=environment, **(options or {}))(fn)
        return w.result.final

    def begin(fn: Callable[..., Any], /, **values: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(there_will_be(fn, **values))

    return Ways(there_is, there_will_be, begin)
