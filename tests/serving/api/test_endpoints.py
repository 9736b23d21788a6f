"""Endpoints as Databricks' clients create, change and read them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from capture import audit, catalog, database
from serving import contract, registry, replica_state, vault
from serving import state as sql

BASE = "/api/2.0/serving-endpoints"


def entity(version: Any = "1", **more: Any) -> dict[str, Any]:
    return {"entity_name": "main.f.m", "entity_version": version, **more}


def split(**shares: int) -> dict[str, Any]:
    routes = [{"served_model_name": n, "traffic_percentage": p} for n, p in shares.items()]
    return {"routes": routes}


def make(server: Any, name: str, **more: Any) -> Any:
    """A ready endpoint with v1 90 %, v2 10 %."""
    config = {
        "served_entities": [entity("1", name="v1"), entity("2", name="v2")],
        "traffic_config": split(v1=90, v2=10),
        **more,
    }
    server.ok("POST", BASE, {"name": name, "config": config})
    server.complete(name)
    return server.ok("GET", f"{BASE}/{name}")


def test_a_new_endpoint_is_pending_until_its_entities_answer(server: Any) -> None:
    body = {
        "name": "new",
        "description": "d",
        "tags": [{"key": "team", "value": "ops"}],
        "config": {"served_entities": [entity(3, workload_size="Medium")]},
    }
    made = server.ok("POST", f"{BASE}/", body)
    assert made["state"] == {"ready": "NOT_READY", "config_update": "IN_PROGRESS"}
    assert made["permission_level"] == "CAN_MANAGE"
    assert (made["creator"], made["description"]) == ("admin", "d")
    assert "config" not in made
    pending = made["pending_config"]
    assert pending["config_version"] == 1 and pending["start_time"] > 0
    only = pending["served_entities"][0]
    assert (only["name"], only["entity_version"]) == ("m-3", "3")
    assert only["state"]["deployment"] == "DEPLOYMENT_CREATING"
    assert pending["served_models"][0]["model_name"] == "main.f.m"
    server.complete("new")
    done = server.ok("GET", f"{BASE}/new")
    assert done["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert "pending_config" not in done
    assert done["config"]["traffic_config"]["routes"] == [
        {"served_model_name": "m-3", "served_entity_name": "m-3", "traffic_percentage": 100}
    ]
    assert done["id"] == made["id"]


def test_an_alias_is_served_as_the_version_it_names(server: Any) -> None:
    config = {"served_entities": [entity("@champion")]}
    made = server.ok("POST", BASE, {"name": "by-alias", "config": config})
    assert made["pending_config"]["served_entities"][0]["entity_version"] == "2"


def test_what_the_registry_does_not_have_is_404(server: Any) -> None:
    for broken in (entity("9"), entity("@nobody"), {"entity_name": "no.such", "entity_version": 1}):
        body = {"name": "nothing", "config": {"served_entities": [broken]}}
        status, message = server.refused("POST", BASE, body)
        assert status == 404 and "does not exist in the registry" in message
    assert server.refused("GET", f"{BASE}/nothing")[0] == 404


def test_a_name_is_given_once_and_kept_words_never(server: Any) -> None:
    server.ok("POST", BASE, {"name": "once"})
    told = server.send("POST", BASE, {"name": "once"})
    assert (told.status_code, told.json()["error_code"]) == (400, "RESOURCE_ALREADY_EXISTS")
    assert server.refused("POST", BASE, {"name": "chat"})[0] == 400


def test_of_sixteen_equal_creations_one_wins(server: Any) -> None:
    body = {"name": "race", "config": {"served_entities": [entity()]}}
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: server.send("POST", BASE, body), range(16)))
    assert sorted(each.status_code for each in found) == [200] + [400] * 15


def test_of_many_updates_at_once_one_wins_and_numbers_have_no_gaps(server: Any) -> None:
    make(server, "updates")

    def update(size: str) -> int:
        config = {"served_entities": [entity("1", name="v1", workload_size=size)]}
        status: int = server.send("PUT", f"{BASE}/updates/config", config).status_code
        return status

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(update, ["Medium", "Large"] * 4))
    assert found == [200] + [409] * 7
    server.complete("updates")
    assert server.ok("GET", f"{BASE}/updates")["config"]["config_version"] == 2


def test_an_update_runs_beside_the_old_configuration(server: Any) -> None:
    before = make(server, "blue")
    config = {"served_entities": [entity("3", name="v3")]}
    after = server.ok("PUT", f"{BASE}/blue/config", config)
    assert after["state"] == {"ready": "READY", "config_update": "IN_PROGRESS"}
    assert after["config"]["config_version"] == before["config"]["config_version"] == 1
    assert after["pending_config"]["config_version"] == 2
    status, message = server.refused("PUT", f"{BASE}/blue/config", config)
    assert status == 409 and message.startswith("An update of 'blue' started at ")
    with database.transaction(server.engine) as db:
        sql.fail_update(db, before["id"], 2, "The model raised ValueError: no.", 5)
    failed = server.ok("GET", f"{BASE}/blue")
    assert failed["state"] == {"ready": "READY", "config_update": "UPDATE_FAILED"}
    assert failed["update_message"] == "The model raised ValueError: no."
    server.ok("PUT", f"{BASE}/blue/config", config)
    server.complete("blue")
    done = server.ok("GET", f"{BASE}/blue")
    assert done["config"]["config_version"] == 3
    assert [e["name"] for e in done["config"]["served_entities"]] == ["v3"]


def test_an_update_that_only_waits_for_a_device_is_replaced(server: Any) -> None:
    made = make(server, "wants-gpu")
    asked = {"served_entities": [entity("3", name="v3", workload_type="GPU_SMALL")]}
    pending = server.ok("PUT", f"{BASE}/wants-gpu/config", asked)["pending_config"]
    waits = pending["served_entities"][0]["id"]
    with database.transaction(server.engine) as db:
        words = ("DEPLOYMENT_CREATING", f"{contract.WAITING_FOR_DEVICE}: none is here.")
        replica_state.set_entity_state(db, made["id"], waits, *words, 5)
    asked = {"served_entities": [entity("3", name="v3")]}
    after = server.ok("PUT", f"{BASE}/wants-gpu/config", asked)
    assert after["pending_config"]["config_version"] == 3
    status, _ = server.refused("PUT", f"{BASE}/wants-gpu/config", asked)
    assert status == 409


def test_a_change_of_traffic_alone_is_live_at_once(server: Any) -> None:
    before = make(server, "shift")
    body = {"name": "shift", "traffic_config": split(v1=20, v2=80)}
    after = server.ok("PUT", f"{BASE}/shift/config", body)
    assert after["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert after["config"]["config_version"] == 2
    ids = [[e["id"] for e in each["config"]["served_entities"]] for each in (before, after)]
    assert ids[0] == ids[1]


def test_what_was_answered_may_be_sent_back(server: Any) -> None:
    before = make(server, "echo", auto_capture_config={"table_name_prefix": "echo"})
    after = server.ok("PUT", f"{BASE}/echo/config", before["config"])
    assert after["state"]["config_update"] == "NOT_UPDATING"
    assert after["config"] == {**before["config"], "config_version": 2}


def test_a_deleted_endpoint_is_gone_and_its_table_stays(server: Any) -> None:
    make(server, "gone", auto_capture_config={"schema_name": "f"})
    assert server.ok("DELETE", f"{BASE}/gone") == {}
    assert server.refused("GET", f"{BASE}/gone")[0] == 404
    assert server.refused("DELETE", f"{BASE}/gone")[0] == 404
    with database.reading(server.engine) as db:
        recorded = catalog.get(db, "main.f.gone_payload")
        actions = [row.action for row in audit.read(db, 9, endpoint="gone")]
    assert recorded is not None and not recorded.enabled
    assert actions == ["endpoint.delete", "endpoint.create"]


def test_the_list_shows_names_states_and_entities(server: Any) -> None:
    make(server, "listed")
    found = {e["name"]: e for e in server.ok("GET", BASE)["endpoints"]}
    assert list(found) == sorted(found)
    only = found["listed"]
    assert only["state"]["ready"] == "READY"
    assert [e["name"] for e in only["config"]["served_entities"]] == ["v1", "v2"]
    assert [m["model_version"] for m in only["config"]["served_models"]] == ["1", "2"]


def test_recording_writes_the_catalogue_with_the_columns_of_the_signatures(server: Any) -> None:
    table = {"catalog_name": "main", "schema_name": "f", "table_name_prefix": "shared"}
    shown = make(server, "recorded", auto_capture_config=table)
    capture = shown["config"]["auto_capture_config"]
    assert capture["enabled"] is True
    assert capture["state"]["payload_table"]["name"] == "shared_payload"
    with database.reading(server.engine) as db:
        recorded = catalog.get(db, "main.f.shared_payload")
    assert recorded is not None and recorded.enabled
    assert recorded.request_columns == {"distance": "double", "carrier": "string"}
    body = {
        "name": "other",
        "config": {"served_entities": [entity()], "auto_capture_config": table},
    }
    status, message = server.refused("POST", BASE, body)
    assert status == 400 and "is recorded by endpoint 'recorded'" in message


def test_tags_are_patched_into_an_object(server: Any) -> None:
    server.ok("POST", BASE, {"name": "tagged", "tags": [{"key": "a", "value": "1"}, {"key": "b"}]})
    body = {"add_tags": [{"key": "c", "value": "3"}], "delete_tags": ["a"]}
    tags = {"tags": [{"key": "b"}, {"key": "c", "value": "3"}]}
    assert server.ok("PATCH", f"{BASE}/tagged/tags", body) == tags
    assert server.ok("GET", f"{BASE}/tagged")["tags"] == tags["tags"]


def test_limits_and_gateway_reach_the_route_table(server: Any) -> None:
    row = make(server, "limited")
    limit = {"calls": 5, "renewal_period": "minute", "key": "user"}
    body = {"rate_limits": [limit]}
    assert server.ok("PUT", f"{BASE}/limited/rate-limits", body) == body
    gateway = {
        "rate_limits": [{"calls": 9, "renewal_period": "minute", "key": "endpoint"}],
        "inference_table_config": {"catalog_name": "main", "schema_name": "f", "enabled": True},
        "usage_tracking_config": {"enabled": True},
    }
    stored = server.ok("PUT", f"{BASE}/limited/ai-gateway", gateway)
    assert stored == gateway
    only = server.ok("PUT", f"{BASE}/limited/ai-gateway", {"rate_limits": []})
    assert only == {**gateway, "rate_limits": []}
    with database.reading(server.engine) as db:
        view = next(e for e in sql.snapshot(db).endpoints if e.id == row["id"])
        recorded = catalog.get(db, "main.f.limited_payload")
    assert view.rate_limits == (limit,)
    assert view.capture == sql.CaptureView("main.f.limited_payload", 1.0, "process")
    assert recorded is not None
    assert recorded.request_columns == {"distance": "double", "carrier": "string"}
    renamed = {"inference_table_config": {**gateway["inference_table_config"], "schema_name": "g"}}
    status, message = server.refused("PUT", f"{BASE}/limited/ai-gateway", renamed)
    assert status == 400 and "inference_table_config.schema_name: 'g' is not 'f'" in message


def test_telemetry_is_the_newest_form_and_is_removed_by_leaving_it_out(server: Any) -> None:
    make(server, "told")
    table = {"name": "main.f.told", "sampling_fraction": 0.5}
    body = {"telemetry_config": {"inference_table_config": table}}
    after = server.ok("PATCH", f"{BASE}/told/telemetry-config", body)
    assert after["telemetry_config"] == body["telemetry_config"]
    assert "telemetry_config" not in server.ok("PATCH", f"{BASE}/told/telemetry-config", {})
    status, _ = server.refused(
        "PATCH",
        f"{BASE}/told/telemetry-config",
        {"telemetry_config": {"enabled_telemetry_features": ["TELEMETRY_FEATURE_TRACES"]}},
    )
    assert status == 501


def test_notifications_are_kept_and_shown(server: Any) -> None:
    server.ok("POST", BASE, {"name": "mailed"})
    body = {"email_notifications": {"on_update_failure": ["a@b.c"]}}
    assert server.ok("PATCH", f"{BASE}/mailed/notifications", body) == {"name": "mailed", **body}
    assert server.ok("GET", f"{BASE}/mailed")["email_notifications"] == body["email_notifications"]


def test_an_endpoint_describes_its_queries(server: Any) -> None:
    make(server, "described")
    found = server.ok("GET", f"{BASE}/described/openapi", headers={"Accept": "text/plain"})
    path = found["paths"]["/serving-endpoints/described/invocations"]["post"]
    content = path["requestBody"]["content"]
    assert "with columns distance" in content["text/csv"]["schema"]["description"]
    assert content["application/x-parquet"]["schema"]["format"] == "binary"
    body = jsonschema.Draft202012Validator(content["application/json"]["schema"])
    good = [
        {"dataframe_records": [{"distance": 1.5}], "client_request_id": "a"},
        {"dataframe_split": {"columns": ["distance"], "data": [[1.5], [2.5]]}},
        {"instances": [{"distance": 1.5}]},
        {"inputs": {"distance": [1.5, 2.5]}},
    ]
    bad = [
        {"dataframe_records": [{"distance": "far"}]},
        {"dataframe_split": {"columns": ["speed"], "data": [[1.5]]}},
        {"dataframe_split": {"columns": ["distance"], "data": [[]]}},
        {"instances": [{}]},
        {"inputs": {"distance": "far"}},
        {},
    ]
    assert [body.is_valid(each) for each in good] == [True] * len(good)
    assert [body.is_valid(each) for each in bad] == [False] * len(bad)
    assert found["openapi"].startswith("3.")
    assert "/serving-endpoints/described/served-models/v2/invocations" in found["paths"]


def test_metrics_are_text_of_this_endpoint(server: Any) -> None:
    make(server, "measured")
    answer = server.send("GET", f"{BASE}/measured/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


def test_logs_are_those_of_the_entity(server: Any) -> None:
    make(server, "logged")
    folder = server.settings.logs_dir / "logged" / "v1"
    folder.mkdir(parents=True)
    (folder / "replica-a.log").write_text("loaded\n")
    logs = f"{BASE}/logged/served-models/v1/logs"
    assert "loaded" in server.ok("GET", logs)["logs"]
    assert server.ok("GET", f"{BASE}/logged/served-models/v2/logs") == {"logs": ""}
    assert server.ok("GET", f"{BASE}/logged/served-models/v1/build-logs") == {"logs": ""}
    status, message = server.refused("GET", f"{BASE}/logged/served-models/nope/logs")
    assert (status, message) == (404, "Served entity 'nope' does not exist.")


def test_logs_show_no_stored_secret(server: Any) -> None:
    make(server, "logged-secret")
    engine = database.open_engine(server.settings)
    with database.transaction(engine) as db:  # as a gateway before this one wrote it
        vault.put(db, server.settings, "s", "printed", "printed-by-the-model", 1)
    engine.dispose()
    folder = server.settings.logs_dir / "logged-secret" / "v1"
    folder.mkdir(parents=True)
    (folder / "replica-a.log").write_text("{'key': 'printed-by-the-model'}\n")
    logs = f"{BASE}/logged-secret/served-models/v1/logs"
    assert server.ok("GET", logs)["logs"].endswith("{'key': '***'}\n")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/pt", {"name": "x"}, 400),
        (
            "POST",
            "/pt",
            {
                "name": "x",
                "config": {
                    "served_entities": [
                        {"entity_name": "system.ai.llama", "provisioned_model_units": 50}
                    ]
                },
            },
            501,
        ),
        ("PUT", "/pt/nobody/config", {"config": {}}, 404),
    ],
)
def test_provisioned_throughput_is_checked_and_not_offered(
    server: Any, method: str, path: str, body: Any, status: int
) -> None:
    assert server.refused(method, f"{BASE}{path}", body)[0] == status


def test_the_digest_of_a_model_is_fixed_when_it_is_accepted(server: Any) -> None:
    row = make(server, "fixed")
    with database.reading(server.engine) as db:
        kept = sql.configuration(db, row["id"], 1)
    assert kept is not None
    folder = registry.find(server.settings, "main.f.m", "1").folder
    assert kept.config["served_entities"][0]["model_digest"] == registry.digest(folder)
    assert "model_digest" not in row["config"]["served_entities"][0]


def test_a_secret_is_named_only_by_who_may_use_it(server: Any) -> None:
    server.ok("POST", "/api/2.0/secrets/scopes/create", {"scope": "vars"})
    secret = {"scope": "vars", "key": "k", "string_value": "hidden-value-of-k"}
    server.ok("POST", "/api/2.0/secrets/put", secret)
    named = entity(environment_vars={"KEY": "{{secrets/vars/k}}"})
    body = {"name": "keyed", "config": {"served_entities": [named]}}
    stranger = server.token("stranger")
    status, message = server.refused("POST", BASE, body, token=stranger)
    assert status == 400
    assert message == (
        "config.served_entities[0].environment_vars.KEY: secret 'vars/k' does not exist."
    )
    made = server.ok("POST", BASE, body)
    shown = made["pending_config"]["served_entities"][0]["environment_vars"]
    assert shown == {"KEY": "{{secrets/vars/k}}"}


def test_the_audit_tells_what_an_update_changed_and_no_variables_value(server: Any) -> None:
    plain = entity(environment_vars={"LEVEL": "a-plain-value"})
    body = {"name": "audited", "description": "first", "tags": [{"key": "team", "value": "a"}]}
    made = server.ok("POST", BASE, {**body, "config": {"served_entities": [plain]}})
    server.complete("audited")
    other = entity(environment_vars={"LEVEL": "another-value"}, workload_size="Medium")
    server.ok("PUT", f"{BASE}/audited/config", {"served_entities": [other]})
    with database.reading(server.engine) as db:
        update, create = audit.read(db, 9, endpoint="audited")
    assert create.after is not None and update.after is not None and update.before is not None
    assert create.after["description"] == "first"
    assert create.after["tags"] == body["tags"]
    (name,) = create.after["settings"]
    assert name == made["pending_config"]["served_entities"][0]["name"]
    assert create.after["settings"][name]["environment_vars"] == {"LEVEL": "(not shown)"}
    assert update.before["settings"][name]["workload_size"] == "Small"
    assert update.after["settings"][name]["workload_size"] == "Medium"
    assert update.after["changed_variables"] == [f"{name}.LEVEL"]
    assert "value" not in str([update, create]).replace("'value': 'a'", "")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("INFERLAKE_ENVIRONMENT", "docker", "auto, local or isolated"),
        ("INFERLAKE_BATCH", "maybe", "true, false, 1 or 0"),
        ("INFERLAKE_BATCH", "{{secrets/vars/k}}", "true, false, 1 or 0"),
    ],
)
def test_a_variable_that_tells_the_server_how_to_run_a_model_is_checked(
    server: Any, name: str, value: str, allowed: str
) -> None:
    body = {"name": "odd", "config": {"served_entities": [entity(environment_vars={name: value})]}}
    status, message = server.refused("POST", BASE, body)
    assert status == 400
    where = f"config.served_entities[0].environment_vars.{name}"
    assert message == f"{where}: expected {allowed}, found '{value}'."


def test_a_route_optimised_endpoint_tells_where_to_send_queries(server: Any) -> None:
    made = server.ok("POST", BASE, {"name": "fast", "route_optimized": True})
    assert made["endpoint_url"].endswith("/serving-endpoints/fast/invocations")
    assert made["data_plane_info"]["query_info"]["endpoint_url"] == made["endpoint_url"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/serving-endpoints/chat/completions", {"model": "x", "messages": []}),
        ("/serving-endpoints/embeddings/", {"model": "x", "input": "text"}),
        ("/api/2.0/external-function", {"connection_name": "c", "method": "GET", "path": "/"}),
    ],
)
def test_language_models_are_known_and_not_offered(server: Any, path: str, body: Any) -> None:
    told = server.send("POST", path, body)
    assert (told.status_code, told.json()["error_code"]) == (501, "NOT_IMPLEMENTED")
    told = server.send("POST", path, {})
    assert (told.status_code, told.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_once_not_updating_is_said_the_gateway_routes_by_the_new_configuration(
    server: Any,
) -> None:
    make(server, "lagless")
    # One kept connection: the gateway's own watch, every 50 ms, must not get there first.
    with server.client() as client:
        for turn in range(12):
            body = {"served_entities": [entity("3", name=f"t{turn}")]}
            server.ok("PUT", f"{BASE}/lagless/config", body)
            server.complete("lagless")
            if turn % 2:
                shown = client.get(f"{BASE}/lagless").json()
            else:
                every = client.get(BASE).json()["endpoints"]
                shown = next(each for each in every if each["name"] == "lagless")
            routed = client.get(f"{BASE}/lagless/metrics").text  # of the route table's entities
            assert shown["state"]["config_update"] == "NOT_UPDATING"
            assert f'"t{turn}"' in routed, routed
