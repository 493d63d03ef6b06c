"""The function that ARQ's workers run. Nothing of ARQ is imported before `worker_function` is called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final

from wove.integrations.worker import arun, check_security
from wove.security import NetworkExecutorSecurity, SecurityConfig

__all__ = ["FUNCTION_NAME", "worker_function", "wove_run_backend_payload"]

FUNCTION_NAME: Final = "wove_run_backend_payload"
"""Default of ``function_name``: what `worker_function` is called."""

_log = logging.getLogger("wove.worker")

KEEP_SECONDS: Final = 30.0
"""Default of ``keep_result``: longer than the interval of `watch`. Not much longer, because a result contains the whole
payload again."""

EVER_SECONDS: Final = 10 * 366 * 86400.0
"""The ``timeout`` that stands for none; `asyncio.wait_for` accepts it."""

RENEW_SECONDS: Final = 5.0
"""The age of a run when its ``arq:in-progress:`` key is renewed first. The shortest expiry that ARQ sets is ten seconds
(Worker.in_progress_timeout_s in arq/worker.py), so shorter runs need no renewal."""

RENEWALS: Final = 4
"""How often the key is renewed during its time to live."""


async def wove_run_backend_payload(ctx: Mapping[str, Any], payload: Any) -> None:
    """Run *payload*, as a function for ``WorkerSettings.functions``.

    The settings of the whole worker apply to it: it is ended after ``job_timeout`` (300 seconds by default), and its
    result, which contains the payload, is kept for ``keep_result`` (an hour). `worker_function` has settings of its
    own.

    Raises:
        PermissionError: The payload is refused; see `wove.integrations.worker.arun`.
        DeliveryError: Its end could not be reported.
        RuntimeError: ARQ delivers the job for the second time, because a worker was stopped during the run.
    """
    await _run(None, ctx, payload)


def worker_function(
    *,
    name: str = FUNCTION_NAME,
    security: SecurityConfig = None,
    timeout: float | None = None,
    keep_result: float = KEEP_SECONDS,
) -> Any:
    """Return an ``arq.worker.Function`` for ``WorkerSettings.functions``, which is not tried twice.

    Args:
        name: The environment's ``function_name``.
        security: As the environment's ``security``; ``None``: the secret in the variable ``WOVE_WORKER_SECRET``, if
            there is one.
        timeout: Seconds after which ARQ ends a run; ``None``: never. The limits of the weave (timeout,
            delivery_timeout) hold in any case. ARQ takes the longest timeout of all functions of a worker as the
            time after which jobs of a worker that was killed are run again; ``None`` does not count there.
        keep_result: Seconds for which ARQ keeps what became of a job, so that a failure can be told with its reason.

    Raises:
        ValueError: *security* is not right.

    Example::

        class WorkerSettings:
            functions = [worker_function()]
            redis_settings = RedisSettings(host="redis")
    """
    from arq.worker import func

    checked = check_security(security)

    async def run_backend_payload(ctx: Mapping[str, Any], payload: Any) -> None:
        await _run(checked, ctx, payload)

    seconds = _NoTimeout(EVER_SECONDS) if timeout is None else timeout
    return func(
        run_backend_payload, name=name, timeout=seconds, keep_result=keep_result, max_tries=1
    )


class _NoTimeout(float):
    """A timeout that never expires, and that is false where ARQ checks whether a function has one.

    The latter decides how long *all* jobs of a killed worker count as running: for the longest timeout of a function
    (``max(f.timeout_s or self.job_timeout_s ...)``, Worker.__init__ in arq/worker.py).
    """

    def __bool__(self) -> bool:
        return False


async def _run(
    security: NetworkExecutorSecurity | None, ctx: Mapping[str, Any], payload: Any
) -> None:
    if ctx.get("job_try", 1) > 1:
        raise RuntimeError(
            "a worker has begun this run before, and was stopped or killed in the middle of it; it is not begun twice"
        )
    with _Renewal(ctx):
        await arun(payload, security=security)


class _Renewal:
    """Keeps the key of a running job from expiring; otherwise ARQ would run the job again as abandoned."""

    def __init__(self, ctx: Mapping[str, Any]) -> None:
        self._redis = ctx.get("redis")
        self._key = f"arq:in-progress:{ctx.get('job_id')}"
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self._redis is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(RENEW_SECONDS, partial(self._begin, loop))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._task = loop.create_task(self._renew())

    async def _renew(self) -> None:
        assert self._redis is not None
        whole = 0

        while True:
            try:
                # -2: there is no such key. It was deleted on purpose, and stays deleted.
                left: int = await self._redis.pttl(self._key)
                whole = whole or left + round(RENEW_SECONDS * 1000)
                if left < 0 or not await self._redis.pexpire(self._key, whole):
                    return
            except Exception as error:  # Redis cannot be reached, and the job goes on
                _log.debug(
                    "%s could not be renewed: %s: %s", self._key, type(error).__name__, error
                )
            await asyncio.sleep((whole or RENEW_SECONDS * 1000) / 1000 / RENEWALS)
