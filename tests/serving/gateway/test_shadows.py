"""Copies of requests for a version in the shadow: recorded beside their originals, unseen by
clients."""

import json
from concurrent.futures import ThreadPoolExecutor

from capture import database, names
from serving import shadow_state
from serving import state as sql

GOOD = [{"c0": 4, "c1": 0}]
RAISES = [{"c0": 4, "c1": 1}]


def shadow(gateway, name, entity="s", percentage=100.0, connected=True):
    if connected:  # a copy for a replica that is not would be dropped
        assert gateway.ask(name, GOOD, entity=entity).status == 200
    with database.transaction(gateway.engine) as db:
        endpoint = sql.endpoint(db, name)
        shadow_state.put_shadow(
            db, shadow_state.Shadow(endpoint.id, entity, percentage, "admin", 1)
        )
    gateway.taken_over()


def copies(gateway, name):
    """Rows of the shadow, by the id of their original."""
    found = gateway.logged(name)
    return {names.copy_of(id): row for id, row in found.items() if row["shadow"]}


def told(gateway, name):
    """Copies counted so far, by outcome."""
    found = {}
    for line in gateway.get("/metrics").body.decode().splitlines():
        if line.startswith("inferlake_shadow_copies_total{") and f'"{name}"' in line:
            found[line.partition('outcome="')[2].partition('"')[0]] = float(line.split()[-1])
    return found


def test_a_copy_is_a_row_beside_its_original(shared, eventually):
    shared.endpoint("both", [("m", "wild", 100), ("s", "wild", 0)])
    shadow(shared, "both")
    body = {"dataframe_records": GOOD, "client_request_id": "r9", "usage_context": {"team": "a"}}
    answer = shared.ask("both", body=json.dumps(body).encode())
    assert (answer.status, answer.headers["served-model-name"]) == (200, "m")
    id = answer.headers["x-request-id"]
    copy = eventually(lambda: copies(shared, "both").get(id))
    original = shared.logged("both")[id]
    assert not original["shadow"]
    for same in ("request", "response", "request_time", "client_request_id", "usage_context",
                 "requester", "config_version", "content_type"):  # fmt: skip
        assert copy[same] == original[same], same
    assert (copy["served_entity_name"], copy["model_version"]) == ("s", "2")
    assert (copy["route_share"], copy["route_split"]) == (None, None)
    assert (original["route_share"], copy["status_code"]) == (1.0, 200)
    assert copy["predict_us"] > 0
    assert names.request_time_ms(copy["databricks_request_id"]) == names.request_time_ms(id)


def test_the_clients_answer_is_the_same_with_and_without_a_shadow(shared, eventually):
    shared.endpoint("same", [("m", "wild", 100), ("s", "wild", 0)])
    asked = [GOOD, RAISES, [{"wrong": 1}]]
    before = [shared.ask("same", rows) for rows in asked]
    shadow(shared, "same")
    after = [shared.ask("same", rows) for rows in asked]
    assert [one.body for one in before] == [one.body for one in after]
    assert [set(one.headers) for one in before] == [set(one.headers) for one in after]
    assert [one.status for one in after] == [200, 400, 400]
    eventually(lambda: len(copies(shared, "same")) == 3)
    found = copies(shared, "same")
    sources = [found[one.headers["x-request-id"]]["error_source"] for one in after]
    assert sources == [None, "model", "request"]


def test_only_what_the_split_gave_to_another_version_is_copied(shared, eventually):
    shared.endpoint("some", [("m", "wild", 100), ("s", "wild", 0)])
    shadow(shared, "some")
    for entity in ("m", "s"):
        assert shared.ask("some", GOOD, entity=entity).status == 200
    shared.ask("some", GOOD, entity="nobody")
    last = shared.ask("some", GOOD).headers["x-request-id"]
    eventually(lambda: last in copies(shared, "some"))
    assert set(copies(shared, "some")) == {last}


def test_half_of_the_requests_are_copied_when_half_are_asked_for(shared, eventually):
    shared.endpoint("half", [("m", "wild", 100), ("s", "wild", 0)])
    shadow(shared, "half", percentage=50.0)
    for _ in range(40):
        shared.ask("half", GOOD)
    shadow(shared, "half", percentage=100.0)
    last = shared.ask("half", GOOD).headers["x-request-id"]
    eventually(lambda: last in copies(shared, "half"))
    assert 5 <= len(copies(shared, "half")) - 1 <= 35


def test_a_copy_counts_to_no_limit_and_to_no_number_of_the_traffic(shared, eventually):
    limits = [{"calls": 4, "renewal_period": "minute", "key": "endpoint"}]
    shared.endpoint("counted", [("m", "wild", 100), ("s", "wild", 0)], rate_limits=limits)
    shadow(shared, "counted")
    statuses = [shared.ask("counted", GOOD).status for _ in range(4)]
    assert statuses == [200] * 3 + [429]  # the fourth was asked for by name, before
    eventually(lambda: told(shared, "counted") == {"answered": 3.0})
    lines = shared.get("/metrics").body.decode().splitlines()
    counted = [one for one in lines if one.startswith("inferlake_requests_total{")]
    of_shadow = [one for one in counted if '"counted"' in one and '"s"' in one]
    assert [line.split()[-1] for line in of_shadow] == ["1"]  # asked for by name, before


def test_a_shadow_without_a_replica_drops_its_copies_and_says_how_many(shared, eventually):
    shared.endpoint("empty", [("m", "wild", 100), ("s", "wild", 0)])
    with database.transaction(shared.engine) as db:
        sql.replica_state.remove_replica(db, shared.replicas[-1].id)
    shadow(shared, "empty", connected=False)
    for _ in range(3):
        assert shared.ask("empty", GOOD).status == 200
    # One waits, as a request to a sleeping version does; the others are not kept for later.
    eventually(lambda: told(shared, "empty") == {"dropped_not_ready": 2.0})
    shared.replica("empty", "s", "wild")
    eventually(lambda: told(shared, "empty") == {"dropped_not_ready": 2.0, "answered": 1.0})


def test_a_hanging_shadow_drops_what_is_too_much(shared, asking, eventually):
    shared.endpoint("slow", [("m", "linear", 100), ("s", "wild", 0)])
    shadow(shared, "slow")
    columns = {f"c{number}": 1.0 for number in range(8)}
    hangs = {"dataframe_records": [{**columns, "c1": 3.0}]}  # 1.5 s each in the shadow
    with shared.connect() as client:
        for _ in range(120):
            client.send(asking("slow", json.dumps(hangs).encode()))
            assert client.receive()[0] == 200
    assert eventually(lambda: told(shared, "slow").get("dropped_queue_full")) >= 10


def test_a_crashing_shadow_changes_nothing_for_clients(shared, eventually):
    shared.endpoint("crash", [("m", "proba", 100), ("s", "wild", 0)])
    columns = {f"c{number}": 1.0 for number in range(8)}
    ends = [{**columns, "c1": 2.0}]
    before = shared.ask("crash", ends)
    shadow(shared, "crash")
    answers = [shared.ask("crash", ends) for _ in range(5)]
    assert {answer.body for answer in answers} == {before.body}
    eventually(lambda: sum(told(shared, "crash").values()) >= 4)
    rows = shared.logged("crash")
    live = [row for row in rows.values() if row["served_entity_name"] == "m"]
    assert [row["status_code"] for row in live] == [200] * 6


def test_no_shadow_no_copies_again(shared, eventually):
    shared.endpoint("over", [("m", "wild", 100), ("s", "wild", 0)])
    shadow(shared, "over")
    shared.ask("over", GOOD)
    eventually(lambda: len(copies(shared, "over")) == 1)
    with database.transaction(shared.engine) as db:
        assert shadow_state.delete_shadow(db, sql.endpoint(db, "over").id)
    shared.taken_over()
    shared.ask("over", GOOD)
    assert told(shared, "over") == {"answered": 1.0}
    assert len(copies(shared, "over")) == 1


def test_a_version_can_be_tried_past_the_record(shared):
    shared.endpoint("tried", [("m", "wild", 100), ("s", "wild", 0)], grants=[("u", "CAN_QUERY")])
    path = "/api/1.0/endpoints/tried/served-entities/s/try"
    answer = shared.post(path, {"dataframe_records": GOOD})
    assert (answer.status, answer.json) == (200, {"predictions": [8.0]})
    assert int(answer.headers["x-model-us"]) > 0
    raised = shared.post(path, {"dataframe_records": RAISES})
    assert (raised.status, raised.headers["x-error-source"]) == (400, "model")
    assert shared.logged("tried") == {}
    lines = shared.get("/metrics").body.decode().splitlines()
    counted = [line for line in lines if line.startswith("inferlake_requests_total")]
    assert [line for line in counted if '"tried"' in line] == []
    missing = shared.post(path.replace("/s/", "/nobody/"), {})
    assert missing.json["message"] == (
        "Served entity 'nobody' of endpoint 'tried' does not exist; it serves: m, s."
    )
    assert shared.post(path, {}, token=shared.token("u")).status == 403


def test_what_is_tried_stands_behind_live_requests(shared, eventually):
    shared.endpoint("busy", [("m", "wild", 100)])
    slow = [{"c0": 4, "c1": 7}]
    path = "/api/1.0/endpoints/busy/served-entities/m/try"
    with ThreadPoolExecutor(8) as pool:
        live = [pool.submit(shared.ask, "busy", slow) for _ in range(8)]
        eventually(lambda: in_flight(shared, "busy") >= 4)
        refused = shared.post(path, {"dataframe_records": GOOD})
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.json["message"] == "'m' is busy; live requests come first."
        assert {each.result().status for each in live} == {200}


def in_flight(gateway, name):
    for line in gateway.get("/metrics").body.decode().splitlines():
        if line.startswith("inferlake_in_flight_requests{") and f'"{name}"' in line:
            return float(line.split()[-1])
    return 0.0
