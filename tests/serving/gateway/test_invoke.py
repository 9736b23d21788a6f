import gzip
import json
import re
import time
from uuid import UUID

import pytest

from capture import names
from serving.gateway import recent

GOOD = [{"c0": 4, "c1": 0}]


def told(answer, status, code):
    assert answer.status == status, answer.body
    assert answer.json["error_code"] == code
    return answer.json["message"]


def test_a_query_is_answered_with_its_ids_and_the_entitys_name(shared):
    answer = shared.ask("wild", GOOD)
    assert (answer.status, answer.json) == (200, {"predictions": [8.0]})
    assert answer.headers["served-model-name"] == "m"
    assert answer.headers["x-request-id"] == answer.headers["databricks-request-id"]
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
                        answer.headers["x-request-id"])  # fmt: skip


def test_the_row_is_in_the_log_when_the_reply_is_there(shared):
    body = {
        "dataframe_records": GOOD,
        "client_request_id": "r1",
        "usage_context": {"team": "a"},
    }
    before = time.time_ns() // 1000
    answer = shared.ask("wild", body=json.dumps(body).encode())
    row = shared.logged("wild")[answer.headers["x-request-id"]]
    assert row["client_request_id"] == "r1"
    assert row["usage_context"] == [("team", "a")]
    assert json.loads(row["request"]) == body
    assert row["response"] == answer.body.decode()
    assert (row["status_code"], row["error_source"]) == (200, None)
    assert (row["served_entity_name"], row["served_entity_id"]) == ("m", "wild-m")
    assert (row["model_name"], row["model_version"]) == ("main.d.m", "1")
    assert (row["route_share"], row["route_split"]) == (1.0, '{"m":100}')
    assert row["requester"] == "admin"
    assert row["config_version"] == 1
    assert row["content_type"] == "application/json"
    assert row["predict_us"] > 0
    assert row["gateway_us"] > 0
    assert before <= row["request_time"].timestamp() * 1e6 <= time.time_ns() / 1000


def test_every_refusal_with_a_valid_token_is_a_row(shared):
    answers = [
        shared.ask("wild", [{"c0": 4}]),
        shared.ask("wild", [{"c0": 4, "c1": 1}]),
        shared.ask("wild", GOOD, headers={"Content-Type": "text/html"}),
        shared.ask("wild", GOOD, entity="nobody"),
        shared.ask("wild", body=b'{"client_request_id": "r2", "dataframe_records": [3]}'),
    ]
    rows = [shared.logged("wild")[answer.headers["x-request-id"]] for answer in answers]
    assert [row["status_code"] for row in rows] == [400, 400, 400, 404, 400]
    assert [row["error_source"] for row in rows] == ["request", "model", *["request"] * 3]
    assert rows[-1]["client_request_id"] == "r2"
    assert rows[-2]["served_entity_name"] is None
    assert json.loads(rows[0]["response"])["message"] == "Column 'c1' is missing."


def test_requests_without_a_valid_token_are_refused_and_leave_no_row(shared):
    before = len(shared.logged("wild"))
    missing, wrong = shared.ask("wild", GOOD, token=None), shared.ask("wild", GOOD, token="no")
    assert told(missing, 401, "UNAUTHENTICATED") == "Send 'Authorization: Bearer <token>'."
    assert told(wrong, 403, "PERMISSION_DENIED") == "The token is not valid."
    assert len(shared.logged("wild")) == before


def test_a_grant_is_needed_and_none_means_the_endpoint_does_not_exist(shared):
    user, viewer, stranger = (shared.token(name) for name in ("u", "viewer", "stranger"))
    assert shared.ask("wild", GOOD, token=user).status == 200
    assert told(shared.ask("wild", GOOD, token=viewer), 403, "PERMISSION_DENIED") == (
        "CAN_QUERY on endpoint 'wild' is needed; you have CAN_VIEW."
    )
    assert told(shared.ask("wild", GOOD, token=stranger), 404, "RESOURCE_DOES_NOT_EXIST") == (
        "Endpoint 'wild' does not exist."
    )


def test_unknown_endpoints_and_entities_are_named(shared):
    code = "RESOURCE_DOES_NOT_EXIST"
    assert told(shared.ask("nope", GOOD), 404, code) == "Endpoint 'nope' does not exist."
    assert told(shared.ask("wild", GOOD, entity="x"), 404, code) == (
        "Served entity 'x' of endpoint 'wild' does not exist."
    )


def test_one_entity_can_be_asked_past_the_split(shared):
    answer = shared.ask("wild", GOOD, entity="m")
    row = shared.logged("wild")[answer.headers["x-request-id"]]
    assert (answer.status, row["route_share"], row["route_split"]) == (200, None, None)


def test_a_stopped_endpoint_says_so_and_asks_for_no_retry(shared):
    shared.endpoint("stopped", [("m", None, 100)], stopped=True)
    message = told(shared.ask("stopped", GOOD), 400, "BAD_REQUEST")
    assert message == "Endpoint 'stopped' is stopped; start it first."


def test_rate_limits_are_told_with_the_time_to_come_again(shared):
    limits = [{"calls": 2, "renewal_period": "minute", "key": "user"}]
    shared.endpoint("limited", [("m", "wild", 100)], rate_limits=limits)
    answers = [shared.ask("limited", GOOD) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert told(answers[2], 429, "REQUEST_LIMIT_EXCEEDED") == "2 calls per minute for user 'admin'."
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert shared.logged("limited")[answers[2].headers["x-request-id"]]["status_code"] == 429


def test_an_endpoint_without_capture_leaves_no_row(shared):
    shared.endpoint("silent", [("m", "wild", 100)], capture=False)
    assert shared.ask("silent", GOOD).status == 200
    assert shared.logged("silent") == {}


def test_a_unit_stays_with_its_entity_and_only_its_hash_is_logged(shared):
    sticky = {"key": "client_request_id", "salt": "s"}
    shared.endpoint("sticky", [("a", "wild", 50), ("b", "wild", 50)], sticky=sticky)

    def entity_of(unit):
        body = json.dumps({"dataframe_records": GOOD, "client_request_id": unit}).encode()
        return shared.ask("sticky", body=body).headers["served-model-name"]

    units = [f"unit-{number}" for number in range(12)]
    first = [entity_of(unit) for unit in units]
    assert set(first) == {"a", "b"}
    assert [entity_of(unit) for unit in units] == first
    rows = [row for row in shared.logged("sticky").values() if row["client_request_id"] == "unit-0"]
    assert len(rows) == 2
    assert rows[0]["unit_id"] == rows[1]["unit_id"]
    assert len(rows[0]["unit_id"]) == 64
    assert rows[0]["route_share"] == 0.5


@pytest.mark.parametrize(
    ("key", "headers", "body"),
    [
        ("header:X-Patient", {"x-patient": "p7"}, {}),
        ("usage_context.team", {}, {"usage_context": {"team": "p7"}}),
        ("feature:c0", {}, {}),
        ("caller", {}, {}),
    ],
)
def test_a_unit_is_found_where_the_configuration_says(shared, key, headers, body):
    name = "by-" + re.sub("[^a-z]", "", key.lower())
    shared.endpoint(name, [("m", "wild", 100)], sticky={"key": key, "salt": "s"})
    text = json.dumps({"dataframe_records": GOOD, **body}).encode()
    answer = shared.ask(name, body=text, headers=headers)
    assert answer.status == 200
    assert shared.logged(name)[answer.headers["x-request-id"]]["unit_id"] is not None


def test_a_request_without_its_unit_is_drawn_by_chance(shared):
    shared.endpoint("unit", [("m", "wild", 100)], sticky={"key": "header:X-Patient", "salt": "s"})
    answer = shared.ask("unit", GOOD)
    row = shared.logged("unit")[answer.headers["x-request-id"]]
    assert (answer.status, row["unit_id"], row["route_share"]) == (200, None, 1.0)


def test_gzip_is_unpacked_and_logged_unpacked(shared):
    body = json.dumps({"dataframe_records": GOOD}).encode()
    answer = shared.ask("wild", body=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    assert answer.json == {"predictions": [8.0]}
    assert shared.logged("wild")[answer.headers["x-request-id"]]["request"] == body.decode()


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({"Content-Encoding": "zpaq"}, b"x", "Content-Encoding 'zpaq' is not supported; gzip and"),
        ({"Content-Encoding": "gzip"}, b"no gzip at all", "Body is not valid gzip."),
        (
            {"Content-Encoding": "gzip"},
            gzip.compress(b"{}", mtime=0)[:-4],
            "Body is not valid gzip: cut of",
        ),
        (
            {"Content-Encoding": "gzip"},
            gzip.compress(bytes(17 << 20), mtime=0),
            "Body over 16777216 bytes.",
        ),
        ({"Content-Type": "text/html"}, b"x", "Content-Type 'text/html' is not supported; applic"),
        ({"Content-Type": "application/json; charset=latin-1"}, b"{}", "Charset 'latin-1' is not"),
        ({}, b"", "Body is not valid JSON: it is empty at byte 0."),
        ({}, b'{"dataframe_records": [{"c0": NaN, "c1": 0}]}', "Number out of range at datafram"),
    ],
)
def test_what_is_wrong_with_a_body_is_told(shared, headers, body, message):
    answer = shared.ask("wild", body=body, headers=headers)
    assert told(answer, 400, "BAD_REQUEST").startswith(message)


def test_csv_is_answered(shared):
    answer = shared.ask("wild", body=b"c0,c1\n4,0\n", headers={"Content-Type": "text/csv"})
    assert answer.json == {"predictions": [8.0]}


def test_a_payload_over_the_cap_is_logged_as_null_with_a_code(shared):
    rows = [{"c0": 4, "c1": 0, "note": "x" * (1 << 20)}]
    answer = shared.ask("wild", rows)
    assert answer.status == 200
    row = shared.logged("wild")[answer.headers["x-request-id"]]
    assert row["request"] is None
    assert row["logging_error_codes"] == ["MAX_REQUEST_SIZE_EXCEEDED"]


def test_requests_are_counted(shared):
    shared.ask("wild", GOOD)
    text = shared.get("/metrics").body.decode()
    assert re.search(
        r'inferlake_requests_total\{endpoint_name="wild",served_entity_name="m",code="200"\} \d',
        text,
    )
    export = shared.get("/api/2.0/serving-endpoints/wild/metrics").body.decode()
    assert re.search(
        r'request_count_total\{endpoint_name="wild",served_entity_name="m"\} \d', export
    )


def test_a_change_of_traffic_is_taken_over_within_a_moment(shared, eventually):
    shared.endpoint("shifting", [("a", "wild", 100), ("b", "wild", 0)])
    assert shared.ask("shifting", GOOD).headers["served-model-name"] == "a"
    shared.endpoint("shifting", [("a", None, 0), ("b", None, 100)])
    assert shared.ask("shifting", GOOD).headers["served-model-name"] == "b"


def test_a_full_log_is_told_before_the_model_works(gateway):
    one = gateway(INFERLAKE_WAL_BACKLOG_BYTES="1500")
    one.endpoint("wild", [("m", "wild", 100)])
    answers = [one.ask("wild", GOOD) for _ in range(8)]
    assert answers[0].status == 200
    assert told(answers[-1], 503, "RESOURCE_EXHAUSTED")
    assert answers[-1].headers["retry-after"] == "5"
    logged = one.logged("wild")
    assert {answer.headers["x-request-id"] for answer in answers if answer.status == 200} == set(
        logged
    )


def test_of_recent_ids_at_least_the_newest_are_kept_and_not_twice_as_many():
    known = recent.RecentIds(most=3)
    for number in range(100):
        known.add(number)
        assert all(known.has(one) for one in range(max(0, number - 2), number + 1))
        assert len(known) <= 2 * 3
    assert not known.has(0)


def test_recent_ids_know_a_request_by_the_text_of_its_id_and_by_its_clients():
    known = recent.RecentIds()
    request_id = names.new_request_id()
    known.add(UUID(request_id).int, b"order-1")
    assert known.has_request(request_id) and known.has("order-1")
    assert not known.has_request(names.new_request_id())
    assert not known.has_request("order-1") and not known.has(request_id)
