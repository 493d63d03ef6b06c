"""`wove.doctor`: finds out why an environment does not work.

A probe goes through the environment's own executor, as a task would, so that whatever stands in the way of a task
stands in its way too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from wove.diagnosis.findings import Finding, Status

if TYPE_CHECKING:
    from wove.settings.model import Environment

__all__ = ["Finding", "Status", "doctor"]

PROBE_SECONDS: Final = 30.0
PAYLOAD_BYTES: Final = 8 * 1024 * 1024

SHARE_OF_WAIT: Final = 12
"""An examination takes at most this many times the time of a probe, and is given up then."""


def doctor(
    environment: str | None = None,
    *,
    timeout: float = PROBE_SECONDS,
    payload_bytes: int = PAYLOAD_BYTES,
    modules: Sequence[str] = (),
) -> list[Finding]:
    """Examine an environment: send probes through its executor, and return what was found.

    Blocks while it does so; in a coroutine, call it with `asyncio.to_thread`.

    Args:
        environment: The name of the environment; ``None``: all that are configured.
        timeout: Seconds that one probe may take, the wait for a worker included.
        payload_bytes: The largest payload to send there and back, in bytes.
        modules: Modules that the workers must be able to import.

    Raises:
        NameError: The environment is not configured.

    Example:
        >>> [finding.message for finding in wove.doctor("default") if not finding.ok]
        []
    """
    from wove.delivery import run_in_background
    from wove.diagnosis.checks import Examination, Limits, check_installation
    from wove.settings import current
    from wove.settings.resolution import Resolver

    configuration = current()
    chosen: list[Environment] = list(configuration.environments.values())
    if environment is not None:
        chosen = [Resolver(configuration, {"environment": environment}).weave().environment]

    limits = Limits(timeout, payload_bytes)
    findings = check_installation()
    for each in chosen:
        examination = Examination(each, limits, modules)
        running = run_in_background(examination.run())
        try:
            findings += running.result(timeout * SHARE_OF_WAIT)
        except TimeoutError:
            running.cancel()
            text = "the examination did not end"
            findings += [*examination.findings, Finding(each.name, "start", "failed", text)]

    return findings
