"""Tables over HTTP: what they hold, their upkeep, and those of the server itself."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest

from capture import delta, ledger, rows
from tests.capture import shop

BASE = "/api/2.0/serving-endpoints"
TABLES = "/api/1.0/tables"
PAYLOAD = "main.f.tab_payload"


def ask(server: Any, name: str) -> str:
    """A query that is refused for its content type, and recorded; its id."""
    path = f"/serving-endpoints/{name}/invocations"
    body = b'{"dataframe_records": [{"distance": 5}]}'
    answer = server.send("POST", path, content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    request_id: str = answer.headers["databricks-request-id"]
    return request_id


@pytest.fixture(scope="module")
def tab(server: Any) -> list[str]:
    """Ids of two requests of the endpoint `tab`, which records none and tracks its usage, and of a
    third one, after its inference table was switched to everything."""
    entity = {"name": "v1", "entity_name": "main.f.m", "entity_version": "1"}
    gateway = {
        "usage_tracking_config": {"enabled": True},
        "inference_table_config": {"schema_name": "f", "sampling_fraction": 0},
    }
    body = {"name": "tab", "config": {"served_entities": [entity]}, "ai_gateway": gateway}
    server.ok("POST", BASE, body)
    server.complete("tab")
    server.until(f"{BASE}/tab", lambda e: e["state"]["ready"] == "READY")
    ids = [ask(server, "tab") for _ in range(2)]
    table = {"schema_name": "f", "sampling_fraction": 1}
    server.ok("PUT", f"{BASE}/tab/ai-gateway", {"inference_table_config": table})
    ids.append(ask(server, "tab"))
    server.until("/api/1.0/requests?endpoint=tab", lambda page: len(page["requests"]) == 1)
    return ids


def read(server: Any, full_name: str, **wanted: Any) -> pl.DataFrame:
    """Rows of a table with these values."""
    path = delta.path_of(server.settings, full_name)
    if not deltalake.DeltaTable.is_deltatable(str(path)):
        return pl.DataFrame()
    return pl.read_delta(str(path)).filter(*(pl.col(k) == v for k, v in wanted.items()))


def until(server: Any, full_name: str, count: int, **wanted: Any) -> pl.DataFrame:
    """Those rows, once there are so many."""
    server.until("/health", lambda _: read(server, full_name, **wanted).height >= count)
    return read(server, full_name, **wanted)


# --- looking -------------------------------------------------------------------------------------


def test_tables_are_listed_with_those_of_the_system_for_administrators(
    server: Any, tab: list[str]
) -> None:
    listed = {t["full_name"]: t for t in server.ok("GET", f"{TABLES}?page_size=1000")["tables"]}
    assert listed[PAYLOAD]["endpoint"] == "tab"
    assert {ledger.AUDIT, ledger.ENTITIES, rows.USAGE_TABLE} <= set(listed)
    user = server.token("somebody-else")
    assert server.ok("GET", TABLES, token=user) == {"tables": []}
    assert server.refused("GET", f"{TABLES}/{ledger.AUDIT}", token=user)[0] == 403
    assert server.refused("GET", f"{TABLES}/{PAYLOAD}", token=user)[0] == 404


def test_pages_of_tables_hold_each_once(server: Any, tab: list[str]) -> None:
    names, more = [], ""
    while True:
        page = server.ok("GET", f"{TABLES}?page_size=2{more}")
        names += [table["full_name"] for table in page["tables"]]
        if "next_page_token" not in page:
            break
        more = f"&page_token={page['next_page_token']}"
    assert len(names) == len(set(names)) and names == sorted(names)
    assert PAYLOAD in names


def test_a_table_tells_what_it_is_made_of(server: Any, tab: list[str]) -> None:
    found = server.ok("GET", f"{TABLES}/{PAYLOAD}")
    assert "status_code" in [column["name"] for column in found["columns"]]
    assert (found["endpoint"], found["day_column"]) == ("tab", "request_date")
    assert (found["rows"], found["files"]) == (1, 1)
    uri = delta.path_of(server.settings, PAYLOAD)
    sizes = sum(file.stat().st_size for file in uri.rglob("*.parquet"))
    assert found["bytes"] == sizes
    assert found["versions"]["newest"] == found["commit_version"] >= 1
    assert server.refused("GET", f"{TABLES}/main.f.nothing_here")[0] == 404
    assert server.refused("GET", f"{TABLES}/..")[0] == 404
    assert server.refused("GET", f"{TABLES}/one")[0] == 400


# --- upkeep --------------------------------------------------------------------------------------


def test_a_table_is_looked_after_on_demand_and_says_when(server: Any, tab: list[str]) -> None:
    done = server.ok("POST", f"{TABLES}/{PAYLOAD}/maintain")
    assert done["state"] == "DONE"
    assert server.ok("GET", f"{TABLES}/{PAYLOAD}")["last_maintenance"] == done["last_maintenance"]
    assert done["last_maintenance"]["time"].endswith("Z")
    vacuumed = server.ok("POST", f"{TABLES}/{PAYLOAD}/maintain", {"vacuum": True})
    assert vacuumed["last_maintenance"]["deleted_files"] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"vacuum": True, "retention_hours": 0}, "retention_hours: expected an integer 1.."),
        ({"retention_hours": 5}, "retention_hours: of a vacuum"),
        ({"vacuum": 1}, "vacuum: expected true or false"),
        ({"sweep": True}, "sweep: unknown field"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_refused(
    server: Any, tab: list[str], body: dict[str, Any], message: str
) -> None:
    status, told = server.refused("POST", f"{TABLES}/{PAYLOAD}/maintain", body)
    assert status == 400 and told.startswith(message)


def test_upkeep_needs_can_manage(server: Any, tab: list[str]) -> None:
    user = "looks-at-tab"
    server.ok(
        "PUT",
        f"/api/1.0/users/{user}/grants",
        {"grants": [{"endpoint": "tab", "level": "CAN_QUERY"}]},
    )
    token = server.token(user)
    server.ok("GET", f"{TABLES}/{PAYLOAD}", token=token)
    for method, path in (("POST", f"{PAYLOAD}/maintain"), ("PATCH", PAYLOAD)):
        assert server.refused(method, f"{TABLES}/{path}", {}, token=token)[0] == 403
    assert server.refused("POST", f"{TABLES}/{ledger.AUDIT}/maintain", token=token)[0] == 403
    assert server.refused("POST", f"{TABLES}/main.f.other/maintain", token=token)[0] == 403


def test_days_go_when_they_are_kept_no_longer(server: Any, tab: list[str]) -> None:
    old = datetime.now(UTC) - timedelta(days=40)
    path = delta.path_of(server.settings, PAYLOAD)
    schema, by = rows.KINDS["payload"]
    row = shop.payload(0, request_date=old.date(), request_time=old)
    table = delta.open_or_create(path, schema, by)
    table.append(pa.Table.from_pylist([row], schema=schema), "an-old-gateway", 1)
    kept = server.ok("PATCH", f"{TABLES}/{PAYLOAD}", {"retention_days": 30})
    assert kept["retention_days"] == 30
    done = server.ok("POST", f"{TABLES}/{PAYLOAD}/maintain")
    assert done["last_maintenance"]["dropped_files"] == 1
    assert read(server, PAYLOAD)["databricks_request_id"].to_list() == [tab[2]]
    listed = server.ok("GET", f"{TABLES}?page_size=1000")["tables"]
    assert {t["full_name"]: t["retention_days"] for t in listed}[PAYLOAD] == 30
    forever = server.ok("PATCH", f"{TABLES}/{PAYLOAD}", {"retention_days": None})
    assert forever["retention_days"] is None
    audit = server.ok("GET", "/api/1.0/audit?action=table.retention")["audit"]
    assert audit[0]["before"] == {"table": PAYLOAD, "retention_days": 30}


def test_a_retention_that_cannot_be_kept_is_refused(server: Any, tab: list[str]) -> None:
    for body in ({"retention_days": 0}, {"retention_days": 1.5}, {}, {"days": 1}):
        assert server.refused("PATCH", f"{TABLES}/{PAYLOAD}", body)[0] == 400
    none = f"{TABLES}/main.f.nothing_here"
    assert server.refused("PATCH", none, {"retention_days": 1})[0] == 404
    assert server.refused("POST", f"{none}/maintain")[0] == 404
    until(server, ledger.ENTITIES, 1)
    status, message = server.refused("PATCH", f"{TABLES}/{ledger.ENTITIES}", {"retention_days": 1})
    assert status == 400 and "not partitioned by day" in message


# --- system tables -------------------------------------------------------------------------------


def test_usage_has_every_request_whatever_is_recorded_of_them(server: Any, tab: list[str]) -> None:
    found = until(server, rows.USAGE_TABLE, 3, endpoint_name="tab").sort("request_time")
    assert found["databricks_request_id"].to_list() == tab
    assert found["status_code"].to_list() == [400] * 3
    assert found.columns == rows.USAGE_SCHEMA.names


def test_the_audit_is_a_table_with_each_row_once(server: Any, tab: list[str]) -> None:
    known = {
        str(row["id"]): row
        for row in server.ok("GET", "/api/1.0/audit?endpoint=tab&page_size=1000")["audit"]
    }
    found = until(server, ledger.AUDIT, len(known), endpoint="tab")
    assert sorted(found["event_id"]) == sorted(known)
    for row in found.iter_rows(named=True):
        shown = known[row["event_id"]]
        assert (row["action_name"], row["user_identity"]) == (
            shown["action"],
            {"email": shown["actor"]},
        )
        assert json.loads(row["after"] or "null") == shown["after"]


def test_each_configuration_of_an_entity_is_a_row_and_its_end_another(server: Any) -> None:
    entities = [
        {"name": f"v{n}", "entity_name": "main.f.m", "entity_version": str(n)} for n in (1, 2)
    ]
    routes = [
        {"served_model_name": "v1", "traffic_percentage": 90},
        {"served_model_name": "v2", "traffic_percentage": 10},
    ]
    config = {"served_entities": entities, "traffic_config": {"routes": routes}}
    server.ok("POST", BASE, {"name": "entities", "config": config})
    server.complete("entities")
    promoted = {"served_entity": "v2", "traffic_percentage": 40}
    server.ok("POST", "/api/1.0/endpoints/entities/promote", promoted)
    server.ok("DELETE", f"{BASE}/entities")
    found = until(server, ledger.ENTITIES, 6, endpoint_name="entities")
    shown = found.sort("change_time", "served_entity_name").select(
        "endpoint_config_version",
        "served_entity_name",
        "traffic_percentage",
        pl.col("endpoint_delete_time").is_not_null().alias("deleted"),
    )
    assert shown.rows() == [
        (1, "v1", 90, False),
        (1, "v2", 10, False),
        (2, "v1", 60, False),
        (2, "v2", 40, False),
        (2, "v1", 60, True),
        (2, "v2", 40, True),
    ]
    one = found.row(0, named=True)
    assert (one["entity_type"], one["entity_name"]) == ("CUSTOM_MODEL", "main.f.m")
    assert one["custom_model_config"]["compute_type"] == "CPU"


# --- the commands --------------------------------------------------------------------------------


def inferlake(server: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("INFERLAKE_")}
    here = {"INFERLAKE_URL": server.url, "INFERLAKE_TOKEN": "bootstrap-admin-token"}
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", "tables", *arguments],
        env={**clean, **here, "INFERLAKE_DATA_DIR": str(server.settings.data_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_commands_show_and_look_after_tables(server: Any, tab: list[str]) -> None:
    listed = inferlake(server, "list")
    assert PAYLOAD in listed.stdout and ledger.AUDIT in listed.stdout
    assert json.loads(inferlake(server, "show", PAYLOAD).stdout)["endpoint"] == "tab"
    for command in (["maintain", PAYLOAD], ["vacuum", PAYLOAD, "--retention-hours", "1"]):
        done = inferlake(server, *command)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{PAYLOAD}: 0 files merged, 0 dropped, ")
    refused = inferlake(server, "vacuum", PAYLOAD, "--retention-hours", "0")
    assert refused.returncode == 2


def test_the_commands_set_how_long_rows_are_kept(server: Any, tab: list[str]) -> None:
    done = inferlake(server, "set", PAYLOAD, "--retention-days", "400")
    assert done.stdout == f"{PAYLOAD}: 400 days are kept\n"
    done = inferlake(server, "set", PAYLOAD, "--keep-forever")
    assert done.stdout == f"{PAYLOAD}: all days are kept\n"
    assert inferlake(server, "set", PAYLOAD).returncode == 2
    unknown = inferlake(server, "set", "main.f.nothing_here", "--retention-days", "1")
    assert unknown.returncode == 1
    assert unknown.stderr == "Table 'main.f.nothing_here' does not exist.\n"


def test_a_view_under_the_older_names_is_printed(server: Any, tab: list[str]) -> None:
    done = inferlake(server, "view", PAYLOAD, "--dialect", "duckdb")
    assert done.stdout.startswith('CREATE OR REPLACE VIEW "tab_payload_legacy" AS')
    assert f"FROM delta_scan('{delta.path_of(server.settings, PAYLOAD)}')" in done.stdout
    assert inferlake(server, "view", ledger.AUDIT).returncode == 1
