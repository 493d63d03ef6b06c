"""Two hosts on one machine: two network namespaces and a cable between them.

Nothing in one of them can reach the other but through the cable: "not local" is then really another host. Needs root,
``ip`` and ``iptables``; see the backend ``netns``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["FAR_ADDRESS", "TwoHosts", "missing", "two_hosts"]

FAR_ADDRESS, _NEAR_ADDRESS = "10.203.7.1", "10.203.7.2"


@dataclass(frozen=True, slots=True)
class TwoHosts:
    """What `two_hosts` makes.

    Attributes:
        near: Name of the namespace for weaves.
        far: Name of the namespace for services; there, `address` is.
        address: Where a service is to listen.
        near_address: Where `near` can be called back.
    """

    near: str
    far: str
    address: str = FAR_ADDRESS
    near_address: str = _NEAR_ADDRESS

    def inside(self, namespace: str) -> tuple[str, ...]:
        """What to put before a command so that it runs in there. Its process id is the command's own."""
        return ("ip", "netns", "exec", namespace)

    def pull_the_cable(self) -> None:
        """From now on, whatever is sent is lost, and nobody is told."""
        _ip("-n", self.far, "link", "set", "cable", "down")

    def plug_it_in(self) -> None:
        """Undo `pull_the_cable`."""
        _ip("-n", self.far, "link", "set", "cable", "up")

    def filter(self, target: str, port: int) -> None:
        """Let the far side's firewall ``DROP`` or ``REJECT`` whatever goes to or comes from *port*."""
        if target == "REJECT":
            rules = [("INPUT", "--dport", ("--reject-with", "tcp-reset"))]
        else:
            # Both ways: of what only one side can say, the other would hear for as long as it is repeated to it.
            rules = [("INPUT", "--dport", ()), ("OUTPUT", "--sport", ())]
        for chain, end, how in rules:
            rule = ("-A", chain, "-p", "tcp", end, str(port), "-j", target, *how)
            _run(*self.inside(self.far), "iptables", "-w", *rule)

    def unfilter(self) -> None:
        """Undo every `filter`."""
        _run(*self.inside(self.far), "iptables", "-w", "-F")


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Two namespaces, connected; they go with the block. What runs in them must have been stopped."""
    name = f"wove-{os.getpid()}-{secrets.token_hex(3)}"
    hosts = TwoHosts(f"{name}-near", f"{name}-far")
    made: list[str] = []
    try:
        for namespace in (hosts.near, hosts.far):
            _ip("netns", "add", namespace)
            made.append(namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        cable = (
            "link",
            "add",
            "cable",
            "netns",
            hosts.near,
            "type",
            "veth",
            "peer",
            "name",
            "cable",
        )
        _ip(*cable, "netns", hosts.far)
        for namespace, address in ((hosts.near, hosts.near_address), (hosts.far, hosts.address)):
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", namespace, "link", "set", "cable", "up")
        yield hosts
    finally:
        for namespace in made:  # and the cable goes with them
            _ip("netns", "delete", namespace)


def missing() -> str | None:
    """Why there can be no namespaces here, or ``None``."""
    for command in ("ip", "iptables"):
        if shutil.which(command) is None:
            return f"there is no command {command!r}: install iproute2 and iptables"
    try:
        with two_hosts() as hosts:
            hosts.unfilter()
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()} (it takes root)"
    return None


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
