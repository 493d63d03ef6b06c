"""Bytes of calls and outcomes, made in threads where they may take long or run anybody's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from wove.concurrency import thread_pool
from wove.delivery.run import Ending, Outcome
from wove.errors import EnvironmentExecutionError
from wove.protocol import faults, pickling
from wove.protocol.frames import check_python

if TYPE_CHECKING:
    from wove.delivery.request import Request
    from wove.protocol.pickling import Pickled

__all__ = ["Codec"]

SMALL_BYTES: Final = 4096
"""Up to this size a plain result is unpickled on the background loop: it takes less than a thread does."""

Post: TypeAlias = Callable[..., bool]


class Codec:
    """Turns arguments into pickles and events into outcomes, for one loop.

    Args:
        post: Has a function called on that loop.
        inline: Whether small plain values may be pickled and unpickled on that loop itself. Never true
            for a loop that users' code runs on.
    """

    __slots__ = ("_inline", "_post")

    def __init__(self, post: Post, *, inline: bool) -> None:
        self._post = post
        self._inline = inline

    def arguments(
        self, request: Request, ready: Callable[[Pickled | BaseException], object]
    ) -> None:
        """Have *ready* called on the loop, perhaps at once, with the pickled arguments or with why not."""
        plain = pickling.dumps_plain(request.args) if self._inline else None
        if plain is not None:
            ready(plain)
            return

        def dump() -> None:
            result: Pickled | BaseException
            try:
                result = pickling.dumps(request.args, label=f"the arguments of {request}")
            except BaseException as error:  # whatever it is, it belongs to the run
                result = error
            self._post(ready, result)

        thread_pool.submit(dump)

    def outcomes(
        self, event: dict[str, Any], task: str, count: int, ready: Callable[[list[Outcome]], object]
    ) -> None:
        """Have *ready* called on the loop, perhaps at once, with *count* outcomes made from a terminal event.

        Each is made on its own, so that those who share a run share no mutable value. A live value, from an
        executor of this process, is all the same one.
        """
        if event["type"] == "task_result":
            pickled = event.get("result_pickle")
            if pickled is None:
                ready([_live_result(event, task)] * count)
                return
            if self._inline and count == 1 and pickled.size <= SMALL_BYTES:
                try:
                    value = pickling.loads_plain(pickled)
                except pickling.NotPlainError:
                    pass
                else:
                    ready([Outcome(Ending.VALUE, value)])
                    return
        else:
            exception = event.get("exception")
            if isinstance(exception, BaseException):
                ready([Outcome(Ending.ERROR, exception)] * count)
                return

        def load() -> None:
            self._post(ready, [_decode(event, task) for _ in range(count)])

        thread_pool.submit(load)


def _live_result(event: dict[str, Any], task: str) -> Outcome:
    if "result" in event:
        return Outcome(Ending.VALUE, event["result"])
    message = f"task {task!r}: its worker sent a task_result without a result"
    return Outcome(Ending.ERROR, EnvironmentExecutionError.of_transport(message, kind="FrameError"))


def _decode(event: dict[str, Any], task: str) -> Outcome:
    try:
        if event["type"] == "task_result":
            check_python(event, label=f"the result of task {task!r}")
            return Outcome(
                Ending.VALUE,
                pickling.loads(event["result_pickle"], label=f"the result of task {task!r}"),
            )
        return Outcome(Ending.ERROR, faults.to_exception(event, task=task))
    except (
        BaseException
    ) as error:  # a hostile __setstate__ may raise anything; it ends this run alone
        return Outcome(Ending.ERROR, error)
