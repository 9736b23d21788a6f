"""A recorded endpoint in a temporary folder: its tables are written here, its server is a small one
that knows configurations and nothing else."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import deltalake
import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from capture import catalog, database, names
from capture.settings import Settings
from monitors import alert_state, alerts, contract, rounds
from monitors import state as monitor_state

ENDPOINT = "delay"
TABLE = "main.flights.p_unpacked"
MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
INFERENCE_LOG = {
    "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
    "timestamp_col": "event_time",
    "granularities": ["1 week"],
    "prediction_col": "prediction",
    "prediction_proba_col": "score",
    "model_id_col": "served_entity_name",
    "label_col": "label",
}


class Gateway:
    """A server with one endpoint: its configurations, and the two ways of changing traffic."""

    def __init__(self) -> None:
        self.configurations: list[dict[str, int]] = []
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.refuse: str | None = None
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*gateway.read(self.path))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"] or 0)
                self.answer(*gateway.write(self.path, json.loads(self.rfile.read(length))))

            def answer(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Silent."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def configure(self, **shares: int) -> int:
        """A new configuration; gives its version."""
        self.configurations.append(shares)
        return len(self.configurations)

    @property
    def shares(self) -> dict[str, int]:
        return self.configurations[-1]

    def read(self, path: str) -> tuple[int, Any]:
        if path == f"/api/2.0/serving-endpoints/{ENDPOINT}":
            return 200, self.endpoint()
        if path == f"/api/1.0/endpoints/{ENDPOINT}/versions":
            count = len(self.configurations)
            found = [
                {"config_version": n, "config": self.config(n), "origin": "user"}
                for n in range(count, 0, -1)
            ]
            return 200, {"versions": found}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": f"No route GET {path}."}

    def write(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        action = path.rsplit("/", 1)[1]
        self.calls.append((action, path, body))
        if self.refuse is not None:
            return 409, {"error_code": "RESOURCE_CONFLICT", "message": self.refuse}
        if action == "rollback":
            self.configurations.append(self.configurations[body["to_config_version"] - 1])
            return 200, self.endpoint()
        if body["if_config_version"] != len(self.configurations):
            return 409, {"error_code": "RESOURCE_CONFLICT", "message": "It moved on."}
        share = body["traffic_percentage"]
        others = {k: v for k, v in self.shares.items() if k != body["served_entity"]}
        total = sum(others.values()) or 1
        rest = {k: round(v * (100 - share) / total) for k, v in others.items()}
        self.configurations.append({**rest, body["served_entity"]: share})
        return 200, self.endpoint()

    def config(self, version: int) -> dict[str, Any]:
        routes = [
            {"served_model_name": name, "traffic_percentage": share}
            for name, share in self.configurations[version - 1].items()
        ]
        return {"config_version": version, "traffic_config": {"routes": routes}}

    def endpoint(self) -> dict[str, Any]:
        version = len(self.configurations)
        state = {"config_update": "NOT_UPDATING", "ready": "READY"}
        return {"name": ENDPOINT, "config": self.config(version), "state": state}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(10)


class Lake:
    """Tables and monitor of one endpoint."""

    def __init__(self, settings: Settings, engine: sa.Engine, gateway: Gateway) -> None:
        self.settings, self.engine, self.gateway = settings, engine, gateway
        self.random = np.random.default_rng(7)
        self.sent = 0
        self.rounds = rounds.Rounds(engine, settings, lambda: True)
        with database.transaction(engine) as connection:
            catalog.record(connection, "main.flights.p_payload", "e1", ENDPOINT, {}, {}, 1)

    def uri(self, name: str) -> str:
        return names.table_path(self.settings.tables_root, names.table_name(name))

    def restart(self) -> None:
        """As after the death of the process: nothing is in memory."""
        self.rounds.close()
        self.rounds = rounds.Rounds(self.engine, self.settings, lambda: True)

    # --- what is recorded --------------------------------------------------------------------

    def features(self, times: list[datetime], shift: float = 0.0) -> dict[str, Any]:
        """Columns of a request: two measures, two categories."""
        n = len(times)
        return {
            "temp": self.random.normal(10 + shift, 5, n),
            "distance": self.random.choice([200.0, 400.0, 900.0], n),
            "carrier": self.random.choice(["AA", "B6", "UA"], n, p=[0.3, 0.3, 0.4]).tolist(),
            "tailnum": [f"N{k}" for k in self.random.integers(0, 10_000, n)],
        }

    def rows(
        self,
        start: datetime,
        n: int,
        hours: float = 168.0,
        split: dict[str, int] | None = None,
        config_version: int = 1,
        shift: float = 0.0,
        skill: dict[str, float] | None = None,
        **columns: Any,
    ) -> pl.DataFrame:
        """n requests evenly over `hours`; late (label 1) in one of four. `skill`: how much a
        version's score knows of it, 0..1. Columns given replace those made here."""
        split = split or {"v1": 100}
        times = [start + timedelta(hours=hours * (k + 0.5) / n) for k in range(n)]
        versions = self.random.choice(list(split), n, p=np.array(list(split.values())) / 100)
        late = self.random.random(n) < 0.25
        know = np.array([(skill or {}).get(v, 0.5) for v in versions])
        score = np.clip(
            0.25 + know * (late - 0.25) * 0.8 + self.random.normal(0, 0.05, n), 0.01, 0.99
        )
        ids = [str(UUID(int=self.sent + k + 1)) for k in range(n)]
        frame: dict[str, Any] = {
            "databricks_request_id": ids,
            "row_index": pl.Series([0] * n, dtype=pl.Int32),
            "request_time": [MONDAY + timedelta(days=800)] * n,
            "request_date": [(MONDAY + timedelta(days=800)).date()] * n,
            "client_request_id": [f"flight-{self.sent + k}" for k in range(n)],
            "unit_id": pl.Series([None] * n, dtype=pl.String),
            "served_entity_name": versions.tolist(),
            "model_name": ["m"] * n,
            "model_version": [v.removeprefix("v") for v in versions],
            "config_version": pl.Series([config_version] * n, dtype=pl.Int32),
            "route_share": [split[v] / 100 for v in versions],
            "route_split": [json.dumps(split)] * n,
            "shadow": [False] * n,
            "status_code": pl.Series([200] * n, dtype=pl.Int32),
            "error_source": pl.Series([None] * n, dtype=pl.String),
            "execution_duration_ms": pl.Series([5] * n, dtype=pl.Int64),
            **self.features(times, shift),
            "as_of": [time - timedelta(hours=1) for time in times],
            "event_time": times,
            "prediction": (score >= 0.5).astype(float),
            "score": score,
            "unpack_errors": pl.Series([None] * n, dtype=pl.List(pl.String)),
        }
        frame.update(columns)
        self.sent += n
        self.late = dict(zip(ids, late.tolist(), strict=True)) | getattr(self, "late", {})
        return pl.DataFrame(frame)

    def write(self, frame: pl.DataFrame, name: str = TABLE) -> None:
        partition = "request_date" if "request_date" in frame.columns else None
        deltalake.write_deltalake(
            self.uri(name),
            frame.to_arrow(),
            mode="append",
            partition_by=partition,
            schema_mode="merge",
        )

    def label(self, frame: pl.DataFrame, after: timedelta = timedelta(hours=4)) -> None:
        """Send the truth of these requests, `after` their event."""
        times = frame["event_time"].to_list()
        labels = pl.DataFrame(
            {
                "received_date": [MONDAY.date()] * frame.height,
                "databricks_request_id": pl.Series([None] * frame.height, dtype=pl.String),
                "client_request_id": frame["client_request_id"],
                "row_index": frame["row_index"],
                "label": [
                    str(int(self.late[one])) for one in frame["databricks_request_id"].to_list()
                ],
                "label_time": [time + after for time in times],
                "received_time": [MONDAY] * frame.height,
                "requester": ["ann"] * frame.height,
            }
        )
        self.write(labels, "main.flights.p_labels")

    def failing(self, frame: pl.DataFrame, where: pl.Expr) -> pl.DataFrame:
        """The same requests; the model raised on those where the expression holds."""
        return frame.with_columns(
            status_code=pl.when(where).then(400).otherwise("status_code").cast(pl.Int32),
            error_source=pl.when(where).then(pl.lit("model")),
            prediction=pl.when(~where).then("prediction"),
            score=pl.when(~where).then("score"),
        )

    def baseline(self, n: int = 6000, weeks: int = 12, **columns: Any) -> None:
        """Training rows of the weeks before."""
        start = MONDAY - timedelta(weeks=weeks)
        frame = self.rows(start, n, 168.0 * weeks, **columns)
        late = [int(self.late[one]) for one in frame["databricks_request_id"].to_list()]
        wanted = ["event_time", "temp", "distance", "carrier", "prediction", "score"]
        self.write(
            frame.select(wanted).with_columns(label=pl.Series(late)), "main.flights.p_baseline"
        )

    # --- the monitor -------------------------------------------------------------------------

    def monitor(self, rules: bool = True, **changes: Any) -> None:
        """A monitor on the unpacked table, with its default rules."""
        log = {**INFERENCE_LOG, **changes.pop("inference_log", {})}
        body = {"output_schema_name": "main.flights", "inference_log": log, **changes}
        config = contract.monitor_config(body)
        with database.transaction(self.engine) as connection:
            monitor_state.create_monitor(connection, TABLE, "t1", config, "ann", 1)
            if "baseline_table_name" in config:
                spec = {"kind": "training", "table": config["baseline_table_name"]}
                monitor_state.add_baseline(connection, TABLE, spec, "ann", 1)
            for rule in alerts.defaults(ENDPOINT, 1) if rules else []:
                alert_state.add_rule(connection, rule)

    def add_rule(self, metric: str, threshold: float, **changes: Any) -> None:
        """A rule of the endpoint, critical above its threshold."""
        made = alerts.defaults(ENDPOINT, 2)[0]._replace(
            name=metric, metric=metric, threshold=threshold, severity="critical"
        )
        with database.transaction(self.engine) as connection:
            alert_state.add_rule(connection, made._replace(**changes))

    def refresh(self, until: datetime | None = None, table: str = TABLE) -> monitor_state.Refresh:
        """One refresh, from its request to its end."""
        until_ms = None if until is None else contract.unix_ms(until)
        with database.transaction(self.engine) as connection:
            number = monitor_state.request_refresh(connection, table, "MANUAL", until_ms, 1)
        while self.rounds.run_pending():
            pass
        with database.reading(self.engine) as connection:
            return monitor_state.get_refresh(connection, table, number)

    def done(self, until: datetime | None = None) -> monitor_state.Refresh:
        """A refresh that succeeds."""
        found = self.refresh(until)
        assert found.state == "SUCCESS", found.message
        return found

    def metrics(self, kind: str = "drift", table: str = "p_unpacked") -> pl.DataFrame:
        """Rows of a metric table with start and end of their windows."""
        frame = pl.read_delta(self.uri(f"main.flights.{table}_{kind}_metrics"))
        return frame.with_columns(
            start=pl.col("window").struct.field("start"), end=pl.col("window").struct.field("end")
        )

    def open_alerts(self) -> list[alert_state.Alert]:
        with database.reading(self.engine) as connection:
            return alert_state.find_alerts(connection, ENDPOINT, "open")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    made.configure(v1=100)
    yield made
    made.close()


@pytest.fixture
def lake(tmp_path, gateway: Gateway) -> Iterator[Lake]:
    settings = Settings(data_dir=tmp_path / "data", url=gateway.url)
    database.migrate(settings)
    engine = database.open_engine(settings)
    made = Lake(settings, engine, gateway)
    yield made
    made.rounds.close()
    engine.dispose()
