"""Worlds made to deceive an experiment, and what it says of each.

    python benchmarks/experiments/traps.py [--seeds 10]

Every world is drawn with that many seeds and followed through sums at daily looks, as a monitor
follows it. A ramp while the world gets harder; labels that come late where the answer is bad;
labels lost for one version; a split that is not the configured one; few units with many requests;
a slice that falls; a gain that fades. Exit status 1 if an action or a reason is not the design's.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import bars
import looks
import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import experiments, summing, sums

Floats = NDArray[np.float64]
Random = np.random.Generator
Decision = experiments.Decision

DAYS = 14
POLICY = {"primary": {"name": "accuracy", "mde": 0.02}, "champion": "v2", "challenger": "v3"}


@dataclass(frozen=True, slots=True)
class Trap:
    """A world and what has to be said of it over its daily looks."""

    rows: Callable[[Random], pl.DataFrame]
    held: Callable[[list[Decision]], bool]
    promise: str
    policy: dict[str, Any]


def traffic(
    rng: Random,
    share: Floats,
    right: Callable[[Floats, NDArray[np.bool_]], Floats],
    per_hour: int = 200,
    configured: Floats | None = None,
    days: int = DAYS,
) -> pl.DataFrame:
    """share: drawn, per day; configured: as the rows say it. right: (day, challenger) -> rate."""
    n = days * 24 * per_hour
    day = np.sort(rng.random(n)) * days
    drawn = share[day.astype(int)]
    c = rng.random(n) < drawn
    label = rng.integers(0, 2, n)
    hit = rng.random(n) < right(day, c)
    time = pl.Series((day * 86.4e9).astype(np.int64)).cast(pl.Duration("us")) + looks.START
    return pl.DataFrame(
        {
            "request_time": time,
            "label_time": time + timedelta(minutes=30),
            "request_id": np.arange(n),
            "version": np.where(c, "v3", "v2"),
            "route_share": drawn if configured is None else configured[day.astype(int)],
            "status_code": 200,
            "prediction": np.where(hit, label, 1 - label),
            "label": label,
        }
    )


def followed(rows: pl.DataFrame, policy: dict[str, Any]) -> Iterator[Decision]:
    """The decision of every day, each from the sums of before and the blocks that changed."""
    known = summing.summarise(rows, policy, looks.START)
    block = rows["request_time"].dt.epoch("us") // 3_600_000_000
    for day in range(1, DAYS + 1):
        now = looks.START + timedelta(days=day)
        changed = rows.filter(block.is_in(sums.stale(known, now)))
        known = sums.merge(known, summing.summarise(changed, policy, now))
        yield experiments.decide(known, now)


def ramp(gain: float) -> Callable[[Random], pl.DataFrame]:
    share = np.repeat([0.05, 0.25, 0.5], [5, 5, 4])
    return lambda rng: traffic(rng, share, lambda day, c: 0.95 - 0.025 * day + gain * c)


def even(right: Callable[[Floats, NDArray[np.bool_]], Floats], **other: Any) -> Any:
    return lambda rng: traffic(rng, np.full(DAYS, 0.5), right, **other)


def late_positives(rng: Random) -> pl.DataFrame:
    """Wrong answers to frauds show after days; the challenger answers them better."""
    rows = traffic(rng, np.full(DAYS, 0.5), lambda day, c: 0.85 + 0.0 * day)
    fraud = rows["label"].to_numpy() == 1
    hours = np.where(fraud, rng.exponential(96, len(rows)), 0.2)
    delay = pl.Series((hours * 3.6e9).astype(np.int64)).cast(pl.Duration("us"))
    # The champion knows no fraud, the challenger calls a third of all requests one.
    c = (rows["version"] == "v3").to_numpy()
    guess = np.where(c, rng.random(len(rows)) < 0.33, False).astype(int)
    return rows.with_columns(label_time=rows["request_time"] + delay, prediction=pl.Series(guess))


def uneven_loss(rng: Random) -> pl.DataFrame:
    rows = traffic(rng, np.full(DAYS, 0.5), lambda day, c: 0.85 + 0.03 * c)
    lost = (rows["version"] == "v3").to_numpy() & (rng.random(len(rows)) < 0.1)
    return rows.with_columns(pl.when(pl.Series(lost)).then(None).otherwise("label").alias("label"))


def few_units(rng: Random) -> pl.DataFrame:
    rows = traffic(rng, np.full(DAYS, 0.5), lambda day, c: 0.85 + 0.0 * day, per_hour=32)
    unit = rng.integers(0, len(rows) // 36, len(rows))
    units = int(unit.max()) + 1
    luck = np.clip(rng.beta(4, 1, units), 0.05, 0.99)[unit]
    label = rows["label"].to_numpy()
    return rows.with_columns(
        unit_id=pl.Series(unit),
        version=pl.Series(np.where(rng.random(units) < 0.5, "v3", "v2")[unit]),
        prediction=pl.Series(np.where(rng.random(len(rows)) < luck, label, 1 - label)),
    )


def falling_slice(rng: Random) -> pl.DataFrame:
    rows = traffic(rng, np.full(DAYS, 0.5), lambda day, c: 0.85 + 0.04 * c)
    region = rng.choice(["eu", "us", "apac"], len(rows), p=[0.4, 0.35, 0.25])
    c = (rows["version"] == "v3").to_numpy()
    falls = (region == "apac") & c & (rng.random(len(rows)) < 0.13 / 0.89)
    wrong = 1 - rows["label"].to_numpy()
    prediction = np.where(falls, wrong, rows["prediction"].to_numpy())
    return rows.with_columns(region=pl.Series(region), prediction=pl.Series(prediction))


def ends(action: str, reason: str) -> Callable[[list[Decision]], bool]:
    """The last look says so, and no look before promotes."""
    return lambda found: (
        found[-1].action == action
        and found[-1].reasons[0].startswith(reason)
        and (action == "promote" or "promote" not in [one.action for one in found])
    )


def calm(found: list[Decision]) -> bool:
    """No look gives a verdict."""
    return not {"promote", "roll_back"} & {one.action for one in found}


def flat(day: Floats, challenger: NDArray[np.bool_]) -> Floats:
    """Both versions are right in 85 %."""
    return 0.85 + 0.0 * day


def traps() -> dict[str, Trap]:
    return {
        "ramp 5/25/50 while the world gets harder, no difference": Trap(
            ramp(0.0), calm, "no verdict", {}
        ),
        "the same ramp, a winner by 3 points": Trap(
            ramp(0.03), ends("promote", "better"), "promote", {}
        ),
        "labels that come late where the answer is bad": Trap(
            late_positives,
            lambda found: found[1].reasons == ["labels_immature"] and calm(found[:3]),
            "keep_collecting: labels_immature, no verdict while young",
            {},
        ),
        "a tenth of the labels lost for one version": Trap(
            uneven_loss, ends("hold", "labels_uneven"), "hold: labels_uneven", {}
        ),
        "53.5/46.5 where 50/50 is configured": Trap(
            lambda rng: traffic(rng, np.full(DAYS, 0.535), flat, configured=np.full(DAYS, 0.5)),
            ends("hold", "sample_ratio"),
            "hold: sample_ratio",
            {},
        ),
        "few sticky units with 36 requests each, no difference": Trap(
            few_units, calm, "no verdict", {}
        ),
        "a slice that falls 9 points while the rest gains": Trap(
            falling_slice,
            ends("hold", "slice_regression:region=apac"),
            "hold: slice_regression:region=apac",
            {"slices": ["region"]},
        ),
        "a gain of 8 points that fades in 5 days": Trap(
            even(lambda day, c: 0.8 + c * np.maximum(0, 0.08 - 0.016 * day)),
            lambda found: any(one.reasons[0] == "fading" for one in found),
            "hold: fading",
            {"min_hours": 120, "primary": {"name": "accuracy", "mde": 0.01}},
        ),
        "no difference at all": Trap(even(flat), calm, "no verdict", {}),
    }


def pooled_says(rows: pl.DataFrame) -> float:
    """The difference of the two means over all time, in points."""
    right = rows.group_by("version").agg(right=(pl.col("label") == pl.col("prediction")).mean())
    found = dict(right.iter_rows())
    return 100 * float(found["v3"] - found["v2"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    report = bars.Report()
    for number, (name, trap) in enumerate(traps().items()):
        held, pooled = 0, []
        for seed in range(given.seeds):
            rows = trap.rows(np.random.default_rng((seed, number)))
            found = list(followed(rows, {**POLICY, **trap.policy}))
            good = trap.held(found)
            held += good
            pooled.append(pooled_says(rows))
            if not good:
                print("  ", seed, [(one.action, one.reasons) for one in found])
        beside = f"{trap.promise}; pooled means say {np.median(pooled):+.1f} points"
        report.all_of(name, held, given.seeds, beside)
    report.end()


if __name__ == "__main__":
    main()
