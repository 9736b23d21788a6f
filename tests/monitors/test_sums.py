"""A decision from sums is the decision from all rows, however the sums came together."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import experiments, summing, sums

START = datetime(2026, 3, 2, tzinfo=UTC)
LATE = START + timedelta(days=9)
HOUR = timedelta(hours=1)


def policy(**changes: Any) -> dict[str, Any]:
    return {
        "primary": {"name": "accuracy", "kind": "binary", "mde": 0.02},
        "champion": "v2",
        "challenger": "v3",
        **changes,
    }


def traffic(
    seed: int, hours: int = 12, per_hour: int = 60, units: int | None = None
) -> pl.DataFrame:
    """Requests of a ramp: errors, late labels, numbers as answer times, units where asked for."""
    rng = np.random.default_rng(seed)
    n = hours * per_hour
    seconds = np.sort(rng.integers(0, hours * 3600, n))
    share = np.array([0.05, 0.2, 0.5])[np.minimum(2, seconds * 3 // (hours * 3600))]
    unit = np.arange(n) if units is None else rng.integers(0, units, n)
    c = rng.random(int(unit.max()) + 1)[unit] < share
    label = rng.integers(0, 3, n)
    prediction = np.where(rng.random(n) < np.where(c, 0.8, 0.7), label, rng.integers(0, 3, n))
    time = pl.Series(seconds).cast(pl.Duration("ms")) * 1000 + START
    delay = pl.Series(rng.exponential(3 * 3.6e6, n).astype(int)).cast(pl.Duration("ms"))
    return pl.DataFrame(
        {
            "request_time": time,
            "request_id": [f"r{i}" for i in range(n)],
            "unit_id": [None if units is None or u % 5 == 0 else f"u{u}" for u in unit],
            "version": np.where(c, "v3", "v2"),
            "route_share": share,
            "status_code": np.where(rng.random(n) < np.where(c, 0.05, 0.02), 503, 200),
            "latency_ms": np.round(rng.lognormal(3, 0.5, n)),
            "prediction": prediction,
            "score": np.round(rng.random(n), 2),
            "label": label,
            "label_time": time + delay,
            "region": rng.choice(["eu", "us", "apac"], n),
        },
        schema_overrides={"unit_id": pl.String},
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return one == other


def block(rows: pl.DataFrame) -> pl.Series:
    return rows["request_time"].dt.epoch("us") // 3_600_000_000


def of_blocks(rows: pl.DataFrame, wanted: Any) -> pl.DataFrame:
    return rows.filter(block(rows).is_in(list(wanted)))


EVERYTHING = {
    "information": [
        {"name": "mse"},
        {"name": "auc"},
        {"name": "log_loss"},
        {"name": "recall"},
        {"name": "latency", "quantile": 0.5, "margin": 0.3},
    ],
    "slices": ["region", "prediction"],
}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    units=st.sampled_from([None, 40, 400]),
    primary=st.sampled_from(["accuracy", "mse", "auc"]),
    parts=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    order=st.permutations(range(4)),
    window=st.sampled_from([None, 2.5]),
    assignment=st.sampled_from(["auto", "unit"]),
)
def test_sums_of_any_parts_in_any_order_decide_as_all_rows_do(
    seed: int,
    units: int | None,
    primary: str,
    parts: list[int],
    order: list[int],
    window: float | None,
    assignment: str,
) -> None:
    rows = traffic(seed, units=units)
    given_policy = policy(
        primary={"name": primary, "mde": 0.02},
        label_window_hours=window,
        assignment=assignment,
        **EVERYTHING,
    )
    now = START + timedelta(hours=11, minutes=20)
    first = int(block(rows).min())  # type: ignore[arg-type]
    whole = experiments.evaluate(rows, given_policy, now).to_dict()
    merged = None
    for part in order:
        blocks = [first + hour for hour, owner in enumerate(parts) if owner == part]
        one = summing.summarise(of_blocks(rows, blocks), given_policy, now)
        merged = one if merged is None else sums.merge(merged, one)
    assert merged is not None
    assert same(experiments.decide(merged, now).to_dict(), whole)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    units=st.sampled_from([None, 40]),
    window=st.sampled_from([None, 2.5]),
    minutes=st.lists(st.integers(1, 20 * 60), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_following_new_rows_and_late_labels_ends_where_all_rows_end(
    seed: int, units: int | None, window: float | None, minutes: list[int]
) -> None:
    rows = traffic(seed, units=units)
    given_policy = policy(label_window_hours=window, slices=["region"])
    known = summing.summarise(rows, given_policy, START)
    for minute in minutes:
        now = START + timedelta(minutes=minute)
        again = of_blocks(rows, sums.stale(known, now))
        known = sums.merge(known, summing.summarise(again, given_policy, now))
        whole = experiments.evaluate(rows, given_policy, now).to_dict()
        assert same(experiments.decide(known, now).to_dict(), whole)


def test_a_block_summarised_again_takes_the_place_of_the_one_before() -> None:
    rows = traffic(3)
    half = rows.filter(pl.col("request_time") < START + timedelta(hours=5, minutes=30))
    before = summing.summarise(half, policy(), LATE)
    after = summing.summarise(
        of_blocks(rows, set(block(rows)) - set(block(half)[:-1])), policy(), LATE
    )
    rest = summing.summarise(of_blocks(rows, [block(half)[-1]]), policy(), LATE)
    found = experiments.decide(sums.merge(sums.merge(before, after), rest), LATE)
    assert same(found.to_dict(), experiments.evaluate(rows, policy(), LATE).to_dict())


def test_sums_that_time_has_changed_are_refused_with_the_number_of_their_blocks() -> None:
    rows = traffic(4)
    early = START + timedelta(hours=6)
    known = summing.summarise(rows, policy(), early)
    assert sums.stale(known, early) == []
    later = early + timedelta(hours=1)
    with pytest.raises(ValueError, match=f"{len(sums.stale(known, later))} blocks have changed"):
        experiments.decide(known, later)


def test_sums_of_another_policy_or_of_other_versions_do_not_merge() -> None:
    rows = traffic(5)
    known = summing.summarise(rows, policy(), LATE)
    with pytest.raises(ValueError, match="different policies"):
        sums.merge(known, summing.summarise(rows, policy(alpha=0.1), LATE))
    unnamed = {"primary": {"name": "accuracy", "mde": 0.02}}
    one = summing.summarise(rows, unnamed, LATE)
    other = summing.summarise(rows.filter(pl.col("version") == "v3"), unnamed, LATE)
    with pytest.raises(ValueError, match="name champion and challenger"):
        sums.merge(one, other)


def test_what_is_kept_of_requests_without_units_grows_with_hours_not_with_requests() -> None:
    few, many = (
        summing.summarise(traffic(6, per_hour=n).drop("score"), policy(), LATE) for n in (500, 5000)
    )
    for name in ("tallies", "spans", "units", "slowest", "labels", "scores"):
        assert getattr(few, name).height == getattr(many, name).height
    assert many.times.height < 3 * few.times.height  # distinct milliseconds, not answers
    assert many.delays.height <= 12 * 2 * 2 * sums.MOST_DELAYS


def test_of_many_units_buckets_are_told_apart() -> None:
    rows = traffic(7, per_hour=2000, units=8000)
    hours = sorted(set(block(rows)))
    given_policy = policy(assignment="unit")
    pieces = [summing.summarise(of_blocks(rows, [hour]), given_policy, LATE) for hour in hours]
    known = pieces[0]
    for piece in pieces[1:]:
        known = sums.merge(known, piece)
    whole = experiments.evaluate(rows, given_policy, LATE).to_dict()
    assert same(experiments.decide(known, LATE).to_dict(), whole)
    assert 0.9 < whole["metrics"]["accuracy"]["design_effect"] < 1.5
