"""What was sent is what is stored, byte for byte: through a real gateway, worker, log and table."""

import base64
import gzip
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import httpx2
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capture import delta
from capture.settings import Settings

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 240
TOKEN = "bootstrap-admin-token"
TABLE = "main.default.bytes_payload"
MIB = 1 << 20
JSON = "application/json"
PARQUET = "application/vnd.apache.parquet"
CONFIG = {
    "served_entities": [
        {
            "name": "v1",
            "entity_name": "main.flows.sum",
            "entity_version": "1",
            "workload_size": "Small",
            "scale_to_zero_enabled": False,
        }
    ],
    "auto_capture_config": {"catalog_name": "main", "schema_name": "default", "enabled": True},
}


def records(more: str = "") -> bytes:
    return f'{{"dataframe_records": [{{"a": 1.0, "b": 2.0{more}}}]}}'.encode()


def padded(size: int) -> bytes:
    """A good body of so many bytes."""
    return records().ljust(size)


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [2.0, 3.0]}), out)
    return out.getvalue()


BODIES: dict[str, tuple[str, bytes]] = {
    "plain": (JSON, records()),
    "spaces, tabs, lines": (JSON, b'\r\n\t{ "dataframe_records":\n[{"b":2.0 ,\t"a":1e0}] }\r\n\n'),
    "quotes and escapes": (
        JSON,
        records(r', "note": "\"a\" \\ \/ \b\f\n\r\t \u00e9 \ud83d\ude00"'),
    ),
    "one quote": (JSON, records(''', "note": "it's; -- , ''"''')),
    "no ASCII": (JSON, records(', "größe": "ü 漢字 😀 \u2028 \u200b \ufeff"')),
    "numbers as written": (
        JSON,
        b'{"dataframe_records": [{"a": 1.10, "b": -0.0, "c": 1E+2, "d": 12345678901234567890}]}',
    ),
    "a key twice": (JSON, b'{"dataframe_records": [{"a": 9, "a": 1, "b": 2}]}'),
    "no JSON": (JSON, b'{"dataframe_records": [{"a": 1, '),
    "a zero byte": (JSON, b'{"dataframe_records": \x00}'),
    "no UTF-8": (JSON, b'{"a": "\xff\xfe"}'),
    "1 MiB": (JSON, padded(MIB)),
    "Parquet": (PARQUET, parquet()),
    "CSV": ("text/csv", b'a,b\r\n1.0,2.0\r\n"3.0",4\r\n'),
}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
    registered: Callable[[Path], None],
    up_on: type[Any],
) -> Iterator[Any]:
    """`inferlake up` with an endpoint that records."""
    data_dir = tmp_path_factory.mktemp("bytes") / "data"
    registered(data_dir)
    up = up_on(data_dir, "--no-dashboard", INFERLAKE_ADMIN_TOKEN=TOKEN).start()
    try:
        assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
        with api(up) as client:
            path = "/api/2.0/serving-endpoints"
            made = client.post(path, json={"name": "bytes", "config": CONFIG})
            assert made.status_code == 200, made.text
            eventually(lambda: client.get(f"{path}/bytes").json()["state"]["ready"] == "READY")
        yield up
    finally:
        up.end()


def api(up: Any) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx2.Client(base_url=up.url, headers=headers, timeout=120, trust_env=False)


def eventually(wanted: Callable[[], Any]) -> Any:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (found := wanted()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found


def ask(client: httpx2.Client, body: bytes, content_type: str, **more: str) -> httpx2.Response:
    headers = {"Content-Type": content_type, **more}
    return client.post("/serving-endpoints/bytes/invocations", content=body, headers=headers)


def stored(up: Any, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Rows of these requests, once all of them are in the table."""
    path = delta.path_of(Settings(data_dir=up.data_dir), TABLE)

    def found() -> dict[str, dict[str, Any]] | None:
        if not deltalake.DeltaTable.is_deltatable(str(path)):
            return None
        rows = pl.read_delta(str(path)).to_dicts()
        by_id = {row["databricks_request_id"]: row for row in rows}
        return by_id if set(ids) <= by_id.keys() else None

    rows: dict[str, dict[str, Any]] = eventually(found)
    return rows


def as_sent(row: dict[str, Any]) -> bytes:
    text = row["request"]
    return base64.b64decode(text) if row["request_encoding"] == "base64" else text.encode()


def test_every_body_is_stored_as_it_was_sent_and_every_answer_as_it_was_received(
    running: Any,
) -> None:
    with api(running) as client:
        answers = {name: ask(client, body, kind) for name, (kind, body) in BODIES.items()}
    rows = stored(running, [answer.headers["x-request-id"] for answer in answers.values()])
    for name, answer in answers.items():
        row = rows[answer.headers["x-request-id"]]
        assert as_sent(row) == BODIES[name][1], name
        assert row["response"].encode() == answer.content, name
        assert row["status_code"] == answer.status_code, name
        assert row["logging_error_codes"] is None, name
    statuses = {name: answer.status_code for name, answer in answers.items()}
    for name in ("plain", "spaces, tabs, lines", "1 MiB", "Parquet", "CSV"):
        assert statuses[name] == 200, answers[name].text
    for name in ("no JSON", "a zero byte", "no UTF-8"):
        assert statuses[name] == 400, name
    assert rows[answers["Parquet"].headers["x-request-id"]]["request_encoding"] == "base64"


def test_a_compressed_body_is_stored_as_it_unfolds(running: Any) -> None:
    body = records(', "note": "ü"')
    with api(running) as client:
        answer = ask(client, gzip.compress(body), JSON, **{"Content-Encoding": "gzip"})
    row = stored(running, [answer.headers["x-request-id"]])[answer.headers["x-request-id"]]
    assert as_sent(row) == body


def test_a_body_over_the_cap_is_null_with_the_reason_and_the_row_is_there(running: Any) -> None:
    with api(running) as client:
        answer = ask(client, padded(MIB + 1), JSON)
    assert answer.status_code == 200
    row = stored(running, [answer.headers["x-request-id"]])[answer.headers["x-request-id"]]
    assert row["request"] is None
    assert row["logging_error_codes"] == ["MAX_REQUEST_SIZE_EXCEEDED"]
    assert row["response"].encode() == answer.content
