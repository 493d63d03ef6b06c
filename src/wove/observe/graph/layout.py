"""Where the tasks of a graph are drawn: in layers, with few crossings of the lines between them.

The method is Sugiyama's, in its plain form: a task lies one layer behind the last of those it needs, a line that
passes a layer takes a place in it, and sweeps over the layers move everything towards the middle of its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

__all__ = ["Layout", "lay_out"]

SWEEPS: Final = 8
"""How often the layers are put in order; more rarely improves a graph that a person can still read."""

LARGE: Final = 400
"""From how many places on two sweeps must do."""

PASSING: Final = 0.3
"""The width of a line that passes a layer, as a share of a task's."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of tasks and lines.

    Attributes:
        layers: How many layers there are.
        width: How wide the widest layer is, in tasks.
        places: For each task, its layer, and the middle of its place in it: in tasks, from 0.
        lines: For each pair of a task and one that needs it, the places that their line passes, ends included.
        backwards: Those of the pairs that close a circle.
    """

    layers: int
    width: float
    places: list[tuple[int, float]]
    lines: dict[tuple[int, int], list[tuple[int, float]]]
    backwards: set[tuple[int, int]]


def lay_out(needs: Sequence[Sequence[int]]) -> Layout:
    """Return a layout of tasks, each given by the indices of those that it needs."""
    edges = [
        (need, task)
        for task, needed in enumerate(needs)
        for need in dict.fromkeys(needed)
        if need != task
    ]
    backwards = _closing(len(needs), edges)
    forwards = [edge for edge in edges if edge not in backwards]
    layer_of = _layers(len(needs), forwards)
    layers: list[list[int]] = [[] for _ in range(max(layer_of, default=-1) + 1)]
    for task, layer in enumerate(layer_of):
        layers[layer].append(task)

    # A line takes a place in each layer between its ends; those get the numbers after the tasks'.
    before: list[list[int]] = [[] for _ in needs]
    after: list[list[int]] = [[] for _ in needs]
    paths: dict[tuple[int, int], list[int]] = {}

    for start, end in forwards:
        path = [start]
        for layer in range(layer_of[start] + 1, layer_of[end]):
            layers[layer].append(len(before))
            path.append(len(before))
            before.append([])
            after.append([])
        path.append(end)
        paths[start, end] = path
        for one, next_one in pairwise(path):
            after[one].append(next_one)
            before[next_one].append(one)

    _order(layers, before, after)
    sizes = [1.0 if place < len(needs) else PASSING for place in range(len(before))]
    middles = _middles(layers, sizes, before, after)
    placed = {
        place: (number, middles[place]) for number, layer in enumerate(layers) for place in layer
    }
    lines = {edge: [placed[place] for place in path] for edge, path in paths.items()}
    lines.update({(start, end): [placed[start], placed[end]] for start, end in backwards})
    width = max((middles[place] + sizes[place] / 2 for place in placed), default=0.0)
    return Layout(
        len(layers), width, [placed[task] for task in range(len(needs))], lines, backwards
    )


def _closing(tasks: int, edges: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return edges without which there is no circle."""
    after: list[list[int]] = [[] for _ in range(tasks)]
    for start, end in edges:
        after[start].append(end)
    fresh, open_, over = 0, 1, 2
    states = [fresh] * tasks
    closing: set[tuple[int, int]] = set()

    for root in range(tasks):
        stack = [(root, iter(after[root]))] if states[root] == fresh else []
        states[root] = open_ if stack else states[root]
        while stack:
            task, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                states[task] = over
                stack.pop()
            elif states[following] == open_:
                closing.add((task, following))
            elif states[following] == fresh:
                states[following] = open_
                stack.append((following, iter(after[following])))

    return closing


def _layers(tasks: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the layer of each task: one behind the last of those before it."""
    after: list[list[int]] = [[] for _ in range(tasks)]
    waiting = [0] * tasks
    for start, end in edges:
        after[start].append(end)
        waiting[end] += 1

    layer = [0] * tasks
    ready = [task for task in range(tasks) if not waiting[task]]
    for task in ready:
        for following in after[task]:
            layer[following] = max(layer[following], layer[task] + 1)
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)

    return layer


def _order(layers: list[list[int]], before: list[list[int]], after: list[list[int]]) -> None:
    """Put each layer in an order with few crossings, in place."""
    best, best_crossings = [list(layer) for layer in layers], _crossings(layers, after)

    for sweep in range(SWEEPS if len(before) < LARGE else 2):
        down = sweep % 2 == 0
        neighbours = before if down else after
        for number in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            beside = layers[number - 1 if down else number + 1]
            position = {place: at for at, place in enumerate(beside)}
            layer = layers[number]
            layer.sort(
                key=_barycentre(neighbours, position, {place: at for at, place in enumerate(layer)})
            )
        crossings = _crossings(layers, after)
        if crossings < best_crossings:
            best, best_crossings = [list(layer) for layer in layers], crossings
        if not crossings:
            break

    layers[:] = best


def _barycentre(
    neighbours: list[list[int]], position: dict[int, int], own: dict[int, int]
) -> Callable[[int], float]:
    def key(place: int) -> float:
        found = [position[neighbour] for neighbour in neighbours[place]]
        return sum(found) / len(found) if found else float(own[place])

    return key


def _crossings(layers: Sequence[Sequence[int]], after: list[list[int]]) -> int:
    """Count the crossings: pairs of lines whose ends are in another order than their starts."""
    crossings = 0

    for upper, lower in pairwise(layers):
        position = {place: at for at, place in enumerate(lower)}
        tree = [0] * (
            len(lower) + 1
        )  # how many ends are at or before a position, as a Fenwick tree
        seen = 0
        for place in upper:
            ends = [position[end] for end in after[place]]
            for end in ends:
                at, passed = end + 1, 0
                while at:
                    passed += tree[at]
                    at &= at - 1
                crossings += seen - passed
            for end in ends:
                seen += 1
                at = end + 1
                while at < len(tree):
                    tree[at] += 1
                    at += at & -at

    return crossings


def _middles(
    layers: list[list[int]], sizes: list[float], before: list[list[int]], after: list[list[int]]
) -> list[float]:
    """Return the middle of each place in its layer: near its neighbours, and beside those of its layer."""
    middles = [0.0] * len(sizes)

    for layer in layers:
        at = 0.0
        for place in layer:
            middles[place] = at + sizes[place] / 2
            at += sizes[place]

    for sweep in range(SWEEPS if len(before) < LARGE else 2):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wanted = [
                _middle_of(middles, (before if down else after)[place], middles[place])
                for place in layer
            ]
            _place(layer, wanted, sizes, middles)

    least = min(
        (middles[place] - sizes[place] / 2 for layer in layers for place in layer), default=0.0
    )
    return [middle - least for middle in middles]


def _middle_of(middles: list[float], neighbours: list[int], otherwise: float) -> float:
    return (
        sum(middles[place] for place in neighbours) / len(neighbours) if neighbours else otherwise
    )


def _place(layer: list[int], wanted: list[float], sizes: list[float], middles: list[float]) -> None:
    """Give each place of *layer* the middle that is wanted, as far as those beside it leave room.

    Places that would overlap form a block, which lies where its places on average want it.
    """
    blocks: list[
        tuple[float, float, list[int]]
    ] = []  # the wish for its beginning, its width, its places

    for place, wish in zip(layer, wanted, strict=True):
        begin, width, places = wish - sizes[place] / 2, sizes[place], [place]
        while blocks and blocks[-1][0] + blocks[-1][1] > begin:
            other_begin, other_width, other_places = blocks.pop()
            share = len(other_places) / (len(other_places) + len(places))
            begin = share * other_begin + (1 - share) * (begin - other_width)
            width += other_width
            places = other_places + places
        blocks.append((begin, width, places))

    for begin, _, places in blocks:
        at = begin
        for place in places:
            middles[place] = at + sizes[place] / 2
            at += sizes[place]
