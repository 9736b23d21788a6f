"""How often is an experiment wrong when one looks at it every hour for 14 days?

    python benchmarks/experiments/simulate.py [--experiments 2000] [--days 14] [--seed 0]

Equal versions first: how often one of them is ever promoted, or ever called better or worse, beside
a naive z test at 5 % and GrowthBook's sequential test at the same looks. Then known differences:
in how many experiments the truth lies inside the interval at every look. Hours are simulated as
sums; sticky units as rows, a twentieth as many. Exit status 1 if a bar is missed.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from math import sqrt

import bars
import looks
import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import experiments, summing, sums

Floats = NDArray[np.float64]
Random = np.random.Generator

MDE = 0.02
MIN_LABELS, LABELS_OF_A_LOSS = 100, 500
BATCH = 100


@dataclass(frozen=True, slots=True)
class Pattern:
    """Traffic per hour, the challenger's share, and how often either version is right."""

    requests: Floats
    share: Floats
    right: Floats


def patterns(days: int) -> dict[str, Pattern]:
    hours = 24 * days
    t = np.arange(hours)
    flat, rate = np.full(hours, 60.0), np.full(hours, 0.85)
    wave = np.sin(2 * np.pi * t / 24)
    ramp = np.select([t < hours / 4, t < hours / 2, t < 3 * hours / 4], [0.05, 0.2, 0.5], 0.9)
    return {
        "50/50": Pattern(flat, np.full(hours, 0.5), rate),
        "90/10": Pattern(flat, np.full(hours, 0.1), rate),
        "99/1": Pattern(flat * 10, np.full(hours, 0.01), rate),
        "daily wave": Pattern(flat * (1 + 0.8 * wave), np.full(hours, 0.5), rate + 0.1 * wave),
        "ramp with trend": Pattern(flat, ramp, np.linspace(0.95, 0.6, hours)),
    }


def equal_versions(report: bars.Report, count: int, days: int, seed: int) -> None:
    for number, (name, world) in enumerate(patterns(days).items()):
        rng = np.random.default_rng((seed, 1, number))
        hours = looks.binary(rng, count, world.requests, world.share, world.right, world.right)
        found = looks.estimate(hours, "binary")
        looks.check(rng, hours, found, world.share, MDE)
        enough = hours.least >= MIN_LABELS
        half = looks.half_width(found.se, MDE)
        better = enough & (found.effect - half > 0)
        worse = enough & (found.effect + half < 0)
        naive = enough & (np.abs(found.effect) > 1.96 * found.se)
        pooled, sequential = looks.growthbook(hours)
        beside = (
            f"naive z test {100 * looks.ever(naive):.1f} %, GrowthBook's sequential test "
            f"{100 * looks.ever(enough & (np.abs(pooled) > sequential)):.1f} %"
        )
        promoted = better[:, looks.MIN_HOURS - 1 :]
        title = f"equal versions, {name}"
        report.most(f"{title}, ever promoted", 100 * looks.ever(promoted), 2.5, "%.2f %%")
        either = 100 * looks.ever(better | worse)
        report.most(f"{title}, ever better or worse", either, 5, "%.2f %%", beside)


@dataclass(frozen=True, slots=True)
class Truth:
    """A known difference: the values of either version, the challenger's share, what is true."""

    challenger: Callable[[Random, int], Floats]
    champion: Callable[[Random, int], Floats]
    share: float
    effect: float
    mde: float
    kind: str = "continuous"


TAIL = float(np.exp(0.5))  # mean of a log-normal loss with sigma 1, whose skewness is 6
TRUTHS = {
    "right or wrong, +3 points": Truth(
        lambda rng, n: rng.random(n) < 0.88, lambda rng, n: rng.random(n) < 0.85, 0.5, 0.03, MDE,
        "binary",
    ),
    "loss of skewness 6, 5 % less": Truth(
        lambda rng, n: rng.lognormal(0, 1, n) * 0.95, lambda rng, n: rng.lognormal(0, 1, n),
        0.5, -0.05 * TAIL, 0.1,
    ),
    "challenger nine times noisier at 10 %": Truth(
        lambda rng, n: rng.normal(0, 3, n), lambda rng, n: rng.normal(0, 1, n), 0.1, 0.0, 0.2
    ),
}  # fmt: skip


def known_differences(report: bars.Report, count: int, days: int, seed: int) -> None:
    for number, (name, truth) in enumerate(TRUTHS.items()):
        rng = np.random.default_rng((seed, 2, number))
        left = naive = 0
        for begin in range(0, count, BATCH):
            size = (min(BATCH, count - begin), 24 * days)
            hours = _hours(rng, truth, size)
            found = looks.estimate(hours, truth.kind)
            enough = hours.least >= (MIN_LABELS if truth.kind == "binary" else LABELS_OF_A_LOSS)
            off = np.abs(found.effect - truth.effect)
            left += (enough & (off > looks.half_width(found.se, truth.mde))).any(axis=1).sum()
            naive += (enough & (off > 1.96 * found.se)).any(axis=1).sum()
        told(report, name, count - left, count - naive, count)


def told(report: bars.Report, name: str, covered: int, naive: int, count: int) -> None:
    beside = f"naive intervals {100 * naive / count:.1f} %"
    title = f"truth inside the interval at every look, {name}"
    report.least(title, 100 * covered / count, 95, "%.2f %%", beside)


def _hours(rng: Random, truth: Truth, size: tuple[int, int]) -> looks.Hours:
    n1, n0 = rng.poisson(60 * truth.share, size), rng.poisson(60 * (1 - truth.share), size)
    s1, q1 = _totals(truth.challenger(rng, int(n1.sum())).astype(float), n1)
    s0, q0 = _totals(truth.champion(rng, int(n0.sum())).astype(float), n0)
    return looks.Hours(n1.astype(float), n0.astype(float), s1, s0, q1, q0)


def _totals(values: Floats, n: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Sum and sum of squares per (experiment, hour) of values that lie one after the other."""
    of = np.repeat(np.arange(n.size), n.ravel())
    parts = (np.bincount(of, each, minlength=n.size) for each in (values, values * values))
    s, q = (part.reshape(n.shape).astype(float) for part in parts)
    return s, q


def sticky_units(report: bars.Report, count: int, days: int, seed: int) -> None:
    """300 units of unequal weight and luck, 36 requests each in the mean, decided by the product at
    daily looks: the versions are equal."""
    policy = {"primary": {"name": "accuracy", "mde": MDE}, "champion": "v2", "challenger": "v3"}
    covered = naive = 0
    for i in range(count):
        rows = _sticky_rows(np.random.default_rng((seed, 3, i)), days)
        known = summing.summarise(rows.clear(), policy, looks.START)
        inside = plain = True
        for day in range(1, days + 1):
            now = looks.START + timedelta(days=day)
            new = rows.filter(
                pl.col("request_time").is_between(now - timedelta(days=1), now, "left")
            )
            known = sums.merge(known, summing.summarise(new, policy, now))
            found = experiments.decide(known, now).metrics["accuracy"]
            if found["interval"] is None or min(found["n"].values()) < MIN_LABELS:
                continue
            inside &= found["interval"][0] <= 0 <= found["interval"][1]
            alone = found["se"] / sqrt(found["design_effect"])
            plain &= abs(found["effect"]) <= 1.96 * alone
        covered, naive = covered + inside, naive + plain
    told(report, "300 sticky units, daily looks", covered, naive, count)


def _sticky_rows(rng: Random, days: int) -> pl.DataFrame:
    n, units = days * 24 * 32, 300
    unit = rng.choice(units, n, p=rng.dirichlet(np.full(units, 0.5)))
    label = rng.integers(0, 2, n)
    right = rng.random(n) < np.clip(rng.beta(8, 2, units), 0.01, 0.99)[unit]
    seconds = np.sort(rng.random(n)) * days * 24 * 3600
    time = pl.Series((seconds * 1e6).astype(np.int64)).cast(pl.Duration("us")) + looks.START
    return pl.DataFrame(
        {
            "request_time": time,
            "label_time": time,
            "request_id": np.arange(n),
            "unit_id": unit,
            "version": np.where(rng.random(units) < 0.5, "v3", "v2")[unit],
            "route_share": 0.5,
            "status_code": 200,
            "prediction": np.where(right, label, 1 - label),
            "label": label,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report = bars.Report()
    equal_versions(report, given.experiments, given.days, given.seed)
    known_differences(report, given.experiments, given.days, given.seed)
    sticky_units(report, max(1, given.experiments // 20), given.days, given.seed)
    report.end()


if __name__ == "__main__":
    main()
