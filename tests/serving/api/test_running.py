"""What runs of an endpoint, and what has happened to it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from capture import database
from serving import processes, replica_state
from serving import state as sql
from tests.serving.api.test_endpoints import BASE, entity, make, split

OURS = "/api/1.0/endpoints"


@pytest.fixture
def process() -> Iterator[processes.Identity]:
    """A process in a group of its own, as a replica is."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as child:
        found = processes.identity(child.pid)
        assert found is not None
        yield found
        child.kill()


def test_replicas_are_told_with_load_memory_and_since_when(
    server: Any, process: processes.Identity
) -> None:
    made = make(server, "running")
    of_v1 = made["config"]["served_entities"][0]["id"]
    row = {"endpoint_id": made["id"], "served_entity_id": of_v1, "socket": "s", "message": None}
    row |= {"created_ms": 1_000, "concurrency": 4, "state": "READY", "ready_ms": 3_000}
    with database.transaction(server.engine) as db:
        for name, pid, start in (("r1", process.pid, process.start), ("r2", None, None)):
            found = replica_state.Replica(id=name, pid=pid, pid_start=start, **row)
            replica_state.add_replica(db, found)
        replica_state.set_demand(db, [replica_state.Demand(of_v1, "g", 3, 4, 5_000)])
    first, second = server.ok("GET", f"{OURS}/running/replicas")["entities"]
    assert (first["served_entity"], first["active"]) == ("v1", True)
    assert (first["waiting"], first["in_flight"]) == (3, 4)
    assert first["last_request_time"] == "1970-01-01T00:00:05.000Z"
    assert (first["deployment"], first["message"]) == ("DEPLOYMENT_READY", "Ready.")
    assert first["since"] == "1970-01-01T00:00:00.001Z"
    here, elsewhere = first["replicas"]
    assert here["memory_bytes"] > 0 and here["cpu_seconds"] >= 0
    assert elsewhere["memory_bytes"] is None and elsewhere["cpu_seconds"] is None
    assert here["ready_time"] == "1970-01-01T00:00:03.000Z"
    assert second["replicas"] == [] and second["waiting"] == 0


def test_a_replica_tells_its_ways_to_the_model_once_it_has_answered(server: Any) -> None:
    made = make(server, "ways")
    row = {"endpoint_id": made["id"], "socket": "s", "message": None, "concurrency": 4}
    row |= {"served_entity_id": made["config"]["served_entities"][0]["id"], "pid": None}
    row |= {"pid_start": None, "created_ms": 1_000, "ready_ms": None, "state": "STARTING"}
    report: replica_state.Report = {
        "ways": {"numpy": "not all columns are double", "frame": "proven"},
        "calls": {"frame": 7},
        "feature_misses": {},
    }
    with database.transaction(server.engine) as db:
        for name in ("w1", "w2"):
            replica_state.add_replica(db, replica_state.Replica(id=name, **row))
        replica_state.set_reports(db, {"w1": report})
    told, silent = server.ok("GET", f"{OURS}/ways/replicas")["entities"][0]["replicas"]
    assert {key: told[key] for key in report} == report
    assert {key: silent[key] for key in report} == dict.fromkeys(report)


def test_an_update_that_waits_is_told_beside_what_serves(server: Any) -> None:
    make(server, "updating")
    config = {"served_entities": [entity("1", name="v1"), entity("3", name="v3")]}
    server.ok("PUT", f"{BASE}/updating/config", config | {"traffic_config": split(v1=50, v3=50)})
    found = server.ok("GET", f"{OURS}/updating/replicas")["entities"]
    assert [(e["served_entity"], e["active"]) for e in found] == [
        ("v1", True),
        ("v2", True),
        ("v3", False),
    ]
    assert found[2]["deployment"] == "DEPLOYMENT_CREATING" and found[2]["since"]


def test_events_tell_who_what_how_long_and_why_it_failed(server: Any) -> None:
    make(server, "told")
    server.ok("PUT", f"{BASE}/told/config", {"served_entities": [entity("3", name="v3")]})
    with database.transaction(server.engine) as db:
        row = sql.endpoint(db, "told")
        assert sql.fail_update(db, row.id, 2, "no such column", time.time_ns() // 1_000_000)
    server.ok("POST", f"{OURS}/told/stop", {})
    found = server.ok("GET", f"{OURS}/told/events")["events"]
    assert [each["kind"] for each in found] == [
        "stop",
        "failed",
        "configuration",
        "live",
        "configuration",
    ]
    assert (found[0]["text"], found[0]["actor"]) == ("Stopped", "admin")
    assert (found[1]["reason"], found[1]["config_version"]) == ("no such column", 2)
    assert found[1]["duration_seconds"] >= 0 and found[3]["duration_seconds"] >= 0
    assert found[4]["text"] == "Configuration 1 asked for: v1 90 %, v2 10 %"
    assert [each["time"] for each in found] == sorted((e["time"] for e in found), reverse=True)


def test_what_runs_is_for_those_who_may_see_the_endpoint(server: Any) -> None:
    make(server, "hidden")
    bob = server.token("bob")
    for part in ("replicas", "events"):
        assert server.refused("GET", f"{OURS}/hidden/{part}", token=bob)[0] == 404
