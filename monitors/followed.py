"""Experiments from look to look: a decision costs the blocks of time that changed since the last.

Blocks with new rows, with other labels, or that time alone has changed are summarised anew, all
others are known as sums. Whatever does not fit (another policy, rows held anew, a look into the
past) begins from all rows, some blocks at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from monitors import arms, experiments, held, policies, summing, sums

ROWS_AT_ONCE = 500_000


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
    rows: held.Held
    mark: int
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
        rows: held.Held,
        prepared: Callable[[pl.DataFrame], pl.DataFrame],
        moment: datetime,
    ) -> experiments.Decision:
        """The decision on these rows at this moment.

        rows: as a monitor holds them; prepared: makes of them what `experiments.evaluate` takes,
        block by block."""
        key = (endpoint, asked.policy.challenger)
        self._forget_earlier(endpoint, asked.experiment)
        before = self._known.get(key)
        found = None
        if before is not None and _goes_on(before, asked, rows, moment):
            found = before.sums
            changed = rows.changed_since(before.mark)
            stale = sums.stale(found, moment)
        else:
            changed, stale = rows.hours(), []
        self.summarised = 0
        for part in _parts(rows, asked, changed, stale):
            self.summarised += part.height
            fresh = summing.summarise(prepared(part), asked.policy, moment)
            found = fresh if found is None else sums.merge(found, fresh)
        if found is None:
            nothing = prepared(rows.schema)
            found = summing.summarise(nothing, asked.policy, moment)
        self._known[key] = _Known(asked, moment, rows, rows.mark, found)
        return experiments.decide(found, moment)

    def _forget_earlier(self, endpoint: str, experiment: int) -> None:
        over = [
            key
            for key, one in self._known.items()
            if key[0] == endpoint and one.asked.experiment != experiment
        ]
        for key in over:
            del self._known[key]


def _goes_on(before: _Known, asked: Asked, rows: held.Held, moment: datetime) -> bool:
    """Do the sums of the look before still stand for what did not change?"""
    return before.asked == asked and before.rows is rows and moment >= before.moment


def _parts(
    rows: held.Held, asked: Asked, hours: Sequence[int], blocks: Sequence[int]
) -> Iterator[pl.DataFrame]:
    """The rows of these hours' blocks and of these blocks, whole blocks at a time; none of blocks
    before the experiment."""
    length = asked.policy.stratum_hours
    first = None
    if asked.start is not None:
        first = arms.microseconds(asked.start) // (length * arms.HOUR)
    wanted = sorted({hour // length for hour in hours} | set(blocks))
    held_now: list[pl.DataFrame] = []
    for low, high in _runs([b for b in wanted if first is None or b >= first], rows, length):
        held_now.append(rows.frame(_start(low * length), _start(high * length)))
        if sum(part.height for part in held_now) >= ROWS_AT_ONCE:
            yield pl.concat(held_now)
            held_now = []
    if held_now:
        yield pl.concat(held_now)


def _runs(blocks: Sequence[int], rows: held.Held, length: int) -> Iterator[tuple[int, int]]:
    """Blocks that follow each other as spans [first, end), of about ROWS_AT_ONCE rows at most."""
    counts = rows.counted(length)
    start, height = None, 0
    for number, block in enumerate(blocks):
        start = block if start is None else start
        height += counts.get(block, 0)
        last = number + 1 == len(blocks) or blocks[number + 1] != block + 1
        if last or height >= ROWS_AT_ONCE:
            yield start, block + 1
            start, height = None, 0


def _start(hour: int) -> datetime:
    return arms.EPOCH + timedelta(hours=hour)
