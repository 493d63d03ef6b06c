"""`CapacityLimiter`: order, limits of one caller and of all, amounts, and threads."""

from __future__ import annotations

import threading

from hypothesis import given, strategies as st

from wove.concurrency.limiter import CapacityLimiter, Reservation


def nothing() -> None: ...


def test_without_a_limit_nobody_waits_and_all_are_counted() -> None:
    limiter = CapacityLimiter()
    for _ in range(5):
        assert limiter.acquire(nothing) is None
    assert limiter.in_use == 5
    assert limiter.acquire(nothing, limit=5) is not None
    assert limiter.acquire(nothing) is None  # others that wait do not hold up one without a limit


def test_first_come_first_served() -> None:
    limiter, order = CapacityLimiter(1), list[int]()
    assert limiter.acquire(nothing) is None
    for number in range(3):
        assert limiter.acquire(lambda number=number: order.append(number)) is not None
    assert not limiter.try_acquire()
    for _ in range(3):
        limiter.release()
    assert order == [0, 1, 2]
    assert limiter.in_use == 1
    limiter.release()
    assert limiter.in_use == 0 and limiter.try_acquire()


def test_a_higher_limit_does_not_jump_the_queue() -> None:
    limiter, order = CapacityLimiter(), list[str]()
    limiter.acquire(nothing)
    assert limiter.acquire(lambda: order.append("low"), limit=1) is not None
    assert limiter.acquire(lambda: order.append("high"), limit=9) is not None
    limiter.release()
    assert order == ["low", "high"]


def test_who_withdraws_lets_the_next_one_in() -> None:
    limiter, order = CapacityLimiter(), list[str]()
    limiter.acquire(nothing, limit=1)
    low = limiter.acquire(lambda: order.append("low"), limit=1)
    limiter.acquire(lambda: order.append("high"), limit=2)
    assert low is not None
    assert limiter.withdraw(low)
    assert order == ["high"]
    assert not limiter.withdraw(low)
    limiter.release()
    limiter.release()
    assert limiter.in_use == 0


def test_who_was_granted_meanwhile_must_give_it_back() -> None:
    limiter, granted = CapacityLimiter(1), list[int]()
    limiter.try_acquire()
    place = limiter.acquire(lambda: granted.append(1))
    limiter.release()
    assert place is not None and granted == [1]
    assert not limiter.withdraw(place)
    assert limiter.in_use == 1


def test_who_acquires_again_waits_for_others() -> None:
    limiter, order = CapacityLimiter(2), list[str]()
    limiter.try_acquire(2)
    assert limiter.acquire_again(lambda: order.append("again"))
    assert limiter.in_use == 1 and order == []
    assert limiter.acquire(lambda: order.append("later")) is not None  # behind the one that waits
    limiter.release()
    assert order == ["again", "later"]
    limiter.release()
    assert not limiter.acquire_again(lambda: order.append("never"))  # nothing would wake it
    assert limiter.in_use == 0 and limiter.try_acquire(2)


def test_who_had_it_before_may_exceed_the_limit() -> None:
    limiter, order = CapacityLimiter(1), list[str]()
    limiter.try_acquire()
    limiter.acquire_beyond_limit()
    assert limiter.acquire(lambda: order.append("next")) is not None
    limiter.release()
    assert order == []
    limiter.release()
    assert order == ["next"]


def test_amounts() -> None:
    limiter, order = CapacityLimiter(100), list[str]()
    assert limiter.try_acquire(60) and limiter.try_acquire(40) and not limiter.try_acquire(1)
    limiter.acquire(lambda: order.append("large"), amount=70)
    limiter.acquire(lambda: order.append("small"), amount=10)
    limiter.release(40)
    assert order == []  # the small one would fit, and waits its turn
    limiter.release(60)
    assert order == ["large", "small"] and limiter.in_use == 80


def test_an_amount_above_the_limit_is_granted_alone() -> None:
    limiter, order = CapacityLimiter(10), list[str]()
    assert limiter.try_acquire(500)
    assert not limiter.try_acquire(1)
    limiter.acquire(lambda: order.append("huge"), amount=999)
    limiter.release(500)
    assert order == ["huge"] and limiter.in_use == 999


def test_another_limit_counts_for_those_that_wait() -> None:
    limiter, order = CapacityLimiter(0), list[str]()
    assert limiter.try_acquire(1)
    limiter.acquire(lambda: order.append("all"), amount=5)
    limiter.resize(6)
    assert order == ["all"]
    limiter.acquire(lambda: order.append("own"), limit=7, amount=2)
    limiter.resize(None)
    assert order == ["all"]  # its own limit still holds
    limiter.release(1)
    assert order == ["all", "own"]


def test_threads() -> None:
    limiter = CapacityLimiter(3)
    most: list[int] = []

    def work() -> None:
        for _ in range(200):
            granted = threading.Event()
            if limiter.acquire(granted.set) is not None:
                assert granted.wait(60)
            most.append(limiter.in_use)
            limiter.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 1600 and max(most) <= 3
    assert limiter.in_use == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["acquire", "release", "withdraw"]), st.integers(1, 120)),
        max_size=60,
    )
)
def test_never_more_than_the_limit_and_nothing_is_forgotten(steps: list[tuple[str, int]]) -> None:
    limiter = CapacityLimiter(100)
    held: list[int] = []
    waiting: list[tuple[Reservation, int]] = []

    def granted() -> None:  # first come, first served
        held.append(waiting.pop(0)[1])

    for step, amount in steps:
        if step == "acquire":
            place = limiter.acquire(granted, amount=amount)
            if place is None:
                held.append(amount)
            else:
                waiting.append((place, amount))
        elif step == "release" and held:
            limiter.release(held.pop(amount % len(held)))
        elif step == "withdraw" and waiting:
            assert limiter.withdraw(waiting.pop(amount % len(waiting))[0])
        assert limiter.in_use == sum(held)
        assert limiter.in_use <= 100 or len(held) == 1
    while held:
        limiter.release(held.pop())
    assert not waiting and limiter.in_use == 0
