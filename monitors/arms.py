"""The rows of an experiment, cleaned: two arms in aligned arrays, in order of request time.

Everything odd ends here: times in any unit and zone, missing columns, duplicates, labels of the
future, versions that are not compared. Source: experiments.md, "Input: one row per request".
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import cells, formulas, policies

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Hashes = NDArray[np.uint64]

HOUR = 3_600_000_000
NEVER = 2**62
_USED = (
    *("status_code", "error", "latency_ms", "unit_id"),
    *("prediction", "label", "label_time"),
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Strata:
    """Per stratum, in order of (time block, route share): its start and the challenger's share."""

    start: Ints
    block: Ints
    share: Floats


@dataclass(frozen=True, slots=True)
class Arms:
    """One entry per request of the experiment. challenger is 1.0 or 0.0; times are microseconds
    since 1970 UTC; stratum: codes from 0; unit: its 64-bit hash, and alone where a request has no
    unit but itself; lot: hash of the request's id; delay_hours is NaN where no label counts.

    Two of a million units share a hash with probability 3e-8."""

    champion: str | None
    challenger: str | None
    frame: pl.DataFrame
    is_challenger: Floats
    time: Ints
    share: Floats
    stratum: Ints
    strata: Strata
    unit: Hashes
    alone: Flags
    lot: Hashes
    error: Flags
    labelled: Flags
    mature: Flags
    delay_hours: Floats

    @property
    def answered(self) -> Flags:
        return ~self.error

    def column(self, name: str, rows: Ints) -> pl.Series:
        """The values of a column at these positions, all null where the column is absent."""
        found = cells.column(self.frame, name)
        return found if len(rows) == len(found) else found.gather(rows)


def read(rows: pl.DataFrame, policy: policies.Policy, now: datetime) -> Arms:
    """The rows that exist at `now` and belong to the two versions compared; see Arms.

    A role that cannot be filled is None and leaves no rows. Never raises on odd data."""
    at = microseconds(now)
    table = _drawn(rows, policy, at)
    champion, challenger = _roles(table["_version"], policy)
    pair = [name for name in (champion, challenger) if name is not None]
    table = table.filter(pl.col("_version").is_in(pair if len(pair) == 2 else []))
    table, lot = _first_of_each_request(table)
    return _arms(table, lot, champion, challenger, policy, at)


def microseconds(time: datetime) -> int:
    """Microseconds since 1970 UTC; a naive time is UTC."""
    aware = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    return (aware - EPOCH) // timedelta(microseconds=1)


def codes(array: NDArray) -> tuple[NDArray, Ints]:
    """The distinct values in ascending order, and for each entry the position of its value."""
    distinct = pl.Series(array).unique().sort().to_numpy()
    if len(distinct) > 10_000:  # one sort is faster than as many looks into a long list
        distinct, code = np.unique(array, return_inverse=True)
        return distinct, code.astype(np.int64)
    return distinct, np.searchsorted(distinct, array).astype(np.int64)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key of a version name: v2 before v10, 9 before 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts]


def changes_at(rows: pl.DataFrame, policy: policies.Policy, now: int) -> pl.DataFrame:
    """Per time block, the moment (microseconds) at which its rows mean something else by
    themselves: a request or label of the future comes, a request gets as old as the label window
    asks. Columns: block, until (the far future where nothing is to come)."""
    at = cells.instants(cells.column(rows, "request_time"))
    label = cells.instants(cells.column(rows, "label_time"))
    coming = [at, label]
    if policy.label_window_hours is not None:
        coming.append(at + ceil(policy.label_window_hours * HOUR))
    ahead = [pl.Series(f"{i}", moment).set(moment <= now, None) for i, moment in enumerate(coming)]
    frame = pl.DataFrame([(at // (policy.stratum_hours * HOUR)).alias("block"), *ahead])
    soonest = frame.select(
        "block", until=pl.min_horizontal(pl.exclude("block")).fill_null(NEVER)
    ).drop_nulls("block")
    return soonest.group_by("block").agg(pl.col("until").min())


def _drawn(rows: pl.DataFrame, policy: policies.Policy, now: int) -> pl.DataFrame:
    """Rows up to now whose version was drawn by the split: the columns that a decision can need."""
    table = rows.select(
        cells.instants(cells.column(rows, "request_time")).alias("_at"),
        pl.Series("_draw", cells.numbers(cells.column(rows, "route_share"))).fill_nan(None),
        cells.texts(cells.column(rows, "version")).alias("_version"),
        cells.texts(cells.column(rows, "request_id")).alias("_request_id"),
        *(cells.column(rows, name) for name in _needed(policy) if name in rows.columns),
    )
    return table.filter(
        (pl.col("_at") <= now) & pl.col("_draw").is_between(0, 1) & pl.col("_version").is_not_null()
    )


def _needed(policy: policies.Policy) -> set[str]:
    metrics = policy.placed_metrics.values()
    values = (name for m in metrics if m.value for name in formulas.names_in(m.value))
    return {*values, *(m.score for m in metrics), *policy.slices, *_USED}


def _roles(version: pl.Series, policy: policies.Policy) -> tuple[str | None, str | None]:
    seen = sorted(version.unique().to_list(), key=natural)
    rest = [name for name in seen if name not in (policy.champion, policy.challenger)]
    champion = policy.champion or (rest.pop(0) if rest else None)
    challenger = policy.challenger or (rest.pop(0) if rest else None)
    return champion, challenger


def _first_of_each_request(table: pl.DataFrame) -> tuple[pl.DataFrame, Hashes]:
    """In order of time, with the hashes of their ids; of several rows with one request_id the
    earliest stays."""
    ids = table["_request_id"]
    tie_break, at = ids.hash().to_numpy(), table["_at"].to_numpy()
    if (at[1:] > at[:-1]).all():  # to look costs a hundredth of sorting
        order = np.arange(len(at))
    else:
        order = np.lexsort((tie_break, at))
    # Equal hashes are rare and equal ids rarer: only then is the exact, slower look worth it.
    if (np.diff(np.sort(tie_break)) == 0).any():
        ids = ids[order]
        order = order[(ids.is_null() | ids.is_first_distinct()).to_numpy()]
    table = table.drop("_request_id")
    in_order = np.array_equal(order, np.arange(len(table)))
    return table if in_order else table[order], tie_break[order]


def _arms(
    table: pl.DataFrame,
    lot: Hashes,
    champion: str | None,
    challenger: str | None,
    policy: policies.Policy,
    now: int,
) -> Arms:
    time = table["_at"].to_numpy()
    share = table["_draw"].to_numpy()
    stratum, strata = _strata(time, share, policy.stratum_hours * HOUR)
    units = cells.texts(cells.column(table, "unit_id"))
    alone = units.is_null().to_numpy()
    error = _errors(table)
    label_time = cells.instants(cells.column(table, "label_time"))
    delay = (label_time - table["_at"]).cast(pl.Float64).fill_null(float("nan")).to_numpy() / HOUR
    labelled = (
        ~error
        & cells.present(cells.column(table, "prediction"))
        & cells.present(cells.column(table, "label"))
        & (label_time <= now).fill_null(False).to_numpy()
    )
    mature = np.ones(len(time), dtype=bool)
    if policy.label_window_hours is not None:
        mature = time <= now - policy.label_window_hours * HOUR
        labelled &= mature & (delay <= policy.label_window_hours)
    return Arms(
        champion=champion,
        challenger=challenger,
        frame=table,
        is_challenger=(table["_version"] == (challenger or "")).cast(pl.Float64).to_numpy(),
        time=time,
        share=share,
        stratum=stratum,
        strata=strata,
        unit=np.where(alone, np.uint64(0), units.hash().to_numpy()),
        alone=alone,
        lot=lot,
        error=error,
        labelled=labelled,
        mature=mature,
        delay_hours=np.where(labelled, delay, np.nan),
    )


def _strata(time: Ints, share: Floats, width: int) -> tuple[Ints, Strata]:
    blocks, block_code = codes(time // width)
    shares, share_code = codes(share)
    present_pairs, stratum = codes(block_code * max(1, len(shares)) + share_code)
    block = blocks[present_pairs // max(1, len(shares))].astype(np.int64)
    share_of = shares[present_pairs % max(1, len(shares))]
    return stratum, Strata(start=block * width, block=block, share=share_of)


def _errors(table: pl.DataFrame) -> Flags:
    """What `error` says where it says anything, else a status of 500 or more."""
    status = cells.numbers(cells.column(table, "status_code")) >= 500
    said = cells.numbers(cells.column(table, "error"))
    return np.where(np.isnan(said), status, said != 0)
