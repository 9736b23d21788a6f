"""What is followed from look to look decides as if all rows were read at every look."""

import math
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import experiments, followed, held, truth

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
            "client_request_id": pl.Series([None] * n, dtype=pl.String),
            "row_index": pl.Series([0] * n, dtype=pl.Int32),
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


class Story:
    """Requests and their labels, held as far as they are there."""

    def __init__(self, folder: Path, rows: pl.DataFrame) -> None:
        self.rows, self.sent = rows, 0
        self.held = held.Held(folder / uuid.uuid4().hex, recorded=True)
        self.labels = rows.select(
            "databricks_request_id",
            pl.lit(None, pl.String).alias("client_request_id"),
            pl.col("row_index"),
            label=pl.col("truth").cast(pl.Int64).cast(pl.String),
            label_time=pl.col("told").cast(truth.TIME),
        )
        self.held.take(self.labels, MONDAY - timedelta(days=1), maybe_known=False)
        self.held.joined(MONDAY - timedelta(days=1))

    def at(self, count: int, moment: datetime) -> held.Held:
        """With so many requests, and the labels that are known by the moment."""
        self.held.add(self.rows[self.sent : count].drop("truth", "told"))
        self.sent = max(self.sent, count)
        if self.held.read_until is not None and moment > self.held.read_until:
            self.held.come_due(moment)
            self.held.joined(moment)
        return self.held


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
    looks=st.lists(st.tuples(st.integers(0, 30 * 60), st.integers(1, 400)), min_size=1, max_size=5),
)
def test_a_followed_decision_is_that_of_all_rows(
    seed: int, looks: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    story = Story(tmp_path_factory.mktemp("held"), requests(400, seed))
    known = followed.Followed()
    for minute, count in looks:  # back in time, too
        moment = MONDAY + timedelta(minutes=minute)
        rows = story.at(count, moment)
        found = known.decide("delay", ASKED, rows, prepared, moment)
        whole = experiments.evaluate(prepared(rows.frame()), POLICY, moment)
        assert same(found.to_dict(), whole.to_dict())


def test_only_hours_with_new_rows_or_late_labels_are_gone_through(tmp_path: Path) -> None:
    story, known = Story(tmp_path, requests(4000)), followed.Followed()
    moment = MONDAY + timedelta(hours=40)
    known.decide("delay", ASKED, story.at(3990, moment), prepared, moment)
    assert known.summarised == 3990
    known.decide("delay", ASKED, story.at(4000, moment), prepared, moment)
    assert 10 <= known.summarised < 1000
    known.decide("delay", ASKED, story.at(4000, moment), prepared, moment)
    assert known.summarised == 0
    late = story.labels.filter(pl.col("databricks_request_id") == "r5").with_columns(
        label=pl.when(pl.col("label") == "1").then(pl.lit("0")).otherwise(pl.lit("1")),
        label_time=pl.lit(moment).cast(truth.TIME),
    )
    assert len(story.held.take(late, moment, maybe_known=False)) == 1
    found = known.decide("delay", ASKED, story.held, prepared, moment)
    assert 0 < known.summarised < 1000
    whole = experiments.evaluate(prepared(story.held.frame()), POLICY, moment)
    assert same(found.to_dict(), whole.to_dict())


def test_another_policy_or_rows_held_anew_begin_from_all_rows(tmp_path: Path) -> None:
    story, known = Story(tmp_path, requests(500)), followed.Followed()
    moment = MONDAY + timedelta(hours=40)
    rows = story.at(500, moment)
    known.decide("delay", ASKED, rows, prepared, moment)
    other = experiments.Policy.parse(
        {"primary": {"name": "accuracy", "mde": 0.2}, "champion": "v1", "challenger": "v2"}
    )
    known.decide("delay", followed.Asked(1, other, None), rows, prepared, moment)
    assert known.summarised == 500
    anew = Story(tmp_path, requests(500)).at(500, moment)
    known.decide("delay", followed.Asked(1, other, None), anew, prepared, moment)
    assert known.summarised == 500


def test_hours_before_the_start_are_not_gone_through(tmp_path: Path) -> None:
    rows, known = Story(tmp_path, requests(4000)), followed.Followed()
    moment, start = MONDAY + timedelta(hours=40), MONDAY + timedelta(hours=15.5)
    kept = rows.at(4000, moment)
    since = followed.Asked(1, POLICY, start)
    later = pl.col("__time") >= start
    found = known.decide("delay", since, kept, lambda p: prepared(p.filter(later)), moment)
    assert 0 < known.summarised < 1500
    whole = experiments.evaluate(prepared(kept.frame(start)), POLICY, moment)
    assert same(found.to_dict(), whole.to_dict())


def test_a_label_window_is_measured_once_an_hour_or_with_more_labels() -> None:
    known, measured = followed.Followed(), iter([1.0, 2.0, 3.0, 4.0])

    def window(labels: int, minute: int, experiment: int = 1) -> float | None:
        moment = MONDAY + timedelta(minutes=minute)
        return known.label_window("delay", experiment, labels, moment, lambda: next(measured))

    assert [window(1000, 1), window(1005, 59)] == [1.0, 1.0]
    assert window(1020, 59) == 2.0
    assert window(1020, 61) == 3.0
    assert window(1020, 61, experiment=2) == 4.0
