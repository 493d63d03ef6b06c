"""Who gets room, and when."""

from __future__ import annotations

from hypothesis import given, strategies as st

from wove.callback.byte_limiter import ByteLimiter, Reservation


def test_first_come_first_served() -> None:
    room = ByteLimiter(100)
    came: list[str] = []
    assert room.take(60)
    room.wait(50, lambda: came.append("large"))
    assert not room.take(10), "it would fit, but somebody waits"
    room.wait(10, lambda: came.append("small"))
    room.give_back(60)
    assert came == ["large", "small"] and room.held == 60


def test_who_gives_up_holds_up_nobody() -> None:
    room = ByteLimiter(100)
    came: list[str] = []
    room.take(60)
    turn = room.wait(50, lambda: came.append("large"))
    room.wait(10, lambda: came.append("small"))
    room.withdraw(turn)
    assert came == ["small"] and room.held == 70


def test_what_is_larger_than_all_gets_in_alone() -> None:
    room = ByteLimiter(100)
    came: list[int] = []
    room.take(1)
    room.wait(500, lambda: came.append(500))
    room.give_back(1)
    assert came == [500] and not room.take(1)


def test_a_larger_limit_lets_in_who_waits() -> None:
    room = ByteLimiter(10)
    came: list[int] = []
    room.take(10)
    room.wait(10, lambda: came.append(10))
    room.resize(20)
    assert came == [10]


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "back", "leave"]), st.integers(1, 120)), max_size=60
    )
)
def test_never_more_than_the_limit_and_nothing_is_forgotten(steps: list[tuple[str, int]]) -> None:
    room = ByteLimiter(100)
    held: list[int] = []
    waiting: list[Reservation] = []

    def come(turn: list[Reservation], size: int) -> None:
        waiting.remove(turn[0])
        held.append(size)

    for step, size in steps:
        if step == "take":
            if room.take(size):
                held.append(size)
            else:
                cell: list[Reservation] = []
                cell.append(room.wait(size, lambda cell=cell, size=size: come(cell, size)))  # type: ignore[misc]
                waiting.append(cell[0])
        elif step == "back" and held:
            room.give_back(held.pop(size % len(held)))
        elif step == "leave" and waiting:
            room.withdraw(waiting.pop(size % len(waiting)))
        assert room.held == sum(held)
        assert room.held <= 100 or len(held) == 1
    while held:
        room.give_back(held.pop())
    assert not waiting and room.held == 0
