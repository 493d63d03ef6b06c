"""Settings for the eyes of people: values without the secrets in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

__all__ = ["MASK", "masked"]

MASK: Final = "***"

_SECRET_WORD: Final = (
    "secret|passw|pwd|token|credential|api_?key|access_?key|private_?key|"
    "authorization|cookie|signature"
)
_SECRET_NAME: Final = re.compile(_SECRET_WORD)
_USER_INFO: Final = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*@")
_QUERY: Final = re.compile(rf"([?&;][^=&;\s]*(?:{_SECRET_WORD})[^=&;\s]*=)[^&;\s]*", re.IGNORECASE)
_CALLBACK: Final = re.compile(r"(/wove/events/)[^/?#\s{}]+")


def masked(name: str, value: object) -> Any:
    """Return *value* with every secret in it replaced by ``***``.

    Args:
        name: The key under which it stands. Its words tell a secret from other text; the name of a variable that
            holds a secret (``"env:WOVE_SECRET"``, ``secret_env``) stays.
        value: A value of ``executor_config``. Whatever JSON does not know is given as the name of its type.

    Example:
        >>> masked("broker_url", "redis://app:hunter2@redis:6379/0")
        'redis://app:***@redis:6379/0'
    """
    if isinstance(value, Mapping):
        return _masked_mapping(cast("Mapping[Any, object]", value))
    if isinstance(value, (list, tuple)):
        return [masked(name, item) for item in cast("Sequence[object]", value)]
    if value is None or isinstance(value, (bool, int, float)):
        return MASK if value and _is_secret(name) and not isinstance(value, bool) else value
    if isinstance(value, str):
        return _masked_text(name, value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _masked_mapping(mapping: Mapping[Any, object]) -> dict[str, Any]:
    # The variables of a container stand as {"name": "DB_PASSWORD", "value": "..."}.
    label = mapping.get("name")
    shown = {str(key): masked(str(key), held) for key, held in mapping.items()}
    if isinstance(label, str) and "value" in shown and _is_secret(label):
        shown["value"] = MASK
    return shown


def _masked_text(name: str, text: str) -> str:
    if text.startswith("env:") or text == "none":
        return text
    if name == "security" or _is_secret(name) or "-----BEGIN" in text:
        return MASK
    text = _USER_INFO.sub(rf"\1:{MASK}@", text)
    return _CALLBACK.sub(rf"\g<1>{MASK}", _QUERY.sub(rf"\g<1>{MASK}", text))


def _is_secret(name: str) -> bool:
    word = name.lower().replace("-", "_")
    return not word.endswith("_env") and _SECRET_NAME.search(word) is not None
