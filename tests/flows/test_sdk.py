"""The real clients of Databricks, unchanged, against `inferlake up` with a real model."""

import base64
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk import errors as sdk_errors
from databricks.sdk.service import serving
from mlflow import deployments

PATIENCE_SECONDS = 240
TOKEN = "bootstrap-admin-token"
WAIT = timedelta(seconds=PATIENCE_SECONDS)
MODEL = "main.flows.sum"


def eventually(wanted: Callable[[], Any]) -> Any:
    """The first true value. Fails when patience ends."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not (found := wanted()):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def url(
    tmp_path_factory: pytest.TempPathFactory,
    registered: Callable[[Path], None],
    up_on: type[Any],
) -> Iterator[str]:
    """Address of a running `inferlake up` whose registry holds two versions of a model."""
    data_dir = tmp_path_factory.mktemp("sdk") / "data"
    registered(data_dir)
    up = up_on(data_dir, "--no-dashboard", INFERLAKE_ADMIN_TOKEN=TOKEN)
    up.start()
    try:
        assert up.ready_line() == f"ready {up.url}", up.errors.read_text()
        yield up.url
    finally:
        assert up.end() == 0, up.errors.read_text()


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch) -> WorkspaceClient:
    """The SDK's client, as a notebook makes it."""
    monkeypatch.setenv("DATABRICKS_HOST", url)
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    return WorkspaceClient(host=url, token=TOKEN, auth_type="pat")


def entity(version: str, name: str | None = None, **more: Any) -> serving.ServedEntityInput:
    return serving.ServedEntityInput(
        entity_name=MODEL,
        entity_version=version,
        name=name,
        workload_size="Small",
        scale_to_zero_enabled=False,
        **more,
    )


def config(*entities: serving.ServedEntityInput, **more: Any) -> serving.EndpointCoreConfigInput:
    return serving.EndpointCoreConfigInput(name=None, served_entities=list(entities), **more)  # type: ignore[arg-type]


def test_the_sdk_creates_queries_updates_and_deletes(client: WorkspaceClient) -> None:
    api = client.serving_endpoints
    tag = serving.EndpointTag(key="team", value="ops")
    made = api.create_and_wait("sdk", config=config(entity("1")), tags=[tag], timeout=WAIT)
    assert made.state is not None
    assert made.state.ready == serving.EndpointStateReady.READY
    assert made.state.config_update == serving.EndpointStateConfigUpdate.NOT_UPDATING
    answer = api.query("sdk", dataframe_records=[{"a": 1.0, "b": 2.0}])
    assert answer.predictions == pytest.approx([3.0])
    assert answer.served_model_name == "sum-1"
    assert "sdk" in [each.name for each in api.list()]

    route = serving.Route(served_model_name="ten", traffic_percentage=100)
    api.update_config_and_wait(
        "sdk",
        served_entities=[entity("2", "ten")],
        traffic_config=serving.TrafficConfig(routes=[route]),
        timeout=WAIT,
    )
    split = serving.DataframeSplitInput(columns=["a", "b"], data=[[1.0, 2.0], [2.0, 2.0]])
    answer = api.query("sdk", dataframe_split=split)
    assert (answer.served_model_name, answer.predictions) == ("ten", pytest.approx([30.0, 40.0]))
    shown = api.get("sdk")
    assert shown.config is not None and shown.config.config_version == 2
    assert shown.pending_config is None

    tags = api.patch("sdk", add_tags=[serving.EndpointTag(key="a")], delete_tags=["team"])
    assert [each.key for each in tags.tags or []] == ["a"]
    assert "request_count_total" in (api.export_metrics("sdk").contents or _empty()).read().decode()
    assert "paths" in (api.get_open_api("sdk").contents or _empty()).read().decode()
    assert isinstance(api.logs("sdk", "ten").logs, str)
    assert isinstance(api.build_logs("sdk", "ten").logs, str)
    api.delete("sdk")
    with pytest.raises(sdk_errors.ResourceDoesNotExist):
        api.get("sdk")


def _empty() -> Any:
    raise AssertionError("no content")


def test_a_model_that_cannot_be_loaded_fails_the_update_and_the_old_one_serves(
    client: WorkspaceClient,
) -> None:
    api = client.serving_endpoints
    api.create_and_wait("steady", config=config(entity("1", "good")), timeout=WAIT)
    broken = serving.ServedEntityInput(
        entity_name="main.flows.broken", entity_version="1", name="bad", workload_size="Small"
    )
    with pytest.raises(sdk_errors.OperationFailed, match="UPDATE_FAILED"):
        api.update_config_and_wait("steady", served_entities=[broken], timeout=WAIT)
    shown = api.get("steady")
    assert shown.state is not None and shown.state.ready == serving.EndpointStateReady.READY
    assert shown.pending_config is not None and shown.pending_config.served_entities
    state = shown.pending_config.served_entities[0].state
    assert state is not None and "this model cannot be loaded" in (
        state.deployment_state_message or ""
    )
    answer = api.query("steady", dataframe_records=[{"a": 1.0, "b": 1.0}])
    assert answer.predictions == pytest.approx([2.0])
    api.update_config_and_wait("steady", served_entities=[entity("2", "next")], timeout=WAIT)
    answer = api.query("steady", dataframe_records=[{"a": 1.0, "b": 1.0}])
    assert answer.predictions == pytest.approx([20.0])
    api.delete("steady")


def plain(name: str, version: str) -> dict[str, Any]:
    """A served entity as MLflow's client takes it."""
    size = {"workload_size": "Small", "scale_to_zero_enabled": False}
    return {"name": name, "entity_name": MODEL, "entity_version": version, **size}


def test_mlflow_deployments_drive_the_same_server(client: WorkspaceClient) -> None:
    mlflow_client = deployments.get_deploy_client("databricks")

    def settled() -> bool:
        state = mlflow_client.get_endpoint("mlf")["state"]
        return bool(state["config_update"] == "NOT_UPDATING")

    def predicted() -> Any:
        asked = {"dataframe_records": [{"a": 1, "b": 3}]}
        return mlflow_client.predict(endpoint="mlf", inputs=asked)["predictions"]

    traffic = {"routes": [{"served_model_name": "one", "traffic_percentage": 100}]}
    config = {"served_entities": [plain("one", "1")], "traffic_config": traffic}
    made = mlflow_client.create_endpoint(config={"name": "mlf", "config": config})
    assert made["name"] == "mlf"
    eventually(settled)
    assert "mlf" in [each["name"] for each in mlflow_client.list_endpoints()]
    assert predicted() == pytest.approx([4.0])
    mlflow_client.update_endpoint_tags("mlf", {"add_tags": [{"key": "k", "value": "v"}]})
    limits = {"rate_limits": [{"calls": 1000, "key": "user", "renewal_period": "minute"}]}
    mlflow_client.update_endpoint_rate_limits("mlf", limits)
    after = mlflow_client.update_endpoint_config("mlf", {"served_entities": [plain("two", "2")]})
    assert after["name"] == "mlf"
    eventually(settled)
    assert predicted() == pytest.approx([40.0])
    mlflow_client.delete_endpoint("mlf")
    assert "mlf" not in [each["name"] for each in mlflow_client.list_endpoints()]


def test_mlflows_older_way_of_creating_works_too(client: WorkspaceClient) -> None:
    mlflow_client = deployments.get_deploy_client("databricks")
    config = {"served_entities": [plain("one", "1")], "tags": [{"key": "old"}]}
    with pytest.warns(UserWarning, match="deprecated"):
        made = mlflow_client.create_endpoint(name="mlf-old", config=config)
    assert made["tags"] == [{"key": "old"}]
    mlflow_client.delete_endpoint("mlf-old")


def test_mlflow_sees_what_was_refused(client: WorkspaceClient) -> None:
    mlflow_client = deployments.get_deploy_client("databricks")
    with pytest.raises(Exception, match="Endpoint 'nobody' does not exist"):
        mlflow_client.predict(endpoint="nobody", inputs={"dataframe_records": [{"a": 1}]})


def test_refusals_are_the_sdks_own_classes(client: WorkspaceClient, url: str) -> None:
    api = client.serving_endpoints
    api.create("refusals")
    with pytest.raises(sdk_errors.ResourceAlreadyExists, match="exists already"):
        api.create("refusals")
    with pytest.raises(sdk_errors.InvalidParameterValue, match="expected 1 to 63 letters"):
        api.create("a b")
    with pytest.raises(sdk_errors.ResourceDoesNotExist, match="does not exist in the registry"):
        api.create("none", config=config(entity("99")))
    with pytest.raises(sdk_errors.ResourceDoesNotExist):
        api.query("nobody", dataframe_records=[{"a": 1.0}])
    with pytest.raises(sdk_errors.NotImplemented):
        external = serving.ServedEntityInput(
            name="gpt",
            external_model=serving.ExternalModel(
                provider=serving.ExternalModelProvider.OPENAI,
                name="gpt",
                task="llm/v1/chat",
                openai_config=serving.OpenAiConfig(openai_api_key_plaintext="sk-not-a-real-key"),
            ),
        )
        api.create("gpt", config=config(external))
    stranger = WorkspaceClient(host=url, token="il_wrong", auth_type="pat")
    with pytest.raises(sdk_errors.PermissionDenied, match="token is not valid"):
        list(stranger.serving_endpoints.list())
    api.delete("refusals")


def test_permissions_and_secrets_through_the_sdk(client: WorkspaceClient, url: str) -> None:
    api = client.serving_endpoints
    api.create("rights")
    endpoint_id = str(api.get("rights").id)
    acl = [
        serving.ServingEndpointAccessControlRequest(
            user_name="ann", permission_level=serving.ServingEndpointPermissionLevel.CAN_VIEW
        )
    ]
    shown = api.update_permissions(endpoint_id, access_control_list=acl)
    assert "ann" in [each.user_name for each in shown.access_control_list or []]
    assert api.get_permission_levels(endpoint_id).permission_levels
    headers = {"Authorization": f"Bearer {TOKEN}"}
    token = httpx2.post(f"{url}/api/1.0/tokens", json={"user": "ann"}, headers=headers).json()
    ann = WorkspaceClient(host=url, token=token["token"], auth_type="pat")
    assert [each.name for each in ann.serving_endpoints.list()] == ["rights"]
    with pytest.raises(sdk_errors.PermissionDenied, match="CAN_MANAGE on endpoint 'rights'"):
        ann.serving_endpoints.delete("rights")
    client.secrets.create_scope("flow")
    client.secrets.put_secret("flow", "key", string_value="a-secret-value")
    assert [each.key for each in client.secrets.list_secrets("flow")] == ["key"]
    found = client.secrets.get_secret("flow", "key").value
    assert found is not None and base64.b64decode(found).decode() == "a-secret-value"
    client.secrets.delete_secret("flow", "key")
    client.secrets.delete_scope("flow")
    api.delete("rights")


def test_a_promotion_moves_the_traffic_at_once_and_the_alias_follows(
    client: WorkspaceClient, url: str
) -> None:
    api = client.serving_endpoints
    routes = [
        serving.Route(served_model_name="v1", traffic_percentage=100),
        serving.Route(served_model_name="v2", traffic_percentage=0),
    ]
    api.create_and_wait(
        "moved",
        config=config(
            entity("1", "v1"),
            entity("2", "v2"),
            traffic_config=serving.TrafficConfig(routes=routes),
        ),
        timeout=WAIT,
    )
    assert api.query("moved", dataframe_records=[{"a": 1.0, "b": 1.0}]).served_model_name == "v1"
    ours = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
    with ours:
        body = {"served_entity": "v2", "if_config_version": 1}
        done = ours.post("/api/1.0/endpoints/moved/promote", json=body)
        assert done.status_code == 200, done.text
        for _ in range(20):
            answer = api.query("moved", dataframe_records=[{"a": 1.0, "b": 1.0}])
            assert answer.served_model_name == "v2"
        audit = "/api/1.0/audit?endpoint=moved&action=registry.alias_moved"
        moved = eventually(lambda: ours.get(audit).json()["audit"])
        assert moved[0]["after"] == {"model": MODEL, "alias": "champion", "version": "2"}
        ours.post("/api/1.0/endpoints/moved/rollback", json={}).raise_for_status()
    answer = api.query("moved", dataframe_records=[{"a": 1.0, "b": 1.0}])
    assert answer.served_model_name == "v1"
    api.delete("moved")
