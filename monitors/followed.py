"""Experiments from look to look: a decision costs the blocks of time that changed since the last.

What a monitor holds only grows: new rows come behind the old ones, and labels are joined to either.
So the rows of the look before are compared with those of now; blocks with new rows, with other
labels, or that time alone has changed are summarised anew, all others are known as sums. Whatever
does not fit (another policy, rows read again, a look into the past) begins from all rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from monitors import arms, experiments, policies, summing, sums

SAME = ("databricks_request_id", "row_index", "__time")
LABELS = ("label", "label_time")


@dataclass(frozen=True, slots=True)
class Asked:
    """What an experiment compares: the same question can be answered from the same sums."""

    experiment: int
    policy: policies.Policy
    start: datetime | None


@dataclass(frozen=True, slots=True)
class _Known:
    asked: Asked
    moment: datetime
    rows: pl.DataFrame
    sums: sums.Sums


@dataclass(frozen=True, slots=True)
class _Window:
    experiment: int
    hour: datetime
    labels: int
    hours: float | None


class Followed:
    """The sums of each endpoint's experiment per challenger, in memory. `summarised`: rows that the
    last look had to go through."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], _Known] = {}
        self._windows: dict[str, _Window] = {}
        self.summarised = 0

    def label_window(
        self,
        endpoint: str,
        experiment: int,
        labels: int,
        moment: datetime,
        measured: Callable[[], float | None],
    ) -> float | None:
        """Hours that labels take. Measured anew once an hour and with each hundredth more labels:
        another window means other sums of every block."""
        last = self._windows.get(endpoint)
        hour = moment.replace(minute=0, second=0, microsecond=0)
        if (
            last is None
            or (last.experiment, last.hour) != (experiment, hour)
            or not last.labels <= labels <= last.labels * 1.01
        ):
            last = _Window(experiment, hour, labels, measured())
            self._windows[endpoint] = last
        return last.hours

    def decide(
        self,
        endpoint: str,
        asked: Asked,
        rows: pl.DataFrame,
        prepared: Callable[[pl.DataFrame], pl.DataFrame],
        moment: datetime,
    ) -> experiments.Decision:
        """The decision on these rows at this moment.

        rows: as a monitor keeps them, with `__time`; prepared: makes of them what
        `experiments.evaluate` takes, block by block."""
        block, key = _block(rows, asked.policy), (endpoint, asked.policy.challenger)
        self._forget_earlier(endpoint, asked.experiment)
        before = self._known.get(key)
        changed = None if before is None else _changed(before, asked, rows, block, moment)
        if before is None or changed is None:
            self.summarised = rows.height
            found = summing.summarise(prepared(rows), asked.policy, moment)
        else:
            part = rows.filter(block.is_in(changed.implode()))
            self.summarised = part.height
            fresh = summing.summarise(prepared(part), asked.policy, moment)
            found = sums.merge(before.sums, fresh)
        held = rows.select(name for name in (*SAME, *LABELS) if name in rows.columns)
        self._known[key] = _Known(asked, moment, held, found)
        return experiments.decide(found, moment)

    def _forget_earlier(self, endpoint: str, experiment: int) -> None:
        over = [
            key
            for key, one in self._known.items()
            if key[0] == endpoint and one.asked.experiment != experiment
        ]
        for key in over:
            del self._known[key]


def _block(rows: pl.DataFrame, policy: policies.Policy) -> pl.Series:
    return rows["__time"].dt.epoch("us") // (policy.stratum_hours * arms.HOUR)


def _changed(
    before: _Known, asked: Asked, rows: pl.DataFrame, block: pl.Series, moment: datetime
) -> pl.Series | None:
    """The blocks to summarise anew; None: all of them."""
    count = before.rows.height
    old = rows.head(count)
    if before.asked != asked or moment < before.moment or rows.height < count:
        return None
    if not old.select(SAME).equals(before.rows.select(SAME)):
        return None
    changed = [block.tail(rows.height - count), pl.Series(sums.stale(before.sums, moment))]
    for name in LABELS:
        if (name in rows.columns) != (name in before.rows.columns):
            return None
        if name in rows.columns:
            if old[name].dtype != before.rows[name].dtype:
                return None
            changed.append(block.head(count).filter(old[name].ne_missing(before.rows[name])))
    return pl.concat([part.cast(pl.Int64) for part in changed]).drop_nulls().unique()
