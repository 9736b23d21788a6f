"""How many requests does a failing canary get, and how often does a healthy one go back?

    python benchmarks/experiments/canary.py [--runs 1000] [--days 14] [--seed 0]

Errors of 8 % against 0.3 % in a 1 % canary, and of 2 % against none at 50/50: requests of the
challenger until the error guardrail is crossed, looked at after every failure. Then canaries that
fail as rarely as the champion, over 14 days of 600 requests an hour. The evidence is computed with
the product's test for counts; some of the crossings are decided by the product from rows as well,
and have to fall on the same request. Exit status 1 if a bar is missed.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from math import log, sqrt

import bars
import looks
import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import experiments, sequential

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

MARGIN, GUARDRAIL_ALPHA, MIN_REQUESTS = 0.002, 0.01, 50
PER_HOUR = 600
CHECKED = 5


@dataclass(frozen=True, slots=True)
class Traffic:
    """One entry per request, in order: the challenger's, failed, and the hour."""

    challenger: Flags
    failed: Flags
    hour: NDArray[np.int64]

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, n: int, share: float, rates: tuple[float, float]
    ) -> "Traffic":
        """rates: of errors, champion's and challenger's."""
        c = rng.random(n) < share
        return cls(c, rng.random(n) < np.where(c, rates[1], rates[0]), np.arange(n) // PER_HOUR)


def crossing(traffic: Traffic, share: float) -> int | None:
    """The request at which the error guardrail is crossed; None if it never is.

    Evidence grows with a failure of the challenger only: no other request needs a look."""
    c, failed = traffic.challenger, traffic.failed
    champions = np.cumsum(~c)
    for at in np.flatnonzero(c & failed):
        if champions[at] >= MIN_REQUESTS:
            seen = slice(0, at + 1)
            if evidence(c[seen], failed[seen], traffic.hour[seen], share) >= log(
                1 / GUARDRAIL_ALPHA
            ):
                return int(at)
    return None


def evidence(c: Flags, failed: Flags, hour: NDArray[np.int64], share: float) -> float:
    """log_e_worse of the error guardrail (experiments.md, "One test for counts")."""
    n1, n0, e1, e0 = (
        np.bincount(hour, side).astype(float) for side in (c, ~c, failed & c, failed & ~c)
    )
    p0 = (e0.sum() + 0.5) / (n0.sum() + 1)
    odds = (p0 + MARGIN) / p0
    among = sequential.tilted(
        [share * odds / (share * odds + 1 - share)], [e1.sum()], [e0.sum()], sequential.UPWARDS
    )
    there = n0 > 0
    ratio = n1 / np.where(there, n0, 1)
    expected = np.where(there, ratio * e0, n1 * e0.sum() / n0.sum()).sum()
    variance = np.where(there, ratio**2 * e0, 0).sum()
    n = n1.sum()
    q = min(1.0, (expected + 2 * sqrt(variance) + 2 * n / n0.sum()) / n + MARGIN)
    rate = sequential.tilted([q], [e1.sum()], [n - e1.sum()], sequential.UPWARDS)
    return sequential.log_mean([among, rate])


def check(traffic: Traffic, share: float, at: int) -> None:
    """The product, from rows, rolls back at this request and not before it."""
    n = at + 1
    rows = pl.DataFrame(
        {
            "request_time": [looks.START + timedelta(seconds=6 * i) for i in range(n)],
            "request_id": np.arange(n),
            "version": np.where(traffic.challenger[:n], "v3", "v2"),
            "route_share": share,
            "status_code": np.where(traffic.failed[:n], 503, 200),
        }
    )
    policy = {"primary": {"name": "accuracy", "mde": 0.02}, "champion": "v2", "challenger": "v3"}
    now = looks.START + timedelta(days=60)
    actions = [experiments.evaluate(rows.head(k), policy, now).action for k in (n - 1, n)]
    if actions != ["keep_collecting", "roll_back"]:
        sys.exit(f"the simulated crossing at request {n} is not the product's: {actions}")


def requests_until(
    runs: int, seed: int, share: float, rates: tuple[float, float], most: int
) -> Iterator[int]:
    """Requests of the challenger until it is rolled back; `most` where it is not."""
    for i in range(runs):
        rng = np.random.default_rng((seed, i, int(1000 * share)))
        traffic = Traffic.drawn(rng, int(most / share), share, rates)
        at = crossing(traffic, share)
        if at is not None and i < CHECKED:
            check(traffic, share, at)
        yield most if at is None else int(traffic.challenger[: at + 1].sum())


def failing(report: bars.Report, runs: int, seed: int) -> None:
    cases = (
        ("8 % against 0.3 % in a 1 % canary", 0.01, (0.003, 0.08), (50, 100)),
        ("2 % against none at 50/50", 0.5, (0.0, 0.02), (700, 1000)),
    )
    for name, share, rates, (median, late) in cases:
        taken = list(requests_until(runs, seed, share, rates, 3 * late))
        title = f"challenger requests until errors of {name} roll it back"
        report.most(f"{title}, median", float(np.median(taken)), median, "%.0f")
        report.most(f"{title}, 90 %", float(np.quantile(taken, 0.9)), late, "%.0f")


def healthy(report: bars.Report, runs: int, days: int, seed: int) -> None:
    back = 0
    for i in range(runs):
        rng = np.random.default_rng((seed, i, 7))
        traffic = Traffic.drawn(rng, days * 24 * PER_HOUR, 0.01, (0.003, 0.003))
        back += crossing(traffic, 0.01) is not None
    name = f"healthy 1 % canaries ever rolled back in {days} days, {runs} runs"
    report.most(name, 100 * back / runs, 1, "%.2f %%")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report = bars.Report()
    failing(report, given.runs, given.seed)
    healthy(report, given.runs, given.days, given.seed)
    report.end()


if __name__ == "__main__":
    main()
