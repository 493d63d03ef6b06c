"""Takes away what Windows lacks, where it is imported before Wove: by ``sitecustomize``, in every process."""

from __future__ import annotations

import asyncio
import multiprocessing.resource_tracker
import os
import subprocess
import sys
import tempfile
from typing import Any

_ = (
    multiprocessing.resource_tracker,
    subprocess,
    tempfile,
)  # import what they need of it themselves

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails from now on

for name in (
    "fork",
    "forkpty",
    "register_at_fork",
    "pidfd_open",
    "memfd_create",
    "writev",
    "killpg",
):
    if hasattr(os, name):
        delattr(os, name)


def _refuse(*_: object) -> None:
    raise NotImplementedError


def _only_sockets(add: Any) -> Any:
    def add_reader(loop: Any, descriptor: Any, callback: Any, *args: Any) -> Any:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
            raise NotImplementedError("this loop watches sockets only")
        return add(loop, descriptor, callback, *args)

    return add_reader


_Loop: Any = asyncio.SelectorEventLoop
_Loop.add_signal_handler = _refuse
_Loop.remove_signal_handler = _refuse
_Loop.add_reader = _only_sockets(_Loop.add_reader)
_Loop.add_writer = _only_sockets(_Loop.add_writer)
