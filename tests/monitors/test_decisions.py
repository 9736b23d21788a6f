import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from monitors import decisions, experiment_state, followed, held, roles

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
WHO = roles.Roles("v1", "v2")


def rows(**columns) -> pl.DataFrame:
    """Rows as a monitor keeps them; columns given replace the usual ones."""
    n = len(next(iter(columns.values()))) if columns else 4
    usual = {
        "databricks_request_id": [f"r{k}" for k in range(n)],
        "client_request_id": pl.Series([None] * n, dtype=pl.String),
        "row_index": pl.Series([0] * n, dtype=pl.Int32),
        "request_time": [MONDAY] * n,
        "__time": [MONDAY + timedelta(hours=k) for k in range(n)],
        "unit_id": pl.Series([None] * n, dtype=pl.String),
        "served_entity_name": ["v1", "v2"] * (n // 2) + ["v1"] * (n % 2),
        "config_version": [1] * n,
        "route_split": [json.dumps({"v1": 90, "v2": 10})] * n,
        "status_code": [200] * n,
        "error_source": pl.Series([None] * n, dtype=pl.String),
        "execution_duration_ms": [5] * n,
        "prediction": [1.0] * n,
        "score": [0.7] * n,
    }
    return pl.DataFrame({**usual, **columns})


@pytest.mark.parametrize(
    ("split", "share"),
    [
        ({"v1": 90, "v2": 10}, 0.1),
        ({"v1": 45, "v2": 5, "v3": 50}, 0.1),
        ({"v2": 100}, 1.0),
        ({"v1": 100}, 0.0),
        ({"v3": 100}, None),
        ({"v1": 0, "v2": 0, "v3": 100}, None),
    ],
)
def test_a_share_is_the_challengers_part_of_the_pair(split, share):
    found = decisions.rows_of(rows(route_split=[json.dumps(split)] * 2), WHO, None, ())
    assert found["route_share"].to_list() == [share, share]


def test_a_row_that_was_not_drawn_has_no_share():
    splits = [None, json.dumps({"v1": 50, "v2": 50})]
    found = decisions.rows_of(rows(route_split=splits), WHO, None, ())
    assert found["route_share"].to_list() == [None, 0.5]


def test_a_model_that_raises_is_an_error_though_it_answers_400():
    found = decisions.rows_of(
        rows(status_code=[400, 400, 500, 200], error_source=["model", "request", "server", None]),
        WHO, None, (),
    )  # fmt: skip
    assert found["error"].to_list() == [True, None, None, None]


def test_a_request_of_several_rows_is_one_unit_with_an_id_per_row():
    frame = rows(
        databricks_request_id=["a", "a", "b", "c"], row_index=[0, 1, 0, 0],
        served_entity_name=["v1"] * 4, unit_id=pl.Series([None, None, None, "u"]),
    )  # fmt: skip
    found = decisions.rows_of(frame, WHO, None, ())
    assert found["request_id"].to_list() == ["a:0", "a:1", "b", "c"]
    assert found["unit_id"].to_list() == ["a", "a", None, "u"]


def test_rows_before_the_start_and_of_other_versions_are_no_part():
    frame = rows(served_entity_name=["v1", "v2", "v3", "v2"])
    found = decisions.rows_of(frame, WHO, MONDAY + timedelta(hours=1), ())
    assert found["version"].to_list() == ["v2", "v2"]
    assert found["request_time"].to_list() == [
        MONDAY + timedelta(hours=1),
        MONDAY + timedelta(hours=3),
    ]


def test_columns_of_slices_come_along():
    found = decisions.rows_of(rows(carrier=["AA", "B6"]), WHO, None, ("carrier", "absent"))
    assert found["carrier"].to_list() == ["AA", "B6"] and "absent" not in found.columns


def test_the_label_window_is_that_of_the_slower_kind_of_label():
    n = 400
    late = [k % 2 for k in range(n)]
    frame = pl.DataFrame(
        {
            "version": ["v1"] * n,
            "request_time": [MONDAY + timedelta(minutes=k) for k in range(n)],
            "label": [float(one) for one in late],
            "label_time": [
                MONDAY + timedelta(minutes=k, hours=9 if one else 3) for k, one in enumerate(late)
            ],
        }
    )
    now = MONDAY + timedelta(days=3)
    assert decisions.label_window(frame, WHO, now) == pytest.approx(9.0)
    assert decisions.label_window(frame.head(50), WHO, now) is None
    quick = frame.with_columns(label_time=pl.col("request_time") + timedelta(minutes=5))
    assert decisions.label_window(quick, WHO, now) is None
    assert decisions.label_window(frame, WHO, now + timedelta(days=60)) is None


def test_an_experiment_on_receipt_times_begins_when_it_was_made(tmp_path):
    policy = {"primary": {"name": "accuracy", "kind": "binary", "mde": 0.1}}
    begun = int((MONDAY + timedelta(hours=2)).timestamp() * 1000)
    experiment = experiment_state.Experiment("delay", 1, True, policy, "ann", begun)
    now = MONDAY + timedelta(hours=10)
    kept = held.Held(tmp_path / "held", recorded=True)
    kept.add(rows().with_columns(pl.col("__time").cast(pl.Datetime("us", "UTC"))))
    [found] = decisions.looks(experiment, kept, now, True, followed.Followed())
    assert found.requests == 2
    [found] = decisions.looks(experiment, kept, now, False, followed.Followed())
    assert found.requests == 4
    assert found.config_version == 1 and found.challenger_requests == 2
    assert found.newest_row == MONDAY + timedelta(hours=3)
