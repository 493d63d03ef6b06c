"""The live page: the weaves of this process as they run, for a browser on this machine.

The page is refused to other hosts and to pages of other origins, and has no way to change anything. It shows names,
states, times and errors; never values, arguments, settings or environment variables.
"""

from __future__ import annotations

import logging
import os
import threading

from wove.concurrency import forks
from wove.observe.dashboard.address import Address
from wove.observe.dashboard.server import Server
from wove.observe.dashboard.weaves import LiveRun, Watched, Weaves

__all__ = ["VARIABLE", "Dashboard", "close", "current", "dashboard", "start_as_configured", "watch"]

_log = logging.getLogger("wove")

VARIABLE = "WOVE_DASHBOARD"
"""The environment variable whose value is the address at which every process shows its weaves."""


class Dashboard:
    """A live page. `wove.dashboard` makes one.

    Attributes:
        url: Where a browser finds it.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.weaves = Weaves()
        self._server = Server(address, self.weaves)
        self.url = self._server.url

    def close(self) -> None:
        """End the page. Closing it twice does no harm."""
        global _dashboard
        with _lock:
            if _dashboard is self:
                _dashboard = None
        self._server.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's socket."""
        self._server.abandon()

    def __repr__(self) -> str:
        return f"<Dashboard at {self.url}>"


_lock = threading.Lock()
_dashboard: Dashboard | None = None
_configured = False


def dashboard(address: str | int = ":8787") -> Dashboard:
    """Show the weaves of this process in a local page, while they run.

    The page shows those that are running and the last that have ended. It ends with `wove.shutdown`, with the
    process, or with `Dashboard.close`. The environment variable ``WOVE_DASHBOARD=:8787`` does the same.

    Args:
        address: ``":8787"`` or ``8787`` for this machine only; ``"0.0.0.0:8787"`` for others too, who then see
            it without a password; port 0 for any free port.

    Raises:
        ValueError: *address* is not an address.
        RuntimeError: There is a page at another address already.
        OSError: The address is in use, or not one of this machine.

    Example:
        >>> wove.dashboard(":8787").url
        'http://127.0.0.1:8787/'
    """
    global _dashboard
    wanted = Address.parse(address)

    with _lock:
        if _dashboard is None:
            _dashboard = Dashboard(wanted)
        elif _dashboard.address != wanted:
            raise RuntimeError(
                f"the dashboard of this process is at {_dashboard.url} already: close it first"
            )
        return _dashboard


def current() -> Dashboard | None:
    """Return the page of this process, if there is one."""
    return _dashboard


def start_as_configured() -> None:
    """Start the page that `VARIABLE` asks for, once in a process. What keeps it from starting is a warning."""
    global _configured
    if _configured:
        return
    _configured = True

    try:
        started = dashboard(os.environ[VARIABLE])
    except (OSError, RuntimeError, ValueError) as error:
        _log.warning("%s: there is no dashboard: %s", VARIABLE, error)
    else:
        _log.warning("the dashboard of process %d is at %s", os.getpid(), started.url)


def watch(run: LiveRun) -> Watched | None:
    """Show *run* from now on; ``None`` where there is no page."""
    shown = _dashboard
    return None if shown is None else shown.weaves.add(run)


def close() -> None:
    """End the page of this process, if there is one."""
    if _dashboard is not None:
        _dashboard.close()


def _reset_after_fork() -> None:
    """The page is the parent's, and so is its address."""
    global _dashboard, _lock, _configured
    _lock = threading.Lock()
    _configured = True
    if _dashboard is not None:
        _dashboard.abandon()
        _dashboard = None


forks.after_in_child(forks.Phase.CLIENTS, _reset_after_fork)
