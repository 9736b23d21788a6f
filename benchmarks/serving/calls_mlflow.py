"""Every call of mlflow.deployments for Databricks, and the status it makes of each error."""

import os
import sys
import time
import warnings
from typing import Any

import calls

url, token, prefix = calls.arguments()
os.environ.update(
    DATABRICKS_HOST=url,
    DATABRICKS_TOKEN=token,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
    MLFLOW_DEPLOYMENT_PREDICT_TOTAL_TIMEOUT="5",
    MLFLOW_DISABLE_TELEMETRY="true",
)
warnings.simplefilter("ignore")

import requests  # noqa: E402
from mlflow import deployments  # noqa: E402

PATIENCE_SECONDS = 240
NAME, OLD = f"{prefix}-main", f"{prefix}-old"
client = deployments.get_deploy_client("databricks")


def entity(name: str, version: str, model: str = calls.SUM) -> dict[str, Any]:
    """A served entity."""
    size = {"workload_size": "Small", "scale_to_zero_enabled": False}
    return {"name": name, "entity_name": model, "entity_version": version, **size}


def settled(name: str) -> None:
    """Until no update runs."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while client.get_endpoint(name)["state"]["config_update"] == "IN_PROGRESS":
        assert time.monotonic() < ends
        time.sleep(0.05)


def predicted(row: Any, name: str = NAME) -> Any:
    """An answer to one row."""
    return client.predict(endpoint=name, inputs={"dataframe_records": [row]})["predictions"]


def status_of(wanted: int, call: Any) -> None:
    """Raises AssertionError if the call does not fail with this status."""
    try:
        call()
    except requests.HTTPError as error:
        calls.check(error.response.status_code, wanted, str(error)[:200])
        return
    raise AssertionError(f"expected {wanted}, found an answer")


def create_endpoint() -> None:
    traffic = {"routes": [{"served_entity_name": "one", "traffic_percentage": 100}]}
    config = {"served_entities": [entity("one", "1")], "traffic_config": traffic}
    asked = {"name": NAME, "config": config, "tags": [{"key": "k", "value": "v"}]}
    made = client.create_endpoint(config=asked)
    calls.check((made["name"], made["tags"]), (NAME, asked["tags"]))
    settled(NAME)


def create_endpoint_old_style() -> None:
    config = {
        "served_entities": [entity("one", "1", calls.WILD)],
        "tags": [{"key": "k"}],
        "rate_limits": [{"calls": 500, "renewal_period": "minute", "key": "endpoint"}],
    }
    made = client.create_endpoint(name=OLD, config=config, route_optimized=True)
    calls.check((made["tags"], made["route_optimized"]), ([{"key": "k"}], True))
    settled(OLD)


def get_endpoint() -> None:
    found = client.get_endpoint(NAME)
    calls.check(found["state"], {"ready": "READY", "config_update": "NOT_UPDATING"})
    calls.holds(found["config"]["served_entities"], [entity("one", "1")])


def list_endpoints() -> None:
    names = [each["name"] for each in client.list_endpoints()]
    assert {NAME, OLD} <= set(names), names


def predict() -> None:
    calls.check(predicted(calls.ROW), [3.0])
    split = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}
    calls.check(client.predict(endpoint=NAME, inputs=split)["predictions"], [3.0])
    asked = {"inputs": {"a": [1], "b": [2]}, "params": {}, "client_request_id": "i"}
    calls.check(client.predict(endpoint=NAME, inputs=asked)["predictions"], [3.0])


def update_endpoint_config() -> None:
    made = client.update_endpoint_config(NAME, {"served_entities": [entity("two", "2")]})
    calls.check(made["name"], NAME)
    settled(NAME)
    calls.check([round(each, 6) for each in predicted(calls.ROW)], [30.0])


def update_endpoint_deprecated() -> None:
    client.update_endpoint(NAME, {"served_entities": [entity("three", "1")]})
    settled(NAME)
    calls.check(predicted(calls.ROW), [3.0])


def update_endpoint_tags() -> None:
    asked = {"add_tags": [{"key": "x", "value": "y"}], "delete_tags": ["k"]}
    calls.check(client.update_endpoint_tags(NAME, asked)["tags"], asked["add_tags"])


def update_endpoint_rate_limits() -> None:
    limits = {"rate_limits": [{"calls": 1000, "key": "user", "renewal_period": "minute"}]}
    calls.check(client.update_endpoint_rate_limits(NAME, limits), limits)


def update_endpoint_ai_gateway() -> None:
    asked = {"usage_tracking_config": {"enabled": True}}
    calls.holds(client.update_endpoint_ai_gateway(NAME, asked), asked)


def errors_by_status() -> None:
    status_of(400, lambda: predicted({"a": "much", "b": 1}))
    status_of(400, lambda: client.create_endpoint(config={"name": "a b"}))
    status_of(400, lambda: client.create_endpoint(config={"name": NAME}))
    status_of(404, lambda: client.predict(endpoint="nobody", inputs={"inputs": [1]}))
    status_of(404, lambda: client.get_endpoint("nobody"))
    status_of(400, lambda: predicted(calls.RAISE, OLD))
    status_of(409, conflict)


def conflict() -> None:
    client.update_endpoint_config(NAME, {"served_entities": [entity("slow", "1", calls.SLOW)]})
    client.update_endpoint_config(NAME, {"served_entities": [entity("x", "1")]})


def bad_requests_are_not_retried() -> None:
    begun = time.monotonic()
    status_of(400, lambda: predicted({"a": 1}))
    taken = time.monotonic() - begun
    assert taken < 5, f"{taken:.1f} s: it was retried"


def delete_endpoint() -> None:
    for name in (NAME, OLD):
        client.delete_endpoint(name)
    names = [each["name"] for each in client.list_endpoints()]
    assert not {NAME, OLD} & set(names), names


if __name__ == "__main__":
    listed = (
        create_endpoint,
        create_endpoint_old_style,
        get_endpoint,
        list_endpoints,
        predict,
        update_endpoint_config,
        update_endpoint_deprecated,
        update_endpoint_tags,
        update_endpoint_rate_limits,
        update_endpoint_ai_gateway,
        errors_by_status,
        bad_requests_are_not_retried,
        delete_endpoint,
    )
    sys.exit(calls.run([(each.__name__, each) for each in listed]))
