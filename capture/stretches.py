"""A span of time cut into stretches, newest first, that hold ever more rows: whoever looks for the
newest rows reads little where they are many, and everything where they are few. Pure."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FIRST_ROWS = 8_192
GROWTH = 8  # four looks reach four million rows
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)


class Extent(NamedTuple):
    """So many rows with times from `start` to `end`, both included."""

    start: datetime
    end: datetime
    rows: int


class Stretch(NamedTuple):
    """`start <= time < end`."""

    start: datetime
    end: datetime


def back(
    extents: Sequence[Extent],
    start: datetime | None = None,
    end: datetime | None = None,
    first_rows: int = FIRST_ROWS,
    growth: int = GROWTH,
) -> Iterator[Stretch]:
    """Stretches of `[start, end)` from the newest row to the oldest, without gap or overlap.

    The first one holds about `first_rows`, each further one `growth` times as many, if rows are
    spread evenly over each extent; every row lies in one of them in any case. None: no limit.
    """
    if not extents:
        return
    counted = _Counted(extents)
    first = counted.first if start is None else max(counted.first, _us(start))
    last = counted.last if end is None else min(counted.last, _us(end))
    wanted = first_rows
    while first < last:
        begin = counted.begin(first, last, wanted)
        yield Stretch(_at(begin), _at(last))
        last, wanted = begin, wanted * growth


class _Counted:
    """Extents as numbers: microseconds since the epoch, ends excluded."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self.starts = _array([_us(one.start) for one in extents])
        self.ends = _array([_us(one.end) + 1 for one in extents])
        self.density = np.array([one.rows for one in extents]) / (self.ends - self.starts)
        self.first, self.last = int(self.starts.min()), int(self.ends.max())

    def rows(self, begin: int, last: int) -> float:
        """Rows to expect in `[begin, last)`."""
        shared = np.minimum(self.ends, last) - np.maximum(self.starts, begin)
        return float((np.maximum(shared, 0) * self.density).sum())

    def begin(self, first: int, last: int, wanted: int) -> int:
        """A time from which on `last` is about `wanted` to twice as many rows away; or `first`."""
        if self.rows(first, last) <= 2 * wanted:
            return first
        low, high = first, last - 1  # too many rows; too few, or the shortest stretch there is
        while high - low > 1:
            middle = (low + high) // 2
            found = self.rows(middle, last)
            if wanted <= found <= 2 * wanted:
                return middle
            low, high = (middle, high) if found > wanted else (low, middle)
        return high


def _array(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _us(at: datetime) -> int:
    return (at - EPOCH) // INSTANT


def _at(us: int) -> datetime:
    return EPOCH + us * INSTANT
