"""Recorded requests and their labels over HTTP: a gateway, a log, a committer, a reading child.

Without workers a request ends as 400 or waits; those that are refused for their content type are
recorded as any other, which is all that these promises need."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BASE = "/api/2.0/serving-endpoints"
OURS = "/api/1.0"
ODD = {"Content-Type": "text/plain"}


def make(server: Any, name: str, record: bool = True) -> Any:
    """A ready endpoint that records its requests."""
    entity = {"name": "v1", "entity_name": "main.f.m", "entity_version": "1"}
    config: dict[str, Any] = {"served_entities": [entity]}
    if record:
        config["auto_capture_config"] = {"schema_name": "f"}
    server.ok("POST", BASE, {"name": name, "config": config})
    server.complete(name)
    return server.until(f"{BASE}/{name}", lambda e: e["state"]["ready"] == "READY")


def query(server: Any, name: str, client_id: str) -> str:
    """Send a query that is refused, and recorded; gives its id."""
    body = f'{{"client_request_id": "{client_id}", "dataframe_records": [{{"distance": 5}}]}}'
    path = f"/serving-endpoints/{name}/invocations"
    answer = server.send("POST", path, content=body.encode(), headers=ODD)
    assert answer.status_code == 400
    request_id: str = answer.headers["databricks-request-id"]
    return request_id


@pytest.fixture(scope="module")
def recorded(server: Any) -> list[str]:
    """Ids of three requests of the endpoint `rec`, which are in its tables."""
    make(server, "rec")
    ids = [query(server, "rec", f"client-{number}") for number in range(3)]
    server.until(f"{OURS}/requests?endpoint=rec", lambda page: len(page["requests"]) == len(ids))
    return ids


def test_requests_are_listed_newest_first_in_pages(server: Any, recorded: list[str]) -> None:
    first = server.ok("GET", f"{OURS}/requests?endpoint=rec&page_size=2")
    token = first["next_page_token"]
    rest = server.ok("GET", f"{OURS}/requests?endpoint=rec&page_size=2&page_token={token}")
    assert "next_page_token" not in rest
    rows = first["requests"] + rest["requests"]
    assert [row["databricks_request_id"] for row in rows] == recorded[::-1]
    assert [row["status_code"] for row in rows] == [400] * 3


def test_filters_narrow_the_list_and_unknown_ones_are_told(
    server: Any, recorded: list[str]
) -> None:
    path = f"{OURS}/requests?endpoint=rec"
    found = server.ok("GET", f"{path}&client_request_id=client-1")["requests"]
    assert [row["databricks_request_id"] for row in found] == [recorded[1]]
    assert server.ok("GET", f"{path}&status=2xx")["requests"] == []
    status, message = server.refused("GET", f"{path}&colour=red")
    assert status == 400 and "'colour'" in message


def test_one_request_is_shown_as_it_was_received(server: Any, recorded: list[str]) -> None:
    found = server.ok("GET", f"{OURS}/requests/{recorded[0]}")
    assert found["request"] == (
        '{"client_request_id": "client-0", "dataframe_records": [{"distance": 5}]}'
    )
    assert (found["endpoint"], found["requester"]) == ("rec", "admin")
    assert set(found["parts"]) == {"gateway_ms", "queue_ms", "features_ms", "predict_ms"}
    assert server.refused("GET", f"{OURS}/requests/no-such-id")[0] == 404


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_requests_are_exported_and_no_file_is_left(
    server: Any, recorded: list[str], form: str
) -> None:
    answer = server.send("GET", f"{OURS}/requests.{form}?endpoint=rec")
    assert answer.status_code == 200, answer.text
    if form == "parquet":
        ids = pq.read_table(io.BytesIO(answer.content))["databricks_request_id"].to_pylist()
    else:
        ids = [each for each in recorded if each in answer.text]
    assert sorted(ids) == sorted(recorded)
    assert "attachment" in answer.headers["content-disposition"]
    assert list(server.settings.run_dir.glob("export-*")) == []
    assert server.refused("GET", f"{OURS}/requests.{form}")[0] == 400


def test_payloads_need_can_manage_and_metrics_can_view(server: Any, recorded: list[str]) -> None:
    user = "looks-at-rec"
    grants = {"grants": [{"endpoint": "rec", "level": "CAN_QUERY"}]}
    server.ok("PUT", f"{OURS}/users/{user}/grants", grants)
    token = server.token(user)
    for path in ("/requests?endpoint=rec", "/requests.csv?endpoint=rec"):
        assert server.refused("GET", OURS + path, token=token)[0] == 403
    assert server.ok("GET", f"{OURS}/requests", token=token) == {"requests": []}
    assert server.refused("GET", f"{OURS}/requests/{recorded[0]}", token=token)[0] == 404
    for path in ("/endpoints/rec/timeseries", "/endpoints/rec/capture", "/usage?endpoint=rec"):
        server.ok("GET", OURS + path, token=token)
    assert server.refused("GET", f"{OURS}/usage", token=token)[0] == 400
    stranger = server.token("stranger-to-rec")
    for path in ("/endpoints/rec/timeseries", "/requests?endpoint=rec", "/usage?endpoint=rec"):
        assert server.refused("GET", OURS + path, token=stranger)[0] == 404


def test_series_count_requests_and_name_what_happened(server: Any, recorded: list[str]) -> None:
    found = server.ok("GET", f"{OURS}/endpoints/rec/timeseries?metrics=requests,p99&step=60")
    counts = next(s for s in found["series"] if s["metric"] == "requests")
    assert sum(value for _, value in counts["points"]) == len(recorded)
    assert found["step_seconds"] == 60 and found["recorded"] is True
    assert [(e["kind"], e["text"]) for e in found["events"]] == [
        ("configuration", "Configuration 1: v1 100 %")
    ]
    status, message = server.refused("GET", f"{OURS}/endpoints/rec/timeseries?metrics=joy")
    assert status == 400 and "joy" in message
    assert server.refused("GET", f"{OURS}/endpoints/rec/timeseries?from=then")[0] == 400


def test_capture_tells_how_far_the_record_is(server: Any, recorded: list[str]) -> None:
    found = server.ok("GET", f"{OURS}/endpoints/rec/capture")
    assert found["table"] == "main.f.rec_payload"
    assert found["committed_rows"] == len(recorded)
    assert found["dropped"] == {}
    assert found["last_commit_time"].endswith("Z")
    make(server, "unrecorded", record=False)
    assert server.ok("GET", f"{OURS}/endpoints/unrecorded/capture")["table"] is None
    found = server.ok("GET", f"{OURS}/endpoints/unrecorded/timeseries")
    assert found["series"] == [] and found["recorded"] is False


def test_a_record_is_switched_on_as_the_page_of_metrics_says(server: Any) -> None:
    make(server, "late", record=False)
    wanted = {"inference_table_config": {"enabled": True}}
    server.ok("PUT", f"{BASE}/late/ai-gateway", wanted)
    query(server, "late", "first")
    found = server.until(
        f"{OURS}/endpoints/late/timeseries?metrics=requests",
        lambda found: any(value for each in found["series"] for _, value in each["points"]),
    )
    assert found["recorded"] is True
    assert (
        server.ok("GET", f"{OURS}/endpoints/late/capture")["table"] == "main.default.late_payload"
    )


def test_series_say_that_a_record_was_switched_off(server: Any) -> None:
    make(server, "switched")
    path = f"{OURS}/endpoints/switched/timeseries?metrics=requests"
    assert server.ok("GET", path)["recorded"] is True
    entity = {"name": "v1", "entity_name": "main.f.m", "entity_version": "1"}
    table = {"schema_name": "f", "enabled": False}
    config = {"served_entities": [entity], "auto_capture_config": table}
    server.ok("PUT", f"{BASE}/switched/config", config)
    server.complete("switched")
    server.until(path, lambda found: found["recorded"] is False)


def test_usage_is_counted_by_endpoint_and_user(server: Any, recorded: list[str]) -> None:
    found = server.ok("GET", f"{OURS}/usage?by=endpoint,user&endpoint=rec")["usage"]
    only = {key: found[0][key] for key in ("endpoint", "user", "requests")}
    assert only == {"endpoint": "rec", "user": "admin", "requests": len(recorded)}


def test_labels_are_taken_matched_and_shown(server: Any, recorded: list[str]) -> None:
    labels = [
        {"client_request_id": "client-0", "label": True, "label_time": "2026-01-01T00:00:00Z"},
        {"databricks_request_id": recorded[1], "label": 0.5},
        {"client_request_id": "of nobody", "label": 1},
    ]
    answer = server.ok("POST", f"{OURS}/endpoints/rec/labels", {"labels": labels})
    assert answer == {"accepted": 3, "unmatched": 1}
    server.until(f"{OURS}/requests/{recorded[1]}", lambda found: found["label"] == 0.5)
    found = server.ok("GET", f"{OURS}/requests/{recorded[0]}")
    assert found["label"] == 1.0


def test_labels_come_as_parquet_too(server: Any, recorded: list[str]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"client_request_id": ["client-2"], "label": [2.0]}), sink)
    parquet = {"Content-Type": "application/x-parquet"}
    answer = server.ok(
        "POST", f"{OURS}/endpoints/rec/labels", content=sink.getvalue(), headers=parquet
    )
    assert answer == {"accepted": 1, "unmatched": 0}


def test_one_bad_label_refuses_all_of_them(server: Any, recorded: list[str]) -> None:
    path = f"{OURS}/endpoints/rec/labels"
    labels = [{"client_request_id": "client-0", "label": 1}, {"label": 1}]
    status, message = server.refused("POST", path, {"labels": labels})
    assert status == 400 and message.startswith("labels[1]")
    assert server.refused("POST", path, content=b"nope")[0] == 400
    many = {"labels": [{"client_request_id": "a", "label": 1}] * 10_001}
    assert server.refused("POST", path, many)[0] == 400
    assert server.ok("POST", path, {"labels": []}) == {"accepted": 0, "unmatched": 0}


def test_labels_need_can_query_and_a_record(server: Any, recorded: list[str]) -> None:
    body = {"labels": [{"client_request_id": "a", "label": 1}]}
    for level, status in (("CAN_VIEW", 403), ("CAN_QUERY", 200)):
        grants = {"grants": [{"endpoint": "rec", "level": level}]}
        server.ok("PUT", f"{OURS}/users/labeller/grants", grants)
        answer = server.send(
            "POST", f"{OURS}/endpoints/rec/labels", body, token=server.token("labeller")
        )
        assert answer.status_code == status
    make(server, "no-record", record=False)
    status, message = server.refused("POST", f"{OURS}/endpoints/no-record/labels", body)
    assert status == 400 and "records no requests" in message
    assert server.refused("POST", f"{OURS}/endpoints/nobody/labels", body)[0] == 404


def test_what_others_recorded_is_not_had_by_taking_their_name(server: Any) -> None:
    first, second = server.token("first-owner"), server.token("second-owner")
    entity = {"name": "v1", "entity_name": "main.f.m", "entity_version": "1"}
    table = {"schema_name": "f", "table_name_prefix": "heirloom"}
    config = {"served_entities": [entity], "auto_capture_config": table}
    server.ok("POST", BASE, {"name": "heirloom", "config": config}, token=first)
    server.ok("DELETE", f"{BASE}/heirloom", token=first)
    status, message = server.refused("POST", BASE, {"name": "heirloom"}, token=second)
    assert status == 400 and "whose records are kept" in message
    other = {"name": "heir", "config": config}
    status, message = server.refused("POST", BASE, other, token=second)
    assert status == 400 and "the deleted endpoint 'heirloom'" in message
    server.ok("POST", BASE, {"name": "heirloom", "config": config}, token=first)
