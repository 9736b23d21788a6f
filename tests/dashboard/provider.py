"""A stand-in for the HTTP API, for states that a real server reaches slowly or never.

Replies have the shapes of the API's contract; the story is flights that run late. `Provider.modes`
decides per path prefix: `normal`, `empty`, `error` (500), `denied` (403), `slow`, `gone` (404).
What a client sent is kept in `Provider.sent`, what it asked in `Provider.queries`.
"""

import json
import math
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.dashboard import administration

TOKEN = "il_test"
NAME = administration.NAME
TABLE = "main.flights.flight_delay_unpacked"
STORY = datetime(2013, 7, 1, tzinfo=UTC)
COLUMNS = ("temp", "delay_2h", "visib", "wind_speed", "carrier", "prediction", "seats", "distance")
WEEKS = 26
HOSTILE = administration.HOSTILE


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def now() -> datetime:
    return datetime.now(UTC)


def window(week: int) -> list[str]:
    start = STORY + timedelta(days=7 * week)
    return [iso(start), iso(start + timedelta(days=7))]


def configuration(number: int, split: dict[str, int]) -> dict[str, Any]:
    """A core configuration; versions v1.. of one model."""
    entities = [
        {
            "name": name,
            "entity_name": "main.flights.flight_delay",
            "entity_version": name.removeprefix("v"),
            "workload_size": "Small",
            "scale_to_zero_enabled": False,
            "state": {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""},
        }
        for name in split
    ]
    routes = [
        {"served_model_name": n, "served_entity_name": n, "traffic_percentage": share}
        for n, share in split.items()
    ]
    return {
        "served_entities": entities,
        "traffic_config": {"routes": routes, "sticky": {"key": "client_request_id"}},
        "auto_capture_config": {"catalog_name": "main", "schema_name": "flights"},
        "config_version": number,
    }


SPLITS = [{"v1": 90, "v2": 10}, {"v1": 50, "v2": 50}, {"v1": 10, "v2": 90}]


def endpoint(level: str = "CAN_MANAGE") -> dict[str, Any]:
    moved = now() - timedelta(minutes=3)
    return {
        "name": NAME,
        "id": "0f" * 16,
        "creator": "admin",
        "creation_timestamp": int((now() - timedelta(minutes=20)).timestamp() * 1000),
        "last_updated_timestamp": int(moved.timestamp() * 1000),
        "state": {"ready": "READY", "config_update": "NOT_UPDATING"},
        "config": configuration(2, SPLITS[1]),
        "permission_level": level,
        "route_optimized": False,
    }


def versions() -> dict[str, Any]:
    history = [
        {
            "config_version": number,
            "config": configuration(number, SPLITS[number - 1]),
            "created_by": "admin",
            "created_time": iso(now() - timedelta(minutes=23 - 10 * number)),
            "reason": "compare at equal shares" if number == 2 else "first",
            "origin": "user",
        }
        for number in (2, 1)
    ]
    return {"versions": history}


def overview() -> dict[str, Any]:
    return {
        "inbox": [
            {
                "kind": "alert",
                "severity": "critical",
                "title": "airport_hour older than 3 h",
                "text": "as_of is 5.2 h behind; median of the newest 5 rows",
                "link": f"/alerts?endpoint={NAME}",
                "time": iso(now() - timedelta(minutes=2)),
            },
            {
                "kind": "recommendation",
                "severity": "info",
                "title": "Promote v2 to 90 %",
                "text": "v2 against v1 on log loss: -0.089 [-0.158, -0.019] from 2,848 labels",
                "link": f"/recommendations?endpoint={NAME}",
                "time": iso(now() - timedelta(minutes=9)),
            },
        ],
        "endpoints": [
            {
                "name": NAME,
                "state": {"ready": "READY", "config_update": "NOT_UPDATING"},
                "entities": [
                    {"name": "v1", "percentage": 50, "version": "1"},
                    {"name": "v2", "percentage": 50, "version": "2"},
                ],
                "requests_per_second": 312.4,
                "p99_ms": 41.7,
                "error_rate": 0.0012,
                "worst_drift": {"column": "temp", "effect": 7.9},
                "label_coverage": 0.62,
            }
        ],
        "data_age_seconds": 1.2,
    }


def timeseries(query: dict[str, str]) -> dict[str, Any]:
    step = int(query.get("step", "60"))
    start = datetime.fromisoformat(query["from"])
    count = max(min(int((now() - start).total_seconds() / step), 300), 2)
    lines: dict[str | None, list[str | None]] = {
        "served_entity": ["v1", "v2"],
        "status_code": ["200", "400"],
    }
    versions_ = lines.get(query.get("by"), [None])
    bases = {"requests": 300 * step, "errors": 1.0, "p50": 9.0, "p95": 24.0, "p99": 41.0}
    series = []
    for place, by in enumerate(versions_):
        for metric in query["metrics"].split(","):
            base = bases.get(metric, 1.0)
            points = [
                [
                    iso(start + timedelta(seconds=step * i)),
                    base * (1 + 0.2 * math.sin(i / 7 + place) + 0.1 * math.sin(i * 1.7)),
                ]
                for i in range(count)
            ]
            series.append({"metric": metric, "by": by, "points": points})
    event = {"time": iso(now() - timedelta(minutes=3)), "kind": "config", "text": "configuration 2"}
    return {"step_seconds": step, "series": series, "events": [event]}


def request_row(number: int) -> dict[str, Any]:
    late = number % 4 == 0
    return {
        "databricks_request_id": f"{number:032x}",
        "row_index": 0,
        "client_request_id": f"flight-{number}",
        "request_time": iso(now() - timedelta(seconds=30 + number)),
        "served_entity_name": "v2" if number % 2 else "v1",
        "status_code": 400 if number % 21 == 20 else 200,
        "execution_duration_ms": 7 + number % 5,
        "carrier": ["UA", "B6", "EV", "MQ"][number % 4],
        "origin": ["EWR", "JFK", "LGA"][number % 3],
        "distance": 200.0 + 37 * (number % 40),
        "prediction": None if number % 21 == 20 else round(0.12 + 0.6 * late, 3),
        "label": 1.0 if late and number % 3 else None,
    }


def request_detail(request_id: str) -> dict[str, Any]:
    row = request_row(int(request_id, 16))
    body = {
        "dataframe_records": [{"carrier": row["carrier"], "origin": row["origin"]}],
        "client_request_id": row["client_request_id"],
    }
    return row | {
        "request": json.dumps(body),
        "response": json.dumps({"predictions": [row["prediction"]], "note": HOSTILE}),
        "looked_up": {"seats": [149], "delay_2h": [12.5]},
        "parts": {"gateway_ms": 0.3, "queue_ms": 1.1, "features_ms": 0.1, "predict_ms": 5.4},
    }


def effect_of(column: int, week: int) -> float:
    shape = {0: 7.9, 1: 1.1, 2: 0.8, 3: 1.4, 4: 0.4, 5: 1.7, 6: 0.2, 7: 0.3}[column]
    wave = 0.65 + 0.35 * math.cos((week - 2) / 4 + column)
    spike = 4.6 if column == 2 and week == 22 else 0
    return round(shape * wave + spike + 0.05, 2)


def drift() -> dict[str, Any]:
    columns = []
    for place, name in enumerate(COLUMNS):
        categorical = name == "carrier"
        metric, threshold = ("js_distance", 0.1) if categorical else ("ks", 0.1)
        cells = []
        for week in range(WEEKS):
            x = effect_of(place, week)
            severity = "critical" if x >= 2 else "warning" if x >= 1 else None
            cells.append(
                {
                    "window": window(week),
                    "status": "drifted" if severity else "ok",
                    "severity": severity,
                    "metric": metric,
                    "value": round(x * threshold, 4),
                    "threshold": threshold,
                    "bound": 0.002,
                    "n": 910 + 13 * week,
                    "n_baseline": 160_590,
                    "pvalue": 0.0001,
                    "effect": x,
                    "null_share": 0.45 if name == "visib" and week == 25 else 0.007,
                    "text": "",
                }
            )
        if place == 6:
            cells[3] |= {"status": "not_enough_data", "effect": None, "value": None, "n": 82}
        kind = "categorical" if categorical else "numeric"
        columns.append({"name": name, "kind": kind, "rank": place + 1, "cells": cells})
    return {"table": TABLE, "windows": [window(w) for w in range(WEEKS)], "columns": columns}


def profiles(query: dict[str, str]) -> dict[str, Any]:
    if query["column"] == "carrier":
        names = ["UA", "B6", "EV", "DL", "AA", "MQ", "other"]
        base, current = [58, 54, 54, 48, 32, 26, 40], [60, 55, 48, 50, 31, 25, 44]
        histogram = [
            [{"value": n, "count": c} for n, c in zip(names, counts, strict=True)]
            for counts in (base, current)
        ]
    else:
        histogram = [
            [
                {
                    "low": float(i),
                    "high": float(i + 1),
                    "count": round(1000 * math.exp(-((i - middle) ** 2) / 60)),
                }
                for i in range(40)
            ]
            for middle in (17, 26)
        ]
    part = {"rows": 1000, "nulls": 7}
    return {
        "column": query["column"],
        "kind": "numeric",
        "baseline": part | {"rows": 160_590, "nulls": 1_100, "histogram": histogram[0]},
        "previous": None,
        "current": part | {"histogram": histogram[1]},
    }


def quality() -> dict[str, Any]:
    series = []
    bases = {"log_loss": (0.51, 0.45), "accuracy": (0.77, 0.81), "roc_auc": (0.64, 0.73)}
    for metric, values in bases.items():
        for version, value in zip(("v1", "v2"), values, strict=True):
            points = []
            for week in range(WEEKS):
                rows = 400 + 9 * week
                labelled = int(rows * (0.97 if week < 24 else 0.6 if week == 24 else 0))
                x = value + 0.03 * math.sin(week / 3)
                half = 0.05 if week < 24 else 0.09
                known = labelled > 0
                points.append(
                    {
                        "window": window(week),
                        "value": round(x, 4) if known else None,
                        "low": round(x - half, 4) if known else None,
                        "high": round(x + half, 4) if known else None,
                        "n": labelled,
                        "labelled": labelled,
                        "rows": rows,
                        "reason": None if known else "no labels",
                    }
                )
            series.append({"served_entity": version, "metric": metric, "points": points})
    return {
        "windows": [window(w) for w in range(WEEKS)],
        "series": series,
        "coverage": [],
        "label_delay_hours": {"p50": 3.8, "p95": 7.4},
    }


POLICY = {
    "champion": "v1",
    "challenger": "v2",
    "primary": {"name": "log_loss", "kind": "continuous", "mode": "superiority", "mde": 0.03},
    "guardrails": [
        {"name": "error_rate", "kind": "error_rate", "margin": 0.002},
        {"name": "latency_p95", "kind": "latency", "quantile": 0.95, "margin": 0.10},
    ],
    "information": [{"name": "accuracy", "kind": "binary"}],
    "min_hours": 336,
    "stratum_hours": 24,
    "slices": ["origin"],
    "holdout_percentage": 10,
}


def decision(day: int) -> dict[str, Any]:
    """The decision of story day `day`; it promotes from the 14th on."""
    labels = 190 * (day + 1)
    half = 0.32 / math.sqrt(day + 1)
    effect = -0.089 + 0.05 * math.sin(day) / (day + 1)
    action = "promote" if day >= 14 else "keep_collecting"
    n = {"v1": labels // 2, "v2": labels - labels // 2}
    metric = {
        "n": n,
        "value": {"v1": 0.514, "v2": 0.514 + effect},
        "effect": effect,
        "se": half / 2.8,
        "interval": [effect - half, effect + half],
        "direction": "lower",
    }
    return {
        "challenger": "v2",
        "champion": "v1",
        "action": action,
        "reasons": ["better"] if day >= 14 else ["min_hours" if day > 9 else "undecided"],
        "summary": f"v2 against v1 on log loss: {effect:+.3f} "
        f"[{effect - half:+.3f}, {effect + half:+.3f}] from {labels:,} labels",
        "decided_time": iso(STORY + timedelta(days=day)),
        "experiment": 1,
        "kind": "scheduled",
        "config_version": 2,
        "metrics": {
            "log_loss": metric,
            "accuracy": metric
            | {
                "effect": 0.067,
                "interval": [0.006, 0.127],
                "direction": "higher",
                "value": {"v1": 0.76, "v2": 0.83},
            },
            "error_rate": metric
            | {
                "effect": 0.0004,
                "interval": [-0.0016, 0.0024],
                "value": {"v1": 0.0012, "v2": 0.0016},
            },
            "latency_p95": metric
            | {"effect": 0.03, "interval": [-0.04, 0.09], "value": {"v1": 23.1, "v2": 23.8}},
        },
        "guardrails": {
            "error_rate": {"margin": 0.002, "crossed": False},
            "latency_p95": {"margin": 0.1, "crossed": False},
        },
        "slices": [
            {
                "slice": f"origin={origin}",
                "n": {"v1": 400, "v2": 410},
                "effect": x,
                "interval": [x - 0.12, x + 0.12],
                "direction": "lower",
                "comparisons": 3,
                "regression": False,
            }
            for origin, x in (("EWR", -0.11), ("JFK", -0.06), ("LGA", -0.14))
        ],
        "health": {
            "srm_log_e": -2.1,
            "srm_p": 1.0,
            "observed_share": 0.497,
            "expected_share": 0.5,
            "requests": 3251,
            "assignment": "request",
            "switches": 0,
            "coverage": {"v1": 0.973, "v2": 0.976},
            "coverage_difference": 0.003,
            "coverage_interval": [-0.01, 0.016],
            "delay_90_hours": 7.9,
            "immature_weight": 0.02,
            "fading": {"slope_per_day": 0.002, "log_e": -1.0, "recent_effect": -0.08},
            "hours": 24.0 * day,
        },
        "remaining": {"labels": 900, "labels_at_most": 2100, "hours": 110.0},
    }


def experiment(history: bool) -> dict[str, Any]:
    decisions = [decision(day) for day in range(15, 0, -1)]
    return {"policy": POLICY, "decisions": decisions if history else decisions[:1]}


RAMP = {
    "challenger": "v2",
    "steps": [1, 5, 20, 50, 100],
    "min_minutes_per_step": 30,
    "auto": False,
    "on_regression": "roll_back",
    "step": 3,
    "state": "held",
    "since": "2013-07-03T00:00:00Z",
    "next_gate": "waits for a person to approve 100 %",
}


def recommendation(state: str = "open") -> dict[str, Any]:
    return {
        "id": "rec-1" if state == "open" else "rec-0",
        "endpoint": NAME,
        "action": {
            "kind": "promote",
            "served_entity": "v2",
            "routes": [
                {"served_entity_name": "v1", "traffic_percentage": 10},
                {"served_entity_name": "v2", "traffic_percentage": 90},
            ],
        },
        "evidence": [
            {
                "text": "log loss of v2 minus v1, 2,848 labels",
                "value": -0.089,
                "interval": [-0.158, -0.019],
                "link": "/experiment",
            },
            {"text": "error rate within its guardrail", "value": 0.0004, "interval": None},
        ],
        "expected_effect": "log loss lower by 0.089 [0.019, 0.158]",
        "risk": "10 % stay on v1, so a later loss can be seen and undone",
        "created_time": iso(now() - timedelta(minutes=9)),
        "expires_time": iso(now() + timedelta(days=7)),
        "state": state,
        "outcome": None if state == "open" else {"applied_by": "ann", "traffic_percentage": 90},
    }


def alert(state: str) -> dict[str, Any]:
    return {
        "id": f"alert-{state}",
        "rule_id": "rule-1",
        "endpoint": NAME,
        "metric": "feature_age_hours",
        "column": "as_of",
        "severity": "critical",
        "state": state,
        "opened_time": iso(now() - timedelta(minutes=2)),
        "updated_time": iso(now()),
        "closed_time": None if state == "open" else iso(now()),
        "value": 5.2,
        "threshold": 3.0,
        "n": 5,
        "window": ["2013-10-08T07:00:00Z", "2013-10-08T08:00:00Z"],
        "message": "as_of is 5.2 h behind event_time, allowed are 3 h",
        "acknowledged": False,
        "muted_until": None,
    }


RULE = {
    "id": "rule-1",
    "name": "fresh airport_hour",
    "endpoint": NAME,
    "metric": "feature_age_hours",
    "column": "as_of",
    "condition": {"operator": ">", "threshold": 3.0},
    "windows": 1,
    "severity": "critical",
    "cool_down_minutes": 60,
    "enabled": True,
}

MONITOR = {
    "table": TABLE,
    "endpoint": NAME,
    "status": "MONITOR_STATUS_ACTIVE",
    "failure_message": None,
    "last_refresh": {"refresh_id": 7, "state": "SUCCESS", "end_time_ms": 1_790_000_000_000},
    "next_refresh": None,
}

MONITOR_CONFIG = {
    "table_name": TABLE,
    "baseline_table_name": "main.flights.flight_delay_baseline",
    "inference_log": {"timestamp_col": "event_time", "granularities": ["1 week"]},
}

CAPTURE = {
    "table": "main.flights.flight_delay_payload",
    "location": "/data/tables/main/flights/flight_delay_payload",
    "committed_rows": 25_027,
    "lag_seconds": 0.4,
    "wal_bytes": 18_211,
    "dropped": {},
}

MODELS = {
    "models": [
        {
            "name": "main.flights.flight_delay",
            "versions": [
                {"version": "3", "aliases": [], "created_time": "2013-07-01T00:00:00Z"},
                {"version": "2", "aliases": ["champion"], "created_time": "2013-06-01T00:00:00Z"},
                {"version": "1", "aliases": [], "created_time": "2013-05-01T00:00:00Z"},
            ],
        },
        {"name": "iris", "versions": [{"version": "1", "aliases": []}]},
    ]
}

MODEL_VERSION = {
    "name": "main.flights.flight_delay",
    "version": "3",
    "flavours": ["python_function", "sklearn"],
    "columns": [
        {"name": "distance", "type": "double", "required": True},
        {"name": "carrier", "type": "string", "required": False},
    ],
    "looked_up": [],
    "example": {"dataframe_split": {"columns": ["distance"], "data": [[719.0]]}},
}


def replicas() -> dict[str, Any]:
    replica = {
        "id": "r1",
        "state": "READY",
        "message": None,
        "created_time": iso(now() - timedelta(minutes=9)),
        "ready_time": iso(now() - timedelta(minutes=8)),
        "concurrency": 4,
        "memory_bytes": 123_000_000,
        "cpu_seconds": 4.2,
        "ways": {
            "linear": f"numpy is not proven: {HOSTILE}",
            "numpy": "not all columns are double",
            "frame": "proven",
            "mlflow": "proven",
        },
        "calls": {"frame": 1204, "mlflow": 3},
        "feature_misses": {},
    }
    return {
        "entities": [
            {
                "served_entity": name,
                "active": True,
                "deployment": "DEPLOYMENT_READY",
                "message": "Ready",
                "since": iso(now() - timedelta(minutes=8)),
                "waiting": 2,
                "in_flight": 3,
                "last_request_time": iso(now() - timedelta(seconds=4)),
                "replicas": [replica | {"id": f"{name}-r1"}],
            }
            for name in ("v1", "v2")
        ]
    }


EVENTS = {
    "events": [
        {
            "time": "2013-07-01T00:03:00Z",
            "kind": "failed",
            "text": "Configuration 3 failed",
            "actor": None,
            "reason": f"no such column {HOSTILE}",
            "config_version": 3,
            "duration_seconds": 12.0,
        },
        {
            "time": "2013-07-01T00:00:00Z",
            "kind": "configuration",
            "text": "Configuration 2 asked for: v1 50 %, v2 50 %",
            "actor": "ann",
            "reason": None,
            "config_version": 2,
            "duration_seconds": None,
        },
    ]
}

PERMISSIONS = {
    "object_id": "/serving-endpoints/" + "0f" * 16,
    "access_control_list": [
        {
            "user_name": "admin",
            "all_permissions": [{"permission_level": "CAN_MANAGE", "inherited": False}],
        },
        {
            "user_name": "bob",
            "all_permissions": [{"permission_level": "CAN_QUERY", "inherited": False}],
        },
        {
            "group_name": "admins",
            "all_permissions": [{"permission_level": "CAN_MANAGE", "inherited": True}],
        },
    ],
}

WEBHOOK_SECRET = "whsec_c2hvd24gb25jZQ=="

EMPTY: dict[str, Any] = {
    "models": {"models": []},
    "replicas": {"entities": []},
    "events": {"events": []},
    "overview": {"inbox": [], "endpoints": [], "data_age_seconds": None},
    "requests": {"requests": []},
    "monitors": {"monitors": []},
    "alerts": {"alerts": []},
    "alert-rules": {"alert_rules": []},
    "recommendations": {"recommendations": []},
    "versions": {"versions": []},
    "timeseries": {"step_seconds": 60, "series": [], "events": []},
    "drift": {"table": TABLE, "windows": [], "columns": []},
    "quality": {"windows": [], "series": [], "coverage": [], "label_delay_hours": {}},
    "profiles": {"current": None, "baseline": None, "previous": None},
    "logs": {"logs": ""},
    "build-logs": {"logs": ""},
}


class Provider:
    """A server on a free port of 127.0.0.1. modes: path part -> state; the longest match wins."""

    def __init__(self) -> None:
        self.modes: dict[str, str] = {}
        self.sent: list[tuple[str, str, Any]] = []
        self.queries: list[tuple[str, dict[str, str]]] = []
        self.level = "CAN_MANAGE"
        self.overrides: dict[str, Any] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        self.modes.clear()
        self.sent.clear()
        self.queries.clear()
        self.overrides.clear()
        self.level = "CAN_MANAGE"

    def asked(self, path: str) -> dict[str, str]:
        """The query of the newest GET whose path ends so."""
        return next(query for asked, query in reversed(self.queries) if asked.endswith(path))

    def mode(self, path: str) -> str:
        found = [part for part in self.modes if part in path]
        return self.modes[max(found, key=len)] if found else "normal"

    def answer(
        self, method: str, path: str, query: dict[str, str], body: Any
    ) -> tuple[int, dict[str, Any] | str]:
        """Status and body. A string is sent as text."""
        if method == "GET":
            self.queries.append((path, query))
        mode = self.mode(path)
        if mode == "error":
            return 500, {"error_code": "INTERNAL_ERROR", "message": "Something broke."}
        if mode == "denied":
            message = "User 'ann' needs CAN_MANAGE on 'flight-delay'."
            return 403, {"error_code": "PERMISSION_DENIED", "message": message}
        if mode == "gone":
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "It is not there."}
        if mode == "conflict":
            message = "Configuration 2 is not current any more, 3 is."
            return 409, {"error_code": "RESOURCE_CONFLICT", "message": message}
        last = path.rsplit("/", 1)[-1]
        for part, reply in self.overrides.items():
            if path.endswith(part) and method == "GET":
                return 200, reply
        if mode == "empty" and method == "GET":
            return 200, EMPTY.get(last, {})
        return self._normal(method, path, query, body)

    def _normal(
        self, method: str, path: str, query: dict[str, str], body: Any
    ) -> tuple[int, dict[str, Any] | str]:
        last = path.rsplit("/", 1)[-1]
        if method != "GET":
            self.sent.append((method, path, body))
            return self._written(last, body)
        if path == "/api/1.0/me":
            return 200, {"user": "ann", "is_admin": False}
        if path == "/api/2.0/serving-endpoints":
            return 200, {"endpoints": [endpoint(self.level)]}
        if path.startswith("/api/1.0/requests/"):
            return 200, request_detail(last)
        if path == "/api/1.0/requests":
            page = int(query.get("page_token", "0"))
            rows = [request_row(i) for i in range(100 * page, 100 * page + 100)]
            return 200, {"requests": rows, "next_page_token": str(page + 1)}
        if path.startswith("/api/2.0/serving-endpoints/") and path.count("/") == 4:
            return 200, endpoint(self.level)
        if path.startswith("/api/1.0/models/"):
            return 200, MODEL_VERSION
        if path.startswith("/api/2.0/permissions/"):
            return 200, PERMISSIONS
        if last == "alerts":
            return 200, {"alerts": [alert(query.get("state", "open"))]}
        if last == "recommendations":
            found = [recommendation("open")]
            if query.get("state") != "open":
                found.append(recommendation("applied"))
            return 200, {"recommendations": found}
        if last == "timeseries":
            return 200, timeseries(query)
        if last == "profiles":
            return 200, profiles(query)
        if last == "experiment":
            return 200, experiment("history" in query)
        if last in ("requests.csv", "requests.parquet"):
            return 200, "request_time,prediction\n"
        known: dict[str, Any] = {
            "overview": overview(),
            "models": MODELS,
            "replicas": replicas(),
            "events": EVENTS,
            "versions": versions(),
            "capture": CAPTURE | {"last_commit_time": iso(now() - timedelta(seconds=1))},
            "monitors": {"monitors": [MONITOR]},
            "monitor": MONITOR_CONFIG,
            "drift": drift(),
            "quality": quality(),
            "ramp": RAMP,
            "alert-rules": {"alert_rules": [RULE]},
            "openapi": {"openapi": "3.1.0", "paths": {}},
            "logs": {"logs": "ready\nlistening\n" * 20},
            "build-logs": {"logs": "environment: the server's own\n"},
        }
        if last in known:
            return 200, known[last]
        for part, reply in administration.REPLIES.items():
            if path.endswith(part):
                return 200, reply
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": f"No route {path}."}

    def _written(self, last: str, body: Any) -> tuple[int, dict[str, Any] | str]:
        if last == "sign-in":
            if body != {"code": "good"}:
                return 403, {"error_code": "PERMISSION_DENIED", "message": "Unknown code."}
            return 200, {"token": TOKEN, "user": "ann"}
        if last == "invocations":
            return 200, {"predictions": [0.73]}
        if last == "reports":
            return 200, {"job_id": "job-1"}
        if last == "webhooks":
            if not body["url"].startswith("https://"):
                message = "url: an http or https address is needed."
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": message}
            return 200, body | {"id": "w2", "secret": WEBHOOK_SECRET}
        if last in ("promote", "apply", "rollback"):
            number = 1 if last == "rollback" else 3
            split = SPLITS[0] if last == "rollback" else SPLITS[2]
            if last == "promote":
                share = body["traffic_percentage"]
                other = "v1" if body["served_entity"] == "v2" else "v2"
                split = {body["served_entity"]: share, other: 100 - share}
            after = endpoint() | {"config": configuration(number, split), "audit_id": "a1"}
            if last == "apply":
                return 200, recommendation("applied") | {"endpoint_object": after}
            return 200, after
        return 200, {}


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            body = json.loads(raw) if raw else None
            path = unquote(parts.path)
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if known or path.endswith("/sign-in"):
                status, reply = provider.answer(self.command, path, query, body)
            else:
                message = "This token is not known."
                status, reply = 403, {"error_code": "PERMISSION_DENIED", "message": message}
            text = reply if isinstance(reply, str) else json.dumps(reply)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.send_header("x-request-id", "req-17")
            self.send_header("served-model-name", "v2")
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, format: str, *arguments: Any) -> None:
            """A test's output is the test's."""

    return Handler


def main() -> None:
    """Serve until interrupted, to look at the pages: prints the URL and the token."""
    provider = Provider()
    print(provider.url, TOKEN, flush=True)
    provider._server.serve_forever()


if __name__ == "__main__":
    main()
