"""Code to copy: how to query an endpoint, send labels, begin an experiment, watch a table. Pure."""

import json
import re
from typing import Any

EXAMPLE = {"dataframe_records": [{"feature_a": 1.0, "feature_b": "text"}]}
VALUES: dict[str, Any] = {"string": "text", "integer": 1, "boolean": True}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}


def example_body(openapi: dict[str, Any], task: str | None) -> dict[str, Any]:
    """A first query with the columns of the endpoint's OpenAPI document, else one by the task."""
    for path in (openapi.get("paths") or {}).values():
        content = ((path.get("post") or {}).get("requestBody") or {}).get("content") or {}
        schema = (content.get("application/json") or {}).get("schema") or {}
        for form in schema.get("oneOf") or []:
            records = (form.get("properties") or {}).get("dataframe_records") or {}
            columns = (records.get("items") or {}).get("properties") or {}
            if columns:
                row = {name: VALUES.get(_type(column), 1.0) for name, column in columns.items()}
                return {"dataframe_records": [row]}
    return CHAT if task and "chat" in task else EXAMPLE


def written(body: Any) -> str:
    """JSON for people: indented, with each list of plain values on one line."""

    def joined(found: re.Match[str]) -> str:
        return "[" + re.sub(r"\n\s*", " ", found[1]) + "]"

    # A line break in a string is escaped: those that are there are json's own.
    return re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", joined, json.dumps(body, indent=2))


def _type(column: dict[str, Any]) -> str:
    """The JSON type of a column; of a nullable one the other type."""
    kinds = column.get("type")
    if isinstance(kinds, list):
        kinds = next((kind for kind in kinds if kind != "null"), None)
    return str(kinds)


def query(url: str, name: str, body: dict[str, Any], task: str | None) -> dict[str, str]:
    """Title -> code that sends `body` to the endpoint; the token is read from the environment."""
    text = written(body)
    found = {
        "curl": again(url, name, text),
        "Databricks SDK": "import os\nfrom databricks.sdk import WorkspaceClient\n"
        f"{_sdk_import(body)}\n"
        f'client = WorkspaceClient(host="{url}", token=os.environ["INFERLAKE_TOKEN"], '
        'auth_type="pat")\n'
        f'answer = client.serving_endpoints.query("{name}", {_sdk_keywords(body)})\n'
        "print(answer.as_dict())",
        "MLflow": "import os\nfrom mlflow.deployments import get_deploy_client\n\n"
        f'os.environ["DATABRICKS_HOST"] = "{url}"\n'
        'os.environ["DATABRICKS_TOKEN"] = os.environ["INFERLAKE_TOKEN"]\n'
        'client = get_deploy_client("databricks")\n'
        f'print(client.predict(endpoint="{name}", inputs={_python(body)}))',
    }
    if task:
        found["OpenAI"] = (
            "import os\nfrom openai import OpenAI\n\n"
            f'client = OpenAI(base_url="{url}/serving-endpoints", '
            'api_key=os.environ["INFERLAKE_TOKEN"])\n'
            f'print(client.chat.completions.create(model="{name}", {_keywords(body)}))'
        )
    return found


def labels(url: str, name: str) -> str:
    """Send the truth of a request once it is known."""
    body = {"labels": [{"client_request_id": "order-17", "label": 1}]}
    return (
        f"curl -X POST {url}/api/1.0/endpoints/{name}/labels \\\n"
        '  -H "Authorization: Bearer $INFERLAKE_TOKEN" -H "Content-Type: application/json" \\\n'
        f"  -d '{json.dumps(body)}'"
    )


def experiment(url: str, name: str, entities: list[str]) -> str:
    """Begin a comparison of two versions."""
    champion, challenger = [*entities, "v1", "v2"][:2] if len(entities) < 2 else entities[:2]
    body = {
        "champion": champion,
        "challenger": challenger,
        "primary": {"name": "accuracy", "kind": "binary", "mode": "superiority", "mde": 0.02},
    }
    return (
        f"curl -X PUT {url}/api/1.0/endpoints/{name}/experiment \\\n"
        '  -H "Authorization: Bearer $INFERLAKE_TOKEN" -H "Content-Type: application/json" \\\n'
        f"  -d '{json.dumps(body)}'"
    )


def monitor(url: str, table: str) -> str:
    """Watch the unpacked table of an endpoint."""
    schema = ".".join(table.split(".")[:2])
    body = {
        "assets_dir": "/monitors",
        "output_schema_name": schema,
        "inference_log": {
            "problem_type": "PROBLEM_TYPE_CLASSIFICATION",
            "timestamp_col": "request_time",
            "granularities": ["1 day"],
            "prediction_col": "prediction",
            "label_col": "label",
            "model_id_col": "served_entity_name",
        },
    }
    return (
        f"curl -X POST {url}/api/2.1/unity-catalog/tables/{table}/monitor \\\n"
        '  -H "Authorization: Bearer $INFERLAKE_TOKEN" -H "Content-Type: application/json" \\\n'
        f"  -d '{json.dumps(body)}'"
    )


def again(url: str, name: str, body: str, content_type: str = "application/json") -> str:
    """A request for a shell; body: its text, as it is to arrive."""
    return (
        f"curl {url}/serving-endpoints/{name}/invocations \\\n"
        '  -H "Authorization: Bearer $INFERLAKE_TOKEN" \\\n'
        f"  -H 'Content-Type: {_shell(content_type)}' \\\n"
        f"  --data-binary '{_shell(body)}'"
    )


def _sdk_import(body: dict[str, Any]) -> str:
    chat = "messages" in body
    return "from databricks.sdk.service.serving import ChatMessage\n" if chat else ""


def _sdk_keywords(body: dict[str, Any]) -> str:
    """The SDK takes messages as objects, everything else as it is."""
    if "messages" not in body:
        return _keywords(body)
    rest = {key: value for key, value in body.items() if key != "messages"}
    messages = f"messages=[ChatMessage.from_dict(m) for m in {_python(body['messages'])}]"
    return ", ".join(filter(None, [messages, _keywords(rest)]))


def _shell(text: str) -> str:
    return text.replace("'", "'\\''")


def _python(value: Any) -> str:
    return repr(value)


def _keywords(body: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_python(value)}" for key, value in body.items())
