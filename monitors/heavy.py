"""The single values of a column with their exact counts: all where they are few, else the heaviest.

Up to 1,024 numbers cost no more room than the bins they fill, and make every distance exact for
whole numbers, rounded numbers and small windows.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEW_NUMBERS = 1024
HEAVIEST_NUMBERS = 64
MOST_CATEGORIES = 4096
_SAMPLE = 16_384
_SPAN = 1 << 16
_BLOCK = 16_384


def of_column(x: Floats) -> tuple[Floats, Ints]:
    """The heaviest single values and their exact counts; all values where they are few."""
    if len(x) <= _SAMPLE:
        return numbers(*np.unique(x + 0.0, return_counts=True))
    # A value heavy enough to matter shows in an even sample; only its candidates are counted.
    sample, seen = np.unique(x[:: len(x) // _SAMPLE] + 0.0, return_counts=True)
    if len(sample) <= FEW_NUMBERS:
        counted = _integers(x) if _are_small_integers(sample) else None
        if counted is not None:
            return numbers(*counted)
        table = pl.Series(x + 0.0).value_counts().sort("")
        return numbers(table[""].to_numpy(), table["count"].to_numpy().astype(np.int64))
    often = np.flatnonzero(seen >= 3)
    chosen = sample[often[np.argsort(-seen[often], kind="stable")[: 2 * HEAVIEST_NUMBERS]]]
    if len(chosen) == 0:
        return np.empty(0), np.empty(0, dtype=np.int64)
    chosen = np.sort(chosen)
    return numbers(chosen, _occurrences(x, chosen))


def _are_small_integers(sample: Floats) -> bool:
    whole = bool((np.floor(sample) == sample).all())
    return whole and float(sample[-1] - sample[0]) < _SPAN and abs(float(sample[0])) < 2**52


def _integers(x: Floats) -> tuple[Floats, Ints] | None:
    """All values and their counts by direct address; None if they are not as the sample said."""
    low, high = float(x.min()), float(x.max())
    if high - low >= 2 * _SPAN or abs(low) >= 2**52:
        return None
    place = (x - low).astype(np.int64)
    if not np.array_equal(place + low, x):
        return None
    table = np.bincount(place)
    found = np.flatnonzero(table)
    return found.astype(np.float64) + low, table[found].astype(np.int64)


def _occurrences(x: Floats, chosen: Floats) -> Ints:
    """How often each of a few values (ascending) occurs. Most others are told apart by a hash of
    12 bits, which costs a tenth of a binary search."""
    if len(chosen) <= 4:
        return np.array([np.count_nonzero(x == value) for value in chosen], dtype=np.int64)
    counts = np.zeros(len(chosen), dtype=np.int64)
    wanted = np.zeros(1 << 12, dtype=np.bool_)
    wanted[_short_hash(chosen)] = True
    for start in range(0, len(x), _BLOCK):
        part = x[start : start + _BLOCK]
        part = part[wanted[_short_hash(part)]]
        at = np.minimum(np.searchsorted(chosen, part), len(chosen) - 1)
        counts += np.bincount(at[chosen[at] == part], minlength=len(chosen))
    return counts


def _short_hash(x: Floats) -> Ints:
    words = (x + 0.0).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (words >> np.uint64(52)).view(np.int64)


def numbers(values: Floats, counts: Ints) -> tuple[Floats, Ints]:
    """All where they are few, else those of two rows and more, the heaviest 64; ascending."""
    counts = counts.astype(np.int64)
    if len(values) <= FEW_NUMBERS:
        return values, counts
    kept = np.flatnonzero(counts >= 2)
    kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:HEAVIEST_NUMBERS]])
    return values[kept], counts[kept]


def categories(values: Mapping[str, int]) -> dict[str, int]:
    """All where they are few, else those heavier than the first that has no place."""
    if len(values) <= MOST_CATEGORIES:
        return dict(values)
    least = least_count(np.fromiter(values.values(), dtype=np.int64))
    return {value: count for value, count in values.items() if count >= least}


def least_count(counts: Ints) -> int:
    """What a value must weigh to be kept, where there are more than can be kept."""
    return int(np.sort(counts)[-MOST_CATEGORIES - 1]) + 1


def added(a: NDArray, n: Ints, b: NDArray, m: Ints) -> tuple[NDArray, Ints]:
    """Counts by key, added over the union of the keys."""
    keys, at = np.unique(np.concatenate([a, b]), return_inverse=True)
    counts = np.zeros(len(keys), dtype=np.int64)
    np.add.at(counts, at, np.concatenate([n, m]))
    return keys, counts
