"""Run records of a weave that never was: many items, in several environments, with retries and losses."""

from __future__ import annotations

import random

from wove.result import RunRecord, Trip

ORIGIN = 1_764_000_000.0


def made_records(items: int, *, seed: int = 15) -> list[RunRecord]:
    """Return the records of *items* items in four environments: threads, worker processes, a queue, a cluster."""
    chance = random.Random(seed)
    records: list[RunRecord] = []
    kinds = (
        ("default", "fetch", 16, 0.25),
        ("pool", "parse", 8, 0.25),
        ("celery", "render", 12, 0.25),
        ("cluster", "store", 20, 0.25),
    )
    for environment, task, workers, share in kinds:
        free = [ORIGIN + chance.random() * 0.05 for _ in range(workers)]
        for item in range(int(items * share)):
            attempt = 1
            while True:
                record = _record(chance, environment, task, item, attempt, free)
                records.append(record)
                if record.error is None or attempt == 3:
                    break
                attempt += 1
    return records


def _record(
    chance: random.Random, environment: str, task: str, item: int, attempt: int, free: list[float]
) -> RunRecord:
    worker = min(range(len(free)), key=free.__getitem__)
    began = free[worker] + chance.expovariate(2000)
    spent = chance.lognormvariate(-4.2, 0.6)
    free[worker] = began + spent
    record = RunRecord(task, item, attempt, environment)
    match chance.random():
        case luck if luck < 0.004:
            record.error = f"OSError: connection reset while {task} item {item}"
        case luck if luck < 0.0055 and environment != "default":
            record.error = f"WorkerLostError: the worker of item {item} of task {task!r} is gone"
        case luck if luck < 0.007 and environment != "default":
            record.losses = 1
    if environment == "default":
        record.started, record.ended, record.thread = began, began + spent, worker + 1
        return record

    queue = chance.expovariate(300)
    record.host, record.pid = f"node{worker % 4 + 1}", 4000 + worker
    record.run_id = f"{environment}-{len(free)}-{item:x}-{attempt}"
    record.bytes_out, record.bytes_in = 900 + chance.randrange(300), 60 + chance.randrange(9000)
    handed_over = began - queue - 0.0004
    load, dump = 0.02 * spent, 0.05 * spent
    record.started = handed_over - 0.0011
    record.trip = Trip(
        admitted=handed_over - 0.0003,
        handed_over=handed_over,
        sent=handed_over + 0.0004,
        start_seen=began + 0.0005,
        end_seen=began + spent + 0.0006,
        worker_began=began + (worker % 4) * 1.5,  # clocks that are wrong
        worker_spent=(load, spent - load - dump, dump),
    )
    record.ended = began + spent + 0.0009
    return record
