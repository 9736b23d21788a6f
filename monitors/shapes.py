"""The distribution function of a numeric profile: what is known of it, and how well.

A profile knows the exact count of some single values (atoms) and, for the rest of each bin, only
that it lies inside the bin. So at every point the mass below is known between two limits; the
estimate spreads the rest of a bin evenly over it.
"""

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from monitors import bins

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """Counts by bin (ascending keys; rest = what is no atom) and by atom (ascending values).

    before: counts in lower bins, one entry more than bins; atoms_before likewise."""

    centre: float
    keys: Ints
    counts: Ints
    rest: Ints
    before: Ints
    low: Floats
    high: Floats
    atoms: Floats
    atom_keys: Ints
    atom_counts: Ints
    atoms_before: Ints

    @property
    def total(self) -> int:
        return int(self.before[-1])


@dataclass(frozen=True, slots=True)
class Cuts:
    """Quantiles: estimates, whether they are exact, and the first and last bin they may lie in."""

    value: Floats
    exact: NDArray[np.bool_]
    low_key: Ints
    high_key: Ints

    def where(self, chosen: NDArray[np.bool_]) -> "Cuts":
        return Cuts(
            self.value[chosen], self.exact[chosen], self.low_key[chosen], self.high_key[chosen]
        )


def build(
    centre: float,
    keys: Ints,
    counts: Ints,
    atoms: Floats,
    atom_counts: Ints,
    limits: tuple[float, float],
) -> Shape:
    """A shape from a profile's parts; limits: its least and greatest finite value."""
    atom_keys = bins.keys(atoms, centre)
    rest = counts - np.bincount(
        np.searchsorted(keys, atom_keys), atom_counts, minlength=len(keys)
    ).astype(np.int64)
    low, high = bins.edges(keys, centre)
    return Shape(
        centre=centre,
        keys=keys,
        counts=counts,
        rest=rest,
        before=np.r_[0, np.cumsum(counts)],
        low=np.clip(low, *limits),
        high=np.clip(high, *limits),
        atoms=atoms,
        atom_keys=atom_keys,
        atom_counts=atom_counts,
        atoms_before=np.r_[0, np.cumsum(atom_counts)],
    )


def below(shape: Shape, x: Floats) -> tuple[Floats, Floats, Floats]:
    """How many values are <= x: estimate, least, most."""
    key = bins.keys(x, shape.centre)
    at = np.searchsorted(shape.keys, key)
    inside = np.minimum(at, len(shape.keys) - 1)
    held = shape.keys[inside] == key
    until = np.searchsorted(shape.atoms, x, side="right")
    since = np.searchsorted(shape.atom_keys, key)
    atoms = shape.atoms_before[np.maximum(until, since)] - shape.atoms_before[since]
    least = shape.before[at] + np.where(held, atoms, 0)
    rest = np.where(held, shape.rest[inside], 0)
    width = shape.high[inside] - shape.low[inside]
    with np.errstate(over="ignore"):  # a bin around 0 can be 1e-310 wide: what is clipped anyway
        part = np.where(width > 0, (x - shape.low[inside]) / np.where(width > 0, width, 1), 1.0)
    return least + rest * np.clip(part, 0, 1), least.astype(float), (least + rest).astype(float)


def cuts(shape: Shape, q: Floats) -> Cuts:
    """The quantiles at q (each 0..1), interpolated between ranks as numpy does."""
    position = q * (shape.total - 1)
    rank = np.floor(position).astype(np.int64)
    part = position - rank
    first, first_exact, first_bin = _at_rank(shape, rank)
    second, second_exact, second_bin = _at_rank(shape, np.minimum(rank + 1, shape.total - 1))
    return Cuts(
        value=_between(first, second, part),
        exact=first_exact & (second_exact | (part == 0)),
        low_key=shape.keys[first_bin],
        high_key=shape.keys[np.where(part > 0, second_bin, first_bin)],
    )


def below_cuts(shape: Shape, at: Cuts) -> tuple[Floats, Floats, Floats]:
    """How many values are <= a quantile of another shape: estimate, least, most."""
    value, least, most = below(shape, at.value)
    whole_low = shape.before[np.searchsorted(shape.keys, at.low_key)]
    whole_high = shape.before[np.searchsorted(shape.keys, at.high_key, side="right")]
    return value, np.where(at.exact, least, whole_low), np.where(at.exact, most, whole_high)


def largest_gap(p: Shape, q: Shape) -> tuple[float, float]:
    """sup |F - G| over the points where it is known, and how much more the truth can be.

    Between its ends the difference in a bin strays by at most the larger unplaced mass."""
    keys = _union(p.keys, q.keys)
    before = [_spread(s, keys, s.counts).cumsum() for s in (p, q)]
    apart = np.r_[0.0, before[0] - before[1]]
    rest = [_spread(s, keys, s.rest) for s in (p, q)]
    slack, drift = np.maximum(*rest), rest[0] - rest[1]

    atoms = _union(p.atoms, q.atoms)
    home = np.searchsorted(keys, bins.keys(atoms, p.centre))
    jumps = _at_atoms(p, atoms) - _at_atoms(q, atoms)
    cumulated = np.r_[0.0, np.cumsum(jumps)]
    from_left = apart[home] + cumulated[1:] - cumulated[np.searchsorted(home, home)]

    left = np.r_[apart[:-1], from_left]
    right = np.r_[apart[:-1] + drift, from_left + drift[home]]
    loose = np.r_[slack, slack[home]]
    larger, smaller = (
        np.maximum(np.abs(left), np.abs(right)),
        np.minimum(np.abs(left), np.abs(right)),
    )
    value = max(float(np.abs(apart).max()), float((larger - loose).max()))
    return value, max(0.0, float((smaller + loose).max()) - value)


def area_between(p: Shape, q: Shape) -> tuple[float, float]:
    """The integral of |F - G|, the rest of a bin taken in its middle, and half the bins' widths
    times their mass: what that can err. Infinite where values lie 1e308 apart."""
    places, masses, bound = [], [], 0.0
    for shape, sign in ((p, 1.0), (q, -1.0)):
        middle = shape.low + (shape.high - shape.low) / 2
        places += [shape.atoms, middle]
        masses += [sign * shape.atom_counts / shape.total, sign * shape.rest / shape.total]
        bound += float(np.dot(shape.rest / shape.total, (shape.high - shape.low) / 2))
    place, mass = np.concatenate(places), np.concatenate(masses)
    order = np.argsort(place, kind="stable")
    with np.errstate(over="ignore", invalid="ignore"):
        area = float(np.dot(np.abs(np.cumsum(mass[order]))[:-1], np.diff(place[order])))
    return area if isfinite(area) else inf, bound


def _between(low: Floats, high: Floats, part: Floats) -> Floats:
    """Linear interpolation, rounded as numpy's quantile rounds."""
    with np.errstate(over="ignore", invalid="ignore"):
        apart = high - low
        value = np.where(part < 0.5, low + apart * part, high - apart * (1 - part))
        return np.where(np.isfinite(apart), value, low * (1 - part) + high * part)


def _union(a: NDArray, b: NDArray) -> NDArray:
    """Sorted, each once. numpy's own hashes first, which takes ten times as long at this size."""
    both = np.sort(np.concatenate([a, b]))
    return both[np.append(True, both[1:] != both[:-1])] if len(both) else both


def _spread(shape: Shape, keys: Ints, counts: Ints) -> Floats:
    """Shares by bin over a union of bins."""
    result = np.zeros(len(keys))
    result[np.searchsorted(keys, shape.keys)] = counts / shape.total
    return result


def _at_atoms(shape: Shape, atoms: Floats) -> Floats:
    result = np.zeros(len(atoms))
    result[np.searchsorted(atoms, shape.atoms)] = shape.atom_counts / shape.total
    return result


def _at_rank(shape: Shape, rank: Ints) -> tuple[Floats, NDArray[np.bool_], Ints]:
    """The value with this rank (from 0): estimate, whether it is exact, its bin."""
    b = np.searchsorted(shape.before, rank, side="right") - 1
    within = rank - shape.before[b]
    width = shape.high[b] - shape.low[b]
    value = shape.low[b] + width * (within + 0.5) / shape.counts[b]
    # In a bin of atoms alone the rank names its atom; else it lies somewhere in the bin.
    exact = shape.rest[b] == 0
    if len(shape.atoms):
        since = np.searchsorted(shape.atom_keys, shape.keys[b])
        named = np.searchsorted(shape.atoms_before, shape.atoms_before[since] + within, "right") - 1
        value = np.where(exact, shape.atoms[np.minimum(named, len(shape.atoms) - 1)], value)
    return value, exact, b
