"""Custom metrics through refreshes of real tables, against polars on the raw rows."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import orjson
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_score

from capture import database, errors
from monitors import (
    contract,
    custom_checks,
    custom_definitions,
    custom_metrics,
    custom_sums,
    reads,
    state,
    tables,
)

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(weeks=1)
TABLE, BASELINE = "main.flights.p_unpacked", "main.flights.p_baseline"


def metric(kind: str, name: str, definition: str, *columns: str, type_: str = "double") -> dict:
    return {
        "type": f"CUSTOM_METRIC_TYPE_{kind}",
        "name": name,
        "input_columns": list(columns or (":table",)),
        "definition": definition,
        "output_data_type": type_,
    }


def aggregate(name: str, definition: str, *columns: str, **more: str) -> dict:
    return metric("AGGREGATE", name, definition, *columns, **more)


def derived(name: str, definition: str, *columns: str, **more: str) -> dict:
    return metric("DERIVED", name, definition, *columns, **more)


def drift(name: str, definition: str, *columns: str, **more: str) -> dict:
    return metric("DRIFT", name, definition, *columns, **more)


SQUARES = aggregate("squares", "avg(`{{input_column}}` * `{{input_column}}`)", "temp", "distance")
ROOT = derived("root", "sqrt(squares)", "temp", "distance")
COST = aggregate(
    "cost",
    "avg(CASE WHEN {{label_col}} IS NULL THEN NULL WHEN {{prediction_col}} = {{label_col}} THEN 0 "
    "WHEN carrier = 'UA' THEN 5 ELSE 1 END)",
)


READING = {
    "table": TABLE,
    "table_id": "t1",
    "profile_table": f"{TABLE}_profile_metrics",
    "drift_table": f"{TABLE}_drift_metrics",
    "granularity": "1 week",
    "model_id_col": "served_entity_name",
    "outputs": ["prediction", "score"],
}
SCHEMA = {
    "databricks_request_id": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "temp": pl.Float64(),
    "distance": pl.Float64(),
    "carrier": pl.String(),
    "prediction": pl.Float64(),
    "score": pl.Float64(),
}


def config_of(*metrics: dict) -> dict[str, Any]:
    """The configuration of a monitor with these metrics, past its first check."""
    log = {
        "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
        "timestamp_col": "event_time",
        "granularities": ["1 week"],
        "prediction_col": "prediction",
        "model_id_col": "served_entity_name",
        "label_col": "label",
    }
    body = {"output_schema_name": "main.flights", "inference_log": log}
    return contract.monitor_config({**body, "custom_metrics": list(metrics)})


def costs_of(rows: pl.DataFrame) -> float:
    """What COST says of rows with their labels."""
    weight = pl.when(pl.col("carrier") == "UA").then(5.0).otherwise(1.0)
    right = pl.col("prediction") == pl.col("label")
    found = rows.select(pl.when(right).then(0.0).otherwise(weight)).to_series().mean()
    assert isinstance(found, float)
    return found


def rows_of(lake, column: str, kind: str = "profile", **where: Any) -> pl.DataFrame:
    rows = lake.metrics(kind).filter(pl.col("column_name") == column)
    for name in ("served_entity_name", "slice_key", "slice_value"):
        rows = rows.filter(pl.col(name).eq_missing(pl.lit(where.get(name), pl.String)))
    return rows.filter(pl.col("log_type") == where.get("log_type", "INPUT")).sort("start")


def change(lake, *metrics: dict) -> None:
    """The monitor with other custom metrics."""
    with database.transaction(lake.engine) as connection:
        given = {"custom_metrics": list(metrics), "output_schema_name": "main.flights"}
        config = contract.updated_config(state.monitor(connection, TABLE).config, given)
        state.replace_config(connection, TABLE, config, 1)


def kept_files(lake) -> dict[str, Path]:
    """What the monitor keeps of its windows."""
    folder = lake.settings.data_dir / "monitors" / "t1"
    return {path.name: path for path in folder.glob("window-*")}


def truth(lake, frame: pl.DataFrame) -> pl.DataFrame:
    known = [int(lake.late[one]) for one in frame["databricks_request_id"].to_list()]
    return frame.with_columns(label=pl.Series(known, dtype=pl.Float64))


def test_aggregates_are_those_of_the_raw_rows_per_window_version_and_slice(lake):
    metrics = [
        SQUARES,
        aggregate("spread", "stddev({{input_column}}) + min({{input_column}})", "temp"),
        aggregate("far", "count_if(distance > 300)", type_="bigint"),
        aggregate("mixed", "100 * sum(temp * distance) / count(*) - max(temp) + var_pop(temp)"),
        aggregate("slow", "max(execution_duration_ms)", "execution_duration_ms", type_="int"),
        aggregate("many", "count(temp) > 100", type_="boolean"),
    ]
    lake.monitor(custom_metrics=metrics, slicing_exprs=["carrier = 'UA'"])
    frames = [
        lake.rows(MONDAY + n * WEEK, 400, split={"v1": 60, "v2": 40}).with_columns(
            temp=pl.when(pl.col("carrier") == "AA").then(None).otherwise("temp")
        )
        for n in range(2)
    ]
    for frame in frames:
        lake.write(frame)
    lake.done(MONDAY + 2 * WEEK)
    for number, frame in enumerate(frames):
        for where, part in (
            ({}, frame),
            ({"served_entity_name": "v2"}, frame.filter(pl.col("served_entity_name") == "v2")),
            (
                {"slice_key": "carrier = 'UA'", "slice_value": "true"},
                frame.filter(pl.col("carrier") == "UA"),
            ),
        ):
            temp, distance = part["temp"], part["distance"]
            found = rows_of(lake, "temp", **where).row(number, named=True)
            assert found["squares"] == pytest.approx((temp**2).mean())
            assert found["spread"] == pytest.approx(temp.std() + temp.min())
            assert found["far"] is None
            table = rows_of(lake, ":table", **where).row(number, named=True)
            mixed = 100 * (temp * distance).sum() / part.height - temp.max() + temp.var(ddof=0)
            assert table["mixed"] == pytest.approx(mixed)
            assert table["far"] == part.filter(pl.col("distance") > 300).height
            assert table["many"] is (temp.count() > 100)
            assert table["squares"] is None
            slow = rows_of(lake, "execution_duration_ms", **where).row(number, named=True)
            assert slow["slow"] == 5
    schema = deltalake.DeltaTable(lake.uri(f"{TABLE}_profile_metrics")).schema()
    types = {field.name: str(field.type) for field in schema.fields}
    assert list(types)[-6:] == ["squares", "spread", "far", "mixed", "slow", "many"]
    assert "long" in types["far"] and "boolean" in types["many"] and "integer" in types["slow"]


def test_labels_that_come_later_reach_the_metrics_that_name_them(lake):
    wrong = aggregate("wrong_by", "avg(abs({{input_column}} - {{label_col}}))", "score")
    lake.monitor(custom_metrics=[COST, wrong])
    frame = lake.rows(MONDAY, 500)
    lake.write(frame)
    lake.done(MONDAY + WEEK)
    assert rows_of(lake, ":table")["cost"].to_list() == [None]
    assert rows_of(lake, "score")["wrong_by"].to_list() == [None]
    lake.label(frame, timedelta(days=10))
    lake.done(MONDAY + 3 * WEEK)
    known = truth(lake, frame)
    assert rows_of(lake, ":table")["cost"].to_list() == [pytest.approx(costs_of(known))]
    by = (known["score"] - known["label"]).abs().mean()
    assert rows_of(lake, "score")["wrong_by"].to_list() == [pytest.approx(by)]
    lake.restart()
    late = lake.rows(MONDAY, 100)
    lake.write(late)
    lake.done(MONDAY + 4 * WEEK)
    assert rows_of(lake, ":table")["cost"].to_list() == [pytest.approx(costs_of(known))]


def test_derived_metrics_are_arithmetic_on_the_same_row(lake):
    metrics = [
        ROOT,
        SQUARES,
        derived("skew", "3 * (avg - median) / NULLIF(stddev, 0)", "temp"),
        derived("doubled", "root * 2", "temp"),
        derived("none", "squares / (count - count)", "temp"),
        aggregate("answers", "count({{prediction_col}})", type_="int"),
        derived("answered", "answers / count + accuracy_score + precision.macro"),
    ]
    lake.monitor(custom_metrics=metrics)
    frame = lake.rows(MONDAY, 600)
    lake.write(frame)
    lake.label(frame)
    lake.done(MONDAY + 2 * WEEK)
    row = rows_of(lake, "temp").row(0, named=True)
    assert row["root"] == pytest.approx((frame["temp"] ** 2).mean() ** 0.5)
    assert row["doubled"] == pytest.approx(2 * row["root"]) and row["none"] is None
    assert row["skew"] == pytest.approx(3 * (row["avg"] - row["median"]) / row["stddev"])
    known = truth(lake, frame)
    y, p = known["label"].to_numpy(), known["prediction"].to_numpy()
    expected = 1 + accuracy_score(y, p) + precision_score(y, p, average="macro")
    assert rows_of(lake, ":table")["answered"].to_list() == [pytest.approx(expected)]


def test_drift_metrics_meet_the_baseline_and_the_window_before(lake):
    lake.baseline(n=2000)
    moved = "{{current_df}}.squares - {{base_df}}.squares"
    worse = "{{current_df}}.accuracy_score - {{base_df}}.accuracy_score"
    metrics = [SQUARES, drift("moved", moved, "temp"), COST, drift("worse", worse), drift(
        "dearer", "{{current_df}}.cost / {{base_df}}.cost"
    )]  # fmt: skip
    lake.monitor(custom_metrics=metrics, baseline_table_name=BASELINE)
    frames = [lake.rows(MONDAY + n * WEEK, 500, shift=3.0 * n) for n in range(2)]
    for frame in frames:
        lake.write(frame)
        lake.label(frame)
    lake.done(MONDAY + 3 * WEEK)
    base = pl.read_delta(lake.uri(BASELINE))
    square = [(frame["temp"] ** 2).mean() for frame in (*frames, base)]
    found = rows_of(lake, "temp", "drift").filter(pl.col("start") == MONDAY + WEEK)
    moves = dict(found.select("drift_type", "moved").iter_rows())
    assert moves["BASELINE"] == pytest.approx(square[1] - square[2])
    assert moves["CONSECUTIVE"] == pytest.approx(square[1] - square[0])
    right = [(frame["prediction"] == frame["label"]).mean() for frame in
             (*(truth(lake, frame) for frame in frames), base)]  # fmt: skip
    whole = rows_of(lake, ":table", "drift").filter(pl.col("start") == MONDAY + WEEK)
    worse_by = dict(whole.select("drift_type", "worse").iter_rows())
    assert worse_by["BASELINE"] == pytest.approx(right[1] - right[2])
    assert worse_by["CONSECUTIVE"] == pytest.approx(right[1] - right[0])
    first = rows_of(lake, ":table", "drift").filter(pl.col("start") == MONDAY)
    assert first["drift_type"].to_list() == ["BASELINE"]
    assert first["dearer"].is_not_null().all()
    in_baseline = rows_of(lake, "temp", log_type="BASELINE")["squares"].to_list()
    assert in_baseline == [pytest.approx(square[2])]
    shown = reads.drift(lake.settings, {**READING, "filters": {}})
    assert ":table" not in [column["name"] for column in shown["columns"]]


def test_a_rolling_baseline_is_the_sum_of_the_windows_before(lake):
    moved = drift("moved", "{{current_df}}.squares - {{base_df}}.squares", "temp")
    cost = drift("dearer", "{{current_df}}.cost - {{base_df}}.cost")
    lake.monitor(custom_metrics=[SQUARES, COST, moved, cost])
    with database.transaction(lake.engine) as connection:
        spec = {"kind": "rolling", "windows": 2}
        state.add_baseline(connection, TABLE, spec, "ann", 1)
    frames = [lake.rows(MONDAY + n * WEEK, 300 + 50 * n, shift=n) for n in range(3)]
    for frame in frames:
        lake.write(frame)
        lake.label(frame)
    lake.done(MONDAY + 4 * WEEK)
    before = pl.concat(frames[:2])
    expected = (frames[2]["temp"] ** 2).mean() - (before["temp"] ** 2).mean()
    last = pl.col("start") == MONDAY + 2 * WEEK, pl.col("drift_type") == "BASELINE"
    found = rows_of(lake, "temp", "drift").filter(*last)["moved"].to_list()
    assert found == [pytest.approx(expected)]
    costs = [costs_of(truth(lake, frame)) for frame in (frames[2], before)]
    found = rows_of(lake, ":table", "drift").filter(*last)["dearer"].to_list()
    assert found == [pytest.approx(costs[0] - costs[1])]


def test_a_snapshot_sums_up_the_table_as_it_grows(lake):
    name = "main.flights.plain"
    frames = [lake.rows(MONDAY, 200).select("temp", "distance") for _ in range(2)]
    body = {
        "output_schema_name": "main.flights",
        "snapshot": {},
        "custom_metrics": [SQUARES, drift("more", "{{current_df}}.count - {{base_df}}.count")],
    }
    lake.write(frames[0], name)
    with database.transaction(lake.engine) as connection:
        config = contract.monitor_config(body)
        state.create_monitor(connection, name, "t2", config, "ann", 1)
    lake.refresh(table=name)
    lake.write(frames[1], name)
    assert lake.refresh(table=name).state == "SUCCESS"
    rows = lake.metrics("profile", "plain").filter(pl.col("column_name") == "temp").sort("start")
    grown = [pl.concat(frames[:n])["temp"] for n in (1, 2)]
    assert rows["squares"].to_list() == [pytest.approx((one**2).mean()) for one in grown]
    whole = lake.metrics("drift", "plain").filter(pl.col("column_name") == ":table")
    assert whole["more"].to_list() == [200]


def test_a_column_that_comes_later_is_null_before(lake):
    lake.monitor(custom_metrics=[aggregate("gust", "sum(wind) / count(*)")])
    lake.write(lake.rows(MONDAY, 100))
    lake.done(MONDAY + WEEK)
    assert rows_of(lake, ":table")["gust"].to_list() == [None]
    lake.write(lake.rows(MONDAY, 100).with_columns(wind=pl.lit(3.0)))
    lake.done(MONDAY + WEEK)
    assert rows_of(lake, ":table")["gust"].to_list() == [1.5]


def test_a_metric_that_does_not_fit_the_rows_is_null_and_says_so(lake):
    metrics = [aggregate("wrong", "avg(abs(carrier))"), aggregate("right", "avg(temp)")]
    lake.monitor(custom_metrics=metrics)
    frame = lake.rows(MONDAY, 100)
    lake.write(frame)
    done = lake.done(MONDAY + WEEK)
    assert "ABS(carrier)" in done.message
    row = rows_of(lake, ":table").row(0, named=True)
    assert row["wrong"] is None and row["right"] == pytest.approx(frame["temp"].mean())


def test_other_metrics_begin_with_everything_read_again(lake):
    lake.monitor(custom_metrics=[SQUARES])
    frame = lake.rows(MONDAY, 200)
    lake.write(frame)
    lake.done(MONDAY + WEEK)
    change(lake, SQUARES, aggregate("mean", "avg({{input_column}})", "temp"))
    done = lake.done(MONDAY + WEEK)
    row = rows_of(lake, "temp").row(0, named=True)
    assert row["mean"] == pytest.approx(frame["temp"].mean()) and done.progress["rows"] == 200
    change(lake, SQUARES)
    lake.done(MONDAY + WEEK)
    assert rows_of(lake, "temp")["mean"].to_list() == [None]


def test_other_formulas_over_the_same_sums_read_no_row_again(lake):
    lake.baseline(n=500)
    lake.monitor(custom_metrics=[SQUARES], baseline_table_name=BASELINE, slicing_exprs=["carrier"])
    frames = [lake.rows(MONDAY + n * WEEK, 200) for n in range(2)]
    for frame in frames:
        lake.write(frame)
    lake.done(MONDAY + 2 * WEEK)
    before = {key: one.read_bytes() for key, one in kept_files(lake).items()}
    change(lake, SQUARES, ROOT, drift("moved", "{{current_df}}.root - {{base_df}}.root", "temp"))
    done = lake.done(MONDAY + 2 * WEEK)
    assert done.progress["rows"] == 0
    assert {key: one.read_bytes() for key, one in kept_files(lake).items()} == before
    roots = [
        (frame["temp"] ** 2).mean() ** 0.5 for frame in (*frames, pl.read_delta(lake.uri(BASELINE)))
    ]
    assert rows_of(lake, "temp")["root"].to_list() == pytest.approx(roots[:2])
    assert rows_of(lake, "temp", log_type="BASELINE")["root"].to_list() == pytest.approx(roots[2:])
    ua = frames[0].filter(pl.col("carrier") == "UA")["temp"]
    cut = rows_of(lake, "temp", slice_key="carrier", slice_value="UA")
    assert cut["root"][0] == pytest.approx((ua**2).mean() ** 0.5)
    moved = rows_of(lake, "temp", "drift").filter(pl.col("drift_type") == "BASELINE")
    assert moved["moved"].to_list() == pytest.approx([roots[0] - roots[2], roots[1] - roots[2]])


def test_late_rows_a_restart_and_compaction_change_no_number(lake):
    metrics = [SQUARES, COST, aggregate("spread", "stddev(temp) * count(*)")]
    lake.monitor(custom_metrics=metrics)
    frames = [lake.rows(MONDAY + timedelta(hours=30 * n), 150, hours=30) for n in range(4)]
    for number, frame in enumerate(frames):
        lake.write(frame)
        if number % 2 == 0:
            lake.done(MONDAY + timedelta(hours=30 * number + 15))
    deltalake.DeltaTable(lake.uri(TABLE)).optimize.compact()
    lake.restart()
    late = lake.rows(MONDAY, 50)
    lake.write(late)
    lake.done(MONDAY + WEEK)
    whole = pl.concat([*frames, late])
    assert rows_of(lake, "temp")["squares"].to_list() == [
        pytest.approx((whole["temp"] ** 2).mean())
    ]
    spread = rows_of(lake, ":table")["spread"].to_list()
    assert spread == [pytest.approx(whole["temp"].std() * whole.height)]


@hypothesis_settings(
    max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_however_the_rows_come_the_metrics_are_the_same(lake, data):
    """Files in any order, refreshes at any moment: as polars over all rows at once."""
    whole = lake.rows(MONDAY, 120, hours=2 * 168)
    cuts = sorted(data.draw(st.lists(st.integers(0, 120), max_size=4)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, 120], strict=True) if b > a]
    moments = sorted(data.draw(st.lists(st.integers(0, 14 * 24), max_size=3)))
    for folder in (
        lake.uri(TABLE),
        lake.uri("main.flights.p_labels"),
        lake.settings.data_dir / "monitors",
    ):
        shutil.rmtree(folder, ignore_errors=True)
    with database.transaction(lake.engine) as connection:
        state.delete_monitor(connection, TABLE)
    lake.restart()
    spread = aggregate("spread", "var_samp(temp) + max(distance) - min(temp)")
    lake.monitor(rules=False, custom_metrics=[SQUARES, spread, COST])
    for part in data.draw(st.permutations(parts)):
        lake.write(part)
        if moments:
            lake.done(MONDAY + timedelta(hours=moments.pop(0)))
    lake.label(whole)
    lake.done(MONDAY + 3 * WEEK)
    for number in range(2):
        start = MONDAY + number * WEEK
        rows = whole.filter(pl.col("event_time").is_between(start, start + WEEK, closed="left"))
        temp = rows["temp"]
        found = rows_of(lake, "temp").row(number, named=True)
        assert found["squares"] == pytest.approx((temp**2).mean(), rel=1e-12)
        table = rows_of(lake, ":table").row(number, named=True)
        expected = temp.var() + rows["distance"].max() - temp.min()
        assert table["spread"] == pytest.approx(expected, rel=1e-12)
        assert table["cost"] == pytest.approx(costs_of(truth(lake, rows)), rel=1e-12)


# --- sums ----------------------------------------------------------------------------------------


numbers = st.lists(
    st.one_of(st.none(), st.just(float("nan")), st.floats(-1e6, 1e6)), min_size=1, max_size=40
)


@given(values=numbers, seed=st.randoms(use_true_random=False))
def test_any_split_in_any_order_gives_the_same_statistics(values, seed):
    order = list(values)
    seed.shuffle(order)
    cut = seed.randint(0, len(order))
    part = custom_definitions.read(
        [aggregate("m", "sum(x)")], custom_metrics.Context()
    ).parts.values()
    sums = []
    for some in (order[:cut], order[cut:]):
        ready = custom_sums.prepared(pl.DataFrame({"x": pl.Series(some, dtype=pl.Float64)}), part)
        measured = custom_sums.measured(ready, ready.rows, None)[None, "x"]
        stored = orjson.loads(orjson.dumps(custom_sums.to_dict(measured)))
        sums.append(custom_sums.from_dict(stored))
    found = custom_sums.merge(*sums)
    x = pl.Series(values, dtype=pl.Float64).drop_nulls().drop_nans()
    expected = {
        "count": x.sum(), "sum": x.sum() if len(x) else None, "avg": x.mean(), "min": x.min(),
        "max": x.max(), "stddev_samp": x.std(), "stddev_pop": x.std(ddof=0),
        "var_samp": x.var(), "var_pop": x.var(ddof=0),
    }  # fmt: skip
    for name, value in expected.items():
        one = custom_sums.statistic(found, name)
        assert one == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-6)), name


def test_beyond_the_range_of_a_double_nothing_is_said():
    part = custom_definitions.read(
        [aggregate("m", "sum(x)")], custom_metrics.Context()
    ).parts.values()
    ready = custom_sums.prepared(pl.DataFrame({"x": [1.7e308, 1.7e308]}), part)
    one = custom_sums.measured(ready, ready.rows, None)[None, "x"]
    again = custom_sums.from_dict(orjson.loads(orjson.dumps(custom_sums.to_dict(one))))
    for sums in (one, again, custom_sums.merge(one, again)):
        assert custom_sums.statistic(sums, "sum") is None
        assert custom_sums.statistic(sums, "stddev_samp") is None
        assert custom_sums.statistic(sums, "max") == 1.7e308


# --- hostile text --------------------------------------------------------------------------------


DEEP = "(" * 5000 + "temp" + ")" * 5000
HOSTILE = [
    ("avg(read_csv('/etc/passwd'))", "ReadCSV"),
    ("avg(input_file_name(temp))", "INPUT_FILE_NAME"),
    ("avg((SELECT max(temp) FROM t))", "Subquery"),
    ("(SELECT 1)", "Subquery"),
    ("EXISTS (SELECT 1)", "Exists"),
    ("avg(temp); DROP TABLE t", "one expression"),
    ("DROP TABLE t", "Drop"),
    ("avg(@x)", "Parameter"),
    ("avg(${x})", "Parameter"),
    ("avg(temp) -- more", "comment"),
    ("avg(/* x */ temp)", "comment"),
    (f"avg({DEEP})", "2000 characters"),
    (f"avg({DEEP[4800:5204]})", "cannot be read|parts|deep"),
    ("avg(temp) / 0", "divides by zero"),
    ("avg(temp / 0.0)", "divides by zero"),
    ("avg(temp) % 0", "Mod.*divides by zero"),
    ("avg(wind)", "'wind' is not there"),
    ("avg(carrier * 2)", "carrier"),
    ("avg(carrier)", "a number is needed"),
    ("count_if(temp)", "Boolean"),
    ("median(temp)", "Median.*does not add up.*allowed: count"),
    ("percentile(temp, 0.5)", "Quantile.*does not add up"),
    ("count(DISTINCT temp)", "does not add up"),
    ("approx_count_distinct(temp)", "ApproxDistinct.*does not add up"),
    ("sum(temp) OVER ()", "Window"),
    ("sum(temp) FILTER (WHERE temp > 0)", "Filter"),
    ("avg(sum(temp))", "Sum"),
    ("temp + 1", "'temp' stands outside"),
    ("1 + 1", "no aggregate"),
    ("count()", "lacks an argument"),
    ("avg(*)", "Star"),
    ("avg(t.temp)", "name a column alone"),
    ("avg(temp) AS x", "Alias"),
    ("CASE WHEN avg(temp) > 1 THEN 'high' END", "no number"),
    ("avg({{input_column}})", "input_column.*not :table"),
    ("avg({{current_df}}.temp)", "current_df.*not allowed"),
    ("avg({{config}})", "config.*not allowed"),
    ("avg('{{prediction_col}}')", "without quotes"),
    ("avg(x{{prediction_col}})", "without quotes"),
    ("{{prediction_col}}(temp)", "Anonymous"),
    ("avg({{prediction_col}}.x)", "name a column alone"),
    ("avg({{ {{prediction_col}} }})", "Jinja"),
    ("avg({% for x in y %}temp{% endfor %})", "Jinja"),
    ("avg({{ ''.__class__ }})", "Jinja"),
    ("avg(inferlake_template_prediction_col)", "reserved"),
]


@pytest.mark.parametrize(("text", "named"), HOSTILE)
def test_a_hostile_aggregate_is_refused_by_name(text, named):
    with pytest.raises(errors.InvalidParameter, match=named) as refused:
        custom_checks.check(config_of(aggregate("m", text)), SCHEMA, [], True)
    assert "custom_metrics[0]" in refused.value.message
    assert len(refused.value.message) < 2000


@pytest.mark.parametrize(
    ("metric", "named"),
    [
        (derived("m", "(SELECT squares FROM t)", "temp"), "Subquery"),
        (derived("m", "avg(squares)", "temp"), "Avg.*AGGREGATE"),
        (derived("m", "cost + 1", "temp"), "'cost' is no metric of temp; there are squares"),
        (derived("m", "squares + 1"), "'squares' is no metric of :table"),
        (derived("m", "temp + 1", "temp"), "'temp' is no metric"),
        (derived("m", "quantiles[500]", "temp"), "Bracket"),
        (derived("m", "squares / 0", "temp"), "divides by zero"),
        (derived("m", "{{input_column}} + 1", "temp"), "input_column.*not allowed"),
        (derived("m", "{{current_df}}.squares", "temp"), "current_df.*not allowed"),
        (derived("m", "read_csv(squares)", "temp"), "ReadCSV"),
        (derived("m", "1 + 1", "temp"), "names no metric"),
        (drift("m", "squares", "temp"), "write {{current_df}}"),
        (drift("m", "{{current_df}}", "temp"), "write {{current_df}}"),
        (drift("m", "'{{current_df}}'", "temp"), "without quotes"),
        (drift("m", "{{current_df}}.wind", "temp"), "'wind' is no metric"),
        (drift("m", "{{base_df}}.{{current_df}}", "temp"), "no metric"),
        (drift("m", "{{input_column}}", "temp"), "input_column.*not allowed"),
        (drift("m", "{{current_df}}.squares / 0", "temp"), "divides by zero"),
        (aggregate("avg", "sum(temp)"), "name: 'avg' is the name of another"),
        (aggregate("SQUARES", "sum(temp)"), "name: 'SQUARES' is the name of another"),
        (aggregate("window_key", "sum(temp)"), "another metric"),
        (aggregate("served_entity_name", "sum(temp)"), "tells versions"),
        (aggregate("m", "sum({{input_column}})", "wind"), "'wind' is not there"),
        (aggregate("m", "sum(temp)", type_="map<string,int>"), "output_data_type"),
        (aggregate("m", "sum(temp)", type_="{" * 5000), "output_data_type"),
    ],
)
def test_a_hostile_metric_of_any_type_is_refused_by_name(metric, named):
    with pytest.raises(errors.InvalidParameter, match=named.replace("{", r"\{")) as refused:
        custom_checks.check(config_of(SQUARES, COST, metric), SCHEMA, [], True)
    assert "custom_metrics" in refused.value.message


def test_a_table_with_labels_of_its_own_has_no_other_label():
    config = config_of(aggregate("m", "avg(abs({{prediction_col}} - {{label_col}}))"))
    with pytest.raises(errors.InvalidParameter, match="'label_time' is not there"):
        custom_checks.check(config_of(aggregate("m", "avg(label_time)")), SCHEMA, [], False)
    custom_checks.check(config, SCHEMA, [], False)  # the label's column may come with later rows
    del config["inference_log"]["label_col"]
    with pytest.raises(errors.InvalidParameter, match="inference_log with a label_col"):
        custom_checks.check(config, SCHEMA, [], False)


def test_too_many_metrics_are_refused_before_any_is_parsed():
    columns = [f"c{n}" for n in range(200)]
    metrics = [aggregate(f"m{n}", "read_csv({{input_column}})", *columns) for n in range(100)]
    with pytest.raises(errors.InvalidParameter, match="over 1000 metrics times input columns"):
        custom_checks.check(config_of(*metrics), None, [], True)
    many = [aggregate(f"m{n}", f"avg({{{{input_column}}}} * {n})", *columns) for n in range(2)]
    with pytest.raises(errors.InvalidParameter, match="over 250 different expressions"):
        custom_checks.check(config_of(*many), None, [], True)


@given(
    text=st.lists(
        st.sampled_from(
            ["avg(", "sum(", "count(", "temp", "{{input_column}}", "{{label_col}}", ")", "(", "*",
             "/", "0", "1", "'", "`", ",", "CASE", "WHEN", "THEN", "END", "SELECT", "FROM", "@",
             "--", "/*", "=", "{{", "}}", "DISTINCT", "OVER", "IN", "NULL", ".", "[", "]", "->",
             ";", "cast(", "as", "{%", "\\", "$", ":", "interval", "not", "is", "e", "9" * 400]
        ),
        max_size=12,
    ),
    kind=st.sampled_from([aggregate, derived, drift]),
)  # fmt: skip
def test_no_text_does_anything_but_make_a_metric_or_an_error(text, kind):
    try:
        custom_checks.check(config_of(kind("m", " ".join(text), "temp")), SCHEMA, [], True)
    except errors.InvalidParameter as error:
        assert error.message.startswith("custom_metrics[0]")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("double", "double"),
        ("BIGINT", "int64"),
        ('"long"', "int64"),
        ('{"name":"x","type":"double","nullable":true,"metadata":{}}', "double"),
    ],
)
def test_output_types_are_those_of_spark(text, kind):
    assert str(custom_metrics.data_type(text)) == kind


def test_a_value_that_does_not_fit_its_type_is_null():
    assert custom_metrics.typed(3.9, pa.int32()) == 3
    assert custom_metrics.typed(2.0**40, pa.int32()) is None
    assert custom_metrics.typed(0.0, pa.bool_()) is False


def test_a_metric_keeps_the_type_that_its_column_has(tmp_path):
    schema = tables.profile_schema(None, [("m", pa.int64())])
    table = tables.open_or_create(str(tmp_path / "t"), schema)
    custom_checks.check(config_of(aggregate("m", "sum(temp)", type_="long")), SCHEMA, [table], True)
    with pytest.raises(errors.InvalidParameter, match="type long; choose another name"):
        custom_checks.check(config_of(aggregate("m", "sum(temp)")), SCHEMA, [table], True)
