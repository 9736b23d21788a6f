"""Longer stories through the SDK, against `inferlake up`; each call by itself: test_clients.py."""

import os
import subprocess
import sys
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
    """Address of a running `inferlake up` whose registry holds two versions of a model,
    and two models with bad manners."""
    data_dir = tmp_path_factory.mktemp("sdk") / "data"
    registered(data_dir)
    odd = data_dir.parent / "odd"
    odd.mkdir()
    registry = f"sqlite:///{data_dir / 'mlflow' / 'mlflow.db'}"
    script = Path(__file__).with_name("odd_models.py")
    command = [sys.executable, str(script), registry, str(odd)]
    subprocess.run(command, env={**os.environ, "DO_NOT_TRACK": "1"}, check=True)
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


def entity(
    version: str, name: str | None = None, model: str = MODEL, **more: Any
) -> serving.ServedEntityInput:
    return serving.ServedEntityInput(
        entity_name=model,
        entity_version=version,
        name=name,
        workload_size="Small",
        scale_to_zero_enabled=False,
        **more,
    )


def config(*entities: serving.ServedEntityInput, **more: Any) -> serving.EndpointCoreConfigInput:
    return serving.EndpointCoreConfigInput(name=None, served_entities=list(entities), **more)  # type: ignore[arg-type]


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


def test_models_with_our_names_or_bad_manners_are_served_like_any_other(
    client: WorkspaceClient,
) -> None:
    api = client.serving_endpoints
    shares = {"own": 0, "odd": 0, "plain": 100}
    routes = [serving.Route(served_model_name=k, traffic_percentage=v) for k, v in shares.items()]
    entities = [
        entity("1", "own", "main.flows.own"),
        entity("1", "odd", "main.flows.odd"),
        entity("1", "plain"),
    ]
    split = serving.TrafficConfig(routes=routes)
    api.create_and_wait("manners", config=config(*entities, traffic_config=split), timeout=WAIT)

    def asked(name: str) -> Any:
        path = f"/serving-endpoints/manners/served-models/{name}/invocations"
        body = {"dataframe_records": [{"a": 1.5, "b": 1}]}
        return client.api_client.do("POST", path, body=body)["predictions"]  # type: ignore[index]

    names = ("serving", "capture", "features", "wire")
    assert asked("own") == [f"the model: {name}" for name in names]
    for _ in range(3):
        assert asked("odd") == [3.0]
    assert asked("plain") == pytest.approx([2.5])
    assert "printed" in (api.logs("manners", "odd").logs or "")
    api.delete("manners")
