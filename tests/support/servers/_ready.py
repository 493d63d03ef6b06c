"""What several servers need: programs that are not on everybody's PATH, and a look at a port."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

__all__ = ["answers", "of_this_venv", "program"]


def program(name: str) -> str | None:
    """Path of the command *name*, also where only root has it on the PATH."""
    return shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    )


def of_this_venv(name: str) -> str:
    """Path of a command that a package has installed beside this interpreter."""
    return str(Path(sys.executable).with_name(name))


def answers(port: int, question: bytes, beginning: bytes) -> bool:
    """Whether what listens on *port* answers *question* with something that begins with *beginning*."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(question)
            return connection.recv(len(beginning), socket.MSG_WAITALL) == beginning
    except OSError:
        return False
