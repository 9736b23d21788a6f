"""The record as its readers meet it: a real server, a model that misbehaves on demand, the tables
read by every engine, and the page of the docs."""

import http.client
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from capture import delta, rows
from capture.settings import Settings

DOCS = Path(__file__).parent.parent.parent / "docs"
TOKEN = "bootstrap-admin-token"
PATIENCE_SECONDS = 120
ENDPOINTS = "/api/2.0/serving-endpoints"
FINE, RAISES, ENDS, SLEEPS, ODD = 1.0, -1.0, -2.0, -3.0, -4.0
MODEL = """
import os, sys, time
import mlflow
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema

class Moody(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        mood = float(model_input["width"].iloc[0])
        if mood == -1: raise ValueError("not today")
        if mood == -2: os._exit(1)
        if mood == -3: time.sleep(60)
        if mood == -4: return [object()] * len(model_input)
        return [float(v) for v in model_input["length"]]

uri, artifacts = sys.argv[1:]
mlflow.set_tracking_uri(uri)
experiment = mlflow.create_experiment("record", artifact_location=artifacts)
columns = Schema([ColSpec("double", "length"), ColSpec("double", "width")])
with mlflow.start_run(experiment_id=experiment):
    mlflow.pyfunc.log_model(
        name="model", python_model=Moody(), signature=ModelSignature(columns),
        registered_model_name="main.default.iris", pip_requirements=["mlflow"],
    )
"""


class Server:
    """A running server, asked as a client asks."""

    def __init__(self, up: Any) -> None:
        self.up = up
        self.settings = Settings(data_dir=up.data_dir)

    def send(
        self, method: str, path: str, body: Any = None, token: str | None = TOKEN
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers in lower case, and JSON of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.up.port, timeout=120)
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, found

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, _, found = self.send(method, path, body)
        assert status == 200, found
        return found

    def ask(
        self, mood: float, length: float = 1.0, entity: str | None = None, **beside: Any
    ) -> tuple[int, str]:
        """Status and id of a query."""
        path = "/serving-endpoints/iris"
        path += f"/served-models/{entity}/invocations" if entity else "/invocations"
        body = {"dataframe_records": [{"length": length, "width": mood}], **beside}
        status, headers, _ = self.send("POST", path, body)
        return status, headers["x-request-id"]

    def until(self, wanted: Callable[[], Any]) -> Any:
        """What a question gives, once that is true."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while not (found := wanted()):
            assert time.monotonic() < ends, self.up.errors.read_text()[-3000:]
            time.sleep(0.1)
        return found

    def frame(self, name: str) -> pl.DataFrame:
        """A table of the endpoint; without a row where there is none yet."""
        path = self.path(name)
        there = deltalake.DeltaTable.is_deltatable(path)
        schema = {"databricks_request_id": pl.String, "client_request_id": pl.String}
        return pl.read_delta(path) if there else pl.DataFrame(schema=schema)

    def path(self, name: str) -> str:
        return str(delta.path_of(self.settings, f"main.default.iris_{name}"))

    def is_busy(self) -> bool:
        """Whether a request is at the model."""
        asked = urllib.request.Request(
            f"{self.up.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(asked, timeout=60) as reply:
            told = reply.read().decode()
        found = re.search(r"^inferlake_in_flight_requests\{.*\} ([0-9.]+)$", told, re.M)
        return found is not None and float(found[1]) > 0

    def answering(self) -> bool:
        return self.ask(FINE)[0] == 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, up_on: type[Any]) -> Iterator[Server]:
    """A server in whose folder the docs' paths lead to the endpoint `iris`, which records."""
    data_dir = tmp_path_factory.mktemp("record") / "inferlake-data"
    registry = data_dir / "mlflow"
    registry.mkdir(parents=True)
    uri = f"sqlite:///{registry / 'mlflow.db'}"
    command = [sys.executable, "-c", MODEL, uri, (registry / "artifacts").as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    up = up_on(
        data_dir,
        "--no-dashboard",
        INFERLAKE_ADMIN_TOKEN=TOKEN,
        INFERLAKE_MODEL_TIMEOUT_SECONDS="3",
        INFERLAKE_QUEUE_TIMEOUT_SECONDS="1",
    )
    up.start()
    try:
        assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
        found = Server(up)
        entity = {"name": "v1", "entity_name": "main.default.iris", "entity_version": "1"}
        config = {"served_entities": [entity], "auto_capture_config": {"enabled": True}}
        found.ok("POST", ENDPOINTS, {"name": "iris", "config": config})
        found.until(found.answering)
        yield found
    finally:
        assert up.end() == 0, up.errors.read_text()


@pytest.fixture(scope="module")
def asked(server: Server) -> dict[str, int]:
    """Status by request id, one of each kind; the client that hung up has none to tell."""
    found: dict[str, int] = {}

    def note(answer: tuple[int, str]) -> None:
        found[answer[1]] = answer[0]

    for number in range(3):
        note(server.ask(FINE, client_request_id=f"order-{number}"))
    note(server.ask(RAISES, 9.0))
    note(server.ask(ODD))
    note(server.ask(FINE, entity="nobody"))
    _hang_up(server)
    server.until(server.answering)  # the model that went on for nobody was replaced
    # The model has one at a time; who comes then waits in line, in vain.
    threads = [threading.Thread(target=lambda: note(server.ask(SLEEPS))) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    server.until(server.answering)
    note(server.ask(ENDS))
    server.until(server.answering)
    limits = [{"calls": 0, "renewal_period": "minute", "key": "endpoint"}]
    server.ok("PUT", f"{ENDPOINTS}/iris/rate-limits", {"rate_limits": limits})
    note(server.ask(FINE))
    server.ok("PUT", f"{ENDPOINTS}/iris/rate-limits", {"rate_limits": []})
    return found


def _hang_up(server: Server) -> None:
    """Leave in the middle of a request that takes long."""
    connection = http.client.HTTPConnection("127.0.0.1", server.up.port, timeout=120)
    body = {"dataframe_records": [{"length": 1.0, "width": SLEEPS}], "client_request_id": "gone"}
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request("POST", "/serving-endpoints/iris/invocations", json.dumps(body), headers)
    server.until(server.is_busy)  # a client that is too quick was never there
    connection.close()


def test_every_answer_is_a_row_with_its_status(server: Server, asked: dict[str, int]) -> None:
    assert set(asked.values()) == {200, 400, 404, 429, 500, 503, 504}

    def recorded() -> dict[str, int]:
        frame = server.frame("payload")
        return dict(frame.select("databricks_request_id", "status_code").rows())

    server.until(lambda: asked.keys() <= recorded().keys())
    found = recorded()
    assert {request_id: found[request_id] for request_id in asked} == asked
    gone = server.frame("payload").filter(client_request_id="gone")
    assert gone["status_code"].to_list() == [499]


def test_the_fault_is_told(server: Server, asked: dict[str, int]) -> None:
    frame = server.frame("payload").filter(pl.col("databricks_request_id").is_in(list(asked)))
    faults = set(frame.select("status_code", "error_source").unique().rows())
    assert {(200, None), (400, "model"), (404, "request"), (429, "request")} <= faults
    assert {(503, "server"), (504, "model")} <= faults or {
        (503, "server"),
        (504, "server"),
    } <= faults


def test_without_a_valid_token_nothing_is_recorded(server: Server, asked: dict[str, int]) -> None:
    body = {"dataframe_records": [{"length": 1.0, "width": 1.0}], "client_request_id": "nobody"}
    path = "/serving-endpoints/iris/invocations"
    assert [server.send("POST", path, body, token)[0] for token in (None, "wrong")] == [401, 403]
    _, last = server.ask(FINE)
    server.until(lambda: last in server.frame("payload")["databricks_request_id"])
    assert server.frame("payload").filter(client_request_id="nobody").height == 0


# --- labels --------------------------------------------------------------------------------------


def test_labels_come_late_twice_early_and_for_nobody(server: Server, asked: dict[str, int]) -> None:
    def labelled(**ids: Any) -> dict[str, Any]:
        answer: dict[str, Any] = server.ok(
            "POST", "/api/1.0/endpoints/iris/labels", {"labels": [ids]}
        )
        return answer

    late = {"client_request_id": "order-0", "label": 0, "label_time": "2026-01-02T00:00:00Z"}
    assert labelled(**late) == {"accepted": 1, "unmatched": 0}
    newer = {**late, "label": 1, "label_time": "2026-01-03T00:00:00Z"}
    older = {**late, "label": 7, "label_time": "2026-01-01T00:00:00Z"}
    for repeated in (newer, older):
        assert labelled(**repeated)["unmatched"] == 0
    assert labelled(client_request_id="early", label=5) == {"accepted": 1, "unmatched": 1}
    assert labelled(client_request_id="never", label=5) == {"accepted": 1, "unmatched": 1}
    two = [{"length": 1.0, "width": 1.0}, {"length": 2.0, "width": 1.0}]
    body = {"dataframe_records": two, "client_request_id": "early"}
    _, headers, _ = server.send("POST", "/serving-endpoints/iris/invocations", body)
    request_id = headers["x-request-id"]
    assert labelled(databricks_request_id=request_id, row_index=1, label=6)["unmatched"] == 0

    def seen(request_id: str) -> list[tuple[int, float]]:
        status, _, found = server.send("GET", f"/api/1.0/requests/{request_id}")
        return [(o["row_index"], o["label"]) for o in found["labels"]] if status == 200 else []

    assert server.until(lambda: len(seen(request_id)) == 2)
    assert sorted(seen(request_id)) == [(0, 5.0), (1, 6.0)]
    (first,) = server.frame("payload").filter(client_request_id="order-0")["databricks_request_id"]
    assert server.until(lambda: seen(first) == [(0, 1.0)])


# --- engines -------------------------------------------------------------------------------------


def _alike(found: pa.Table, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows in the table's own types, each as plain values, in an order of their own."""
    columns = [_plain(found[field.name], field.type) for field in schema]
    values = pa.Table.from_arrays(columns, names=schema.names).to_pylist()
    return sorted(values, key=lambda row: json.dumps(row, default=str, sort_keys=True))


def _plain(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_map(kind):
        maps = [None if one is None else sorted(dict(one).items()) for one in column.to_pylist()]
        return pa.chunked_array([pa.array(maps, pa.map_(pa.string(), pa.string()))])
    return column.cast(kind)


@pytest.mark.parametrize("name", ["payload", "unpacked", "labels"])
def test_every_engine_reads_the_same_rows(server: Server, asked: dict[str, int], name: str) -> None:
    server.until(lambda: asked.keys() <= set(server.frame("unpacked")["databricks_request_id"]))
    server.until(lambda: server.frame("labels").height)
    handle = deltalake.DeltaTable(server.path(name))
    schema = pa.schema(handle.schema().to_arrow())
    by_arrow = _alike(handle.to_pyarrow_table(), schema)
    by_polars = _alike(pl.scan_delta(handle).collect().to_arrow(), schema)
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as engine:
        engine.execute("SET TimeZone = 'UTC'")
        found = engine.read_parquet(
            handle.file_uris(), hive_partitioning=True, union_by_name=True
        ).to_arrow_table()
    by_duckdb = _alike(found, schema)
    assert len(by_arrow) > 0
    assert by_polars == by_arrow
    assert by_duckdb == by_arrow


# --- the page of the docs ------------------------------------------------------------------------


def _append_yesterday(server: Server) -> int:
    """Requests of yesterday, as another gateway recorded them: how many of them v1 failed at, with
    a length over 4."""
    then = datetime.now(UTC) - timedelta(days=1)
    newest = server.frame("payload").filter(client_request_id="order-1").to_arrow().to_pylist()[0]
    newest["usage_context"] = None
    found = []
    for number in range(20):
        failed = number % 2 == 0
        body = {"dataframe_records": [{"length": float(number), "width": 1.0}]}
        found.append(
            newest
            | {
                "request_date": then.date(),
                "request_time": then,
                "databricks_request_id": f"yesterday-{number}",
                "client_request_id": None,
                "status_code": 400 if failed else 200,
                "error_source": "model" if failed else None,
                "request": json.dumps(body),
            }
        )
    schema, by = rows.KINDS["payload"]
    table = delta.open_or_create(Path(server.path("payload")), schema, by)
    table.append(pa.Table.from_pylist(found, schema=schema), "another-gateway", 1)
    return sum(number % 2 == 0 and number > 4 for number in range(20))


def test_a_question_has_one_answer_in_the_page_and_over_http(
    server: Server, asked: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _append_yesterday(server)
    server.ask(FINE)  # so that the committer tells of the table

    def unpacked() -> bool:
        return "yesterday-19" in server.frame("unpacked")["databricks_request_id"]

    server.until(unpacked)
    text = (DOCS / "read-the-record.md").read_text()
    monkeypatch.chdir(server.up.data_dir.parent)
    said: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        exec(compile(block, "read-the-record.md", "exec"), said)  # noqa: S102  our own page
    assert said["failed"].height == expected
    day = said["yesterday"]
    query = f"endpoint=iris&from={day}T00:00:00Z&to={day + timedelta(days=1)}T00:00:00Z"
    query += "&status=failed&served_entity=v1&feature.length=%3E4"
    found = server.ok("GET", f"/api/1.0/requests?{query}")["requests"]
    assert len(found) == expected
    counted = dict(said["counts"])
    handle = deltalake.DeltaTable(server.path("payload"))
    names = handle.to_pyarrow_table(columns=["served_entity_name"])["served_entity_name"]
    assert counted["v1"] == pc.sum(pc.equal(names, "v1")).as_py()
    assert said["older"].num_rows == len(names)
    assert said["judged"].collect().height >= 1


def test_the_commands_of_the_page_run(server: Server, asked: dict[str, int]) -> None:
    outside = re.sub(
        r"^```.*?^```$", "", (DOCS / "read-the-record.md").read_text(), flags=re.M | re.S
    )
    blocks = [textwrap.dedent(one) for one in re.findall(r"(?:^    .+\n)+", outside, re.M)]
    assert len(blocks) == 2
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=server.up.data_dir.parent,
            env={
                **os.environ,
                "INFERLAKE_URL": server.up.url,
                "INFERLAKE_TOKEN": TOKEN,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "90 days are kept" in done.stdout
