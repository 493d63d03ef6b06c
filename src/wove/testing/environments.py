"""Environments in this process, for the time of a test."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from wove import settings
from wove.settings.model import Configuration, Environment
from wove.testing.executor import CodecExecutor, DirectExecutor
from wove.testing.recorder import Recorder

__all__ = ["in_process"]


@contextmanager
def in_process(*names: str, codec: bool = True) -> Generator[Recorder]:
    """Run the tasks of environments in this process, and record what is sent there.

    The environments keep their defaults (retries, timeouts, delivery settings); only their executor
    is replaced. Afterwards ``wove.config`` is what it was.

    Args:
        names: The environments; one that is not configured is added. Without names: all that are
            configured and do not run in this process anyway.
        codec: Whether calls and results go through the real wire format, so that what cannot be
            pickled fails as it would on a worker. ``False``: nothing is pickled.

    Yields:
        The recorder, which also takes the faults that are to happen.

    Raises:
        MissingDispatchFeatureError: In the weave, with *codec*, where cloudpickle is not installed.

    Example:
        >>> from wove import weave
        >>> from wove.testing import in_process
        >>> with in_process("reports") as recorder:
        ...     with weave() as w:
        ...         @w.do([1, 2], environment="reports")
        ...         def doubled(n):
        ...             return 2 * n
        >>> w.result.doubled, len(recorder.of("doubled"))
        ([2, 4], 2)
    """
    before = settings.current()
    chosen = names or tuple(
        name for name, environment in before.environments.items() if not environment.is_local
    )
    recorder = Recorder()
    kind = CodecExecutor if codec else DirectExecutor

    environments = dict(before.environments)
    for name in chosen:
        known = before.environments.get(name, Environment(name))
        environments[name] = Environment(name, kind(recorder), {}, known.defaults)

    settings.install(Configuration(before.default_environment, environments, before.defaults))
    try:
        yield recorder
    finally:
        settings.install(before)
