"""Slices of a monitored table: profiles, drift and quality of each value of an expression."""

from datetime import UTC, datetime, timedelta

import orjson
import polars as pl
import pytest

from capture import database, errors
from monitors import alerts, contract, reads, slices, state

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(weeks=1)
TABLE, BASELINE = "main.flights.p_unpacked", "main.flights.p_baseline"
FAR = "temp > 20"


def of(rows: pl.DataFrame, key: str | None, value: str | None) -> pl.DataFrame:
    return rows.filter(
        pl.col("slice_key").eq_missing(pl.lit(key, pl.String)),
        pl.col("slice_value").eq_missing(pl.lit(value, pl.String)),
    )


def carriers(lake) -> list[str]:
    return sorted(lake.rows(MONDAY, 200)["carrier"].drop_nulls().unique().to_list())


@pytest.fixture
def sliced(lake):
    """Two weeks; in the second one `temp` has moved for one carrier alone."""
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE, slicing_exprs=["carrier", "carrier = 'nobody'"])
    first = carriers(lake)[0]
    lake.write(lake.rows(MONDAY, 3000))
    moved = lake.rows(MONDAY + WEEK, 3000).with_columns(
        temp=pl.col("temp") + pl.when(pl.col("carrier") == first).then(15.0).otherwise(0.0)
    )
    lake.write(moved)
    lake.label(moved)
    lake.done(MONDAY + 3 * WEEK)
    return first, moved


def test_a_slice_that_moved_drifts_and_the_others_do_not(lake, sliced):
    first, _ = sliced
    rows = lake.metrics().filter(
        (pl.col("column_name") == "temp")
        & (pl.col("drift_type") == "BASELINE")
        & (pl.col("start") == MONDAY + WEEK)
        & pl.col("served_entity_name").is_null()
    )
    assert of(rows, "carrier", first)["status"].to_list() == ["drifted"]
    for other in carriers(lake)[1:]:
        assert of(rows, "carrier", other)["status"].to_list() == ["ok"]
    assert of(rows, "carrier = 'nobody'", "false").height == 1
    assert of(rows, None, None).height == 1


def test_slices_of_a_key_add_up_to_the_window(lake, sliced):
    _, moved = sliced
    rows = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table")
        & (pl.col("start") == MONDAY + WEEK)
        & pl.col("served_entity_name").is_null()
    )
    counts = dict(rows.group_by("slice_key").agg(pl.col("count").sum()).iter_rows())
    assert counts == {None: 3000, "carrier": 3000, "carrier = 'nobody'": 3000}
    by_value = dict(moved.group_by("carrier").len().iter_rows())
    found = rows.filter(pl.col("slice_key") == "carrier").select("slice_value", "count")
    assert dict(found.iter_rows()) == by_value


def test_quality_is_that_of_the_slice(lake, sliced):
    first, moved = sliced
    rows = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table")
        & (pl.col("start") == MONDAY + WEEK)
        & pl.col("served_entity_name").is_null()
    )
    one = orjson.loads(of(rows, "carrier", first)["quality"][0])["realized"]["accuracy"]
    assert one["n"] == moved.filter(pl.col("carrier") == first).height
    whole = orjson.loads(of(rows, None, None)["quality"][0])["realized"]["accuracy"]
    assert whole["n"] == 3000


def test_slices_raise_no_alerts_where_no_rule_names_them(lake, sliced):
    raised = [alert for alert in lake.open_alerts() if alert.metric == "drift"]
    assert all(alert.n == 3000 and alert.slice is None for alert in raised)


def test_a_rule_on_slices_raises_one_alert_for_the_slice_that_moved(lake, sliced):
    first, _ = sliced
    for carrier in (None, first, carriers(lake)[1]):
        cut = "carrier" if carrier is None else f"carrier={carrier}"
        lake.add_rule("drift", 0.0, id=cut, slice=cut, column="temp", created_ms=5)
    lake.add_rule("accuracy", 2.0, id="quality", slice="carrier", operator="<", created_ms=6)
    lake.add_rule("error_rate", -1.0, id="serving", slice=f"carrier={first}", created_ms=7)
    lake.done(MONDAY + 3 * WEEK)
    raised = [alert for alert in lake.open_alerts() if alert.slice is not None]
    drifted = {(alert.rule_id, alert.slice) for alert in raised if alert.metric == "drift"}
    assert drifted == {("carrier", f"carrier={first}"), (f"carrier={first}", f"carrier={first}")}
    (told, _) = [alert for alert in raised if alert.metric == "drift"]
    assert told.message.startswith(f"carrier = {first}, temp") and told.n < 3000
    assert {a.slice for a in raised if a.metric == "accuracy"} == {
        f"carrier={carrier}" for carrier in carriers(lake)
    }
    assert [a.slice for a in raised if a.metric == "error_rate"] == [f"carrier={first}"]
    lake.write(lake.rows(MONDAY + 2 * WEEK, 3000))
    lake.done(MONDAY + 3 * WEEK)
    assert not [a for a in lake.open_alerts() if a.slice is not None and a.metric == "drift"]


def test_a_rule_on_slices_is_tried_on_the_past(lake, sliced):
    first, _ = sliced
    with database.reading(lake.engine) as connection:
        monitor = state.monitor(connection, TABLE)
    profile_table, drift_table = contract.metric_tables(TABLE, monitor.config)
    for cut in ("carrier", f"carrier={first}"):
        rule = alerts.defaults("delay", 0)[0]._replace(metric="drift", column="temp", slice=cut)
        found = reads.try_rule(
            lake.settings,
            {
                "rule": rule._asdict(),
                "profile_table": profile_table,
                "drift_table": drift_table,
                "filters": {"from": MONDAY.isoformat(), "to": (MONDAY + 9 * WEEK).isoformat()},
                **contract.reading_hints(monitor.config),
            },
        )
        assert [(one["column"], one["slice"]) for one in found] == [("temp", f"carrier={first}")]
        assert found[0]["opened_time"].startswith("2024-01-15")


def test_a_reader_sees_one_slice_or_all_rows(lake, sliced):
    first, _ = sliced
    with_slice = {"slice": f"carrier={first}", "column": "temp"}
    asked = {
        "table": TABLE,
        "table_id": "id-1",
        "profile_table": "main.flights.p_unpacked_profile_metrics",
        "drift_table": "main.flights.p_unpacked_drift_metrics",
        "granularity": "1 week",
        "model_id_col": "served_entity_name",
        "outputs": [],
    }
    for filters, n in (({"column": "temp"}, 3000), (with_slice, None)):
        found = reads.drift(lake.settings, {**asked, "filters": filters})
        (column,) = found["columns"]
        assert len(column["cells"]) == 2
        assert n is None or column["cells"][-1]["n"] == n
        assert n is not None or column["cells"][-1]["n"] < 3000
    with pytest.raises(errors.BadRequest, match="slice"):
        reads.drift(lake.settings, {**asked, "filters": {"slice": "carrier"}})


def test_after_a_restart_and_late_rows_slices_go_on(lake, sliced):
    lake.restart()
    late = lake.rows(MONDAY, 400)
    lake.write(late)
    lake.done(MONDAY + 3 * WEEK)
    rows = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table")
        & (pl.col("start") == MONDAY)
        & pl.col("served_entity_name").is_null()
        & (pl.col("slice_key") == "carrier")
    )
    assert rows["count"].sum() == 3400
    assert rows["slice_value"].is_unique().all()


def test_other_slices_begin_with_everything_read_again(lake, sliced):
    with database.transaction(lake.engine) as connection:
        config = contract.updated_config(
            state.monitor(connection, TABLE).config,
            {"slicing_exprs": [FAR], "output_schema_name": "main.flights"},
        )
        state.replace_config(connection, TABLE, config, 1)
    lake.done(MONDAY + 3 * WEEK)
    keys = lake.metrics("profile")["slice_key"].unique().to_list()
    assert set(keys) == {None, FAR}


def test_at_most_a_hundred_values_of_an_expression_count() -> None:
    counts = {f"v{i}": i for i in range(300)}
    found = slices.heaviest(counts, known=["v3"])
    assert len(found) == 100 and found[:3] == ["v3", "v299", "v298"]


def test_an_expression_over_the_wrong_type_is_told() -> None:
    rows = pl.DataFrame({"name": ["a"]})
    with pytest.raises(errors.InvalidParameter, match="cannot be computed"):
        slices.labels(rows, slices.parse(["name + 1 > 2"], rows.columns))
