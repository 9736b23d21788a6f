"""Bins that need no agreement: the leading bits of a float are the number of its bin.

A bin holds all x with the same sign, exponent and top 7 bits of the mantissa of x - centre: it is
at most 1/128 of |x - centre| wide, and one absurd value moves no other. Keys are ordered like the
numbers: key k >= 0 is [edge(k), edge(k + 1)), key -k - 1 its mirror image. Source: monitors.md,
"Profile".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MANTISSA_BITS = 7
_SHIFT = 52 - MANTISSA_BITS
_SIGN = 1 << (63 - _SHIFT)
_FEW = 50_000
_BLOCK = 16_384
_LARGEST = np.finfo(np.float64).max


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts by bin around 0, ascending."""

    keys: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    counts: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def keys(x: Floats, centre: float) -> Ints:
    """The bin of each finite value."""
    return _ordered(_leading_bits(x, centre))


def count(x: Floats, centre: float) -> tuple[Ints, Ints]:
    """The bins that hold any of these finite values, ascending, and how many each holds."""
    if len(x) < _FEW:
        found, counts = np.unique_counts(_leading_bits(x, centre))
    else:
        bits = np.empty(len(x), dtype=np.int64)
        for start in range(0, len(x), _BLOCK):  # in pieces that fit the processor's cache
            part = slice(start, start + _BLOCK)
            np.right_shift(_distance(x[part], centre).view(np.int64), _SHIFT, out=bits[part])
        bits &= 2 * _SIGN - 1  # the sign was drawn along
        table = np.bincount(bits)
        found = np.flatnonzero(table)
        counts = table[found]
    ordered = _ordered(found)
    order = np.argsort(ordered)
    return ordered[order], counts[order].astype(np.int64)


def edges(key: Ints, centre: float) -> tuple[Floats, Floats]:
    """The low and high end of each bin."""
    magnitude = np.where(key < 0, -key - 1, key)
    near, far = _edge(magnitude), _edge(magnitude + 1)
    low = np.where(key < 0, -far, near)
    high = np.where(key < 0, -near, far)
    return centre + low, centre + high


def histogram(x: Floats) -> Histogram:
    """The histogram of finite values, around 0."""
    return Histogram(*count(x, 0.0))


def added(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of the values of both."""
    keys = np.unique(np.concatenate([a.keys, b.keys]))
    return Histogram(keys, spread(a, keys) + spread(b, keys))


def spread(histogram: Histogram, keys: Ints) -> Ints:
    """The counts over a larger, sorted set of bins."""
    result = np.zeros(len(keys), dtype=np.int64)
    result[np.searchsorted(keys, histogram.keys)] = histogram.counts
    return result


def middles(histogram: Histogram) -> Floats:
    """The middle of each bin."""
    low, high = edges(histogram.keys, 0.0)
    return low + (high - low) / 2


def to_lists(histogram: Histogram) -> list[list[int]]:
    """JSON-able."""
    return [histogram.keys.tolist(), histogram.counts.tolist()]


def from_lists(stored: Sequence[Sequence[int]]) -> Histogram:
    """The histogram that to_lists was given."""
    return Histogram(*(np.array(part, dtype=np.int64) for part in stored))


def _leading_bits(x: Floats, centre: float) -> Ints:
    return (_distance(x, centre).view(np.uint64) >> np.uint64(_SHIFT)).view(np.int64)


def _distance(x: Floats, centre: float) -> Floats:
    distance = x - centre
    np.clip(distance, -_LARGEST, _LARGEST, out=distance)
    distance += 0.0  # minus zero is zero
    return distance


def _ordered(bits: Ints) -> Ints:
    return np.where(bits >= _SIGN, _SIGN - bits - 1, bits)


def _edge(magnitude: Ints) -> Floats:
    edge = (magnitude.astype(np.uint64) << np.uint64(_SHIFT)).view(np.float64)
    return np.where(np.isfinite(edge), edge, _LARGEST)
