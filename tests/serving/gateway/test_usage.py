"""Usage of endpoints that track it: a row of the log for every request, recorded or not."""

import pytest

from capture import blocks, database, decoding, rows
from serving import state as sql

GOOD = [{"c0": 4, "c1": 0}]


def track(gateway, name, **table):
    """Have the usage of an endpoint tracked; table: its inference table's configuration."""
    with database.transaction(gateway.engine) as db:
        wanted = {"usage_tracking_config": {"enabled": True}}
        if table:
            wanted["inference_table_config"] = {"schema_name": "d", **table}
        sql.write_endpoint(db, sql.endpoint(db, name), 1, ai_gateway=wanted)
    gateway.taken_over()


def used(gateway, name):
    """Usage rows of an endpoint in the log, by request id."""
    while True:
        try:
            return _used(gateway, name)
        except FileNotFoundError:
            continue  # sealed, and so renamed, since the folder was listed


def _used(gateway, name):
    found = {}
    for path in gateway.settings.wal_dir.glob("*/*.*"):
        if path.suffix in (".seg", ".open"):
            data = path.read_bytes()
            mine = [b for b in blocks.read_segment(data)[1].blocks if b.kind == "usage"]
            assert {block.table for block in mine} <= {rows.USAGE_TABLE}
            if mine:
                found |= {
                    row["databricks_request_id"]: row
                    for row in decoding.decode(data, mine).to_pylist()
                    if row["endpoint_name"] == name
                }
    return found


@pytest.fixture
def one(shared):
    """A gateway with an endpoint that tracks its usage, and whose inference table takes none."""
    if "used" not in {e.name for e in _endpoints(shared)}:
        shared.endpoint("used", [("m", "wild", 100)], capture=False)
        track(shared, "used", enabled=True, sampling_fraction=0.0)
    return shared


def _endpoints(gateway):
    with database.reading(gateway.engine) as db:
        return sql.all_endpoints(db)


def test_every_request_counts_whatever_share_of_them_is_recorded(one):
    answers = [
        one.ask("used", GOOD),
        one.ask("used", [{"wrong": 1}]),
        one.ask("used", GOOD, entity="nobody"),
    ]
    assert [answer.status for answer in answers] == [200, 400, 404]
    found = used(one, "used")
    by_request = [found[answer.headers["x-request-id"]] for answer in answers]
    assert [row["status_code"] for row in by_request] == [200, 400, 404]
    assert one.logged("used") == {}


def test_a_row_of_usage_tells_who_asked_what_for_what(one):
    body = b'{"client_request_id": "u-1", "usage_context": {"team": "a"}, "dataframe_records": '
    answer = one.ask("used", body=body + b'[{"c0": 4, "c1": 0}]}')
    row = used(one, "used")[answer.headers["x-request-id"]]
    assert row["client_request_id"] == "u-1"
    assert dict(row["usage_context"]) == {"team": "a"}
    assert (row["requester"], row["served_entity_id"]) == ("admin", one.entity_id("used", "m"))
    assert (row["served_entity_name"], row["config_version"]) == ("m", 1)
    assert row["input_token_count"] is None


def test_an_endpoint_that_does_not_track_its_usage_leaves_none(one):
    assert one.ask("wild", GOOD).status == 200
    assert used(one, "wild") == {}


def test_requests_without_a_valid_token_are_nobodys_usage(one):
    before = len(used(one, "used"))
    assert one.ask("used", GOOD, token="no").status == 403
    assert len(used(one, "used")) == before
