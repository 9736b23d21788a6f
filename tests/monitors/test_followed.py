"""What is followed from look to look decides as if all rows were read at every look."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import experiments, followed

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
POLICY = experiments.Policy.parse(
    {
        "primary": {"name": "accuracy", "kind": "binary", "mde": 0.1},
        "champion": "v1",
        "challenger": "v2",
        "slices": ["carrier"],
    }
)
ASKED = followed.Asked(1, POLICY, None)


def requests(n: int, seed: int = 0) -> pl.DataFrame:
    """Rows as a monitor keeps them, in the order in which they were read: nearly that of time."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.integers(0, 20 * 3600, n)) - rng.integers(0, 4000, n)
    version = np.where(rng.random(n) < 0.3, "v2", "v1")
    label = rng.integers(0, 2, n)
    time = pl.Series(seconds).cast(pl.Duration("ms")) * 1000 + MONDAY
    return pl.DataFrame(
        {
            "databricks_request_id": [f"r{k}" for k in range(n)],
            "row_index": [0] * n,
            "__time": time.dt.cast_time_unit("us"),
            "version": version,
            "status_code": np.where(rng.random(n) < 0.1, 500, 200),
            "prediction": np.where(rng.random(n) < 0.8, label, 1 - label),
            "carrier": rng.choice(["AA", "B6"], n),
            "truth": label.astype(float),
            "told": time.dt.cast_time_unit("us")
            + pl.Series(rng.integers(60, 5 * 3600, n)).cast(pl.Duration("ms")) * 1000,
        }
    )


def at(rows: pl.DataFrame, count: int, moment: datetime) -> pl.DataFrame:
    """The first `count` rows of a monitor, with the labels that are known by the moment."""
    known = pl.col("told") <= moment
    return rows.head(count).with_columns(
        label=pl.when(known).then("truth"), label_time=pl.when(known).then("told")
    )


def prepared(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        request_time=pl.col("__time"), request_id="databricks_request_id", route_share=0.3
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return one == other


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    looks=st.lists(st.tuples(st.integers(0, 30 * 60), st.integers(0, 400)), min_size=1, max_size=5),
)
def test_a_followed_decision_is_that_of_all_rows(seed: int, looks: list[tuple[int, int]]) -> None:
    rows, known = requests(400, seed), followed.Followed()
    for minute, count in looks:  # back in time and with fewer rows, too
        moment = MONDAY + timedelta(minutes=minute)
        held = at(rows, count, moment)
        found = known.decide("delay", ASKED, held, prepared, moment)
        whole = experiments.evaluate(prepared(held), POLICY, moment)
        assert same(found.to_dict(), whole.to_dict())


def test_only_hours_with_new_rows_or_late_labels_are_gone_through() -> None:
    rows, known = requests(4000), followed.Followed()
    moment = MONDAY + timedelta(hours=40)
    known.decide("delay", ASKED, at(rows, 3990, moment), prepared, moment)
    assert known.summarised == 3990
    known.decide("delay", ASKED, at(rows, 4000, moment), prepared, moment)
    assert 10 <= known.summarised < 1000
    known.decide("delay", ASKED, at(rows, 4000, moment), prepared, moment)
    assert known.summarised == 0
    late = at(rows, 4000, moment).with_columns(
        label=pl.when(pl.col("databricks_request_id") == "r5")
        .then(1 - pl.col("truth"))
        .otherwise("label")
    )
    found = known.decide("delay", ASKED, late, prepared, moment)
    assert 0 < known.summarised < 1000
    assert same(found.to_dict(), experiments.evaluate(prepared(late), POLICY, moment).to_dict())


def test_another_policy_or_rows_read_again_begin_from_all_rows() -> None:
    rows, known = requests(500), followed.Followed()
    moment = MONDAY + timedelta(hours=40)
    held = at(rows, 500, moment)
    known.decide("delay", ASKED, held, prepared, moment)
    other = experiments.Policy.parse(
        {"primary": {"name": "accuracy", "mde": 0.2}, "champion": "v1", "challenger": "v2"}
    )
    known.decide("delay", followed.Asked(1, other, None), held, prepared, moment)
    assert known.summarised == 500
    known.decide("delay", followed.Asked(1, other, None), held.reverse(), prepared, moment)
    assert known.summarised == 500


def test_a_label_window_is_measured_once_an_hour_or_with_more_labels() -> None:
    known, measured = followed.Followed(), iter([1.0, 2.0, 3.0, 4.0])

    def window(labels: int, minute: int, experiment: int = 1) -> float | None:
        moment = MONDAY + timedelta(minutes=minute)
        return known.label_window("delay", experiment, labels, moment, lambda: next(measured))

    assert [window(1000, 1), window(1005, 59)] == [1.0, 1.0]
    assert window(1020, 59) == 2.0
    assert window(1020, 61) == 3.0
    assert window(1020, 61, experiment=2) == 4.0
