"""From the rows of an experiment to its sums: every block of time is summarised by itself.

What a block's sums are depends on no row of another block, and on the order of none. Source:
experiments.md, "From rows to sums".
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, cells, delays, measures, occurrences, policies, sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Hashes = NDArray[np.uint64]


def summarise(
    rows: pl.DataFrame, policy: Mapping[str, Any] | policies.Policy, now: datetime
) -> sums.Sums:
    """The sums of these rows as they are known at `now`; columns as in experiments.md, "Input".

    Holds every row of the blocks that it touches. Raises ValueError on a bad policy, never on odd
    rows."""
    if not isinstance(policy, policies.Policy):
        policy = policies.Policy.parse(policy)
    with np.errstate(over="ignore", invalid="ignore"):  # absurd values end as None, not as warnings
        data = arms.read(rows, policy, now)
        seen = occurrences.Seen.of(data)
        samples = {
            name: measures.sample(data, metric) for name, metric in measures.quality(policy).items()
        }
        primary = samples[measures.name_of(policy.primary)]
        sample = delays.sampled(seen)
        return sums.Sums(
            policy=policy,
            champion=data.champion,
            challenger=data.challenger,
            until=arms.changes_at(rows, policy, arms.microseconds(now)),
            tallies=_tallies(seen, samples, primary, policy),
            spans=_spans(seen, primary),
            units=_units(seen, primary),
            times=_times(seen),
            slowest=_slowest(seen, policy),
            delays=sample,
            labels=delays.totals(seen, sample),
            scores=_scores(seen, samples, primary, policy),
        )


def _tallies(
    seen: occurrences.Seen,
    samples: Mapping[str, measures.Sample],
    primary: measures.Sample,
    policy: policies.Policy,
) -> pl.DataFrame:
    data = seen.data
    everyone = np.arange(len(data.time))
    ready = np.flatnonzero(data.answered & data.mature)
    parts = [
        _tally(seen, sums.ERRORS, everyone, data.error.astype(float)),
        _tally(seen, sums.COVERAGE, ready, data.labelled[ready].astype(float)),
    ]
    parts += [_tally(seen, n, s.rows, s.values) for n, s in samples.items() if s.positive is None]
    if primary.positive is None:
        for number, name in enumerate(policy.slices):
            parts.append(_tally(seen, name, primary.rows, primary.values, number))
    return pl.concat(parts)


def _tally(
    seen: occurrences.Seen, measure: str, rows: Ints, y: Floats, column: int = sums.WHOLE
) -> pl.DataFrame:
    """Count, sum and squares about the mean of y per (block, share, side, unit), and per value of a
    slicing column where one is given."""
    key, names = seen.cell[rows], pl.Series([None], dtype=pl.String)
    if column != sums.WHOLE:
        texts = cells.texts(seen.data.column(measure, rows))
        names = texts.drop_nulls().unique().sort()
        value = texts.drop_nulls().cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
        there = texts.is_not_null().to_numpy()
        key, y = key[there] * len(names) + value, y[there]
    present, code = _present(key, len(seen.places[0]) * len(names))
    n = np.bincount(code, minlength=len(present))
    total = sums.added(code, y, len(present))
    apart = y - (total / np.maximum(n, 1))[code]
    cell, value = np.divmod(present, max(1, len(names)))
    stratum, side, cluster = (part[cell] for part in seen.places)
    return pl.DataFrame(
        {
            "measure": pl.repeat(measure, len(present), eager=True),
            "column": pl.repeat(column, len(present), eager=True, dtype=pl.Int32),
            "value": names.gather(value),
            **seen.where(stratum, side),
            "unit": seen.cluster_column(cluster),
            "n": n,
            "total": total,
            "squares": sums.added(code, apart * apart, len(present)),
        }
    )


def _present(key: Ints, size: int) -> tuple[Ints, Ints]:
    """The keys (from 0 to below size) that occur, and for each entry the position of its key."""
    if size > 10 * len(key) + 1_000_000:
        distinct, code = arms.codes(key)
        return distinct.astype(np.int64), code
    there = np.bincount(key, minlength=size) > 0
    return np.flatnonzero(there), (np.cumsum(there) - 1)[key]


def _spans(seen: occurrences.Seen, primary: measures.Sample) -> pl.DataFrame:
    # Rows are in order of time, blocks too.
    block, time = seen.block[primary.rows], seen.data.time[primary.rows]
    starts = occurrences.runs(block)
    ends = occurrences.ends(starts, len(block))
    return pl.DataFrame({"block": block[starts], "first": time[starts], "last": time[ends]})


def _units(seen: occurrences.Seen, primary: measures.Sample) -> pl.DataFrame:
    """A row per unit and block."""
    data = seen.data
    of_primary = np.zeros(len(data.time), dtype=bool)
    of_primary[primary.rows] = True
    known = np.flatnonzero(seen.unit >= 0)
    order = known[np.lexsort((seen.unit[known], seen.block[known]))]  # stable: time stays
    block, unit, share = seen.block[order], seen.unit[order], data.share[order]
    side, failed, labelled = seen.side[order], data.error[order], of_primary[order]
    key = block * max(1, len(seen.units)) + unit
    starts = occurrences.runs(key)
    groups = len(starts)
    code = np.repeat(np.arange(groups), np.diff(np.append(starts, len(order))))
    ends = occurrences.ends(starts, len(order))
    pair = np.r_[False, (code[1:] == code[:-1]) & _one_split(share[:-1], share[1:])]
    switch = pair & np.r_[False, side[1:] != side[:-1]]
    errors = np.flatnonzero(failed)
    failing, first_of = np.unique(code[errors], return_index=True)
    error_share, error_side = np.full(groups, np.nan), np.zeros(groups, dtype=np.int64)
    error_share[failing] = share[errors[first_of]]
    error_side[failing] = side[errors[first_of]]

    def count(rows: Flags) -> Ints:
        return np.bincount(code, rows, minlength=groups).astype(np.int64)

    return pl.DataFrame(
        {
            "block": block[starts],
            "unit": occurrences.hashes(unit[starts], seen.units),
            "first_share": share[starts],
            "first_side": side[starts],
            "last_share": share[ends],
            "last_side": side[ends],
            "requests_1": count(side == 1),
            "requests_0": count(side == 0),
            "errors_1": count(failed & (side == 1)),
            "errors_0": count(failed & (side == 0)),
            "labels_1": count(labelled & (side == 1)),
            "labels_0": count(labelled & (side == 0)),
            "error_share": pl.Series(error_share).fill_nan(None),
            "error_side": error_side,
            "pairs": count(pair),
            "switches": count(switch),
            "expected": sums.added(code, np.where(pair, 2 * share * (1 - share), 0.0), groups),
        }
    )


def _one_split(one: Floats, other: Floats) -> Flags:
    """Two requests of a unit whose version could have differed: equal shares in (0, 1)."""
    return (one == other) & (other > 0) & (other < 1)


def _measured(seen: occurrences.Seen) -> tuple[Ints, Floats]:
    """The answered rows with a latency, and it."""
    ms = cells.numbers(cells.column(seen.data.frame, "latency_ms"))
    chosen = np.flatnonzero(seen.data.answered & ~np.isnan(ms))
    return chosen, ms[chosen]


def _times(seen: occurrences.Seen) -> pl.DataFrame:
    chosen, ms = _measured(seen)
    alone = (seen.unit[chosen] < 0).astype(np.int64)
    cell = (seen.data.stratum[chosen] * 2 + seen.side[chosen]) * 2 + alone
    counted = pl.DataFrame({"cell": cell, "ms": ms}).group_by("cell", "ms").len("n")
    cell, alone = np.divmod(counted["cell"].to_numpy(), 2)
    stratum, side = np.divmod(cell, 2)
    return pl.DataFrame(
        {
            **seen.where(stratum, side),
            "alone": alone == 1,
            "ms": counted["ms"],
            "n": counted["n"].cast(pl.Int64),
        }
    )


def _slowest(seen: occurrences.Seen, policy: policies.Policy) -> pl.DataFrame:
    """Whatever the limit of slowness turns out to be, a unit's first slow answer is among these."""
    chosen, ms = _measured(seen)
    known = seen.unit[chosen] >= 0
    chosen, ms = chosen[known], ms[known]
    parts = [_records(seen, chosen, ms, margin) for margin in sorted(_margins(policy)) or [0.0]]
    return pl.concat(parts)


def _margins(policy: policies.Policy) -> set[float]:
    shown = (*policy.guardrails, *policy.information)
    return {metric.margin for metric in shown if metric.kind == "latency"}


def _records(seen: occurrences.Seen, chosen: Ints, ms: Floats, margin: float) -> pl.DataFrame:
    x = sums.allowed(ms, seen.side[chosen], margin)
    order = np.lexsort((seen.unit[chosen], seen.block[chosen]))  # stable: time stays
    chosen, x = chosen[order], x[order]
    block, unit = seen.block[chosen], seen.unit[chosen]
    starts = occurrences.runs(block * max(1, len(seen.units)) + unit)
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(chosen))))
    distinct, rank = arms.codes(x)
    height = np.maximum.accumulate(group * (len(distinct) + 1) + rank)
    record = np.r_[True, height[1:] > height[:-1]][: len(chosen)]
    at = chosen[record]
    return pl.DataFrame(
        {
            "block": block[record],
            "margin": pl.repeat(margin, len(at), eager=True, dtype=pl.Float64),
            "unit": occurrences.hashes(unit[record], seen.units),
            "turn": np.arange(len(at)),
            "x": x[record],
            "share": seen.data.share[at],
            "side": seen.side[at],
        }
    )


def _scores(
    seen: occurrences.Seen,
    samples: Mapping[str, measures.Sample],
    primary: measures.Sample,
    policy: policies.Policy,
) -> pl.DataFrame:
    """A row per score of an AUC: ranks of continuous scores have no sums."""
    nothing = np.empty(0, dtype=np.int64)
    none = measures.Sample(nothing, np.empty(0), np.empty(0, dtype=bool))
    parts = [_score_rows(seen, "", none, policy.slices)]
    for measure, sample in samples.items():
        if sample.positive is not None:
            sliced = policy.slices if sample is primary else ()
            parts.append(_score_rows(seen, measure, sample, sliced))
    return pl.concat(parts, how="diagonal")


def _score_rows(
    seen: occurrences.Seen, measure: str, sample: measures.Sample, slices: Iterable[str]
) -> pl.DataFrame:
    rows, data = sample.rows, seen.data
    return pl.DataFrame(
        {
            "measure": pl.repeat(measure, len(rows), eager=True),
            **seen.where(data.stratum[rows], seen.side[rows]),
            "unit": seen.cluster_column(seen.cluster[rows]),
            "score": sample.values,
            "positive": sample.positive,
            **{f"{i}": cells.texts(data.column(name, rows)) for i, name in enumerate(slices)},
        }
    )
