"""How often is an experiment wrong, and how long does it take? Simulated with fixed seeds.

    python benchmarks/experiments/simulate.py [--experiments 2000] [--days 14] [--seed 0]

Every experiment is looked at after every hour. Beside each always-valid figure stands the naive
one: a z test at 5 % at every look. Sums per hour replace rows so that 2,000 x 336 looks take half
an hour; the last look of some is evaluated from rows as well and has to agree to nine digits.
Sticky units are evaluated from rows, at daily looks of a tenth as many experiments.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isclose, log, sqrt
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import experiments, sequential

Floats = NDArray[np.float64]
Random = np.random.Generator

START = datetime(2026, 3, 2, tzinfo=UTC)
MDE = 0.02
ALPHA = 0.05
MIN_LABELS = 100


@dataclass(frozen=True, slots=True)
class World:
    """Traffic by hour: requests, the challenger's share, and the values of either side."""

    requests: Floats
    share: Floats
    draw: Callable[[Random, int, int, bool], Floats]  # random, hour, n, challenger -> y
    truth: float = 0.0
    mde: float = MDE
    kind: str = "binary"


@dataclass(frozen=True, slots=True)
class Looks:
    """Per hour: effect, standard error, half width, and labels of the smaller side."""

    effect: Floats
    se: Floats
    half: Floats
    least: Floats

    def outside(self, truth: float, least: int = MIN_LABELS) -> NDArray[np.bool_]:
        return (self.least >= least) & (np.abs(self.effect - truth) > self.half)

    def naive(self, truth: float) -> NDArray[np.bool_]:
        return (self.least >= MIN_LABELS) & (np.abs(self.effect - truth) > 1.96 * self.se)


def binary(*rates: Floats) -> Callable[[Random, int, int, bool], Floats]:
    """Right or wrong with a rate per hour: champion, challenger."""
    return lambda rng, hour, n, side: (rng.random(n) < rates[side][hour]).astype(float)


def hours_of(world: World, rng: Random) -> Iterator[tuple[int, Floats, Floats]]:
    """Hour, y of the challenger, y of the champion."""
    for hour, (expected, share) in enumerate(zip(world.requests, world.share, strict=True)):
        n1 = rng.binomial(rng.poisson(expected), share)
        n0 = rng.poisson(expected * (1 - share))
        yield hour, world.draw(rng, hour, n1, True), world.draw(rng, hour, n0, False)


def looks_of(sides: list[tuple[Floats, Floats]], world: World) -> Looks:
    """The estimate of experiments.md after every hour, from sums: u^2 is quadratic in effect."""
    size = len(sides)
    n1, n0, s1, s0, q1, q0 = np.zeros((6, size))
    for hour, (one, zero) in enumerate(sides):
        n1[hour], s1[hour], q1[hour] = len(one), one.sum(), np.dot(one, one)
        n0[hour], s0[hour], q0[hour] = len(zero), zero.sum(), np.dot(zero, zero)
    n = n1 + n0
    safe = np.maximum(n, 1)
    h = n1 * n0 / safe
    mean = (s1 + s0) / safe
    scale = n / np.maximum(n - 1, 1)
    v = np.maximum(0, q1 + q0 - n * mean**2) / np.maximum(n - 1, 1)
    apart = np.where(h > 0, s1 / np.maximum(n1, 1) - s0 / np.maximum(n0, 1), 0)
    terms = np.zeros((3, size))
    for dc, count, total, square in ((n0 / safe, n1, s1, q1), (-n1 / safe, n0, s0, q0)):
        weight = scale * dc**2
        terms[0] += weight * (square - 2 * mean * total + count * mean**2)
        terms[1] -= weight * 2 * dc * (total - count * mean)
        terms[2] += weight * dc**2 * count
    a, b, c, weights, gains, pooled = (
        np.cumsum(x) for x in (*np.where(h > 0, terms, 0), h, h * apart, h * v)
    )
    known = np.maximum(weights, 1e-300)
    effect = gains / known
    robust = np.maximum(0, a + b * effect + c * effect**2)
    if world.kind == "binary":
        rows, right = np.cumsum(np.where(h > 0, n, 0)), np.cumsum(np.where(h > 0, s1 + s0, 0))
        p = (right + 1) / (rows + 2)
        pooled = np.where(pooled == 0, p * (1 - p) * weights, pooled)
    se = np.maximum(np.sqrt(np.maximum(pooled, robust)) / known, 1e-300)
    half = np.full(size, np.inf)
    for i in np.flatnonzero(weights > 0):
        half[i] = sequential.half_width(float(se[i]), world.mde, ALPHA)
    least = np.minimum(np.cumsum(n1), np.cumsum(n0))
    return Looks(effect, se, half, np.where(weights > 0, least, 0))


def check(sides: list[tuple[Floats, Floats]], world: World, looks: Looks) -> None:
    """The last look from rows, by evaluate itself, has to be the same."""
    parts = []
    for hour, pair in enumerate(sides):
        for y, version in zip(pair, ("v3", "v2"), strict=True):
            at = START + timedelta(hours=hour, minutes=30)
            parts.append(
                pl.DataFrame({"y": y}).with_columns(
                    request_time=pl.lit(at),
                    label_time=pl.lit(at),
                    version=pl.lit(version),
                    route_share=pl.lit(world.share[hour]),
                )
            )
    rows = (
        pl.concat(parts)
        .with_row_index("request_id")
        .with_columns(status_code=pl.lit(200), prediction=pl.lit(1.0), label=pl.col("y"))
    )
    metric: dict[str, Any] = {"name": "y", "kind": world.kind, "mde": world.mde, "value": "y"}
    now = START + timedelta(days=100)
    found = experiments.evaluate(rows, {"primary": metric}, now).metrics["y"]
    expected = (looks.effect[-1], looks.se[-1], looks.effect[-1] + looks.half[-1])
    for one, other in zip(
        expected, (found["effect"], found["se"], found["interval"][1]), strict=True
    ):
        if not isclose(one, other, rel_tol=1e-9, abs_tol=1e-12):
            sys.exit(f"sums and rows disagree: {one!r} and {other!r}")


def worlds(days: int) -> dict[str, World]:
    """Equal versions, in every way traffic may be split."""
    hours = 24 * days
    t = np.arange(hours)
    flat, rate = np.full(hours, 60.0), np.full(hours, 0.85)
    wave = 60 * (1 + 0.8 * np.sin(2 * np.pi * t / 24))
    swing = 0.85 + 0.1 * np.sin(2 * np.pi * t / 24)
    ramp = np.select([t < hours / 4, t < hours / 2, t < 3 * hours / 4], [0.05, 0.2, 0.5], 0.9)
    trend = np.linspace(0.95, 0.6, hours)
    even = binary(rate, rate)
    return {
        "50/50": World(flat, np.full(hours, 0.5), even),
        "90/10": World(flat, np.full(hours, 0.1), even),
        "99/1": World(flat * 10, np.full(hours, 0.01), even),
        "daily wave": World(wave, np.full(hours, 0.5), binary(swing, swing)),
        "ramp with trend": World(flat, ramp, binary(trend, trend)),
    }


def truths(days: int) -> dict[str, tuple[World, int]]:
    """Known effects, and the labels from which an interval is acted upon."""
    hours = 24 * days
    flat, half = np.full(hours, 60.0), np.full(hours, 0.5)
    tail = float(np.exp(0.5))  # mean of a log-normal loss with sigma 1, skewness 6

    def heavy(rng: Random, hour: int, n: int, side: bool) -> Floats:
        return rng.lognormal(0, 1, n) * (0.95 if side else 1.0)

    def noisy(rng: Random, hour: int, n: int, side: bool) -> Floats:
        return rng.normal(0, 3 if side else 1, n)

    right = binary(np.full(hours, 0.85), np.full(hours, 0.88))
    tenth = np.full(hours, 0.1)
    return {
        "binary, +3 points": (World(flat, half, right, truth=0.03), MIN_LABELS),
        "heavy-tailed loss": (World(flat, half, heavy, -0.05 * tail, 0.1, "continuous"), 500),
        "noisier challenger at 10 %": (World(flat, tenth, noisy, 0.0, 0.2, "continuous"), 500),
    }


def equal_versions(count: int, days: int, seed: int) -> None:
    """False verdicts: naive beside always valid."""
    table("no difference", "naive z, ever", "better or worse", "better", "bar")
    for number, (name, world) in enumerate(worlds(days).items()):
        naive = either = better = 0
        for i in range(count):
            rng = np.random.default_rng((seed, 1, number, i))
            sides = [(one, zero) for _, one, zero in hours_of(world, rng)]
            looks = looks_of(sides, world)
            if i < 3:
                check(sides, world, looks)
            outside = looks.outside(0.0)
            naive += bool(looks.naive(0.0).any())
            either += bool(outside.any())
            late = np.arange(len(outside)) >= 24
            better += bool((outside & late & (looks.effect > 0)).any())
        shown = (share(naive, count), share(either, count), share(better, count))
        table(name, *shown, "5 %, 2.5 %")


def true_effects(count: int, days: int, seed: int) -> None:
    """Does the truth ever leave the interval?"""
    table("true effect leaves the interval", "naive z, ever", "ever", "", "bar")
    for number, (name, (world, least)) in enumerate(truths(days).items()):
        naive = left = 0
        for i in range(count):
            rng = np.random.default_rng((seed, 2, number, i))
            sides = [(one, zero) for _, one, zero in hours_of(world, rng)]
            looks = looks_of(sides, world)
            if i < 3:
                check(sides, world, looks)
            naive += bool(looks.naive(world.truth).any())
            left += bool(looks.outside(world.truth, least).any())
        table(name, share(naive, count), share(left, count), "", "5 %")


def sticky(count: int, days: int, seed: int) -> None:
    """Few units with many requests, evaluated from rows at daily looks."""
    few = max(1, count // 10)
    naive = left = crossed = broken = 0
    for i in range(few):
        rng = np.random.default_rng((seed, 3, i))
        rows = sticky_rows(rng, days)
        policy = {"primary": {"name": "accuracy", "mde": MDE}}
        seen = [
            experiments.evaluate(rows, policy, START + timedelta(days=day))
            for day in range(1, days + 1)
        ]
        metrics = [d.metrics["accuracy"] for d in seen if d.metrics["accuracy"]["interval"]]
        plain = [m["effect"] / m["se"] * sqrt(m["design_effect"]) for m in metrics]
        naive += any(abs(z) > 1.96 for z in plain)
        left += any(m["interval"][0] > 0 or m["interval"][1] < 0 for m in metrics)
        crossed += any(g["crossed"] for d in seen for g in d.guardrails.values())
        broken += any(d.health["srm_log_e"] >= log(1000) for d in seen)
    table("sticky units, daily looks", share(naive, few), share(left, few), "", "5 %")
    table("  guardrail crossed", "", share(crossed, few), "", "1 %")
    table("  sample ratio alarmed", "", share(broken, few), "", "0.1 %")


def sticky_rows(rng: Random, days: int) -> pl.DataFrame:
    """300 units of unequal weight and unequal luck, split by unit; the versions are equal."""
    n, units = days * 24 * 10, 300
    unit = rng.choice(units, n, p=rng.dirichlet(np.full(units, 0.5)))
    version = np.where(rng.random(units) < 0.5, "v3", "v2")[unit]
    luck = np.clip(rng.beta(8, 2, units), 0.01, 0.99)[unit]
    label = rng.integers(0, 2, n)
    right = rng.random(n) < luck
    micros = np.sort(rng.random(n)) * days * 24 * 3.6e9
    time = pl.Series(micros.astype(np.int64)).cast(pl.Duration("us")) + START
    return pl.DataFrame(
        {
            "request_time": time,
            "label_time": time,
            "request_id": np.arange(n),
            "unit_id": [f"u{u}" for u in unit],
            "version": version,
            "route_share": 0.5,
            "status_code": np.where(rng.random(n) < 0.02, 503, 200),
            "latency_ms": rng.lognormal(4, 0.5, n),
            "prediction": np.where(right, label, 1 - label),
            "label": label,
        }
    )


def guarded(count: int, days: int, seed: int) -> None:
    """Equal error rates and the configured split, looked at every hour: alarms."""
    table("equal versions, by request", "chi-square, ever", "ever", "", "bar")
    for number, p in enumerate((0.5, 0.1, 0.01)):
        crossed = broken = naive = 0
        for i in range(count):
            rng = np.random.default_rng((seed, 4, number, i))
            n1 = rng.binomial(600, p, days * 24).astype(float)
            n0 = 600 - n1
            e1, e0 = rng.binomial(n1.astype(int), 0.003), rng.binomial(n0.astype(int), 0.003)
            ones, zeros = np.cumsum(n1), np.cumsum(n0)
            broken += bool((ratio_evidence(p, ones, zeros) >= log(1000)).any())
            z2 = (ones - p * (ones + zeros)) ** 2 / (p * (1 - p) * (ones + zeros))
            naive += bool((z2 > 10.83).any())  # 0.1 % for one look
            crossed += any(x >= log(100) for x in error_evidence(p, n1, n0, e1, e0))
        table(f"sample ratio, share {p:g}", share(naive, count), share(broken, count), "", "0.1 %")
        table(f"error rate, share {p:g}", "", share(crossed, count), "", "1 %")


def ratio_evidence(p: float, ones: Floats, zeros: Floats) -> Floats:
    return np.array(
        [
            sequential.tilted([p], [a], [b], sequential.BOTH_WAYS)
            for a, b in zip(ones, zeros, strict=True)
        ]
    )


def error_evidence(p: float, n1: Floats, n0: Floats, e1: Floats, e0: Floats) -> Iterator[float]:
    """log_e_worse of error_rate after every hour, margin 0.002."""
    expected, variance = np.cumsum(n1 * e0 / n0), np.cumsum((n1 / n0) ** 2 * e0)
    k1, k0, m1, m0 = (np.cumsum(x) for x in (e1, e0, n1, n0))
    for i in range(len(n1)):
        p0 = (k0[i] + 0.5) / (m0[i] + 1)
        odds = (p0 + 0.002) / p0
        a = sequential.tilted([p * odds / (p * odds + 1 - p)], [k1[i]], [k0[i]], sequential.UPWARDS)
        loose = expected[i] + 2 * sqrt(variance[i]) + 2 * m1[i] / m0[i]
        q = min(1.0, loose / m1[i] + 0.002)
        b = sequential.tilted([q], [k1[i]], [m1[i] - k1[i]], sequential.UPWARDS)
        yield sequential.log_mean([a, b])


def speed(count: int, seed: int) -> None:
    """Hours until +2 points are certain at 600 requests an hour."""
    table("+2 points at mde 2, 600 requests/h", "", "median hours", "90 %", "bar")
    hours = 24 * 14
    draw = binary(np.full(hours, 0.85), np.full(hours, 0.87))
    for number, (p, bar) in enumerate(((0.5, 20), (0.1, 50))):
        world = World(np.full(hours, 600.0), np.full(hours, p), draw, truth=0.02)
        taken = []
        for i in range(max(1, count // 10)):
            rng = np.random.default_rng((seed, 5, number, i))
            looks = looks_of([(one, zero) for _, one, zero in hours_of(world, rng)], world)
            sure = (looks.least >= MIN_LABELS) & (looks.effect - looks.half > 0)
            taken.append(int(np.argmax(sure)) + 1 if sure.any() else hours)
        shown = (f"{np.median(taken):.0f}", f"{np.quantile(taken, 0.9):.0f}")
        table(f"  {p:.0%} challenger", "", *shown, f"{bar}")


def canaries(count: int, seed: int) -> None:
    """Challenger requests until errors roll it back, looked at after every request."""
    table("errors until roll-back", "", "median requests", "90 %", "bar")
    cases = (
        ("8 % against 0.3 % at 1 %", 0.01, 0.003, 0.08, "50, 100"),
        ("2 % against none at 50 %", 0.5, 0.0, 0.02, "700, 1000"),
    )
    for number, (name, p, calm, failing, bar) in enumerate(cases):
        taken = [
            requests_until(np.random.default_rng((seed, 6, number, i)), p, calm, failing)
            for i in range(max(1, count // 5))
        ]
        table(f"  {name}", "", f"{np.median(taken):.0f}", f"{np.quantile(taken, 0.9):.0f}", bar)


def requests_until(rng: Random, p: float, calm: float, failing: float, most: int = 3000) -> int:
    n = int(most / p)
    c = rng.random(n) < p
    failed = rng.random(n) < np.where(c, failing, calm)
    hour = np.arange(n) // 1000
    n0, asked = np.cumsum(~c), np.cumsum(c)
    # Evidence grows with a failure of the challenger only: no other request needs a look.
    for at in np.flatnonzero(c & failed):
        if n0[at] < 50:
            continue
        seen = slice(0, at + 1)
        parts = [np.bincount(hour[seen], side[seen]) for side in (c, ~c, failed & c, failed & ~c)]
        first = (
            parts[1] > 0
        )  # an hour without champion goes by its overall rate: join it to one with
        if not first.all():
            continue
        *_, evidence = error_evidence(p, *(part.astype(float) for part in parts))
        if evidence >= log(100):
            return int(asked[at])
    return most


def share(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} %"


def table(*columns: str) -> None:
    first, *rest = columns
    print(f"{first:36}" + "".join(f"{column:>20}" for column in rest), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{given.experiments} experiments of {given.days} days, seed {given.seed}\n")
    equal_versions(given.experiments, given.days, given.seed)
    true_effects(given.experiments, given.days, given.seed)
    sticky(given.experiments, given.days, given.seed)
    guarded(given.experiments, given.days, given.seed)
    speed(given.experiments, given.seed)
    canaries(given.experiments, given.seed)


if __name__ == "__main__":
    main()
