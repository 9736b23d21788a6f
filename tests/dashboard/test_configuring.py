"""A configuration that is shown, as the body that makes it again, and by the table of the form."""

from dashboard import configuring

SHOWN = {
    "served_entities": [
        {
            "id": "1",
            "name": "v1",
            "entity_name": "m",
            "entity_version": "1",
            "workload_size": "Small",
            "scale_to_zero_enabled": False,
            "environment_vars": {"A": "{{secrets/s/k}}"},
            "state": {"deployment": "DEPLOYMENT_READY"},
            "creator": "ann",
            "creation_timestamp": 1,
        }
    ],
    "served_models": [{"name": "v1"}],
    "traffic_config": {
        "routes": [{"served_model_name": "v1", "traffic_percentage": 100}],
        "sticky": {"key": "caller", "salt": "s"},
    },
    "auto_capture_config": {"catalog_name": "main", "state": {"payload_table": {}}},
    "config_version": 4,
}


def test_what_the_server_adds_is_not_sent_back() -> None:
    body = configuring.sendable(SHOWN)
    assert set(body) == {"served_entities", "traffic_config", "auto_capture_config"}
    assert set(body["served_entities"][0]) == {
        "name",
        "entity_name",
        "entity_version",
        "workload_size",
        "scale_to_zero_enabled",
        "environment_vars",
    }
    assert body["auto_capture_config"] == {"catalog_name": "main"}
    assert configuring.sendable(None) == {"served_entities": []}


def test_the_table_changes_what_it_shows_and_keeps_the_rest() -> None:
    body = configuring.sendable(SHOWN)
    rows = configuring.table_rows(body)
    assert configuring.with_rows(body, rows) == body
    rows[0]["traffic %"] = 90
    added = {"name": None, "model": None, "version": "2", "to zero": None, "traffic %": 10}
    wanted = configuring.with_rows(body, [*rows, added])
    first, second = wanted["served_entities"]
    assert first["environment_vars"] == {"A": "{{secrets/s/k}}"}
    assert (second["name"], second["entity_name"], second["entity_version"]) == ("v2", "m", "2")
    assert [r["traffic_percentage"] for r in wanted["traffic_config"]["routes"]] == [90, 10]
    assert wanted["traffic_config"]["sticky"] == {"key": "caller", "salt": "s"}


def test_a_difference_names_both_sides_and_is_empty_where_nothing_changed() -> None:
    assert configuring.difference({"a": 1}, {"a": 1}, "x", "y") == ""
    told = configuring.difference({"a": 1}, {"a": 2}, "configuration 1", "configuration 2")
    assert "--- configuration 1" in told and '+  "a": 2' in told
