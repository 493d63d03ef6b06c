"""RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kept import Kept, free_port, keep
from tests.support.servers._ready import answers, program

__all__ = ["RabbitMQ", "missing", "running"]

_SERVER = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server"  # the command on the PATH insists on a user of its own
)


@dataclass(frozen=True)
class RabbitMQ:
    """A server that runs.

    Attributes:
        kept: Its process.
        port: Where it listens.
    """

    kept: Kept
    port: int

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    if not Path(_SERVER).exists():
        return f"there is no {_SERVER}: install rabbitmq-server"
    return None if program("epmd") else "there is no command 'epmd': install erlang-base"


@contextmanager
def running(folder: Path, *, port: int | None = None) -> Iterator[RabbitMQ]:
    """A server that answers, with nothing in it; it ends with the block."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    (folder / "enabled_plugins").write_text("[].")
    (folder / "rabbitmq.conf").write_text("")
    port, mapper, distribution = port or free_port(), free_port(), free_port()
    environ = {
        "HOME": str(home),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": f"wove{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log-files"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    epmd = program("epmd")
    assert epmd is not None
    # The port mapper of Erlang. A node that finds none starts one, which then stays, in a session of its own.
    with keep(
        "epmd", [epmd, "-port", str(mapper), "-address", "127.0.0.1"], folder / "epmd"
    ) as names:
        names.until(lambda: answers(mapper, b"\0\x01n", mapper.to_bytes(4, "big")), "answers")
        with keep("rabbitmq", [_SERVER], folder / "server", environ=environ) as kept:
            # The header of a protocol version; what comes is the first frame: a method, on channel 0.
            kept.until(lambda: answers(port, b"AMQP\0\0\x09\x01", b"\x01\0\0"), "answers")
            yield RabbitMQ(kept, port)
