"""What does a decision cost that was kept as sums, and is it the same?

    python benchmarks/experiments/cost.py [--requests 100000000] [--days 30] [--rows 1000000]

30 days of 100 million requests, three versions (two challengers), five values of a slice: one hour
of rows is drawn and summarised, its sums stand for every hour. Timed is what a scheduled decision
does: summarise the newest hour and one hour that late labels came to, merge, decide, for either
challenger. Then the decision from rows and from sums, for 1 million rows without and with units,
and every number of both compared. Exit status 1 if a bar is missed.
"""

import argparse
import resource
import time
from dataclasses import replace
from datetime import timedelta
from math import isclose
from typing import Any

import bars
import looks
import numpy as np
import polars as pl

from monitors import experiments, summing, sums

HOUR_US = 3_600_000_000
CHALLENGERS = ("v3", "v4")


def policy(challenger: str) -> dict[str, Any]:
    return {
        "primary": {"name": "accuracy", "mde": 0.02},
        "information": [{"name": "log_loss"}],
        "slices": ["region"],
        "champion": "v2",
        "challenger": challenger,
        "challengers": 2,
    }


def rows(seed: int, n: int, hours: int, challenger: str, units: int | None) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    unit = np.arange(n) if units is None else rng.integers(0, units, n)
    c = rng.random(n if units is None else units)[unit] < 0.3
    label = rng.integers(0, 2, n)
    right = rng.random(n) < 0.85
    micros = np.sort(rng.integers(0, hours * HOUR_US, n))
    at = pl.Series(micros).cast(pl.Duration("us")) + looks.START
    return pl.DataFrame(
        {
            "request_time": at,
            "label_time": at + timedelta(minutes=5),
            "request_id": np.arange(n),
            "unit_id": pl.Series([None] * n, dtype=pl.Int64) if units is None else unit,
            "version": np.where(c, challenger, "v2"),
            "route_share": 0.3,
            "status_code": np.where(rng.random(n) < 0.003, 503, 200),
            "latency_ms": np.round(rng.lognormal(3, 0.5, n)),
            "prediction": np.where(right, label, 1 - label),
            "score": rng.random(n),
            "label": label,
            "region": rng.choice(["eu", "us", "apac", "latam", "africa"], n),
        }
    )


def every_hour(one: sums.Sums, hours: int) -> sums.Sums:
    """The sums of an hour, as often as there are hours."""
    parts: dict[str, pl.DataFrame] = {}
    for name in sums.TABLES:
        table: pl.DataFrame = getattr(one, name)
        move = [c for c in table.columns if c in ("first", "last")]
        moved = [
            table.with_columns(pl.col("block") + i, *(pl.col(c) + i * HOUR_US for c in move))
            for i in range(hours)
        ]
        parts[name] = pl.concat(moved, rechunk=True)
    return replace(one, **parts)


def scheduled(report: bars.Report, requests: int, days: int) -> None:
    hours = days * 24
    per_hour = requests // hours
    now = looks.START + timedelta(hours=hours, minutes=10)
    kept, again = {}, {}
    for challenger in CHALLENGERS:
        # Of every hour's requests two thirds are those of a challenger and the champion.
        drawn = rows(1, per_hour * 2 // 3, 1, challenger, None)
        kept[challenger] = every_hour(summing.summarise(drawn, policy(challenger), now), hours)
        moved = [
            drawn,
            drawn.with_columns(pl.col("request_time", "label_time") + timedelta(days=3)),
        ]
        again[challenger] = pl.concat(moved)
    begun = time.perf_counter()
    for challenger in CHALLENGERS:
        fresh = summing.summarise(again[challenger], policy(challenger), now)
        kept[challenger] = sums.merge(kept[challenger], fresh)
        experiments.decide(kept[challenger], now)
    seconds = time.perf_counter() - begun
    size = sum(getattr(one, t).estimated_size("mb") for one in kept.values() for t in sums.TABLES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = f"scheduled decision over {days} days of {requests / 1e6:.0f} M requests"
    report.most(f"{name}, 3 versions x 5 slices", seconds, 1.0, "%.2f s")
    report.most(f"{name}, peak memory of the process", peak, 300, "%.0f MiB", f"sums {size:.0f} MB")


def equal(report: bars.Report, n: int) -> None:
    for name, units in (("requests alone", None), ("100,000 sticky units", 100_000)):
        drawn = rows(2, n, 14 * 24, "v3", units)
        now = looks.START + timedelta(days=15)
        begun = time.perf_counter()
        whole = experiments.evaluate(drawn, policy("v3"), now).to_dict()
        seconds = time.perf_counter() - begun
        day = drawn["request_time"].dt.epoch("us") // (24 * HOUR_US)
        parts = [
            summing.summarise(drawn.filter(day == d), policy("v3"), now)
            for d in day.unique().sort()
        ]
        merged = parts[0]
        for part in parts[1:]:
            merged = sums.merge(merged, part)
        apart = farthest(experiments.decide(merged, now).to_dict(), whole)
        title = f"decision from rows and from sums, {n / 1e6:g} M rows, {name}"
        report.most(
            f"{title}, relative difference", apart, 1e-9, "%.0e", f"from rows {seconds:.1f} s"
        )


def farthest(one: Any, other: Any) -> float:
    """The largest relative difference of two numbers; infinite where anything else differs."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((farthest(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((farthest(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        if isclose(one, other, abs_tol=1e-12):
            return abs(one - other) / max(abs(one), abs(other), 1e-300) if one != other else 0.0
        return abs(one - other) / max(abs(one), abs(other))
    return 0.0 if one == other else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    report = bars.Report()
    scheduled(report, given.requests, given.days)
    equal(report, given.rows)
    report.end()


if __name__ == "__main__":
    main()
