import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from capture import database, errors, outbox, reading
from monitors import alert_state, api, experiment_state, job_state, jobs, routing_context

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = "main.flights.p_unpacked"
MONITOR = f"/api/2.1/unity-catalog/tables/{TABLE}/monitor"
EXPERIMENT = "/api/1.0/endpoints/delay/experiment"
RAMP = "/api/1.0/endpoints/delay/ramp"
LOG = {
    "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
    "timestamp_col": "event_time",
    "granularities": ["1 week"],
    "prediction_col": "prediction",
    "prediction_proba_col": "score",
    "model_id_col": "served_entity_name",
    "label_col": "label",
}
CONFIG = {"output_schema_name": "main.flights", "assets_dir": "/x", "inference_log": LOG}
POLICY = {"primary": {"name": "accuracy", "kind": "binary", "mde": 0.02}, "min_hours": 24}


@dataclass(frozen=True)
class Caller:
    user: str


class Access:
    """A server's judgement: the user is the bearer token; `stranger` may see nothing."""

    def require(self, request: Request, endpoint: str | None, level: str) -> Caller:
        user = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not user:
            raise errors.Unauthenticated("Send 'Authorization: Bearer <token>'.")
        if endpoint is None and level == "CAN_VIEW":
            return Caller(user)
        if endpoint not in (None, "delay") or user == "stranger":
            raise errors.DoesNotExist(f"Endpoint '{endpoint}' does not exist.")
        if user == "viewer" and level != "CAN_VIEW":
            raise errors.PermissionDenied(f"{level} is needed; you have CAN_VIEW.")
        return Caller(user)


class Server:
    """The routers as a server mounts them, the reading child included."""

    def __init__(self, lake: Any) -> None:
        self.lake = lake
        self.promotions: list[tuple[Any, ...]] = []
        self.splits: list[dict[str, int] | None] = []
        environment = {"INFERLAKE_DATA_DIR": str(lake.settings.data_dir), "PATH": "/usr/bin:/bin"}
        reader = reading.Reader([sys.executable, "-m", "monitors.reads"], environment)

        @asynccontextmanager
        async def lifespan(_app: FastAPI):
            yield
            await reader.close()

        app = FastAPI(lifespan=lifespan)

        @app.exception_handler(errors.InferlakeError)
        def refused(_request: Request, error: errors.InferlakeError) -> JSONResponse:
            return JSONResponse(errors.envelope(error), error.status)

        app.include_router(
            api.router(
                routing_context.Context(lake.engine, lake.settings, reader, Access(), self.promote)
            )
        )
        self.client = TestClient(app)

    def promote(self, caller, endpoint, served_entity, percentage, version, reason, origin, split):
        self.splits.append(split)
        self.promotions.append((caller.user, endpoint, served_entity, percentage, version, origin))
        if version is not None and version != 7:
            raise errors.Conflict("The configuration moved on.")
        return {"name": endpoint, "audit_id": "a1"}

    def call(self, method, path, body: Any = None, status: int = 200, user="ann", **query) -> Any:
        """One call with its decoded reply; its status must be the expected one."""
        content = None if body is None else json.dumps(body)
        answer = self.client.request(
            method, path, content=content, params=query, headers={"Authorization": f"Bearer {user}"}
        )
        assert answer.status_code == status, answer.text
        return answer.json()

    def events(self) -> list[str]:
        with database.reading(self.lake.engine) as connection:
            return [event.type for event in outbox.waiting(connection)]


@pytest.fixture
def server(lake) -> Iterator[Server]:
    made = Server(lake)
    with made.client:
        yield made


# --- monitors ------------------------------------------------------------------------------------


def test_a_monitor_is_created_read_changed_and_deleted_as_databricks_does(server):
    made = server.call("POST", MONITOR, CONFIG)
    assert made["table_name"] == TABLE and made["monitor_version"] == 0
    assert made["status"] == "MONITOR_STATUS_ACTIVE" and made["inference_log"] == LOG
    assert made["profile_metrics_table_name"] == "main.flights.p_unpacked_profile_metrics"
    assert made["drift_metrics_table_name"] == "main.flights.p_unpacked_drift_metrics"
    assert server.call(
        "GET",
        MONITOR.upper()
        .replace("/API", "/api")
        .replace("UNITY-CATALOG/TABLES", "unity-catalog/tables")
        .replace("MONITOR", "monitor"),
    )
    schedule = {"quartz_cron_expression": "0 0 8 * * ?", "timezone_id": "UTC"}
    changed = server.call(
        "PUT", MONITOR, {"output_schema_name": "main.flights", "schedule": schedule}
    )
    assert changed["monitor_version"] == 1 and changed["inference_log"] == LOG
    assert changed["schedule"]["pause_status"] == "UNPAUSED"
    assert server.call("POST", MONITOR, CONFIG, 400)["error_code"] == "RESOURCE_ALREADY_EXISTS"
    assert server.call("DELETE", MONITOR) == {}
    assert server.call("GET", MONITOR, status=404)["error_code"] == "RESOURCE_DOES_NOT_EXIST"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1, "size": 2}, "colour, size"),
        ({"inference_log": {**LOG, "colour": 1}}, "inference_log.colour"),
        ({"inference_log": {**LOG, "granularities": ["2 hours"]}}, "granularities"),
        ({"inference_log": {**LOG, "problem_type": "X"}}, "inference_log.problem_type"),
        ({"snapshot": {}}, "exactly one"),
        ({"inference_log": None}, "exactly one"),
        ({"output_schema_name": "main"}, "output_schema_name"),
        ({"output_schema_name": "main.../etc"}, "output_schema_name"),
        ({"baseline_table_name": "../../etc"}, "parts"),
        ({"schedule": {"quartz_cron_expression": "* * *", "timezone_id": "UTC"}}, "schedule"),
        (
            {"schedule": {"quartz_cron_expression": "0 0 8 * * ?", "timezone_id": "Mars"}},
            "schedule",
        ),
        ({"notifications": {"on_failure": {"email_addresses": ["a"] * 6}}}, "email_addresses"),
    ],
)
def test_a_bad_configuration_is_a_400_that_names_the_field(server, change, named):
    found = server.call("POST", MONITOR, {**CONFIG, **change}, 400)
    assert found["error_code"] == "INVALID_PARAMETER_VALUE" and named in found["message"]


@pytest.mark.parametrize("raw", ["{", "[]", '"x"', '{"a": NaN}', "\ufeff{}"])
def test_a_body_that_is_no_json_object_is_a_400(server, raw):
    headers = {"Authorization": "Bearer ann"}
    for method, path in (("POST", MONITOR), ("PUT", EXPERIMENT), ("POST", "/api/1.0/webhooks")):
        answer = server.client.request(method, path, content=raw.encode(), headers=headers)
        assert answer.status_code == 400 and answer.json()["error_code"] == "BAD_REQUEST"


METRIC = {
    "type": "CUSTOM_METRIC_TYPE_AGGREGATE",
    "name": "squares",
    "input_columns": ["temp"],
    "definition": "avg(`{{input_column}}` * `{{input_column}}`)",
    "output_data_type": '{"name":"output","type":"double","nullable":true,"metadata":{}}',
}


def test_custom_metrics_are_part_of_a_monitor(server):
    drift = {
        **METRIC,
        "type": "CUSTOM_METRIC_TYPE_DRIFT",
        "name": "moved",
        "definition": "{{current_df}}.squares - {{base_df}}.squares",
    }
    metrics = [METRIC, drift]
    assert server.call("POST", MONITOR, {**CONFIG, "custom_metrics": metrics})
    assert server.call("GET", MONITOR)["custom_metrics"] == metrics


HOSTILE_METRICS = [
    ({"type": "AGGREGATE"}, "custom_metrics[0].type"),
    ({"name": "not a name"}, "custom_metrics[0].name"),
    ({"name": "x" * 129}, "custom_metrics[0].name"),
    ({"name": "avg"}, "custom_metrics[0].name"),
    ({"input_columns": []}, "custom_metrics[0].input_columns"),
    ({"input_columns": "temp"}, "custom_metrics[0].input_columns"),
    ({"output_data_type": "struct<a:int>"}, "output_data_type"),
    ({"output_data_type": None}, "output_data_type"),
    ({"colour": 1}, "custom_metrics[0].colour"),
    ({"definition": "avg(read_csv('/etc/passwd'))"}, "READ_CSV"),
    ({"definition": "avg((SELECT max(temp) FROM t))"}, "Subquery"),
    ({"definition": "avg(temp); DROP TABLE t"}, "one expression"),
    ({"definition": "avg(@x)"}, "Parameter"),
    ({"definition": "avg(temp) -- x"}, "comment"),
    ({"definition": "avg(" + "(" * 5000 + "temp" + ")" * 5000 + ")"}, "2000 characters"),
    ({"definition": "avg(temp) / 0"}, "divides by zero"),
    ({"definition": "median(temp)"}, "does not add up"),
    ({"definition": "avg({{config.__class__}})"}, "Jinja"),
    ({"type": "CUSTOM_METRIC_TYPE_DERIVED", "definition": "os.system + 1"}, "os.system"),
    ({"type": "CUSTOM_METRIC_TYPE_DRIFT", "definition": "{{current_df}}.x"}, "'x'"),
]


def test_a_hostile_metric_is_a_400_that_names_what_is_wrong(server):
    for method in ("POST", "PUT"):
        if method == "PUT":
            server.call("POST", MONITOR, CONFIG)
        for change, named in HOSTILE_METRICS:
            body = {**CONFIG, "custom_metrics": [{**METRIC, **change}]}
            found = server.call(method, MONITOR, body, 400)
            assert found["error_code"] == "INVALID_PARAMETER_VALUE", found
            assert named in found["message"] and "custom_metrics" in found["message"]
    assert "custom_metrics" not in server.call("GET", MONITOR)


HOSTILE_NAMES = [
    "read_csv('/etc/passwd')",
    "(SELECT 1)",
    "avg(@x) -- y",
    "psi; DROP TABLE t",
    "(" * 10_000,
    "{{ x }}",
    "1/0",
]


def test_a_rule_takes_no_expression_where_a_name_belongs(server):
    condition = {"operator": ">", "threshold": 0.2}
    rule = {"name": "r", "endpoint": "delay", "metric": "psi", "condition": condition}
    for text in HOSTILE_NAMES:
        for field, change in (
            ("metric", {"metric": text}),
            ("condition", {"condition": {"operator": text, "threshold": 0.2}}),
            ("condition", {"condition": {"operator": ">", "threshold": text}}),
        ):
            found = server.call("POST", "/api/1.0/alert-rules", {**rule, **change}, 400)
            assert found["error_code"] == "INVALID_PARAMETER_VALUE" and field in found["message"]
            assert len(found["message"]) < 2000


HOSTILE_SLICES = [
    ("read_csv('/etc/passwd')", "READ_CSV"),
    ("(SELECT max(temp) FROM t)", "Subquery"),
    ("carrier; DROP TABLE t", "one expression"),
    ("temp > @x", "Parameter"),
    ("(" * 500 + "temp" + ")" * 500, "parts"),
    ("temp" + " " * 10_000, "2000 characters"),
    ("1 = 1", "names no column"),
    ("temp > 1 -- x", "comment"),
    ("temp / 0 > 1", "divides by zero"),
    ("{{input_column}} > 1", "Placeholder"),
]


def test_a_hostile_slice_is_a_400_that_names_what_is_wrong(server):
    for method in ("POST", "PUT"):
        if method == "PUT":
            server.call("POST", MONITOR, CONFIG)
        for text, named in HOSTILE_SLICES:
            found = server.call(method, MONITOR, {**CONFIG, "slicing_exprs": [text]}, 400)
            assert found["error_code"] == "INVALID_PARAMETER_VALUE", found
            assert named in found["message"], text
    assert "slicing_exprs" not in server.call("GET", MONITOR)


def test_slices_are_part_of_a_monitor(server):
    found = server.call("POST", MONITOR, {**CONFIG, "slicing_exprs": ["carrier", "temp > 20"]})
    assert found["slicing_exprs"] == ["carrier", "temp > 20"]
    assert server.call("POST", MONITOR, {**CONFIG, "slicing_exprs": "carrier"}, 400)


def test_an_unknown_table_is_a_404_and_an_unknown_column_a_400(server, lake):
    other = "/api/2.1/unity-catalog/tables/main.flights.nothing/monitor"
    server.call("POST", other, CONFIG, 404)
    lake.write(pl.DataFrame({"at": [MONDAY], "x": [1.0]}), "main.flights.plain")
    plain = "/api/2.1/unity-catalog/tables/main.flights.plain"
    series = {"timestamp_col": "when", "granularities": ["1 day"]}
    body = {"output_schema_name": "main.flights", "time_series": series}
    assert "'when'" in server.call("POST", f"{plain}/monitor", body, 400)["message"]
    series["timestamp_col"] = "at"
    server.call("POST", f"{plain}/monitor", body)
    info = server.call("GET", plain)
    assert [column["name"] for column in info["columns"]] == ["at", "x"]
    again = server.call("GET", plain)
    assert again["table_id"] == info["table_id"] and info["full_name"] == "main.flights.plain"


def test_a_refresh_is_queued_followed_and_cancelled(server):
    server.call("POST", MONITOR, CONFIG)
    queued = server.call("POST", f"{MONITOR}/refreshes", {"until": "2024-01-08T00:00:00Z"})
    assert queued["state"] == "PENDING" and queued["trigger"] == "MANUAL"
    assert queued["until"] == "2024-01-08T00:00:00.000Z"
    one = f"{MONITOR}/refreshes/{queued['refresh_id']}"
    assert server.call("GET", one)["state"] == "PENDING"
    assert server.call("POST", f"{one}/cancel") == {}
    assert server.call("GET", one)["state"] == "CANCELED"
    assert len(server.call("GET", f"{MONITOR}/refreshes")["refreshes"]) == 1
    server.call("GET", f"{MONITOR}/refreshes/999", status=404)
    server.call("GET", f"{MONITOR}/refreshes/x%27", status=404)
    server.call("POST", f"{MONITOR}/refreshes", {"until": "yesterday"}, 400)
    server.call("POST", f"{MONITOR}/refreshes", {"unti": "2024-01-08T00:00:00Z"}, 400)


def test_grants_of_the_endpoint_decide(server):
    server.call("POST", MONITOR, CONFIG, 403, user="viewer")
    server.call("POST", MONITOR, CONFIG, 404, user="stranger")
    server.call("POST", MONITOR, CONFIG)
    assert server.call("GET", MONITOR, user="viewer")["table_name"] == TABLE
    server.call("POST", f"{MONITOR}/refreshes", status=403, user="viewer")
    assert server.call("GET", "/api/1.0/monitors", user="stranger") == {"monitors": []}
    server.call("GET", "/api/1.0/webhooks", status=403, user="viewer")
    assert server.client.get("/api/1.0/alerts").status_code == 401


def test_results_come_back_ready_to_draw(server, lake):
    lake.baseline()
    server.call("POST", MONITOR, {**CONFIG, "baseline_table_name": "main.flights.p_baseline"})
    split = {"v1": 70, "v2": 30}
    for number in range(2):
        frame = lake.rows(MONDAY + timedelta(weeks=number), 900, shift=8.0 * number, split=split)
        lake.write(frame)
        lake.label(frame)
    lake.done(MONDAY + timedelta(weeks=2))
    base = f"/api/1.0/monitors/{TABLE}"
    drift = server.call("GET", f"{base}/drift")
    assert len(drift["windows"]) == 2 and drift["columns"][0]["name"] == "temp"
    cells = {column["name"]: column["cells"] for column in drift["columns"]}
    assert [cell["status"] for cell in cells["temp"]] == ["ok", "drifted"]
    assert drift["columns"][0]["rank"] == 1 and cells["temp"][1]["window"] == drift["windows"][1]
    assert {cell["served_entity"] for cell in cells["score"]} == {"v1"}
    only = server.call(
        "GET", f"{base}/drift", column="carrier", served_entity="v2", to="2024-01-08"
    )
    assert [c["name"] for c in only["columns"]] == ["carrier"] and len(only["windows"]) == 1
    before = server.call("GET", f"{base}/drift", type="CONSECUTIVE")
    assert len(before["windows"]) == 1
    few = server.call("GET", f"{base}/drift", fields="status,effect", column="temp")
    assert [set(cell) for cell in few["columns"][0]["cells"]] == [
        {"window", "status", "effect"}
    ] * 2
    refused = server.call("GET", f"{base}/drift", status=400, fields="status,colour")
    assert "'colour'" in refused["message"]
    server.call("GET", f"{base}/drift", status=400, type="SIDEWAYS")
    server.call("GET", f"{base}/drift", status=400, colour="red")

    shown = server.call(
        "GET", f"{base}/profiles", column="temp", window_start="2024-01-08T00:00:00Z"
    )
    sides = [shown["current"], shown["baseline"], shown["previous"]]
    assert [side["rows"] for side in sides] == [900, 6000, 900]
    bins = [[(b["low"], b["high"]) for b in side["histogram"]] for side in sides]
    assert bins[0] == bins[1] == bins[2] and 1 < len(bins[0]) <= 100
    assert sum(b["count"] for b in sides[0]["histogram"]) == 900
    carriers = server.call("GET", f"{base}/profiles", column="carrier", served_entity="v2")
    assert {b["value"] for b in carriers["current"]["histogram"]} == {"AA", "B6", "UA"}
    server.call("GET", f"{base}/profiles", status=400)
    server.call("GET", f"{base}/profiles", status=404, column="nothing")

    quality = server.call("GET", f"{base}/quality", metric="accuracy")
    series = {one["served_entity"]: one["points"] for one in quality["series"]}
    assert set(series) == {None, "v1", "v2"} and len(series["v1"]) == 2
    point = series["v1"][0]
    assert point["low"] < point["value"] < point["high"] and point["n"] <= point["rows"]
    assert quality["label_delay_hours"]["p50"] == pytest.approx(4, rel=0.05)

    (listed,) = server.call("GET", "/api/1.0/monitors")["monitors"]
    assert listed["worst_column"]["column"] == "temp" and listed["label_coverage"] > 0.9
    assert listed["last_refresh"]["state"] == "SUCCESS"


def test_results_of_a_monitor_that_never_ran_are_empty(server):
    server.call("POST", MONITOR, CONFIG)
    base = f"/api/1.0/monitors/{TABLE}"
    assert server.call("GET", f"{base}/drift")["columns"] == []
    assert server.call("GET", f"{base}/quality")["series"] == []
    server.call("GET", f"{base}/profiles", status=404, column="temp")
    server.call("GET", "/api/1.0/monitors/main.flights.other/drift", status=404)


def test_a_new_normal_is_a_new_baseline_version(server):
    server.call("POST", MONITOR, CONFIG)
    path = f"/api/1.0/monitors/{TABLE}/baselines"
    assert "names none" in server.call("POST", path, {"kind": "training"}, 400)["message"]
    body = {"kind": "window", "start": "2024-01-01T00:00:00Z", "end": "2024-01-08T00:00:00Z"}
    assert server.call("POST", path, body)["baseline_version"] == 1
    named = {"kind": "training", "table": "main.flights.p_baseline"}
    assert server.call("POST", path, named)["baseline_version"] == 2
    server.call("POST", path, {"kind": "window", "start": "2024-01-01T00:00:00Z"}, 400)
    server.call("POST", path, {**body, "start": body["end"]}, 400)
    assert "windows" in server.call("POST", path, {"kind": "rolling"}, 400)["message"]
    assert server.call("POST", path, {"kind": "rolling", "windows": 4})["windows"] == 4
    assert server.call("POST", path, {"kind": "previous"})["kind"] == "previous"


# --- experiments, ramps, recommendations ---------------------------------------------------------


def test_an_experiment_is_begun_read_with_its_decisions_and_ended(server, lake):
    server.call("GET", EXPERIMENT, status=404)
    body = {**POLICY, "champion": "v1", "challenger": "v2", "start_time": "2024-01-01T00:00:00Z"}
    assert server.call("PUT", EXPERIMENT, body) == {"policy": body, "decisions": []}
    server.call("POST", MONITOR, CONFIG)
    lake.write(lake.rows(MONDAY, 200, 24, split={"v1": 50, "v2": 50}))
    lake.done(MONDAY + timedelta(days=1))
    lake.done(MONDAY + timedelta(days=2))
    (decision,) = server.call("GET", EXPERIMENT)["decisions"]
    assert decision["challenger"] == "v2" and decision["action"] == "keep_collecting"
    assert decision["decided_time"] == "2024-01-03T00:00:00Z" and decision["kind"] == "full"
    assert decision["config_version"] == 1 and "health" in decision and "metrics" in decision
    assert len(server.call("GET", EXPERIMENT, history="true")["decisions"]) == 2
    server.call("PUT", EXPERIMENT, body)
    assert server.call("GET", EXPERIMENT)["decisions"] == []
    assert server.call("DELETE", EXPERIMENT) == {}
    server.call("DELETE", EXPERIMENT, status=404)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"primary": None}, "primary"),
        ({"colour": 1}, "colour"),
        ({"primary": {"name": "accuracy", "kind": "binary", "mde": -1}}, "mde"),
        ({"start_time": "soon"}, "start_time"),
        ({"holdout_percentage": 70}, "holdout_percentage"),
        ({"holdout_percentage": True}, "holdout_percentage"),
        ({"guard": {"min_labels": 5}}, "window_hours"),
        ({"guard": {"window_hours": 5, "colour": 1}}, "colour"),
        ({"guard": 5}, "guard"),
    ],
)
def test_a_bad_policy_is_a_400_that_names_the_field(server, change, named):
    assert named in server.call("PUT", EXPERIMENT, {**POLICY, **change}, 400)["message"]


def test_an_experiment_of_three_versions_shows_a_decision_per_challenger(server, lake):
    server.call("POST", MONITOR, CONFIG)
    server.call("PUT", EXPERIMENT, {**POLICY, "start_time": MONDAY.isoformat()})
    split = {"v1": 50, "v2": 25, "v3": 25}
    lake.gateway.configure(**split)
    skill = {"v1": 0.1, "v2": 0.8, "v3": 1.0}
    frame = lake.rows(MONDAY, 4000, 48, split=split, skill=skill)
    lake.write(frame)
    lake.label(frame)
    lake.done(MONDAY + timedelta(hours=60))
    found = {one["challenger"]: one for one in server.call("GET", EXPERIMENT)["decisions"]}
    assert {name: one["champion"] for name, one in found.items()} == {"v2": "v1", "v3": "v1"}
    assert found["v3"]["action"] == "promote"
    assert (found["v2"]["action"], found["v2"]["reasons"]) == ("hold", ["lost_to:v3"])
    assert found["v2"]["health"]["expected_share"] == pytest.approx(1 / 3)
    assert found["v2"]["health"]["requests"] < 3200 < 4000
    assert len(server.call("GET", EXPERIMENT, history="true")["decisions"]) == 2
    kept = pl.read_delta(lake.uri("main.flights.p_decisions"))
    assert sorted(kept["challenger"]) == ["v2", "v3"]
    proposed = server.call("GET", "/api/1.0/recommendations", state="open")["recommendations"]
    moving = [one["action"] for one in proposed if one["action"]["routes"]]
    assert [one["served_entity"] for one in moving] == ["v3"]
    shares = {r["served_entity_name"]: r["traffic_percentage"] for r in moving[0]["routes"]}
    assert shares == {"v1": 0, "v2": 25, "v3": 75}


def test_an_experiment_may_be_decided_by_an_expression(server, lake):
    server.call("POST", MONITOR, CONFIG)
    lake.gateway.configure(v1=50, v2=50)
    lake.write(lake.rows(MONDAY, 10, 1, split={"v1": 50, "v2": 50}))
    loss = "CASE WHEN prediction = label THEN 0 ELSE DISTANCE END"
    primary = {"name": "miles_off", "kind": "continuous", "direction": "lower", "mde": 50}
    body = {**POLICY, "start_time": MONDAY.isoformat(), "primary": {**primary, "value": loss}}
    refused = {**body, "primary": {**primary, "value": "distanze * 2"}}
    assert (
        "primary.value: Column 'distanze'"
        in server.call("PUT", EXPERIMENT, refused, 400)["message"]
    )
    guard = {"window_hours": 2, "information": [{**primary, "value": "UPPER(carrier)"}]}
    refused = server.call("PUT", EXPERIMENT, {**body, "guard": guard}, 400)["message"]
    assert refused.startswith("information[0].value: 'UPPER(carrier)' gives String")
    server.call("PUT", EXPERIMENT, body)
    skill = {"v1": 0.1, "v2": 1.0}
    frame = lake.rows(
        MONDAY + timedelta(hours=1), 3000, 47, split={"v1": 50, "v2": 50}, skill=skill
    )
    lake.write(frame)
    lake.label(frame)
    lake.done(MONDAY + timedelta(hours=60))
    [decision] = server.call("GET", EXPERIMENT)["decisions"]
    found = decision["metrics"]["miles_off"]
    assert decision["action"] == "promote" and found["effect"] < -50
    lake.restart()  # the column is read again
    lake.done(MONDAY + timedelta(hours=61))
    [again] = server.call("GET", EXPERIMENT)["decisions"]
    assert again["metrics"]["miles_off"] == found


def test_a_ramp_is_planned_approved_and_resumed(server):
    server.call("GET", RAMP, status=404)
    planned = server.call("PUT", RAMP, {"challenger": "v2", "auto": False})
    assert planned["steps"] == [1, 5, 20, 50, 100] and planned["state"] == "running"
    assert planned["step"] == -1 and planned["on_regression"] == "roll_back"
    assert server.call("POST", f"{RAMP}/approve")["approved"] is True
    assert server.call("POST", f"{RAMP}/resume", {})["paused"] is False
    server.call("POST", f"{RAMP}/approve", {"x": 1}, 400)
    for bad in ({"steps": [5, 1]}, {"steps": [0]}, {"steps": []}, {"colour": 1}, {"auto": "yes"}):
        server.call("PUT", RAMP, {"challenger": "v2", **bad}, 400)
    assert server.call("DELETE", RAMP) == {}
    server.call("DELETE", RAMP, status=404)


def recommend(server, **changes) -> str:
    routes = [
        {"served_model_name": "v2", "traffic_percentage": 90},
        {"served_model_name": "v1", "traffic_percentage": 10},
    ]
    values = {
        "id": "r1", "endpoint": "delay", "cause": "1|promote|v2",
        "action": {"kind": "promote", "served_entity": "v2", "routes": routes},
        "evidence": [], "expected_effect": "better", "risk": "low", "created_ms": 1,
        "expires_ms": 2, "state": "open", "outcome": None, "snoozed_until_ms": None,
    } | changes  # fmt: skip
    with database.transaction(server.lake.engine) as connection:
        experiment_state.add_recommendation(connection, experiment_state.Recommendation(**values))
    return f"/api/1.0/recommendations/{values['id']}"


def test_applying_a_recommendation_promotes_as_the_caller(server):
    path = recommend(server)
    server.call("POST", f"{path}/apply", status=403, user="viewer")
    server.call("POST", f"{path}/apply", {"if_config_version": 3}, 409)
    applied = server.call("POST", f"{path}/apply", {"if_config_version": 7})
    assert server.promotions[-1] == ("ann", "delay", "v2", 90, 7, "recommendation")
    assert applied["state"] == "applied" and applied["outcome"]["audit_id"] == "a1"
    assert applied["endpoint_object"]["name"] == "delay"
    assert server.events() == ["recommendation.applied"]
    server.call("POST", f"{path}/apply", status=409)


def test_applying_gives_every_version_what_was_proposed(server):
    routes = [
        {"served_entity_name": name, "traffic_percentage": share}
        for name, share in {"v1": 80, "v2": 0, "v3": 20}.items()
    ]
    action = {"kind": "roll_back", "served_entity": "v1", "routes": routes}
    path = recommend(server, id="back", action=action)
    other = recommend(server, id="other")
    doubt = {"kind": "investigate", "served_entity": None, "routes": None}
    recommend(server, id="doubt", action=doubt)
    server.call("POST", f"{path}/apply")
    assert server.splits[-1] == {"v1": 80, "v2": 0, "v3": 20}
    # What was proposed for the split of before would undo it.
    server.call("POST", f"{other}/apply", status=409)
    found = server.call("GET", "/api/1.0/recommendations", state="open")["recommendations"]
    assert [one["id"] for one in found] == ["doubt"]


def test_recommendations_are_listed_dismissed_and_snoozed(server):
    for number in range(3):
        recommend(server, id=f"r{number}", created_ms=number)
    first = server.call("GET", "/api/1.0/recommendations", state="open", page_size=2)
    assert [r["id"] for r in first["recommendations"]] == ["r2", "r1"]
    rest = server.call(
        "GET", "/api/1.0/recommendations", page_size=2, page_token=first["next_page_token"]
    )
    assert [r["id"] for r in rest["recommendations"]] == ["r0"] and "next_page_token" not in rest
    one = "/api/1.0/recommendations/r0"
    dismissed = server.call("POST", f"{one}/dismiss", {"reason": "not now"})
    assert dismissed["state"] == "dismissed" and dismissed["outcome"]["reason"] == "not now"
    other = "/api/1.0/recommendations/r1"
    assert server.call("POST", f"{other}/snooze", {"until": "2999-01-01"})["state"] == "snoozed"
    server.call("POST", f"{other}/snooze", {"until": "1999-01-01"}, 400)
    server.call("GET", "/api/1.0/recommendations", status=400, state="odd")
    server.call("GET", "/api/1.0/recommendations", status=400, page_token="odd")
    server.call("POST", "/api/1.0/recommendations/none/apply", status=404)
    listed = server.call("GET", "/api/1.0/recommendations", user="stranger")
    assert listed == {"recommendations": []}


def test_a_recommendation_that_moves_no_traffic_cannot_be_applied(server):
    action = {"kind": "investigate", "served_entity": None, "routes": None}
    path = recommend(server, action=action)
    assert "investigate" in server.call("POST", f"{path}/apply", status=400)["message"]


# --- alerts, webhooks ----------------------------------------------------------------------------


def test_a_new_monitor_comes_with_rules_that_can_be_changed(server):
    server.call("POST", MONITOR, CONFIG)
    rules = server.call("GET", "/api/1.0/alert-rules", endpoint="delay")["alert_rules"]
    assert [rule["metric"] for rule in rules] == ["drift", "null_share", "error_rate"]
    path = f"/api/1.0/alert-rules/{rules[1]['id']}"
    changed = server.call("PATCH", path, {"condition": {"operator": ">", "threshold": 0.5}})
    assert changed["condition"]["threshold"] == 0.5 and changed["metric"] == "null_share"
    server.call("PATCH", path, {"metric": "ks"}, 400)
    assert server.call("DELETE", path) == {}
    server.call("GET", path, status=404)
    body = {
        "name": "stale", "endpoint": "delay", "metric": "feature_age_hours", "column": "as_of",
        "condition": {"operator": ">", "threshold": 3}, "severity": "critical",
    }  # fmt: skip
    made = server.call("POST", "/api/1.0/alert-rules", body)
    assert made["windows"] == 1 and made["enabled"] and made["condition"]["threshold"] == 3
    for bad in ({"metric": "mood"}, {"column": None}, {"windows": 0}, {"severity": "loud"}):
        server.call("POST", "/api/1.0/alert-rules", {**body, **bad}, 400)
    server.call("POST", "/api/1.0/alert-rules", {**body, "endpoint": "other"}, 404)


def test_a_rule_on_slices_names_one_that_the_monitor_has(server):
    server.call("POST", MONITOR, {**CONFIG, "slicing_exprs": ["temp > 20"]})
    body = {
        "name": "cold",
        "endpoint": "delay",
        "metric": "drift",
        "condition": {"operator": ">", "threshold": 0},
    }
    for cut in ("temp > 20", "temp > 20=true"):
        made = server.call("POST", "/api/1.0/alert-rules", {**body, "slice": cut})
        assert made["slice"] == cut
    for cut in ("carrier", "carrier=UA", "temp > 2"):
        refused = server.call("POST", "/api/1.0/alert-rules", {**body, "slice": cut}, 400)
        assert "slicing_exprs: temp > 20" in refused["message"]
    lag = {**body, "slice": "temp > 20", "metric": "capture_lag_seconds"}
    assert "slice" in server.call("POST", "/api/1.0/alert-rules", lag, 400)["message"]


def test_a_rule_is_tried_on_the_past(server, lake):
    lake.baseline()
    server.call("POST", MONITOR, {**CONFIG, "baseline_table_name": "main.flights.p_baseline"})
    lake.write(lake.rows(MONDAY, 600, shift=10.0))
    lake.done(MONDAY + timedelta(weeks=1))
    rules = server.call("GET", "/api/1.0/alert-rules", endpoint="delay")["alert_rules"]
    paths = [f"/api/1.0/alert-rules/{rule['id']}/try" for rule in rules]
    span = {"from": "2023-12-01T00:00:00Z", "to": "2024-03-01T00:00:00Z"}
    found = server.call("POST", paths[0], span)["alerts"]
    assert "temp" in {alert["column"] for alert in found}
    assert "error_rate" in server.call("POST", paths[2], span, 400)["message"]
    assert "from" in server.call("POST", paths[0], {"to": span["to"]}, 400)["message"]
    server.call("POST", "/api/1.0/alert-rules/none/try", span, 404)


def test_an_alert_is_acknowledged_and_muted(server, lake):
    server.call("POST", MONITOR, CONFIG)
    frame = lake.rows(MONDAY, 100, 24)
    lake.write(lake.failing(frame, pl.col("carrier") == "UA"))
    lake.done(MONDAY + timedelta(days=1))
    (alert,) = server.call("GET", "/api/1.0/alerts", state="open")["alerts"]
    assert alert["metric"] == "error_rate" and not alert["acknowledged"]
    path = f"/api/1.0/alerts/{alert['id']}"
    assert server.call("POST", f"{path}/acknowledge", {})["acknowledged"]
    muted = server.call("POST", f"{path}/mute", {"until": "2999-01-01T00:00:00Z", "reason": "x"})
    assert muted["muted_until"] == "2999-01-01T00:00:00.000Z"
    assert server.call("GET", "/api/1.0/alerts", state="closed") == {"alerts": []}
    server.call("POST", "/api/1.0/alerts/none/mute", {"until": "2999-01-01"}, 404)


def test_a_webhook_shows_its_secret_once(server):
    hook = {"url": "http://127.0.0.1:9/hook", "events": ["alert.*", "endpoint.promoted"]}
    made = server.call("POST", "/api/1.0/webhooks", hook)
    assert made["secret"].startswith("whsec_") and made["events"] == hook["events"]
    (listed,) = server.call("GET", "/api/1.0/webhooks")["webhooks"]
    assert "secret" not in listed and listed["url"] == hook["url"]
    path = f"/api/1.0/webhooks/{made['id']}"
    rotated = server.call("POST", f"{path}/rotate-secret", {})
    assert rotated["secret"] not in (None, made["secret"])
    assert server.call("PATCH", path, {"events": ["*"]})["events"] == ["*"]
    test = server.call("POST", f"{path}/test")
    assert test["state"] == "waiting" and test["event"] == "webhook.test"
    (sent,) = server.call("GET", f"{path}/deliveries")["deliveries"]
    assert sent["id"] == test["id"]
    again = server.call("POST", f"{path}/deliveries/{test['id']}/redeliver")
    assert again["message_id"] == test["message_id"] and again["state"] == "waiting"
    server.call("POST", f"{path}/deliveries/999/redeliver", status=404)
    assert server.call("DELETE", path) == {}
    server.call("GET", f"{path}/deliveries", status=404)


def test_a_webhook_may_speak_slack(server, lake):
    hook = {"url": "http://127.0.0.1:9/hook", "events": ["alert.*"], "format": "slack"}
    made = server.call("POST", "/api/1.0/webhooks", hook)
    assert made["format"] == "slack"
    path = f"/api/1.0/webhooks/{made['id']}"
    sent = server.call("POST", f"{path}/test")
    with database.reading(lake.engine) as connection:
        body = alert_state.get_delivery(connection, made["id"], int(sent["id"])).body
    assert list(json.loads(body)) == ["text"]
    assert server.call("PATCH", path, {"format": "standard"})["format"] == "standard"
    server.call("PATCH", path, {"format": "fax"}, 400)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"url": "http://169.254.169.254/"}, 400),
        ({"url": "ftp://127.0.0.1/"}, 400),
        ({"url": "http://10.0.0.1/"}, 400),
        ({"events": []}, 400),
        ({"events": ["alert.exploded"]}, 400),
        ({"events": ["a*"]}, 400),
        ({"colour": 1}, 400),
        ({"format": "fax"}, 400),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(server, change, status):
    hook = {"url": "http://127.0.0.1:9/hook", "events": ["alert.*"]}
    server.call("POST", "/api/1.0/webhooks", {**hook, **change}, status)


# --- jobs ----------------------------------------------------------------------------------------


def test_a_report_is_asked_for_followed_and_cancelled(server, lake):
    lake.monitor(baseline_table_name="main.flights.p_baseline")
    window = ["2024-01-01T00:00:00Z", "2024-01-08T00:00:00Z"]
    asked = {"table": TABLE, "window": window, "slice": "temp = 1=true"}
    path = (
        "/api/1.0/jobs/" + server.call("POST", "/api/1.0/reports", asked, user="viewer")["job_id"]
    )
    job = server.call("GET", path)
    assert (job["kind"], job["state"], job["table"]) == ("report", "queued", TABLE)
    assert job["created_by"] == "viewer" and job["endpoint"] == "delay"
    assert job["result_url"] is None and job["finished_time"] is None
    with database.reading(lake.engine) as connection:
        arguments = job_state.get(connection, job["id"]).arguments
    assert arguments["baseline"] == {"kind": "training", "table": "main.flights.p_baseline"}
    assert arguments["window"][0] == "2024-01-01T00:00:00+00:00"
    assert arguments["slice"] == ["temp = 1", "true"]
    server.call("GET", f"{path}/result", status=404)
    server.call("GET", path, status=404, user="stranger")
    server.call("POST", f"{path}/cancel", status=404, user="stranger")
    ended = server.call("POST", f"{path}/cancel", {}, user="viewer")
    assert ended["state"] == "cancelled" and ended["finished_time"] is not None
    assert server.call("GET", "/api/1.0/jobs/none", status=404)["error_code"] == (
        "RESOURCE_DOES_NOT_EXIST"
    )


def test_somebody_elses_job_is_cancelled_by_who_manages_the_endpoint(server, lake):
    lake.monitor(baseline_table_name="main.flights.p_baseline")
    asked = {
        "table": TABLE,
        "baseline": {"kind": "previous"},
        "window": ["2024-01-01", "2024-01-08"],
    }
    job_id = server.call("POST", "/api/1.0/reports", asked)["job_id"]
    server.call("POST", f"/api/1.0/jobs/{job_id}/cancel", {}, 403, user="viewer")
    assert server.call("POST", f"/api/1.0/jobs/{job_id}/cancel", {}, user="bob")["state"] == (
        "cancelled"
    )


def test_the_file_of_a_job_is_served_to_whom_may_see_it_and_with_no_rights_of_its_own(server, lake):
    with database.transaction(lake.engine) as connection:
        made = [
            job_state.create(connection, kind, {}, "delay", TABLE, "ann", 1)
            for kind in ("report", "replay", "report")
        ]
        for job_id, file in zip(made, ("report.html", "rows.parquet", "../secret"), strict=True):
            job_state.start(connection, job_id, 2)
            job_state.end(connection, job_id, "succeeded", None, 3, {"file": file})
            folder = jobs.folder(lake.settings, job_id)
            folder.mkdir(parents=True)
            (folder / file).write_text("<p>hello</p>")
    report, replay, outside = (f"/api/1.0/jobs/{job_id}" for job_id in made)
    assert server.call("GET", report)["result_url"] == f"{report}/result"
    answer = server.client.get(f"{report}/result", headers={"Authorization": "Bearer viewer"})
    assert answer.text == "<p>hello</p>" and answer.headers["content-type"].startswith("text/html")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "allow-same-origin" not in answer.headers["content-security-policy"]
    server.call("GET", f"{replay}/result", status=403, user="viewer")
    server.call("GET", replay, status=403, user="viewer")
    assert server.client.get(f"{replay}/result", headers={"Authorization": "Bearer ann"}).content
    assert server.call("GET", outside)["result_url"] is None
    server.call("GET", f"{outside}/result", status=404)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"window": ["2024-01-08", "2024-01-01"]}, "before the end"),
        ({"window": ["yesterday", "today"]}, "RFC 3339"),
        ({"window": ["2024-01-08"]}, "window"),
        ({"slice": "carrier"}, "slice"),
        ({"baseline": {"kind": "rolling"}}, "windows"),
        ({"baseline": None}, "baseline"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_report_that_cannot_be_is_a_400(server, lake, change, named):
    lake.monitor()
    asked = {"table": TABLE, "baseline": {"kind": "previous"}, **change}
    assert named in server.call("POST", "/api/1.0/reports", asked, 400)["message"]


def test_the_routers_load_no_library_of_numbers_but_arrow_s():
    code = (
        "import sys, monitors.api; heavy = {'polars', 'scipy', 'pandas', 'deltalake', "
        "'sklearn', 'mlflow'}; sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
