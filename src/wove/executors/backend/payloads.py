"""Payloads of runs, and the large pickles that workers fetch instead."""

from __future__ import annotations

import time
from collections.abc import Sequence

from wove.concurrency.thread_pool import run_in_thread
from wove.executors.backend.jobs import SubmittedJob
from wove.executors.base import Frame
from wove.integrations.base import BackendAdapter, PayloadDict
from wove.protocol import payload as payloads, signing
from wove.protocol.limits import INLINE_BYTES
from wove.protocol.payload import Claim
from wove.protocol.pickling import Pickled
from wove.security import NetworkExecutorSecurity

__all__ = ["PayloadBuilder"]


class PayloadBuilder:
    """Makes and signs payloads, and keeps the pickles that are too large for them. For one loop.

    Args:
        executor: The executor's name, which is in each payload.
        adapter: Its `inline_bytes` and `beat_seconds` apply.
        callback_url: Where workers report.
        security: Signs the payloads.
        environment: The environment's name, which is in each payload.
        retry_seconds: How long workers retry their reports.
        max_age: Seconds for which a payload is valid; ``None``: for ever.
    """

    def __init__(
        self,
        executor: str,
        adapter: BackendAdapter,
        callback_url: str,
        security: NetworkExecutorSecurity,
        *,
        environment: str,
        retry_seconds: float,
        max_age: float | None,
    ) -> None:
        self._executor = executor
        self._adapter = adapter
        self._callback_url = callback_url
        self._security = security
        self._environment = environment
        self._retry_seconds = retry_seconds
        self._max_age = max_age
        self._claims: dict[str, tuple[Pickled, set[str]]] = {}

    async def build(self, job: SubmittedJob, frame: Frame) -> PayloadDict:
        """Return the payload of *job*. Its largest pickles become claims until it fits."""
        sizes = payloads.size_of(frame)
        claims: dict[str, Claim] = {}
        room = self._adapter.inline_bytes - payloads.ENVELOPE_BYTES
        for name in sorted(sizes, key=lambda each: -sizes[each]):
            if sum(size for each, size in sizes.items() if each not in claims) > room:
                claims[name] = await self._claim(job, frame, name)

        now = time.time()
        payload = payloads.build(
            frame,
            adapter=self._executor,
            callback_url=self._callback_url,
            claims=claims,
            sent_at=now,
            retry_seconds=self._retry_seconds,
            beat_seconds=self._adapter.beat_seconds,
            environment=self._environment,
            valid_until=None if self._max_age is None else now + self._max_age,
        )
        if self._security.authenticates:
            payload[payloads.SIGNATURE] = self._security.payload_signature(
                adapter=self._executor, run_id=job.run_id, body=payloads.digest(payload)
            )

        return payload

    async def _claim(self, job: SubmittedJob, frame: Frame, name: str) -> Claim:
        """Keep a pickle for the job's worker. That of a callable is kept once for all its runs."""
        pickled: Pickled = frame[name]
        sha256 = frame.get("callable_id") if name == "callable_pickle" else None
        if not isinstance(sha256, str):
            digest = signing.digest
            sha256 = (
                await run_in_thread(digest, pickled.chunks)
                if pickled.size > INLINE_BYTES
                else digest(pickled.chunks)
            )

        claim_id = sha256 if name == "callable_pickle" else f"{job.run_id}-arguments"
        self._claims.setdefault(claim_id, (pickled, set()))[1].add(job.run_id)
        job.claims.append(claim_id)
        return Claim(claim_id, sha256, pickled.size)

    def chunks(self, claim_id: str) -> Sequence[bytes | memoryview] | None:
        """Return the content of a claim; ``None``: it does not exist, or its runs have ended."""
        held = self._claims.get(claim_id)
        return None if held is None else held[0].chunks

    def release(self, job: SubmittedJob) -> None:
        """Drop the pickles that only *job* needed."""
        for claim_id in job.claims:
            held = self._claims.get(claim_id)
            if held is not None:
                held[1].discard(job.run_id)
                if not held[1]:
                    del self._claims[claim_id]

        job.claims.clear()
