"""Both generations of Databricks' monitor routes, driven by the real SDK against a real server."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import httpx2
import polars as pl
import pytest
import sqlalchemy as sa
from databricks.sdk import WorkspaceClient
from databricks.sdk import errors as sdk_errors
from databricks.sdk.service import catalog as first
from databricks.sdk.service import dataquality as dq
from hypothesis import given
from hypothesis import strategies as st

from capture import catalog, database, errors, names
from capture.settings import Settings
from monitors import contract, update_masks, windows
from monitors import data_quality_contract as shapes

ADMIN = "bootstrap-admin-token"
PATIENCE_SECONDS = 120.0
MONITORS = "/api/data-quality/v1/monitors"
TABLES = "/api/2.1/unity-catalog/tables"
MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
DAY = dq.AggregationGranularity.AGGREGATION_GRANULARITY_1_DAY
EVERY_MORNING = dq.CronSchedule("0 0 8 * * ?", "UTC")
NOBODY = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Server:
    """A running gateway and monitor process, and their data."""

    url: str
    settings: Settings
    engine: sa.Engine

    def client(self, token: str = ADMIN) -> WorkspaceClient:
        return WorkspaceClient(host=self.url, token=token, auth_type="pat")

    def send(self, method: str, path: str, body: Any = None, token: str = ADMIN) -> Any:
        """One raw request; gives status and JSON."""
        headers = {"Authorization": f"Bearer {token}"}
        content = None if body is None else json.dumps(body)
        answer = httpx2.request(
            method, self.url + path, content=content, headers=headers, timeout=60, trust_env=False
        )
        return answer.status_code, answer.json()

    def token(self, user: str) -> str:
        return str(self.send("POST", "/api/1.0/tokens", {"user": user})[1]["token"])

    def write(self, name: str, **columns: Any) -> str:
        """A table of thirty rows a day; gives its id, as the SDK finds it."""
        times = [MONDAY + timedelta(hours=n * 0.8) for n in range(90)]
        frame = pl.DataFrame({"at": times, "x": [float(n % 7) for n in range(90)], **columns})
        path = names.table_path(self.settings.tables_root, names.table_name(name))
        deltalake.write_deltalake(path, frame.to_arrow(), mode="append")
        return str(self.client().tables.get(name).table_id)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("quality") / "data"
    settings = Settings(data_dir=data_dir)
    database.migrate(settings)
    environment = {
        **os.environ,
        "INFERLAKE_DATA_DIR": str(data_dir),
        "INFERLAKE_ADMIN_TOKEN": ADMIN,
        "INFERLAKE_SERVICE_TOKEN": "service-token-of-this-start",
        "INFERLAKE_PORT": "0",
        "DO_NOT_TRACK": "1",
    }
    said = data_dir / "output"
    with said.open("wb") as output, ExitStack() as running:
        for module in ("serving.gateway", "monitors"):
            command = [sys.executable, "-m", module]
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            running.callback(process.wait, 60)
            running.callback(process.terminate)
        ready = [settings.run_dir / f"{name}.ready" for name in ("gateway", "monitor")]
        eventually(lambda: all(path.exists() for path in ready), said)
        engine = database.open_engine(settings)
        running.callback(engine.dispose)
        yield Server(
            f"http://127.0.0.1:{json.loads(ready[0].read_text())['port']}", settings, engine
        )


def eventually(wanted: Callable[[], Any], said: Path | None = None) -> Any:
    """The first true value. Fails when patience ends."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (found := wanted()):
        assert time.monotonic() < ends, said and said.read_text()
        time.sleep(0.05)
    return found


@pytest.fixture
def w(server: Server) -> WorkspaceClient:
    return server.client()


NUMBERS = itertools.count()


@pytest.fixture
def orders(server: Server) -> Iterator[tuple[str, str]]:
    """Name and id of a table of its own; its monitor is gone afterwards."""
    name = f"main.shop.orders_{next(NUMBERS)}"
    table_id = server.write(name)
    yield name, table_id
    server.send("DELETE", f"{MONITORS}/table/{table_id}")


def profiling(w: WorkspaceClient, **changes: Any) -> dq.DataProfilingConfig:
    """The least that a monitor needs, and these fields."""
    fields: dict[str, Any] = {"time_series": dq.TimeSeriesConfig("at", [DAY]), **changes}
    return dq.DataProfilingConfig(output_schema_id=w.schemas.get("main.shop").schema_id, **fields)


def create(w: WorkspaceClient, table_id: str, **changes: Any) -> dq.DataProfilingConfig:
    config = profiling(w, **changes)
    made = w.data_quality.create_monitor(
        dq.Monitor("table", table_id, data_profiling_config=config)
    )
    assert (made.object_type, made.object_id) == ("table", table_id)
    assert made.data_profiling_config is not None
    return made.data_profiling_config


def update(
    w: WorkspaceClient, table_id: str, mask: str, config: dq.DataProfilingConfig
) -> dq.DataProfilingConfig:
    asked = dq.Monitor("table", table_id, data_profiling_config=config)
    found = w.data_quality.update_monitor("table", table_id, asked, mask).data_profiling_config
    assert found is not None
    return found


# --- monitors ------------------------------------------------------------------------------------


def test_the_sdk_creates_reads_lists_changes_and_deletes_a_monitor(
    w: WorkspaceClient, orders: tuple[str, str]
) -> None:
    name, table_id = orders
    made = create(w, table_id, assets_dir="/shop", schedule=EVERY_MORNING, slicing_exprs=["x > 3"])
    assert made.monitored_table_name == name and made.monitor_version == 0
    assert made.status == dq.DataProfilingStatus.DATA_PROFILING_STATUS_ACTIVE
    assert made.profile_metrics_table_name == f"{name}_profile_metrics"
    assert made.drift_metrics_table_name == f"{name}_drift_metrics"
    assert made.output_schema_id == w.schemas.get("main.shop").schema_id
    assert made.time_series == dq.TimeSeriesConfig("at", [DAY])
    assert made.schedule is not None
    unpaused = dq.CronSchedulePauseStatus.CRON_SCHEDULE_PAUSE_STATUS_UNPAUSED
    assert made.schedule.pause_status == unpaused
    assert w.data_quality.get_monitor("table", table_id).data_profiling_config == made
    assert table_id in [each.object_id for each in w.data_quality.list_monitor(page_size=1)]
    after = update(
        w, table_id, "data_profiling_config.slicing_exprs", profiling(w, slicing_exprs=["x > 5"])
    )
    assert (after.slicing_exprs, after.monitor_version) == (["x > 5"], 1)
    assert after.schedule == made.schedule and after.assets_dir == "/shop"
    w.data_quality.delete_monitor("table", table_id)
    with pytest.raises(sdk_errors.ResourceDoesNotExist, match="Cannot find"):
        w.data_quality.get_monitor("table", table_id)
    assert create(w, table_id).monitor_version == 0


def test_both_generations_show_one_monitor(w: WorkspaceClient, orders: tuple[str, str]) -> None:
    name, table_id = orders
    made = w.quality_monitors.create(
        name,
        "main.shop",
        "/shop",
        inference_log=first.MonitorInferenceLog(
            problem_type=first.MonitorInferenceLogProblemType.PROBLEM_TYPE_REGRESSION,
            timestamp_col="at",
            granularities=["30 minutes", "2 weeks"],
            prediction_col="x",
            model_id_col="x",
            label_col="y",
            prediction_proba_col="x",
        ),
        notifications=first.MonitorNotifications(
            on_failure=first.MonitorDestination(["a@example.com"]),
            on_new_classification_tag_detected=first.MonitorDestination(["b@example.com"]),
        ),
        data_classification_config=first.MonitorDataClassificationConfig(enabled=True),
    )
    shown = w.data_quality.get_monitor("table", table_id).data_profiling_config
    assert shown is not None and shown.inference_log == dq.InferenceLogConfig(
        dq.InferenceProblemType.INFERENCE_PROBLEM_TYPE_REGRESSION,
        "at",
        [
            dq.AggregationGranularity.AGGREGATION_GRANULARITY_30_MINUTES,
            dq.AggregationGranularity.AGGREGATION_GRANULARITY_2_WEEKS,
        ],
        "x",
        "x",
        "y",
    )
    assert shown.dashboard_id == made.dashboard_id
    # What the second generation cannot say outlives its updates, even a whole one.
    shown.inference_log.label_column = "z"
    for number, mask in enumerate(("data_profiling_config.inference_log", "*"), 1):
        assert update(w, table_id, mask, shown).monitor_version == number
    after = w.quality_monitors.get(name)
    assert after.inference_log is not None and made.inference_log is not None
    assert after.inference_log.as_dict() == {**made.inference_log.as_dict(), "label_col": "z"}
    assert after.notifications == made.notifications
    assert after.data_classification_config == made.data_classification_config
    w.quality_monitors.delete(name)
    with pytest.raises(sdk_errors.NotFound):
        w.data_quality.get_monitor("table", table_id)


def test_a_mask_replaces_what_it_names_and_nothing_else(
    w: WorkspaceClient, orders: tuple[str, str]
) -> None:
    _, table_id = orders
    create(w, table_id, schedule=EVERY_MORNING, slicing_exprs=["x > 3"], warehouse_id="w1")
    prefix = "data_profiling_config."
    later = profiling(w, schedule=dq.CronSchedule("0 0 9 * * ?", "Europe/Zurich"))
    after = update(w, table_id, f"{prefix}schedule.quartz_cron_expression", later)
    assert after.schedule is not None and after.schedule.timezone_id == "UTC"
    assert after.schedule.quartz_cron_expression == "0 0 9 * * ?"
    after = update(w, table_id, f"{prefix}slicing_exprs, {prefix}schedule", profiling(w))
    assert (after.slicing_exprs, after.schedule) == (None, None) and after.warehouse_id == "w1"
    # A kind of profile that is given takes the place of the one before.
    snapshot = profiling(w, time_series=None, snapshot=dq.SnapshotConfig())
    after = update(w, table_id, f"{prefix}snapshot", snapshot)
    assert after.time_series is None and after.snapshot == dq.SnapshotConfig()
    after = update(w, table_id, "data_profiling_config", profiling(w, skip_builtin_dashboard=True))
    assert after.warehouse_id is None and after.skip_builtin_dashboard is True
    assert after.snapshot is None and after.monitor_version == 4
    # What was read can be sent back whole.
    assert update(w, table_id, "*", after).monitor_version == 5


def test_a_baseline_is_set_replaced_and_taken_away(
    w: WorkspaceClient, server: Server, orders: tuple[str, str]
) -> None:
    name, table_id = orders
    server.write("main.shop.training")
    create(w, table_id, baseline_table_name="main.shop.training")
    run(w, table_id)
    assert {"BASELINE", "CONSECUTIVE"} == set(metric_rows(server, name, "drift")["drift_type"])
    after = update(w, table_id, "data_profiling_config.baseline_table_name", profiling(w))
    assert after.baseline_table_name is None
    server.write(name)  # late rows in every window: each is compared anew
    run(w, table_id)
    assert {"CONSECUTIVE"} == set(metric_rows(server, name, "drift")["drift_type"])


def run(w: WorkspaceClient, table_id: str) -> dq.Refresh:
    """A refresh from its request to its end, which must be a good one."""
    asked = w.data_quality.create_refresh("table", table_id, dq.Refresh("table", table_id))
    assert asked.trigger == dq.RefreshTrigger.MONITOR_REFRESH_TRIGGER_MANUAL

    def ended() -> dq.Refresh | None:
        found = w.data_quality.get_refresh("table", table_id, int(asked.refresh_id or 0))
        return found if found.end_time_ms is not None else None

    found: dq.Refresh = eventually(ended)
    assert found.state == dq.RefreshState.MONITOR_REFRESH_STATE_SUCCESS, found.message
    return found


def metric_rows(server: Server, name: str, kind: str) -> pl.DataFrame:
    """Rows of a metric table; kind: profile or drift."""
    table = names.table_name(f"{name}_{kind}_metrics")
    return pl.read_delta(names.table_path(server.settings.tables_root, table))


def test_custom_metrics_are_those_of_both_generations(
    w: WorkspaceClient, server: Server, orders: tuple[str, str]
) -> None:
    name, table_id = orders
    kind = dq.DataProfilingCustomMetricType.DATA_PROFILING_CUSTOM_METRIC_TYPE_AGGREGATE
    twice = dq.DataProfilingCustomMetric(
        "twice", "avg({{input_column}} * 2)", ["x"], "double", kind
    )
    assert create(w, table_id, custom_metrics=[twice]).custom_metrics == [twice]
    (older,) = w.quality_monitors.get(name).custom_metrics or []
    assert older.type == first.MonitorMetricType.CUSTOM_METRIC_TYPE_AGGREGATE
    assert older.definition == twice.definition
    run(w, table_id)
    rows = metric_rows(server, name, "profile").filter(column_name="x")
    assert rows["twice"].to_list() == pytest.approx((rows["avg"] * 2).to_list())
    after = update(w, table_id, "data_profiling_config.custom_metrics", profiling(w))
    assert not after.custom_metrics


def test_no_change_of_many_at_once_is_lost(server: Server, orders: tuple[str, str]) -> None:
    _, table_id = orders
    create(server.client(), table_id)
    changes = {
        "assets_dir": "/a",
        "warehouse_id": "w",
        "skip_builtin_dashboard": True,
        "slicing_exprs": ["x > 1"],
        "notification_settings": {"on_failure": {"email_addresses": ["a@example.com"]}},
        "schedule": {"quartz_cron_expression": "0 0 8 * * ?", "timezone_id": "UTC"},
    }

    def change(field: str) -> tuple[int, Any]:
        path = f"{MONITORS}/table/{table_id}?update_mask=data_profiling_config.{field}"
        return server.send("PATCH", path, {"data_profiling_config": {field: changes[field]}})

    with ThreadPoolExecutor(len(changes)) as pool:
        answers = dict(zip(changes, pool.map(change, changes), strict=True))
    after = server.send("GET", f"{MONITORS}/table/{table_id}")[1]["data_profiling_config"]
    done = [field for field, (status, _) in answers.items() if status == 200]
    assert done and after["monitor_version"] == len(done)
    for field, (status, told) in answers.items():
        assert (field in after) == (status == 200)
        assert status == 200 or (status, told["error_code"]) == (409, "RESOURCE_CONFLICT"), told


COLUMN = st.sampled_from(["at", "x", "a column"])
GRANULARITIES = st.lists(
    st.sampled_from([*windows.GRANULARITIES, "7 weeks"]), min_size=1, unique=True
)
SERIES: dict[str, Any] = {"timestamp_col": COLUMN, "granularities": GRANULARITIES}
LOGS = st.fixed_dictionaries(
    {
        **SERIES,
        "problem_type": st.sampled_from(["PROBLEM_TYPE_CLASSIFICATION", "PROBLEM_TYPE_REGRESSION"]),
        "prediction_col": COLUMN,
        "model_id_col": COLUMN,
    },
    optional={"label_col": COLUMN, "prediction_proba_col": COLUMN},
)
PROFILES = st.one_of(
    st.fixed_dictionaries({"snapshot": st.just({})}),
    st.fixed_dictionaries({"time_series": st.fixed_dictionaries(SERIES)}),
    st.fixed_dictionaries({"inference_log": LOGS}),
)
PEOPLE = st.fixed_dictionaries({"email_addresses": st.lists(st.just("a@example.com"), max_size=5)})
SCHEDULES = st.fixed_dictionaries(
    {"quartz_cron_expression": st.just("0 0 8 * * ?"), "timezone_id": st.just("UTC")},
    optional={"pause_status": st.sampled_from(["PAUSED", "UNPAUSED"])},
)
REST = st.fixed_dictionaries(
    {"output_schema_name": st.just("main.shop")},
    optional={
        "assets_dir": st.just("/shop"),
        "baseline_table_name": st.just("main.shop.training"),
        "slicing_exprs": st.lists(COLUMN, max_size=2),
        "schedule": SCHEDULES,
        "notifications": st.fixed_dictionaries(
            {}, optional={"on_failure": PEOPLE, "on_new_classification_tag_detected": PEOPLE}
        ),
        "skip_builtin_dashboard": st.booleans(),
        "warehouse_id": st.just("w1"),
        "data_classification_config": st.just({"enabled": True}),
        "dashboard_id": st.just("d1"),
    },
)


@given(profile=PROFILES, rest=REST, data=st.data())
def test_what_is_stored_survives_the_shapes_of_the_second_generation(
    profile: dict[str, Any], rest: dict[str, Any], data: st.DataObject
) -> None:
    config = contract.monitor_config({**rest, **profile})
    shown = shapes.profiling(config)
    mask = data.draw(st.lists(st.sampled_from(["*", *MASKS]), min_size=1))
    after = update_masks.apply(shown, shown, update_masks.parse(",".join(mask)))
    wanted = {**config}
    if "schedule" in config:  # a schedule that runs says so, once it was shown
        wanted["schedule"] = {"pause_status": "UNPAUSED", **config["schedule"]}
    if config.get("notifications") == {}:
        del wanted["notifications"]
    assert shapes.stored(after, "main.shop", config) == wanted


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), COLUMN),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*SERIES, *shapes.COLUMNS, "colour"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(
    config=st.dictionaries(st.sampled_from([*shapes.Profiling.model_fields, "colour"]), JSON),
    mask=st.text("abc.,*_ ") | st.sampled_from(["*", "data_profiling_config.inference_log"]),
)
def test_no_body_and_no_mask_is_the_servers_fault(config: dict[str, Any], mask: str) -> None:
    body = {"object_type": "table", "object_id": NOBODY, "data_profiling_config": config}
    present = {"output_schema_id": NOBODY, "snapshot": {}}
    # Whatever it is, it is checked, or refused as the caller's.
    with contextlib.suppress(errors.InvalidParameter):
        shapes.new_monitor(body)
    with contextlib.suppress(errors.InvalidParameter):
        paths = update_masks.parse(mask)
        after = update_masks.apply(present, shapes.to_change(body), paths)
        assert set(after) <= set(shapes.Profiling.model_fields)
        with contextlib.suppress(errors.InvalidParameter):
            assert shapes.stored(after, "main.shop", {})["output_schema_name"] == "main.shop"


MASKS = [f"data_profiling_config.{name}" for name in shapes.Profiling.model_fields]


# --- refreshes -----------------------------------------------------------------------------------


def test_refreshes_are_run_listed_cancelled_and_deleted(
    w: WorkspaceClient, orders: tuple[str, str]
) -> None:
    name, table_id = orders
    api = w.data_quality
    create(w, table_id)
    done = run(w, table_id)
    assert (done.object_type, done.object_id) == ("table", table_id)
    assert w.quality_monitors.get_refresh(name, int(done.refresh_id or 0)).refresh_id
    second = run(w, table_id)
    listed = list(api.list_refresh("table", table_id, page_size=1))
    assert [each.refresh_id for each in listed] == [second.refresh_id, done.refresh_id]
    cancelled = api.cancel_refresh("table", table_id, int(done.refresh_id or 0)).refresh
    assert cancelled == done  # it has ended: nothing is left to cancel
    api.delete_refresh("table", table_id, int(done.refresh_id or 0))
    with pytest.raises(sdk_errors.ResourceDoesNotExist):
        api.get_refresh("table", table_id, int(done.refresh_id or 0))
    with pytest.raises(sdk_errors.NotImplemented, match="cancelled or deleted"):
        api.update_refresh("table", table_id, int(second.refresh_id or 0), second, "message")


# --- the first generation ------------------------------------------------------------------------


def test_every_method_and_field_of_quality_monitors_works_unchanged(
    w: WorkspaceClient, server: Server, orders: tuple[str, str]
) -> None:
    name, _ = orders
    api = w.quality_monitors
    server.write("main.shop.training")
    fields: dict[str, Any] = {
        "baseline_table_name": "main.shop.training",
        "data_classification_config": first.MonitorDataClassificationConfig(enabled=False),
        "notifications": first.MonitorNotifications(
            on_failure=first.MonitorDestination(["a@example.com"])
        ),
        "schedule": first.MonitorCronSchedule("0 0 8 * * ?", "Europe/Zurich"),
        "slicing_exprs": ["x > 3"],
        "time_series": first.MonitorTimeSeries("at", ["1 day"]),
    }
    made = api.create(
        name.upper(), "main.shop", "/shop", skip_builtin_dashboard=True, warehouse_id="w1", **fields
    )
    assert (made.table_name, made.monitor_version, made.assets_dir) == (name, 0, "/shop")
    assert made.status == first.MonitorInfoStatus.MONITOR_STATUS_ACTIVE
    fields["schedule"].pause_status = first.MonitorCronSchedulePauseStatus.UNPAUSED
    assert {field: getattr(made, field) for field in fields} == fields
    assert api.get(name.upper()) == made

    asked = api.run_refresh(name)
    assert asked.trigger == first.MonitorRefreshInfoTrigger.MANUAL
    done = eventually(lambda: (r := api.get_refresh(name, asked.refresh_id)).end_time_ms and r)
    assert done.state == first.MonitorRefreshInfoState.SUCCESS, done.message
    assert asked.start_time_ms <= done.start_time_ms <= done.end_time_ms
    ids = [api.run_refresh(name).refresh_id for _ in range(26)]
    for refresh_id in ids:
        api.cancel_refresh(name, refresh_id)
    ended = {first.MonitorRefreshInfoState.CANCELED, first.MonitorRefreshInfoState.SUCCESS}
    eventually(lambda: {api.get_refresh(name, i).state for i in ids} <= ended)
    newest = api.list_refreshes(name).refreshes or []
    assert [each.refresh_id for each in newest] == ids[:0:-1]

    changed = api.update(
        name,
        "main.shop",
        dashboard_id="d1",
        snapshot=first.MonitorSnapshot(),
        notifications=first.MonitorNotifications(on_failure=first.MonitorDestination([])),
    )
    assert (changed.monitor_version, changed.dashboard_id) == (1, "d1")
    assert changed.time_series is None and changed.snapshot == first.MonitorSnapshot()
    assert changed.slicing_exprs == ["x > 3"] and changed.schedule == made.schedule
    pages = api.regenerate_dashboard(name, warehouse_id="w2")
    assert (pages.dashboard_id, pages.parent_folder) == ("d1", "/shop")
    api.delete(name)
    for call in (
        api.get,
        api.delete,
        api.run_refresh,
        api.list_refreshes,
        api.regenerate_dashboard,
    ):
        with pytest.raises(sdk_errors.ResourceDoesNotExist, match="has no monitor"):
            call(name)
    profiles = names.table_path(
        server.settings.tables_root, names.table_name(f"{name}_profile_metrics")
    )
    assert deltalake.DeltaTable.is_deltatable(profiles)


def test_a_dashboard_is_the_monitors_own(
    server: Server, w: WorkspaceClient, orders: tuple[str, str]
) -> None:
    name, table_id = orders
    create(w, table_id)
    pages = w.quality_monitors.regenerate_dashboard(name)
    assert pages.dashboard_id == table_id.replace("-", "")
    assert pages.dashboard_id == w.quality_monitors.get(name).dashboard_id
    path = f"/api/2.1/quality-monitoring/tables/{name}/monitor/dashboard"
    status, told = server.send("POST", path, {"colour": "red"})
    assert status == 400 and "allowed: warehouse_id" in told["message"]


def test_an_update_names_columns_that_are_there(server: Server, orders: tuple[str, str]) -> None:
    name, table_id = orders
    create(server.client(), table_id)
    series = {"timestamp_col": "when", "granularities": ["1 day"]}
    body = {"output_schema_name": "main.shop", "time_series": series}
    status, told = server.send("PUT", f"{TABLES}/{name}/monitor", body)
    assert (status, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert "time_series.timestamp_col: the table has no column 'when'" in told["message"]


# --- refusals ------------------------------------------------------------------------------------

BODY = {"time_series": {"timestamp_column": "at", "granularities": [DAY.value]}}
LOG = {
    "problem_type": "INFERENCE_PROBLEM_TYPE_REGRESSION",
    "prediction_column": "x",
    "model_id_column": "x",
    **BODY["time_series"],
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "data_profiling_config.colour"),
        ({"output_schema_id": NOBODY}, "output_schema_id: no schema"),
        ({"output_schema_id": None}, "data_profiling_config.output_schema_id"),
        ({"snapshot": {}}, "exactly one of snapshot, time_series, inference_log"),
        ({"time_series": None}, "exactly one of snapshot, time_series, inference_log"),
        (
            {"time_series": {"timestamp_column": "at", "granularities": ["1 day"]}},
            "time_series.granularities[0]: '1 day' is not offered; allowed are "
            "AGGREGATION_GRANULARITY_5_MINUTES",
        ),
        (
            {"time_series": {"timestamp_column": "when", "granularities": [DAY.value]}},
            "data_profiling_config.time_series.timestamp_column: the table has no column 'when'",
        ),
        (
            {"time_series": None, "inference_log": {**LOG, "prediction_column": "p"}},
            "inference_log.prediction_column: the table has no column 'p'; it has at, x",
        ),
        (
            {"time_series": None, "inference_log": {**LOG, "problem_type": "REGRESSION"}},
            "'INFERENCE_PROBLEM_TYPE_CLASSIFICATION' or 'INFERENCE_PROBLEM_TYPE_REGRESSION'",
        ),
        ({"slicing_exprs": ["colour = 'red'"]}, "colour"),
        ({"baseline_table_name": "training"}, "baseline_table_name"),
        (
            {"schedule": {"quartz_cron_expression": "0 0 8 * * ?", "timezone_id": "Mars"}},
            "data_profiling_config.schedule",
        ),
        (
            {"schedule": {**EVERY_MORNING.as_dict(), "pause_status": "PAUSED"}},
            "CRON_SCHEDULE_PAUSE_STATUS_PAUSED",
        ),
        (
            {"notification_settings": {"on_failure": {"destination_ids": ["slack"]}}},
            "notification_settings.on_failure.destination_ids; allowed: email_addresses",
        ),
        ({"custom_metrics": [{"type": "CUSTOM_METRIC_TYPE_DRIFT"}]}, "custom_metrics[0]"),
    ],
)
def test_a_bad_configuration_is_a_400_that_names_the_field(
    server: Server, w: WorkspaceClient, orders: tuple[str, str], change: Any, named: str
) -> None:
    _, table_id = orders
    schema = {"output_schema_id": w.schemas.get("main.shop").schema_id}
    body = {"object_type": "table", "object_id": table_id}
    config = {"data_profiling_config": {**schema, **BODY, **change}}
    status, told = server.send("POST", MONITORS, {**body, **config})
    assert (status, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), told
    assert named in told["message"]
    create(w, table_id)
    status, told = server.send(
        "PATCH", f"{MONITORS}/table/{table_id}?update_mask=data_profiling_config", config
    )
    assert (status, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), told
    assert named in told["message"]
    assert (
        server.send("GET", f"{MONITORS}/table/{table_id}")[1]["data_profiling_config"][
            "monitor_version"
        ]
        == 0
    )


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "object_type: Field required"),
        ({"object_type": "catalog", "object_id": NOBODY}, "'table' or 'schema'"),
        ({"object_type": "table", "object_id": NOBODY}, "data_profiling_config: a value is needed"),
        ({"object_type": "table", "object_id": NOBODY, "colour": 1}, "colour"),
        (
            {
                "object_type": "table",
                "object_id": NOBODY,
                "anomaly_detection_config": {},
                "data_profiling_config": {"output_schema_id": NOBODY},
            },
            "anomaly_detection_config: is not allowed for a table",
        ),
        (
            {"object_type": "schema", "object_id": NOBODY, "anomaly_detection_config": {"a": 1}},
            "anomaly_detection_config.a",
        ),
    ],
)
def test_a_body_that_is_no_monitor_is_a_400(server: Server, body: Any, named: str) -> None:
    status, told = server.send("POST", MONITORS, body)
    assert (status, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), told
    assert named in told["message"]


def test_schemas_are_known_and_not_offered(server: Server, w: WorkspaceClient) -> None:
    schema_id = str(w.schemas.get("main.shop").schema_id)
    anomalies = dq.AnomalyDetectionConfig(excluded_table_full_names=["main.shop.orders"])
    asked = dq.Monitor("schema", schema_id, anomaly_detection_config=anomalies)
    for call in (
        lambda: w.data_quality.create_monitor(asked),
        lambda: w.data_quality.get_monitor("schema", schema_id),
        lambda: w.data_quality.update_monitor("schema", schema_id, asked, "*"),
        lambda: w.data_quality.delete_monitor("schema", schema_id),
        lambda: list(w.data_quality.list_refresh("schema", schema_id)),
    ):
        with pytest.raises(sdk_errors.NotImplemented, match="not offered"):
            call()
    status, told = server.send("GET", f"{MONITORS}/catalog/{schema_id}")
    assert status == 400 and "table, schema" in told["message"]
    with pytest.raises(sdk_errors.ResourceDoesNotExist, match="Schema"):
        w.schemas.get("main.nothing")
    assert server.send("GET", "/api/2.1/unity-catalog/schemas/main")[0] == 400


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        ("", "update_mask: name the fields"),
        ("data_profiling_config.slicing_exprs,", "update_mask: name the fields"),
        ("slicing_exprs", "'slicing_exprs' is no field"),
        ("object_id", "'object_id' is no field"),
        ("data_profiling_config.monitor_version", "read only"),
        ("data_profiling_config.schedule.colour", "schedule.colour"),
        ("data_profiling_config.slicing_exprs.0", "slicing_exprs.0"),
        ("anomaly_detection_config", "allowed are *, data_profiling_config"),
    ],
)
def test_a_bad_mask_is_a_400_that_says_what_is_allowed(
    server: Server, w: WorkspaceClient, orders: tuple[str, str], mask: str, named: str
) -> None:
    create(w, orders[1])
    status, told = server.send("PATCH", f"{MONITORS}/table/{orders[1]}?update_mask={mask}", {})
    assert (status, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), told
    assert named in told["message"] and "output_schema_id" in told["message"]


def test_what_does_not_exist_is_a_404_and_what_exists_is_not_made_twice(
    server: Server, w: WorkspaceClient, orders: tuple[str, str]
) -> None:
    _, table_id = orders
    monitor, missing = f"{MONITORS}/table/{table_id}", f"{MONITORS}/table/{NOBODY}"
    asked = dq.Monitor("table", NOBODY, data_profiling_config=profiling(w))
    with pytest.raises(sdk_errors.ResourceDoesNotExist, match="Table with id"):
        w.data_quality.create_monitor(asked)
    create(w, table_id)
    with pytest.raises(sdk_errors.ResourceAlreadyExists):
        create(w, table_id)
    for method, path in (
        ("GET", missing),
        ("GET", f"{MONITORS}/table/x"),
        ("GET", f"{missing}%27"),
        ("PATCH", f"{missing}?update_mask=*"),
        ("DELETE", missing),
        ("POST", f"{missing}/refreshes"),
        ("GET", f"{missing}/refreshes"),
        ("GET", f"{monitor}/refreshes/999999"),
        ("GET", f"{monitor}/refreshes/x%27"),
        ("PATCH", f"{monitor}/refreshes/999999"),
        ("DELETE", f"{monitor}/refreshes/999999"),
        ("POST", f"{monitor}/refreshes/999999/cancel"),
    ):
        status, told = server.send(method, path)
        assert (status, told["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST"), (method, path)
    assert server.send("PUT", monitor)[0] == 405
    for path in (f"{MONITORS}?page_size=0", f"{MONITORS}?page_token=x", f"{MONITORS}?colour=red"):
        assert server.send("GET", path)[0] == 400
    for body in ({"object_id": NOBODY}, {"until": "soon"}, {"colour": 1}):
        assert server.send("POST", f"{monitor}/refreshes", body)[0] == 400
    mismatch = {"object_type": "table", "object_id": NOBODY}
    status, told = server.send("PATCH", f"{monitor}?update_mask=*", mismatch)
    assert status == 400 and "as in the path" in told["message"]
    assert server.send("GET", monitor.upper().replace(MONITORS.upper(), MONITORS))[0] == 400


def test_grants_of_the_endpoint_decide_and_say_nothing_to_strangers(
    server: Server, w: WorkspaceClient
) -> None:
    w.serving_endpoints.create("delay")
    endpoint_id = str(w.serving_endpoints.get("delay").id)
    with database.transaction(server.engine) as db:
        catalog.record(db, "main.trips.p_payload", endpoint_id, "delay", {}, {}, 1)
    viewer, stranger = server.token("viewer"), server.token("stranger")
    grant = {"access_control_list": [{"user_name": "viewer", "permission_level": "CAN_VIEW"}]}
    server.send("PATCH", f"/api/2.0/permissions/serving-endpoints/{endpoint_id}", grant)
    table_id = str(w.tables.get("main.trips.p_unpacked").table_id)
    schema = {"output_schema_id": w.schemas.get("main.trips").schema_id}
    body = {"object_type": "table", "object_id": table_id}
    body["data_profiling_config"] = {**schema, **BODY}
    monitor = f"{MONITORS}/table/{table_id}"

    def told(method: str, path: str, token: str, asked: Any = None) -> tuple[int, str]:
        status, reply = server.send(method, path, asked, token)
        return status, str(reply.get("message"))

    assert eventually(lambda: told("POST", MONITORS, viewer, body)[0] == 403)
    unknown = {**body, "object_id": NOBODY}
    assert told("POST", MONITORS, stranger, body)[0] == 404
    hidden = told("POST", MONITORS, stranger, body)[1].replace(table_id, NOBODY)
    assert hidden == told("POST", MONITORS, stranger, unknown)[1]
    assert server.send("POST", MONITORS, body)[0] == 200
    assert server.send("GET", monitor, token=viewer)[0] == 200
    for method, path in (("PATCH", "?update_mask=*"), ("DELETE", ""), ("POST", "/refreshes")):
        assert told(method, monitor + path, viewer)[0] == 403
        assert told(method, monitor + path, stranger)[0] == 404
    missing = told("GET", f"{MONITORS}/table/{NOBODY}", stranger)
    assert told("GET", monitor, stranger) == (404, missing[1].replace(NOBODY, table_id))
    listed = [[m["object_id"] for m in server.send("GET", MONITORS, token=t)[1]["monitors"]]
              for t in (viewer, stranger)]  # fmt: skip
    assert table_id in listed[0] and table_id not in listed[1]


def test_the_servers_own_tables_are_for_administrators(server: Server) -> None:
    table_id = server.write("system.access.audit_of_old")
    nobody = server.token("somebody")
    assert server.send("GET", f"{TABLES}/system.access.audit_of_old", token=nobody)[0] == 403
    schema = server.client().schemas.get("system.access").schema_id
    config = {"output_schema_id": schema, "snapshot": {}}
    body = {"object_type": "table", "object_id": table_id, "data_profiling_config": config}
    assert server.send("POST", MONITORS, body, nobody)[0] == 403
    assert server.send("POST", MONITORS, body)[0] == 200
    assert server.send("GET", f"{MONITORS}/table/{table_id}", token=nobody)[0] == 403
    assert table_id not in str(server.send("GET", MONITORS, token=nobody)[1])
    assert table_id in str(server.send("GET", MONITORS)[1])
    server.send("DELETE", f"{MONITORS}/table/{table_id}")
