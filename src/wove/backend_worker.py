"""``python -m wove.backend_worker``: one payload, run in a process of its own.

For backends that start a program for each job: Kubernetes, AWS Batch, Slurm.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from wove.integrations.common.exit_codes import REFUSED, UNREADABLE, UNREPORTED
from wove.protocol.names import PAYLOAD_VARIABLE, SECRET_VARIABLE

__all__ = ["main"]

USAGE: Final = f"""\
usage: python -m wove.backend_worker [-h] [PAYLOAD]

Run the task of one payload, and report to the weave that waits for it.

The payload, JSON, is taken from the environment variable {PAYLOAD_VARIABLE}; where that is not set, from the
first argument; without one, from the standard input. If {SECRET_VARIABLE} is set, only a payload that is signed with
that secret is run.

It asks that weave first whether it still waits, and whether no other process runs the task.

The exit status is 0 when the end of the task has been reported, also if the task failed, or nobody waits for it;
{UNREPORTED} when the weave could not be reached, {REFUSED} when the payload is refused, {UNREADABLE} when it cannot be
read; 143 after SIGTERM and 130 after SIGINT, which stop the task and have that reported; 1 when something else went
wrong.
"""


class Signal(BaseException):
    """Raised where SIGTERM or SIGINT arrives."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the payload that the command line or the environment names.

    Args:
        arguments: The arguments; ``None`` for those of the command line.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
        return 0

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        return _run(_payload(arguments))
    except Signal as stop:
        return 128 + stop.number


def _payload(arguments: Sequence[str]) -> str | bytes:
    # Taken out, so that a job that the task submits does not inherit it.
    given = os.environ.pop(PAYLOAD_VARIABLE, None)
    if given is not None:
        return given
    return arguments[0] if arguments else sys.stdin.buffer.read()


def _run(payload: str | bytes) -> int:
    # An error is printed once, below. A task that configures logging sees the other records.
    logging.getLogger("wove").addHandler(logging.NullHandler())

    try:
        if not payload.strip():
            raise ValueError(
                f"there is no payload: it goes into the environment variable {PAYLOAD_VARIABLE}, the first argument "
                "or the standard input"
            )
        from wove.errors import DeliveryError
        from wove.integrations.worker import deliver  # in here, where SIGTERM is handled

        # A scheduler may start a job again whose weave is gone, or whose first start is at work.
        delivered = deliver(payload, security=None, ask_after=0.0)
        if delivered is not None and (delivered.error is not None or delivered.unreachable):
            raise delivered.error or DeliveryError(delivered.unreachable)
    except Exception as error:
        text = " ".join(f"{error}".split()) or type(error).__name__
        print(f"wove.backend_worker: {text}", file=sys.stderr)  # noqa: T201
        return _status_of(error)

    return 0


def _status_of(error: Exception) -> int:
    from wove.errors import DeliveryError

    kinds = ((PermissionError, REFUSED), (DeliveryError, UNREPORTED), (ValueError, UNREADABLE))
    return next((status for kind, status in kinds if isinstance(error, kind)), 1)


def _stop(number: int, frame: object) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)  # one signal is enough; the rest takes little time
    raise Signal(number)


if __name__ == "__main__":
    sys.exit(main())
