"""An experiment as sums per block of time: what a decision needs of its rows, and less than they.

A block (an hour, or `stratum_hours`) is summarised whole (summing.py). `merge` puts blocks
together, one summarised later in place of the earlier one, so that new rows and late labels cost
their own hours only; `stale` names the blocks that time alone has changed. Nothing is rounded: a
decision from merged sums is that from all rows. Counts and moments are kept per (block, route
share, version, unit), answer times as counts of equal values, a unit of a sticky split as one row
per block. Source: experiments.md, "From rows to sums".
"""

from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, policies

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ERRORS, COVERAGE = "errors", "coverage"
MOST_UNITS = 4096  # of more units, buckets of units are told apart (experiments.md)
MOST_DELAYS = 200  # labels per stratum and version that measure the delay
WHOLE = -1  # in place of a slicing column's number


@dataclass(frozen=True, slots=True)
class Sums:
    """Tables with a column `block`; side 1 = challenger; unit null = a request of its own.

    tallies   measure, column, value, share, side, unit -> n, total, squares (about their mean)
    spans     first and last labelled request of the primary (microseconds)
    units     share and side of a unit's first, last and first failed request; counts per side;
              pairs of consecutive requests at one share, switches among them, and expected ones
    times     share, side, alone, ms -> n answers
    slowest   per margin and unit: the answers slower than all before them in the block, in order
    delays    a sample of labelled rows: label, right or wrong, hours of delay
    labels    counts and sums of labels; rank products of delay and label (numerator, variance)
    scores    measure, share, side, unit, score, positive, and the values of slicing columns"""

    policy: policies.Policy
    champion: str | None
    challenger: str | None
    until: pl.DataFrame
    tallies: pl.DataFrame
    spans: pl.DataFrame
    units: pl.DataFrame
    times: pl.DataFrame
    slowest: pl.DataFrame
    delays: pl.DataFrame
    labels: pl.DataFrame
    scores: pl.DataFrame

    def per_version(self, challenger: Any, champion: Any) -> dict[str, Any]:
        """The two values by name of version; a role that nobody fills is left out."""
        pairs = ((self.challenger, challenger), (self.champion, champion))
        return {name: value for name, value in pairs if name is not None}


TABLES = tuple(field.name for field in fields(Sums) if field.type is pl.DataFrame)


def merge(before: Sums, after: Sums) -> Sums:
    """All blocks of both; a block that both hold is that of `after`.

    Raises ValueError where they were made for different policies or versions."""
    if before.policy != after.policy:
        raise ValueError("sums: made for different policies; summarise the rows anew.")
    if (before.champion, before.challenger) != (after.champion, after.challenger):
        raise ValueError(
            f"sums: of {before.champion} and {before.challenger}, and of {after.champion} and "
            f"{after.challenger}; name champion and challenger in the policy."
        )
    again = after.until["block"].implode()
    kept = {}
    for name in TABLES:
        rest = getattr(before, name).filter(~pl.col("block").is_in(again))
        # In one piece: after some hundred merges every look would go through as many chunks.
        kept[name] = pl.concat([rest, getattr(after, name)], rechunk=True)
    return replace(before, **kept)


def stale(sums: Sums, now: datetime) -> list[int]:
    """Blocks whose rows mean something else at `now` than when they were summarised."""
    passed = sums.until.filter(pl.col("until") <= arms.microseconds(now))
    return sorted(passed["block"].to_list())


def allowed(ms: Floats, side: Ints, margin: float) -> Floats:
    """Answer times with the challenger's divided by what it may take more."""
    return ms / np.where(side == 1, 1 + margin, 1)


def total(column: pl.Series) -> float:
    """The sum of a column of sums; 0 where there is none."""
    return float(column.to_numpy().sum())


def added(group: Ints, values: Floats, groups: int) -> Floats:
    """The sum of the values of each group (codes from 0); floats also where there are none."""
    return np.bincount(group, values, minlength=groups).astype(np.float64)
