"""Experiments simulated as sums per hour, thousands at a time, and what each look would say.

The estimate of experiments.md for arrays of shape (experiments, hours): every entry is a look at
all hours up to it. It is the benchmark's own, so that 3 million looks take seconds; `check`
compares it with the product's decision from rows to nine digits, and every benchmark calls it.
"""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isclose, log
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import experiments

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Random = np.random.Generator

START = datetime(2026, 3, 2, tzinfo=UTC)
ALPHA = 0.05
MIN_HOURS = 24
GROWTHBOOK_TUNING = 5000  # its default: the sample size at which its interval is tightest


@dataclass(frozen=True, slots=True)
class Hours:
    """Labels, sum and sum of squares of either version per hour: shape (experiments, hours)."""

    n1: Floats
    n0: Floats
    s1: Floats
    s0: Floats
    q1: Floats
    q0: Floats

    @property
    def least(self) -> Floats:
        """Labels of the version that has fewer, at every look."""
        return np.minimum(np.cumsum(self.n1, axis=1), np.cumsum(self.n0, axis=1))


@dataclass(frozen=True, slots=True)
class Looks:
    """Effect and standard error at every look (0 and infinite where there is none yet)."""

    effect: Floats
    se: Floats


def binary(
    rng: Random, count: int, requests: Floats, share: Floats, right1: Floats, right0: Floats
) -> Hours:
    """Right or wrong answers; requests, share and rates per hour."""
    n1 = rng.poisson(np.broadcast_to(requests * share, (count, len(requests))))
    n0 = rng.poisson(np.broadcast_to(requests * (1 - share), (count, len(requests))))
    s1, s0 = rng.binomial(n1, right1), rng.binomial(n0, right0)
    return Hours(*(part.astype(float) for part in (n1, n0, s1, s0, s1, s0)))


def estimate(hours: Hours, kind: str) -> Looks:
    """Difference inside hours, the larger of the pooled and the robust standard error."""
    n = hours.n1 + hours.n0
    safe = np.maximum(n, 1)
    h = hours.n1 * hours.n0 / safe
    mean = (hours.s1 + hours.s0) / safe
    freedom = np.maximum(n - 1, 1)
    v = np.maximum(0, hours.q1 + hours.q0 - n * mean**2) / freedom
    apart = hours.s1 / np.maximum(hours.n1, 1) - hours.s0 / np.maximum(hours.n0, 1)
    terms = [np.zeros_like(n) for _ in range(3)]
    for dc, count, total, square in (
        (hours.n0 / safe, hours.n1, hours.s1, hours.q1),
        (-hours.n1 / safe, hours.n0, hours.s0, hours.q0),
    ):
        weight = n / freedom * dc**2
        terms[0] += weight * (square - 2 * mean * total + count * mean**2)
        terms[1] -= weight * 2 * dc * (total - count * mean)
        terms[2] += weight * dc**2 * count
    said = h > 0
    a, b, c, weights, gains, pooled = (
        np.cumsum(np.where(said, x, 0), axis=1) for x in (*terms, h, h * apart, h * v)
    )
    known = np.maximum(weights, 1e-300)
    effect = gains / known
    robust = np.maximum(0, a + b * effect + c * effect**2)
    if kind == "binary":
        rows, right = (np.cumsum(np.where(said, x, 0), axis=1) for x in (n, hours.s1 + hours.s0))
        p = (right + 1) / (rows + 2)
        pooled = np.where(pooled == 0, p * (1 - p) * weights, pooled)
    se = np.sqrt(np.maximum(pooled, robust)) / known
    return Looks(effect, np.where(weights > 0, se, np.inf))


def half_width(se: Floats, tau: float) -> Floats:
    """Half the always-valid interval (experiments.md, "The estimate")."""
    finite = np.where(np.isfinite(se) & (se > 0), se, 1.0)
    r = (tau / finite) ** 2
    half = finite * np.sqrt((1 + 1 / r) * (np.log1p(r) - 2 * log(ALPHA)))
    return np.where(np.isfinite(se) & (se > 0), half, np.inf)


def growthbook(hours: Hours) -> tuple[Floats, Floats]:
    """Effect and half width of GrowthBook's sequential test: means pooled over time, the
    asymptotic confidence sequence of Waudby-Smith et al. with rho tuned to 5,000 samples.

    Source: GrowthBook's documentation, "Statistical details: sequential testing"; written anew."""
    n1, n0, s1, s0, q1, q0 = (
        np.cumsum(x, axis=1) for x in (hours.n1, hours.n0, hours.s1, hours.s0, hours.q1, hours.q0)
    )
    safe1, safe0 = np.maximum(n1, 2), np.maximum(n0, 2)
    mean1, mean0 = s1 / safe1, s0 / safe0
    se2 = (q1 / safe1 - mean1**2) / (safe1 - 1) + (q0 / safe0 - mean0**2) / (safe0 - 1)
    n = n1 + n0
    rho2 = (-2 * log(ALPHA) + log(-2 * log(ALPHA) + 1)) / GROWTHBOOK_TUNING
    inside = n * rho2 + 1
    half = np.sqrt(np.maximum(se2, 0) * n) * np.sqrt(
        2 * inside * np.log(np.sqrt(inside) / ALPHA) / (np.maximum(n, 1) ** 2 * rho2)
    )
    return mean1 - mean0, np.where((n1 > 1) & (n0 > 1), half, np.inf)


def ever(looks: Flags) -> float:
    """Share of experiments with such a look."""
    return float(looks.any(axis=1).mean())


def check(rng: Random, hours: Hours, looks: Looks, share: Floats, tau: float) -> None:
    """The last look of the first binary experiment, decided by the product from rows."""
    parts = []
    for hour, p in enumerate(share):
        for n, s, version in (
            (hours.n1[0, hour], hours.s1[0, hour], "v3"),
            (hours.n0[0, hour], hours.s0[0, hour], "v2"),
        ):
            at = START + timedelta(hours=hour, minutes=30)
            right = np.arange(int(n)) < int(s)
            parts.append(
                pl.DataFrame({"label": rng.permutation(right).astype(float)}).with_columns(
                    request_time=pl.lit(at), label_time=pl.lit(at), version=pl.lit(version),
                    route_share=pl.lit(float(p)),
                )
            )  # fmt: skip
    rows = (
        pl.concat(parts)
        .with_row_index("request_id")
        .with_columns(status_code=pl.lit(200), prediction=pl.lit(1.0))
    )
    policy: dict[str, Any] = {"primary": {"name": "accuracy", "mde": tau}}
    found = experiments.evaluate(rows, policy, START + timedelta(days=100)).metrics["accuracy"]
    half = half_width(looks.se[:1, -1:], tau)[0, 0]
    for ours, theirs in (
        (looks.effect[0, -1], found["effect"]),
        (looks.se[0, -1], found["se"]),
        (looks.effect[0, -1] + half, found["interval"][1]),
    ):
        if not isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12):
            sys.exit(f"the simulated look and the product's decision differ: {ours} and {theirs}")
