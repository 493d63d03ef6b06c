"""What users have of their own: a payload codec, as to encrypt what Temporal stores, and a workflow."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter, PayloadCodec

__all__ = ["CONVERTER", "Audited", "threads"]

threads: set[int] = set()
"""Where it was used."""


class Hidden(PayloadCodec):
    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        threads.add(threading.get_ident())
        flipped = [bytes(byte ^ 0x5A for byte in each.SerializeToString()) for each in payloads]
        return [Payload(metadata={"encoding": b"binary/hidden"}, data=data) for data in flipped]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [Payload.FromString(bytes(byte ^ 0x5A for byte in each.data)) for each in payloads]


CONVERTER = dataclasses.replace(DataConverter.default, payload_codec=Hidden())


@workflow.defn
class Audited:
    """Known to clients; what workers have is in test_temporal.py."""

    @workflow.run
    async def run(self, payload: dict[str, Any]) -> None: ...
