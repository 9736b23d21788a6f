"""A version in the shadow, and a replay, on a running server with real models."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from capture import delta, names
from capture.settings import Settings

pytestmark = pytest.mark.slow
TOKEN = "bootstrap-admin-token"
OURS = "/api/1.0/endpoints/sums"
QUERY = "/serving-endpoints/sums/invocations"
REQUESTS = 200
EQUAL = 50  # requests of zeros, which both versions answer with zero


class Server:
    """A running server, asked as a client asks."""

    def __init__(self, up: Any) -> None:
        self.up = up
        self.settings = Settings(data_dir=up.data_dir)

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any, bytes]:
        """Status, headers and bytes."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        asked = urllib.request.Request(self.up.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=120) as reply:
                return reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.headers, refusal.read()

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, _, found = self.send(method, path, body)
        assert status == 200, found
        return json.loads(found)

    def ask(self, a: float, **beside: Any) -> tuple[str, bytes]:
        """Id and bytes of the answer to one query."""
        body = {"dataframe_records": [{"a": a, "b": 0.0}], **beside}
        status, headers, found = self.send("POST", QUERY, body)
        assert status == 200, found
        return headers["x-request-id"], found

    def unpacked(self) -> pl.DataFrame:
        return pl.read_delta(str(delta.path_of(self.settings, "main.flows.sums_unpacked")))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    up_on: type[Any],
    registered: Callable[[Path], None],
) -> Iterator[Server]:
    """Version 1 (a + b) has all of the traffic, version 2 (ten times that) none."""
    data_dir = tmp_path_factory.mktemp("shadow") / "data"
    registered(data_dir)
    up = up_on(data_dir, "--no-dashboard", INFERLAKE_ADMIN_TOKEN=TOKEN).start()
    try:
        assert up.ready_line().startswith("ready "), up.errors.read_text()
        running = Server(up)
        entities = [
            {"name": f"v{v}", "entity_name": "main.flows.sum", "entity_version": str(v),
             "workload_size": "Small", "scale_to_zero_enabled": False}
            for v in (1, 2)
        ]  # fmt: skip
        routes = [{"served_model_name": "v1", "traffic_percentage": 100}]
        table = {"catalog_name": "main", "schema_name": "flows", "table_name_prefix": "sums"}
        config = {
            "served_entities": entities,
            "traffic_config": {"routes": routes},
            "auto_capture_config": {**table, "enabled": True},
        }
        path = "/api/2.0/serving-endpoints"
        running.ok("POST", path, {"name": "sums", "config": config})
        _until(lambda: _is_ready(running.ok("GET", f"{path}/sums")), up)
        yield running
    finally:
        up.end()


def _is_ready(endpoint: Any) -> bool:
    state = endpoint["state"]
    return state["ready"] == "READY" and state["config_update"] == "NOT_UPDATING"


def _until(wanted: Callable[[], Any], up: Any, seconds: float = 120) -> Any:
    ends = time.monotonic() + seconds
    while (found := wanted()) is None or found is False:
        assert time.monotonic() < ends, up.errors.read_text()[-3000:]
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def asked(server: Server) -> list[str]:
    """Ids of 200 requests, of which the first 50 are answered alike by both versions; each is
    labelled with what version 1 says."""
    server.ok("PUT", f"{OURS}/shadow", {"served_entity": "v2"})
    ids = [server.ask(0.0 if n < EQUAL else float(n))[0] for n in range(REQUESTS)]
    labels = [
        {"databricks_request_id": id, "label": 0.0 if n < EQUAL else float(n)}
        for n, id in enumerate(ids)
    ]
    server.ok("POST", f"{OURS}/labels", {"labels": labels})
    return ids


def test_copies_lie_beside_their_originals_and_change_no_answer(
    server: Server, asked: list[str]
) -> None:
    with_shadow = server.ask(3.0)[1]
    dropped = server.ok("GET", f"{OURS}/shadow")["copies"]["dropped"]
    copies = _until(
        lambda: _all_there(server.unpacked(), REQUESTS + 1 - sum(dropped.values())), server.up
    )
    assert copies["served_entity_name"].unique().to_list() == ["v2"]
    assert copies["route_share"].null_count() == copies.height
    originals = {names.copy_of(id) for id in copies["databricks_request_id"]}
    assert len(originals & set(asked)) >= REQUESTS - sum(dropped.values())
    server.ok("DELETE", f"{OURS}/shadow")
    assert server.ask(3.0)[1] == with_shadow
    server.ok("PUT", f"{OURS}/shadow", {"served_entity": "v2"})


def _all_there(rows: pl.DataFrame, wanted: int) -> pl.DataFrame | None:
    copies = rows.filter("shadow")
    return copies if copies.height >= wanted else None


def test_the_two_versions_are_compared_and_nothing_is_promoted(
    server: Server, asked: list[str]
) -> None:
    def told() -> Any:
        found = server.ok("GET", f"{OURS}/shadow")
        seen = (found["comparison"] or {}).get("requests", 0)
        missing = sum(found["copies"]["dropped"].values())
        return found if seen >= REQUESTS - missing else None

    server.ok("DELETE", f"{OURS}/shadow")
    server.ok("PUT", f"{OURS}/shadow", {"served_entity": "v2"})
    for n in range(REQUESTS):
        server.ask(0.0 if n < EQUAL else float(n))
    found = _until(told, server.up)
    comparison = found["comparison"]
    assert (comparison["champion"], comparison["challenger"]) == ("v1", "v2")
    assert comparison["agreement"] == pytest.approx(EQUAL / REQUESTS, abs=0.05)
    assert (comparison["action"], comparison["reasons"]) == ("keep_collecting", ["no_labels"])
    assert comparison["error_rate"] == {"v1": 0.0, "v2": 0.0}
    assert comparison["prediction_difference"]["mean"] > 100
    audit = server.ok("GET", "/api/1.0/audit?endpoint=sums&action=endpoint.shadow")["audit"]
    assert audit[0]["after"] == {"served_entity": "v2", "sample_percentage": 100.0}


def test_a_replay_finds_the_agreement_and_leaves_no_row(server: Server, asked: list[str]) -> None:
    server.ok("DELETE", f"{OURS}/shadow")
    rows = _until(lambda: _of(server.unpacked(), asked), server.up)
    first, last = rows["request_time"].min(), rows["request_time"].max()
    body = {
        "served_entity": "v2",
        "from": first.isoformat(),
        "to": (last + timedelta(microseconds=1)).isoformat(),
        "limit": REQUESTS,
    }
    before = server.unpacked().height
    job_id = server.ok("POST", f"{OURS}/replay", body)["job_id"]
    job = _until(lambda: _ended(server.ok("GET", f"/api/1.0/jobs/{job_id}")), server.up)
    assert job["state"] == "succeeded", job
    result = job["result"]
    assert (result["asked"], result["answered"], result["failed"]) == (REQUESTS, REQUESTS, 0)
    assert (result["champion"], result["challenger"]) == ("v1", "v2")
    assert result["agreement"] == EQUAL / REQUESTS
    assert result["metric"]["n"] == REQUESTS
    assert (result["primary"]["name"], result["policy_from"]) == ("mae", "default")
    apart = sum(9 * n for n in range(EQUAL, REQUESTS)) / REQUESTS
    assert result["metric"]["value"] == pytest.approx({"v1": 0.0, "v2": apart}, abs=1e-6)
    worst = result["differences"][0]
    both = [worst[f"{side}_prediction"] for side in ("champion", "challenger")]
    assert both == pytest.approx([199.0, 1990.0])
    assert len(result["differences"]) == 100
    assert server.unpacked().height == before
    unknown = server.ok("POST", f"{OURS}/replay", {"served_entity": "nobody"})["job_id"]
    failed = _until(lambda: _ended(server.ok("GET", f"/api/1.0/jobs/{unknown}")), server.up)
    assert failed["message"] == "Served entity 'nobody' of endpoint 'sums' does not exist."


def _of(rows: pl.DataFrame, ids: list[str]) -> pl.DataFrame | None:
    found = rows.filter(pl.col("databricks_request_id").is_in(ids))
    return found if found.height == len(ids) else None


def _ended(job: Any) -> Any:
    return job if job["state"] in ("succeeded", "failed", "cancelled") else None
