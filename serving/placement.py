"""Which units an entity owns: stretches of [0, 1), and how they move when the split changes. Pure.

The first split is laid out by a rule: challenger j of k owns [j/k, j/k + share), the champion, who
has the largest share, the rest. From then on places have a history, since no rule that knows the
new split alone can move as few units as possible: every change takes from those who lose, and from
nobody else, exactly what the others gain (the total variation distance of the two splits). A
challenger gives back what it got last, so that a share that grew and shrinks has its old units.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

# Shares are whole percentages: what is shorter is rounding.
NOTHING = 1e-9


class Place(NamedTuple):
    """[start, end) of [0, 1), owned by an entity. In a list, what an owner got last comes last."""

    start: float
    end: float
    owner: str

    @property
    def length(self) -> float:
        return self.end - self.start


def first(shares: Mapping[str, int]) -> list[Place]:
    """The places of a split that has none before it. shares: whole percentages that sum to 100.

    Slots of 1/k where every challenger fits into one; else end to end (three or more challengers,
    one of them large)."""
    if not shares:
        return []
    champion = max(shares, key=lambda name: shares[name])  # of equals the first
    running = [name for name in shares if shares[name] > 0 and name != champion]
    k = len(running)
    slotted = all(shares[name] * k <= 100 for name in running)
    places, used, gaps = [], 0.0, []
    for j, name in enumerate(running):
        start = j / k if slotted else used
        if start - used > NOTHING:
            gaps.append(Place(used, start, champion))
        used = start + shares[name] / 100
        places.append(Place(start, used, name))
    if 1 - used > NOTHING:
        gaps.append(Place(used, 1.0, champion))
    return [*places, *gaps]


def moved(places: Sequence[Place], shares: Mapping[str, int]) -> list[Place]:
    """The places after a change of the split to `shares` (whole percentages that sum to 100)."""
    if not places:
        return first(shares)
    # Who owns the end of the line gives from its left side, next to those who grow.
    base = max(places, key=lambda place: place.end).owner
    held = dict.fromkeys(shares, 0.0)
    for place in places:
        held[place.owner] = held.get(place.owner, 0.0) + place.length
    change = {name: shares.get(name, 0) / 100 - length for name, length in held.items()}
    kept, given = list(places), []
    for name in [name for name in change if change[name] < -NOTHING and name != base]:
        mine = [place for place in reversed(kept) if place.owner == name]
        given += _take(kept, mine, -change[name], from_right=True)
    gaining = [name for name in change if change[name] > NOTHING and name != base]
    for name in [*gaining, base]:
        needed = max(0.0, change[name])
        ends = {round(place.end, 9) for place in kept if place.owner == name}
        # What continues a piece of one's own comes first.
        pool = sorted(given, key=lambda place: (round(place.start, 9) not in ends, place.start))
        got = _take(given, pool, needed, from_right=False)
        if name != base:
            end = max((place.end for place in kept if place.owner == name), default=0.0)
            rest = [place for place in kept if place.owner == base]
            rest.sort(key=lambda place: (place.start < end - NOTHING, place.start))
            got += _take(kept, rest, needed - sum(part.length for part in got), from_right=False)
        for part in got:
            _own(kept, part, name)
    return kept


def distance(one: Sequence[Place], other: Sequence[Place]) -> float:
    """The share of units whose owner differs."""
    edges = sorted({edge for place in (*one, *other) for edge in (place.start, place.end)})
    middles = [(low, high, (low + high) / 2) for low, high in pairwise(edges)]
    return sum(high - low for low, high, at in middles if owner(one, at) != owner(other, at))


def owner(places: Sequence[Place], position: float) -> str | None:
    """Who owns a position in [0, 1)."""
    return next((each.owner for each in places if each.start <= position < each.end), None)


def _take(
    held: list[Place], wanted: Sequence[Place], length: float, from_right: bool
) -> list[Place]:
    """Cut `length` out of the wanted pieces, in their order; what is left of them stays held."""
    taken = []
    for piece in wanted:
        if length <= NOTHING:
            break
        at = held.index(piece)
        if piece.length <= length + NOTHING:
            held.pop(at)
            part = piece
        elif from_right:
            cut = piece.end - length
            held[at], part = piece._replace(end=cut), piece._replace(start=cut)
        else:
            cut = piece.start + length
            held[at], part = piece._replace(start=cut), piece._replace(end=cut)
        taken.append(part)
        length -= part.length
    return taken


def _own(held: list[Place], part: Place, name: str) -> None:
    """Add a piece for `name`: as the continuation of one that ends where it starts, or as its
    last."""
    for at, place in enumerate(held):
        if place.owner == name and abs(place.end - part.start) < NOTHING:
            held[at] = place._replace(end=part.end)
            return
    held.append(part._replace(owner=name))
