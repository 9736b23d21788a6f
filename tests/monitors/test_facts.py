import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitors import facts, kept, watched

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
KEY = kept.WindowKey("1 week", MONDAY)
SHAPE = watched.Shape(
    "event_time", ("1 week",), "served_entity_name", "prediction", "score", "label",
    "classification", True,
)  # fmt: skip
TEXT = watched.Column("categorical")


def requests(**columns) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    usual = {
        "databricks_request_id": [f"r{k}" for k in range(n)],
        "served_entity_name": ["v1"] * n,
        "status_code": [200] * n,
        "error_source": pl.Series([None] * n, dtype=pl.String),
        "execution_duration_ms": list(range(n)),
    }
    return pl.DataFrame({**usual, **columns})


def failing(failed: list[bool], **columns) -> pl.DataFrame:
    source = ["model" if one else None for one in failed]
    status = [400 if one else 200 for one in failed]
    return requests(error_source=pl.Series(source, dtype=pl.String), status_code=status, **columns)


def serving(rows: pl.DataFrame, columns=None, versions=("v1",)) -> dict:
    wanted = ("error_rate", "p99_ms")
    found = facts.serving(KEY, rows, SHAPE, columns or {}, wanted, versions)
    return {(fact.metric, fact.served_entity): fact for fact in found}


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_lower_bound_is_wilsons(events, n):
    """Oracle: scipy's binomtest."""
    events = min(events, n)
    expected = stats.binomtest(events, n).proportion_ci(0.95, "wilson").low
    assert facts.wilson_low(events, n) == pytest.approx(expected, abs=1e-4)


def test_a_request_that_was_wrong_itself_is_no_failure():
    rows = requests(
        status_code=[400, 400, 503, 500, 200, 429] * 2,
        error_source=["request", "model", "server", "server", None, "server"] * 2,
    )
    found = serving(rows)["error_rate", "v1"]
    assert found.value == pytest.approx(0.5) and found.n == 12


def test_a_version_without_requests_is_idle_and_few_are_no_answer():
    found = serving(failing([True] * 3 + [False] * 20), versions=("v1", "v3"))
    assert found["error_rate", "v3"].idle and found["error_rate", "v3"].value is None
    few = serving(failing([True] * 3))
    assert few["error_rate", "v1"].value is None and not few["error_rate", "v1"].idle


def test_a_request_of_many_rows_counts_once():
    rows = failing([True] * 20, databricks_request_id=["same"] * 20)
    assert serving(rows)["error_rate", "v1"].n == 1


def test_p99_is_that_of_the_model_time():
    found = serving(requests(execution_duration_ms=list(range(101))))["p99_ms", "v1"]
    assert found.value == pytest.approx(99)


def test_failures_are_explained_by_the_cause_and_not_by_ids():
    carriers = ["MQ", "AA", "B6", "UA", "DL", "WN"] * 20
    origins = ["LGA", "LGA", "JFK", "EWR"] * 30
    failed = [c == "MQ" or (c == "AA" and k % 12 == 1) for k, c in enumerate(carriers)]
    rows = failing(
        failed, carrier=carriers, origin=origins, tailnum=[f"N{k}" for k in range(120)],
        constant=["x"] * 120,
    ).with_columns(__failed=facts.failed())  # fmt: skip
    columns = dict.fromkeys(("tailnum", "origin", "carrier", "constant"), TEXT)
    assert facts.explained(rows, columns) == "By carrier: MQ 20 of 20, AA 10 of 20."
    assert facts.explained(rows, {"tailnum": TEXT, "constant": TEXT}) is None


def test_answers_do_not_explain_failures():
    failed = [True] * 10 + [False] * 10
    answers = [None if one else "yes" for one in failed]
    rows = failing(failed, prediction=pl.Series(answers, dtype=pl.String))
    assert serving(rows, {"prediction": TEXT})["error_rate", "v1"].explanation is None


def test_the_age_of_a_feature_is_that_of_the_newest_requests():
    times = [MONDAY + timedelta(hours=k) for k in range(20)]
    ages = [1.0] * 14 + [5.0, 6.0, 7.0, 8.0, 100.0] + [0.0]
    rows = pl.DataFrame(
        {
            "__time": times,
            "as_of": [t - timedelta(hours=a) for t, a in zip(times, ages, strict=True)],
        }
    )
    found = facts.feature_age(rows, "as_of", MONDAY + timedelta(hours=18))
    assert found.value == pytest.approx(7) and found.n == 5
    assert facts.feature_age(rows, "absent", times[-1]).value is None
    assert facts.feature_age(pl.DataFrame(), "as_of", times[-1]).value is None


def test_capture_lag_counts_only_while_something_waits(tmp_path):
    assert facts.capture_lag(tmp_path, 10_000).value is None
    note = {"tables": {"t": {"last_commit_ms": 4_000}}, "backlog_bytes": 5}
    (tmp_path / "committed.json").write_text(json.dumps(note))
    assert facts.capture_lag(tmp_path, 10_000).value == pytest.approx(6)
    (tmp_path / "committed.json").write_text(json.dumps({**note, "backlog_bytes": 0}))
    assert facts.capture_lag(tmp_path, 10_000).value == 0
