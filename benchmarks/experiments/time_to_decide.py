"""How long until a real gain of 2 points is certain, at 600 requests an hour?

    python benchmarks/experiments/time_to_decide.py [--experiments 2000] [--seed 0]

Accuracy 0.85 against 0.87, mde 2 points, looked at every hour. Beside it: a fixed-horizon z test of
5 % and 80 % power, which has to know the effect beforehand and may be looked at once, at its end;
and GrowthBook's sequential test at the same looks. Exit status 1 if a bar is missed.
"""

import argparse

import bars
import looks
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHAMPION, CHALLENGER, MDE = 0.85, 0.87, 0.02
PER_HOUR, DAYS, MIN_LABELS = 600.0, 21, 100
Z_BOTH_SIDES, Z_POWER = 1.959964, 0.841621  # 5 % two-sided, 80 % power
BAR = 1.2


def fixed_hours(share: float) -> float:
    """Hours until a z test with 80 % power has the labels that it needs."""
    variance = CHALLENGER * (1 - CHALLENGER) / share + CHAMPION * (1 - CHAMPION) / (1 - share)
    return (Z_BOTH_SIDES + Z_POWER) ** 2 * variance / MDE**2 / PER_HOUR


def first_hour(sure: NDArray[np.bool_]) -> Floats:
    """The number of hours at the first look that is sure; infinite where none is."""
    return np.where(sure.any(axis=1), np.argmax(sure, axis=1) + 1.0, np.inf)


def measure(report: bars.Report, count: int, share: float, seed: int) -> None:
    rng = np.random.default_rng((seed, int(100 * share)))
    hours = 24 * DAYS
    shares = np.full(hours, share)
    rates = (np.full(hours, CHALLENGER), np.full(hours, CHAMPION))
    sums = looks.binary(rng, count, np.full(hours, PER_HOUR), shares, *rates)
    found = looks.estimate(sums, "binary")
    looks.check(rng, sums, found, shares, MDE)
    enough = sums.least >= MIN_LABELS
    ours = first_hour(enough & (found.effect - looks.half_width(found.se, MDE) > 0))
    effect, half = looks.growthbook(sums)
    theirs = first_hour(enough & (effect - half > 0))
    fixed = fixed_hours(share)
    at_end = int(np.ceil(fixed)) - 1
    power = float((found.effect[:, at_end] > Z_BOTH_SIDES * found.se[:, at_end]).mean())
    late = np.quantile(ours, 0.8)
    report.most(
        f"hours until +2 points are certain at {100 * (1 - share):.0f}/{100 * share:.0f}, median "
        "over a fixed horizon",
        float(np.median(ours)) / fixed,
        BAR,
        "%.2fx",
        f"median {np.median(ours):.0f} h, 80 % by {late:.0f} h; fixed horizon {fixed:.1f} h, "
        f"finds it in {100 * power:.0f} %; GrowthBook's sequential test {np.median(theirs):.0f} h",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report = bars.Report()
    for share in (0.5, 0.1):
        measure(report, given.experiments, share, given.seed)
    report.end()


if __name__ == "__main__":
    main()
