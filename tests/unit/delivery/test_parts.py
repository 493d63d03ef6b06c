"""The small parts: limiters, mailboxes, ids."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

from wove.concurrency.mailbox import MAX_AT_A_TIME, LoopMailbox
from wove.delivery.in_flight import limiter_of
from wove.delivery.run import new_run_id


def test_one_limiter_for_each_environment() -> None:
    assert limiter_of("a") is limiter_of("a") is not limiter_of("b")


class TestMailbox:
    def test_in_order_from_many_threads(self) -> None:
        seen: dict[int, list[int]] = {n: [] for n in range(4)}

        async def main() -> None:
            mailbox = LoopMailbox(asyncio.get_running_loop())
            done = asyncio.Event()

            def post(thread: int) -> None:
                for number in range(3 * MAX_AT_A_TIME):
                    assert mailbox.post(seen[thread].append, number)
                mailbox.post(finished)

            left = [4]

            def finished() -> None:
                left[0] -= 1
                if not left[0]:
                    done.set()

            for thread in seen:
                threading.Thread(target=post, args=(thread,)).start()
            await done.wait()

        asyncio.run(main())
        assert all(numbers == list(range(3 * MAX_AT_A_TIME)) for numbers in seen.values())

    def test_a_failing_call_is_reported_and_costs_no_other(self) -> None:
        reported: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reported.append(context))
            mailbox = LoopMailbox(loop)
            done = asyncio.Event()
            mailbox.post(lambda: 1 // 0)
            mailbox.post(done.set)
            await done.wait()

        asyncio.run(main())
        assert isinstance(reported[0]["exception"], ZeroDivisionError)

    def test_close_makes_what_waits_and_refuses_the_rest(self) -> None:
        made: list[str] = []

        async def main() -> LoopMailbox:
            mailbox = LoopMailbox(asyncio.get_running_loop())
            for _ in range(3 * MAX_AT_A_TIME):
                mailbox.post(made.append, "before")
            mailbox.post(lambda: made.append(f"inside {mailbox.post(made.append, 'never')}"))
            mailbox.close()
            assert not mailbox.post(made.append, "after")
            return mailbox

        mailbox = asyncio.run(main())
        assert not mailbox.post(made.append, "much later")
        assert made == ["before"] * 3 * MAX_AT_A_TIME + ["inside False"]

    def test_a_closed_loop(self) -> None:
        loop = asyncio.new_event_loop()
        mailbox = LoopMailbox(loop)
        loop.close()
        assert not mailbox.post(print)
        assert not mailbox.post(print)

    def test_post_while_closing_is_made_or_refused(self) -> None:
        for _ in range(50):
            loop = asyncio.new_event_loop()
            mailbox = LoopMailbox(loop)
            made: list[int] = []
            accepted: list[int] = []

            def post(
                mailbox: LoopMailbox = mailbox,
                made: list[int] = made,
                accepted: list[int] = accepted,
            ) -> None:
                accepted.extend(
                    number for number in range(100) if mailbox.post(made.append, number)
                )

            thread = threading.Thread(target=post)
            thread.start()
            loop.run_until_complete(asyncio.sleep(0))
            mailbox.close()
            thread.join()
            loop.close()
            assert made == accepted


def test_run_ids() -> None:
    ids = {new_run_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[a-z0-9][a-z0-9-]{1,46}[a-z0-9]", run_id) for run_id in ids)
