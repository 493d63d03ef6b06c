"""Mistakes that a type checker must see: one on each line that ends with the comment."""

from __future__ import annotations

import wove
from wove import Weave, merge, nothing_of_this_name, weave  # error
from wove.errors import WorkerLostError
from wove.settings.types import CeleryConfig, HttpConfig, SlurmConfig


def parse(text: str) -> int:
    return int(text)


with weave() as w:

    @w.do
    def number() -> int:
        return 1

    number("too many")  # error
    wrong: str = number()  # error

    w.do(retires=3)  # error
    w.do(retries="3")  # error
    w.do(timeout="soon")  # error
    w.do(delivery_cancel_mode="perhaps")  # error
    w.do(delivery_orphan_policy="adopt")  # error
    w.do(retry_delay="linear")  # error
    w.do(17)  # error

weave(error_mode="ignore")  # error
weave(max_workers="all")  # error
Weave.do(worker=3)  # error
text: str = sum(merge(parse, ["1"]))  # error
merge(parse, ["1"], retires=1)  # error
wove.config(retires=1)  # error
wove.config(timeout="1 minute")  # error
wove.fold([1, 2], "3")  # error
wove.shutdwon()  # error
WorkerLostError("gone").limit  # error

misspelt: CeleryConfig = {"broker": "redis://redis:6379/0"}  # error
wrong_type: HttpConfig = {"url": "https://workers.internal/", "timeout": "soon"}  # error
of_another: SlurmConfig = {"queue": "reports"}  # error
