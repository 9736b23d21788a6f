import shutil
from datetime import UTC, datetime, timedelta

import deltalake
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capture import database, outbox
from monitors import state, tables

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)  # the first day of every test
WEEK = timedelta(weeks=1)
TABLE = "main.flights.p_unpacked"
BASELINE = "main.flights.p_baseline"


def week(number: int) -> datetime:
    return MONDAY + number * WEEK


def judged(lake, column: str, start: datetime, version: str | None = None) -> dict:
    rows = lake.metrics().filter(
        (pl.col("column_name") == column)
        & (pl.col("start") == start)
        & (pl.col("drift_type") == "BASELINE")
        & pl.col("served_entity_name").eq_missing(pl.lit(version, pl.String))
    )
    assert rows.height == 1
    return rows.row(0, named=True)


def counted(lake) -> dict[datetime, int]:
    """Rows per window, as the profile table tells."""
    rows = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table") & pl.col("served_entity_name").is_null()
    )
    assert rows["start"].n_unique() == rows.height, "a window stands in the table twice"
    return dict(rows.sort("start").select("start", "count").iter_rows())


def test_a_shifted_feature_drifts_and_the_others_do_not(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(week(0), 1500))
    lake.write(lake.rows(week(1), 1500, shift=10))
    lake.done(week(2))
    assert judged(lake, "temp", week(0))["status"] == "ok"
    drifted = judged(lake, "temp", week(1))
    assert drifted["status"] == "drifted" and drifted["severity"] == "critical"
    assert drifted["effect"] == pytest.approx(drifted["value"] / drifted["threshold"])
    assert drifted["n"] == 1500 and "temp" in drifted["text"]
    assert judged(lake, "carrier", week(1))["status"] == "ok"
    assert [alert.column for alert in lake.open_alerts()] == ["temp"]


def test_times_ids_and_truth_are_no_drift_columns(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(week(0), 300))
    lake.done(week(1))
    watched = set(lake.metrics("profile")["column_name"])
    assert watched == {
        ":table", "temp", "distance", "carrier", "tailnum", "prediction", "score",
    }  # fmt: skip
    assert "tailnum" not in set(lake.metrics()["column_name"])  # the baseline does not have it


def test_rows_and_labels_beyond_until_do_not_exist(lake):
    lake.monitor()
    frame = lake.rows(week(0), 2000, hours=14 * 24)
    lake.write(frame)
    lake.label(frame, timedelta(hours=30))
    lake.done(week(1))
    assert counted(lake) == {week(0): 1000}
    table = lake.metrics("profile").filter(pl.col("column_name") == ":table")
    labelled = frame.filter(pl.col("event_time") + timedelta(hours=30) <= week(1)).height
    matrix = table.filter(pl.col("served_entity_name").is_null())["confusion_matrix"][0]
    assert sum(cell["count"] for cell in matrix) == labelled
    lake.done(week(2))
    assert counted(lake) == {week(0): 1000, week(1): 1000}


def test_late_rows_and_late_labels_dirty_the_windows_of_their_events(lake):
    lake.monitor()
    first, second = lake.rows(week(0), 400), lake.rows(week(1), 400)
    lake.write(first)
    lake.write(second)
    lake.done(week(2))
    lake.write(lake.rows(week(0), 50))
    lake.label(first, timedelta(days=15))
    lake.done(week(3))
    assert counted(lake) == {week(0): 450, week(1): 400}
    table = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table") & pl.col("served_entity_name").is_null()
    )
    scored = dict(table.select("start", "accuracy_score").iter_rows())
    assert scored[week(0)] > 0.5 and scored[week(1)] is None


def told(lake) -> list[dict]:
    """What the profile table says of the quality of every week and version."""
    table = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table") & (pl.col("log_type") == "INPUT")
    )
    wanted = [
        "start",
        "served_entity_name",
        "count",
        "confusion_matrix",
        "quality",
        "roc_auc_score",
    ]
    return table.select(wanted).sort("start", "served_entity_name").to_dicts()


def test_labels_in_any_order_across_deaths_and_compactions_are_those_of_a_rescan(lake):
    """Late, repeated and of nobody; before their request; taken back by null."""
    lake.monitor(rules=False)
    frames = [lake.rows(week(n), 300, split={"v1": 50, "v2": 50}) for n in range(4)]
    labels = "main.flights.p_labels"
    lake.write(frames[0])
    lake.label(frames[1].head(80), timedelta(hours=-100))  # before its request
    lake.done(week(1))
    lake.write(frames[1])
    lake.label(frames[0].head(100))
    lake.restart()
    lake.done(week(2))
    lake.write(frames[2])
    lake.label(
        frames[0].slice(100, 100), timedelta(days=20)
    )  # its time comes with the last refresh
    lake.label(lake.rows(week(0), 50))  # of requests that are in no table
    newer = pl.col("client_request_id").is_in(frames[0]["client_request_id"].head(30).implode())
    again = pl.read_delta(lake.uri(labels)).filter(newer)
    lake.write(
        again.with_columns(label=pl.lit("0"), label_time=pl.col("label_time") + WEEK), labels
    )
    for table in (TABLE, labels):
        deltalake.DeltaTable(lake.uri(table)).optimize.compact()
    lake.done(week(3))
    lake.write(frames[3])
    lake.write(
        again.head(5).with_columns(
            label=pl.lit("null"), label_time=pl.col("label_time") + 2 * WEEK
        ),
        labels,
    )
    lake.restart()
    lake.done(week(4))
    step_by_step = told(lake)
    of_all = [row for row in step_by_step if row["served_entity_name"] is None]
    labelled = [sum(cell["count"] for cell in row["confusion_matrix"] or ()) for row in of_all]
    assert labelled == [200 - 5, 80, 0, 0]
    shutil.rmtree(lake.settings.data_dir / "monitors")
    lake.restart()
    lake.done(week(4))
    assert told(lake) == step_by_step


def test_an_earlier_until_forgets_what_came_later(lake):
    lake.monitor()
    lake.write(lake.rows(week(0), 600, hours=3 * 168))
    lake.done(week(3))
    lake.done(week(2))
    assert counted(lake) == {week(0): 200, week(1): 200}


@pytest.mark.parametrize("restart", [False, True])
def test_compaction_changes_nothing_and_loses_nothing(lake, restart):
    lake.monitor()
    for number in range(4):
        lake.write(lake.rows(week(0) + timedelta(hours=30 * number), 100, hours=30))
        if number == 2:
            lake.done(week(0) + timedelta(hours=75))  # some rows are known, some lie ahead
    deltalake.DeltaTable(lake.uri(TABLE)).optimize.compact()
    if restart:
        lake.restart()
    lake.done(week(1))
    assert counted(lake) == {week(0): 400}
    rows = lake.metrics("profile").filter(
        (pl.col("column_name") == "temp") & pl.col("served_entity_name").is_null()
    )
    assert rows["count"].to_list() == [400]


def test_after_a_restart_a_refresh_goes_on_where_it_was(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    first = lake.rows(week(0), 900, hours=1.5 * 168)
    lake.write(first)
    lake.done(week(1))
    lake.restart()
    lake.label(first)
    lake.write(lake.rows(week(1), 600))
    lake.done(week(2))
    assert counted(lake) == {week(0): 600, week(1): 900}
    matrix = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table") & pl.col("served_entity_name").is_null()
    )
    assert matrix["accuracy_score"].null_count() == 0


def test_a_process_that_died_in_its_first_refresh_leaves_nothing_that_the_next_one_trips_over(lake):
    """The baseline was profiled and what the monitor keeps was not yet saved; values that lie far
    from zero are counted around a centre, which is decided anew."""
    lake.baseline(temp=lake.random.normal(1000, 1, 6000))
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(week(0), 500, temp=lake.random.normal(1003, 1, 500)))
    lake.done(week(1))
    (manifest,) = (lake.settings.data_dir / "monitors").glob("*/manifest.json")
    manifest.unlink()
    lake.restart()
    lake.done(week(1))
    assert judged(lake, "temp", week(0))["status"] == "drifted"
    assert counted(lake) == {week(0): 500}


def test_a_monitor_that_lost_its_folder_reads_everything_again(lake):
    lake.monitor()
    lake.write(lake.rows(week(0), 300))
    lake.done(week(1))
    shutil.rmtree(lake.settings.data_dir / "monitors")
    lake.restart()
    lake.write(lake.rows(week(1), 300))
    lake.done(week(2))
    assert counted(lake) == {week(0): 300, week(1): 300}


@hypothesis_settings(
    max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_however_the_rows_come_the_windows_are_the_same(lake, data):
    """Files in any order, refreshes at any moment: as one refresh over everything."""
    whole = lake.rows(week(0), 120, hours=3 * 168)
    cuts = sorted(data.draw(st.lists(st.integers(0, 120), max_size=4)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, 120], strict=True) if b > a]
    for part in data.draw(st.permutations(parts)):
        lake.write(part, "main.flights.p_unpacked")
    moments = data.draw(st.lists(st.integers(0, 21 * 24), max_size=3))
    with database.transaction(lake.engine) as connection:
        state.delete_monitor(connection, TABLE)
    lake.restart()
    shutil.rmtree(lake.settings.data_dir / "monitors", ignore_errors=True)
    lake.monitor(rules=False)
    for hours in sorted(moments):
        lake.done(week(0) + timedelta(hours=hours))
    lake.done(week(3))
    table = pl.read_delta(lake.uri(TABLE))
    expected = table.group_by(pl.col("event_time").dt.truncate("1w")).len().rows()
    assert counted(lake) == dict(expected)
    mean = table.filter(pl.col("event_time") < week(1))["temp"].mean()
    shown = lake.metrics("profile").filter(
        (pl.col("column_name") == "temp")
        & (pl.col("start") == week(0))
        & pl.col("served_entity_name").is_null()
    )
    assert shown["avg"][0] == pytest.approx(mean)


def test_answers_are_compared_with_the_same_version_only(lake):
    start = week(-12)
    parts = []
    for version, shift in (("v1", 0.0), ("v2", 0.4)):
        frame = lake.rows(start, 4000, 12 * 168, split={version: 100})
        parts.append(
            frame.select(
                "event_time", "served_entity_name", "carrier",
                score=pl.col("score") * 0.5 + shift, prediction=pl.col("prediction"),
            )
        )  # fmt: skip
    lake.write(pl.concat(parts), BASELINE)
    lake.monitor(baseline_table_name=BASELINE)
    frame = lake.rows(week(0), 2000, split={"v1": 50, "v2": 50})
    is_v2 = pl.col("served_entity_name") == "v2"
    score = pl.when(is_v2).then(pl.col("score") * 0.5 + 0.4).otherwise(pl.col("score") * 0.5)
    lake.write(frame.with_columns(score=score))
    lake.done(week(1))
    for version in ("v1", "v2"):
        assert judged(lake, "score", week(0), version)["status"] == "ok"
    mixed = judged(lake, "score", week(0))
    assert mixed["status"] == "undefined" and "several versions" in mixed["text"]
    assert mixed["metric"] is None and mixed["severity"] is None


def test_a_missing_baseline_is_told_and_the_rest_goes_on(lake):
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(week(0), 300))
    lake.write(lake.rows(week(1), 300))
    found = lake.done(week(2))
    assert "baseline table does not exist" in found.message
    with database.reading(lake.engine) as connection:
        failing = state.failing_monitors(connection)
    assert [m.status for m in failing] == ["MONITOR_STATUS_ERROR"]
    assert set(lake.metrics()["drift_type"]) == {"CONSECUTIVE"}
    lake.baseline()
    lake.write(lake.rows(week(2), 300))
    assert lake.done(week(3)).message is None
    assert judged(lake, "temp", week(2))["status"] in ("ok", "drifted")


def test_a_new_baseline_counts_from_then_on(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(week(0), 1200, shift=10))
    lake.done(week(1))
    assert judged(lake, "temp", week(0))["status"] == "drifted"
    spec = {"kind": "window", "start": week(0).isoformat(), "end": week(1).isoformat()}
    with database.transaction(lake.engine) as connection:
        state.add_baseline(connection, TABLE, spec, "ann", 2)
    lake.write(lake.rows(week(1), 1200, shift=10))
    lake.done(week(2))
    assert judged(lake, "temp", week(0))["baseline_version"] == 1
    now = judged(lake, "temp", week(1))
    assert now["baseline_version"] == 2 and now["status"] == "ok"


def test_the_newest_window_meets_a_new_baseline_at_once(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(week(0), 1200, shift=10))
    lake.done(week(1))
    assert [alert.column for alert in lake.open_alerts()] == ["temp"]
    spec = {"kind": "window", "start": week(0).isoformat(), "end": week(1).isoformat()}
    with database.transaction(lake.engine) as connection:
        state.add_baseline(connection, TABLE, spec, "ann", 2)
    lake.restart()
    lake.done(week(1))
    assert judged(lake, "temp", week(0))["baseline_version"] == 2 and lake.open_alerts() == []


def test_a_previous_or_rolling_baseline_moves_along(lake):
    """A level that shifts once is drift in the week it shifts; against three weeks it still is in
    the week after, and late rows of the week before are compared again."""
    lake.monitor()
    with database.transaction(lake.engine) as connection:
        state.add_baseline(connection, TABLE, {"kind": "previous", "windows": 1}, "ann", 1)
    for number, shift in enumerate((0, 0, 10, 10)):
        lake.write(lake.rows(week(number), 1200, shift=shift))
    lake.done(week(4))
    statuses = [judged(lake, "temp", week(number))["status"] for number in (1, 2, 3)]
    assert statuses == ["ok", "drifted", "ok"]
    assert judged(lake, "temp", week(3))["n_baseline"] == 1200
    with database.transaction(lake.engine) as connection:
        state.add_baseline(connection, TABLE, {"kind": "rolling", "windows": 3}, "ann", 2)
    lake.done(week(4))
    newest = judged(lake, "temp", week(3))
    assert (newest["status"], newest["n_baseline"]) == ("drifted", 3600)
    assert newest["baseline_version"] == 2
    lake.write(lake.rows(week(1), 300))
    lake.done(week(4))
    assert judged(lake, "temp", week(3))["n_baseline"] == 3900


def test_missing_values_and_a_stale_feature_raise_alerts_in_words(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    lake.add_rule("feature_age_hours", 3.0, column="as_of")
    frame = lake.rows(week(0), 400).with_columns(
        temp=pl.when(pl.int_range(pl.len()) % 2 == 0).then("temp"),
        as_of=pl.col("event_time") - pl.duration(hours=7),
    )
    lake.write(frame)
    lake.done(week(1))
    found = {alert.metric: alert for alert in lake.open_alerts() if alert.metric != "drift"}
    assert set(found) == {"null_share", "feature_age_hours"}
    assert found["null_share"].severity == "critical" and found["null_share"].column == "temp"
    assert "temp is missing in 50% of 400 rows in the week of 1 January 2024" in (
        found["null_share"].message
    )
    assert found["feature_age_hours"].value == pytest.approx(7)


def test_an_error_rate_is_explained_by_the_column_that_tells_it_best(lake):
    lake.monitor()
    frame = lake.rows(week(0), 60, hours=24)
    lake.write(lake.failing(frame, pl.col("carrier") == "AA"))
    lake.done(week(1))
    (found,) = lake.open_alerts()
    failed = frame.filter(pl.col("carrier") == "AA").height
    assert found.metric == "error_rate" and found.severity == "critical" and found.n == 60
    assert f"{failed} of 60 requests of v1 failed" in found.message
    assert found.message.endswith(f"By carrier: AA {failed} of {failed}.")


def test_no_rows_is_no_data_and_no_verdict(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    found = lake.done()
    assert found.message is None and lake.open_alerts() == []
    assert tables.open_table(lake.uri("main.flights.p_unpacked_drift_metrics")) is None


def test_few_rows_are_not_enough_data(lake):
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    lake.write(lake.rows(week(0), 30, shift=50))
    lake.done(week(1))
    assert judged(lake, "temp", week(0))["status"] == "not_enough_data"
    assert lake.open_alerts() == []


def test_a_refresh_that_fails_says_so_and_the_next_one_works(lake):
    lake.monitor()
    lake.write(lake.rows(week(0), 300))
    lake.done(week(1))
    data = lake.rows(week(1), 100)
    lake.write(data)
    path = next(
        p
        for p in (lake.settings.data_dir / "tables/main/flights/p_unpacked").rglob("*.parquet")
        if pl.read_parquet(p)["databricks_request_id"][0] == data["databricks_request_id"][0]
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    failed = lake.refresh(week(2))
    assert failed.state == "FAILED" and failed.message
    with database.transaction(lake.engine) as connection:
        assert [e.type for e in outbox.waiting(connection)] == ["monitor.failed"]
    path.write_bytes(whole)
    lake.done(week(2))
    assert counted(lake) == {week(0): 300, week(1): 100}


@pytest.mark.parametrize("kind", ["held/rows", "held/keys", "held/hours", "window"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_lost_or_torn_file_of_its_own_costs_a_full_read_and_no_more(lake, kind, gone):
    lake.monitor(rules=False)
    frame = lake.rows(week(0), 300)
    lake.write(frame)
    lake.done(week(1))
    lake.restart()
    folder = lake.settings.data_dir / "monitors" / "t1"
    for path in folder.glob(f"{kind}*"):
        path.unlink() if gone else path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lake.write(lake.rows(week(0), 50))
    lake.label(frame)
    lake.done(week(1))
    assert counted(lake) == {week(0): 350}
    assert sum(cell["count"] for cell in told(lake)[0]["confusion_matrix"]) >= 290


def test_a_cancelled_refresh_leaves_everything_as_it_was(lake):
    lake.monitor()
    lake.write(lake.rows(week(0), 300))
    with database.transaction(lake.engine) as connection:
        number = state.request_refresh(connection, TABLE, "MANUAL", None, 1)
        state.start_refresh(connection, number, 1)
        state.cancel_refresh(connection, TABLE, number, 1)
        state.queue_again(connection)
    while lake.rounds.run_pending():
        pass
    with database.reading(lake.engine) as connection:
        assert state.get_refresh(connection, TABLE, number).state == "CANCELED"
    assert tables.open_table(lake.uri("main.flights.p_unpacked_profile_metrics")) is None
    lake.done(week(1))
    assert counted(lake) == {week(0): 300}


def test_a_wrong_date_far_ahead_does_not_move_the_story_clock(lake):
    lake.monitor()
    frame = lake.rows(week(0), 300)
    wrong = datetime(2999, 1, 1, tzinfo=UTC)
    last = pl.int_range(pl.len()) == 299
    lake.write(frame.with_columns(event_time=pl.when(last).then(wrong).otherwise("event_time")))
    lake.done()
    assert counted(lake) == {week(0): 299}
    with database.reading(lake.engine) as connection:
        until = datetime.fromisoformat(state.monitor(connection, TABLE).summary["until"])
    assert until < week(1)


def test_two_granularities_and_the_window_before(lake):
    lake.monitor(inference_log={"granularities": ["1 day", "1 week"]})
    lake.write(lake.rows(week(0), 700))
    lake.done(week(1))
    days = lake.metrics().filter(
        (pl.col("granularity") == "1 day")
        & (pl.col("column_name") == "temp")
        & pl.col("served_entity_name").is_null()
    )
    assert days.height == 6 and set(days["drift_type"]) == {"CONSECUTIVE"}
    first = days.sort("start").row(0, named=True)
    assert first["window_cmp"]["end"] == first["start"] == MONDAY + timedelta(days=1)
    weeks = lake.metrics("profile").filter(pl.col("granularity") == "1 week")
    assert set(weeks["start"]) == {week(0)}


def test_a_snapshot_monitor_compares_with_the_refresh_before(lake):
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "kind": ["a", "b", "a"]})
    lake.write(frame, "main.flights.plain")
    with database.transaction(lake.engine) as connection:
        config = {"output_schema_name": "main.flights", "snapshot": {}}
        state.create_monitor(connection, "main.flights.plain", "t2", config, "ann", 1)
    assert lake.refresh(table="main.flights.plain").state == "SUCCESS"
    lake.write(frame, "main.flights.plain")
    assert lake.refresh(table="main.flights.plain").state == "SUCCESS"
    rows = lake.metrics("profile", "plain").filter(pl.col("column_name") == "x")
    assert rows.sort("start")["count"].to_list() == [3, 6]
    assert rows["granularity"].null_count() == 2
    drift = lake.metrics("drift", "plain")
    assert set(drift["drift_type"]) == {"CONSECUTIVE"} and drift["count_delta"].to_list() == [3, 3]


def test_a_table_without_ids_is_read_anew_when_its_files_change(lake):
    lake.monitor(rules=False)
    log = {"timestamp_col": "event_time", "granularities": ["1 week"]}
    config = {"output_schema_name": "main.flights", "time_series": log}
    with database.transaction(lake.engine) as connection:
        state.create_monitor(connection, "main.flights.plain", "t2", config, "ann", 1)
    for _ in range(2):
        lake.write(lake.rows(week(0), 50).select("event_time", "temp"), "main.flights.plain")
        assert lake.refresh(week(1), "main.flights.plain").state == "SUCCESS"
    deltalake.DeltaTable(lake.uri("main.flights.plain")).optimize.compact()
    assert lake.refresh(week(1), "main.flights.plain").state == "SUCCESS"
    rows = lake.metrics("profile", "plain").filter(pl.col("column_name") == "temp")
    assert rows["count"].to_list() == [100]
