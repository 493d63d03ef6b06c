"""What authentication costs a worker service."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import cache
from time import perf_counter

from wove.security import NetworkExecutorSecurity

from .harness import Figure, Target, Values, benchmark

TARGET = "/wove/tasks"
BODY = (
    b'{"type": "run_task", "run_id": "w-0123456789", "args_pickle": "'
    + b"gAWVBgAAAAAAAABLAS4=" * 20
    + b'"}'
)
BEFORE = 100_000
FEW = 100  # requests to a service that is new
SERVICES = 20  # new services a round, so that both probes take some milliseconds

EARLY = f"one of the first {FEW}"
LATE = f"after {BEFORE:,} others"


def service() -> NetworkExecutorSecurity:
    return NetworkExecutorSecurity.from_config({"type": "signed", "secret": "of the benchmark"})


def requests(count: int) -> list[dict[str, str]]:
    client = service()
    return [client.headers_for(transport="http", target=TARGET, body=BODY) for _ in range(count)]


def verify(security: NetworkExecutorSecurity, headers: Sequence[dict[str, str]]) -> float:
    """Seconds until all of *headers* are accepted."""
    begin = perf_counter()
    for each in headers:
        security.verify_headers(transport="http", target=TARGET, body=BODY, headers=each)
    return perf_counter() - begin


@cache
def seasoned() -> NetworkExecutorSecurity:
    """A service that has accepted `BEFORE` requests, and remembers each."""
    security = service()
    verify(security, requests(BEFORE))
    return security


def early() -> Values:
    batches = [(service(), requests(FEW)) for _ in range(SERVICES)]
    gc.collect()
    return {
        EARLY: sum(verify(security, headers) for security, headers in batches) / (FEW * SERVICES)
    }


def late() -> Values:
    security, headers = seasoned(), requests(FEW * SERVICES)
    gc.collect()
    return {LATE: verify(security, headers) / len(headers)}


@benchmark("verify")
def signing() -> Iterator[Figure]:
    """Verifying a signed request: one of the first, and one after many."""
    yield Figure("verify a signed request", LATE, [early, late], Target(1.2), rounds=21)
