"""Texts of messages that all transports share: advice about failed connections, and masked credentials."""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Iterable
from typing import Final

__all__ = ["advice_for_certificate", "credential_pattern", "says_refused", "start_advice"]

_MATCHED_CHARACTERS: Final = 8
"""Match on the first 8 characters of a credential. Shorter credentials are not treated as secrets."""

_REFUSED: Final = (f"[Errno {errno.ECONNREFUSED}]", "onnection refused")
"""Signs of a refused connection in the messages of asyncio and of gRPC."""

# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH (openssl/x509_vfy.h).
_OTHER_NAME: Final = frozenset({62, 64})


def says_refused(text: str) -> bool:
    """Return whether the message *text* of an error says that a connection was refused."""
    return any(sign in text for sign in _REFUSED)


def start_advice(transport: str, address: str, text: str) -> str:
    """Return the command that starts the missing service, if *text* says that a connection was refused.

    Args:
        transport: ``"http"``, ``"grpc"`` or ``"websocket"``: the service that is missing.
        address: Where it is expected, ``HOST:PORT``.
        text: The error's.

    Returns:
        A sentence to append, or nothing.
    """
    if not says_refused(text):
        return ""
    return (
        f". Nothing listens there; this starts a service: wove worker {transport} --bind {address}"
    )


def advice_for_certificate(error: ssl.SSLCertVerificationError) -> str:
    """Return why a service's certificate was not accepted, and what helps."""
    text = f"its certificate was not accepted: {error.verify_message.rstrip('.')}. "

    if error.verify_code in _OTHER_NAME:
        return text + (
            "Connect to a name that is among the certificate's subjectAltNames, or give the service a certificate "
            "for this name"
        )

    return text + "A private authority goes into executor_config 'root_certificates'"


def credential_pattern(values: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds each of *values*, also where it is cut short; ``None`` if there is none to find.

    Only the last word of a value counts: ``Bearer`` and ``Basic`` are not secret.
    """
    words = {value.split()[-1] for value in values if value.strip()}
    found = [
        re.escape(word[:_MATCHED_CHARACTERS]) + r"[^\s\"'<>&,]*"
        for word in words
        if len(word) >= _MATCHED_CHARACTERS
    ]
    return re.compile("|".join(found)) if found else None
