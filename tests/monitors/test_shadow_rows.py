"""Answers that no client saw count in no profile, baseline, alert or decision."""

from datetime import UTC, datetime, timedelta

import orjson
import polars as pl

from capture import database, names
from monitors import contract, experiment_state, state

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = "main.flights.p_unpacked"
HALF = {"v1": 50, "v2": 50}


def copies(frame: pl.DataFrame) -> pl.DataFrame:
    """What v2 answered in the shadow to these requests: it raised, and the features are odd."""
    ids = [names.copy_of(id) for id in frame["databricks_request_id"]]
    return frame.with_columns(
        databricks_request_id=pl.Series(ids),
        shadow=pl.lit(True),
        served_entity_name=pl.lit("v2"),
        route_share=pl.lit(None, pl.Float64),
        route_split=pl.lit(None, pl.String),
        status_code=pl.lit(400, pl.Int32),
        error_source=pl.lit("model"),
        prediction=pl.lit(None, pl.Float64),
        score=pl.lit(None, pl.Float64),
        temp=pl.col("temp") + 100,
    )


def begin(lake) -> None:
    body = {
        "primary": {"name": "accuracy", "kind": "binary", "mde": 0.1},
        "champion": "v1",
        "challenger": "v2",
        "start_time": MONDAY.isoformat(),
    }
    with database.transaction(lake.engine) as connection:
        experiment_state.begin_experiment(connection, "delay", contract.experiment(body), "ann", 1)


def test_a_failing_shadow_is_no_part_of_the_experiment_and_raises_no_alert(lake):
    lake.gateway.configure(**HALF)
    lake.monitor()
    begin(lake)
    frame = lake.rows(MONDAY, 400, 24, split=HALF, config_version=2)
    lake.write(frame)
    lake.write(copies(frame))
    lake.label(frame)
    lake.done(MONDAY + timedelta(days=2))
    (decided,) = pl.read_delta(lake.uri("main.flights.p_decisions")).rows(named=True)
    assert decided["requests"] == 400
    assert decided["action"] != "roll_back"
    metrics = orjson.loads(decided["decision"])["metrics"]
    assert metrics["error_rate"]["value"] == {"v1": 0.0, "v2": 0.0}
    assert sum(metrics["accuracy"]["n"].values()) == 400
    assert lake.open_alerts() == []
    assert lake.gateway.shares == HALF
    profiles = lake.metrics("profile")
    whole = profiles.filter(pl.col("served_entity_name").is_null() & pl.col("slice_key").is_null())
    temp = whole.filter(pl.col("column_name") == "temp")
    assert temp["count"].to_list() == [400]
    assert temp["avg"][0] < 50


def test_a_baseline_that_is_a_window_holds_no_copies(lake):
    lake.monitor(rules=False)
    week = timedelta(weeks=1)
    spec = {"kind": "window", "start": MONDAY.isoformat(), "end": (MONDAY + week).isoformat()}
    with database.transaction(lake.engine) as connection:
        state.add_baseline(connection, TABLE, spec, "ann", 1)
    for start in (MONDAY, MONDAY + week):
        frame = lake.rows(start, 300)
        lake.write(frame)
        lake.write(copies(frame))
    lake.done(MONDAY + 2 * week)
    drift = lake.metrics().filter(
        (pl.col("column_name") == "temp") & (pl.col("drift_type") == "BASELINE")
    )
    assert set(drift["n_baseline"].drop_nulls().to_list()) == {300}
    assert set(drift["n"].to_list()) == {300}
