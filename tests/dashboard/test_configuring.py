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


def test_what_is_set_beside_the_configuration_is_told_in_words() -> None:
    told = configuring.beside(
        {
            "description": "prices of the shop",
            "tags": [{"key": "team", "value": "pricing"}, {"key": "trial"}],
            "rate_limits": [{"calls": 5, "key": "user", "renewal_period": "minute"}],
            "ai_gateway": {
                "rate_limits": [
                    {"calls": 600, "key": "endpoint", "renewal_period": "minute"},
                    {"calls": 7, "key": "service_principal", "principal": "ci"},
                ],
                "usage_tracking_config": {"enabled": True},
                "inference_table_config": {
                    "catalog_name": "main",
                    "schema_name": "s",
                    "table_name_prefix": "shop",
                    "enabled": False,
                    "sampling_fraction": 0.25,
                },
            },
            "telemetry_config": {
                "enabled_telemetry_features": ["TELEMETRY_FEATURE_INFERENCE_TABLE"],
                "inference_table_config": {"name": "main.s.t"},
            },
            "email_notifications": {"on_update_failure": ["a@example.org", "b@example.org"]},
        }
    )
    assert [tuple(row.values()) for row in told] == [
        ("description", "prices of the shop"),
        ("tags", "team=pricing, trial"),
        (
            "limits",
            "5 calls a minute for user; 600 calls a minute for endpoint; "
            "7 calls a minute for service principal ci",
        ),
        ("gateway's inference table", "off: main.s.shop_payload, 25 % of the requests"),
        ("usage tracking", "on"),
        ("telemetry", "inference table"),
        ("telemetry's inference table", "main.s.t"),
        (
            "notifications (stored, not sent)",
            "on update failure: a@example.org, b@example.org",
        ),
    ]


def test_what_is_not_set_has_no_row() -> None:
    assert configuring.beside({"name": "shop", "tags": [], "ai_gateway": {}}) == []
