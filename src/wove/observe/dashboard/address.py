"""Where the page is, and who may have it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["Address"]

LOOPBACK: Final = "127.0.0.1"
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})
_ADDRESS: Final = re.compile(
    r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:/@?#\s]*)):(?P<port>\d{1,5})"
)


class Headers(Protocol):
    """The headers of a request."""

    def get(self, name: str, default: str, /) -> str: ...


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port.

    Attributes:
        host: The name or address that is listened at.
        port: The port; 0 for any that is free.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str | int) -> Address:
        """Return the address that *text* names.

        Raises:
            ValueError: It names none.
        """
        found = _ADDRESS.fullmatch(f":{text}" if str(text).isdecimal() else str(text))
        if found is None or int(found["port"]) > 65_535:
            raise ValueError(
                f"{text!r} is not an address for a dashboard: give ':8787' or 'host:8787'"
            )

        return cls(found["six"] or found["host"] or LOOPBACK, int(found["port"]))

    def refusal(self, headers: Headers) -> str | None:
        """Return why a request with *headers* is refused; ``None`` when it is not.

        A browser may be led here by a page of anybody. The name in ``Host`` tells a page whose own name was made
        to point to this machine; ``Origin`` and ``Sec-Fetch-Site`` tell any other.
        """
        host = headers.get("Host", "")
        found = _ADDRESS.fullmatch(host)
        if found is None or int(found["port"]) != self.port:
            return "the Host of the request is not the address of this page"
        if not self._is_ours(found["six"] or found["host"]):
            return f"this page does not answer to the name {host!r}"
        if headers.get("Origin", f"http://{host}") != f"http://{host}":
            return "requests from pages of other origins are refused"
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "requests from pages of other origins are refused"
        return None

    def _is_ours(self, name: str) -> bool:
        if name.lower() in ("localhost", LOOPBACK, "::1", self.host.lower()):
            return True
        if self.host not in _WILDCARDS:
            return False
        # Whatever numbers this machine has. A number cannot be made to point elsewhere, as a name can.
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False

        return True

    def __str__(self) -> str:
        host = LOOPBACK if self.host == "0.0.0.0" else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
