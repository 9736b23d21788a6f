"""Code to copy is code that runs."""

import ast
import json
import shlex

import pytest

from dashboard import snippets

URL = "http://127.0.0.1:8000"
BODIES = [
    (snippets.EXAMPLE, None),
    (snippets.CHAT, "llm/v1/chat"),
    ({"dataframe_records": [{"name": 'it\'s "quoted"'}]}, None),
]


@pytest.mark.parametrize(("body", "task"), BODIES)
def test_every_snippet_parses(body: dict[str, object], task: str | None) -> None:
    for title, code in snippets.query(URL, "my-endpoint", body, task).items():
        if title == "curl":
            assert shlex.split(code)[0] == "curl"
        else:
            ast.parse(code)


def test_openai_is_offered_for_language_models_alone() -> None:
    assert "OpenAI" in snippets.query(URL, "x", snippets.CHAT, "llm/v1/chat")
    assert "OpenAI" not in snippets.query(URL, "x", snippets.EXAMPLE, None)


def test_an_example_has_the_columns_of_the_endpoint() -> None:
    record = {
        "properties": {
            "carrier": {"type": "string"},
            "distance": {"type": ["number", "null"]},
            "late": {"type": "boolean"},
        }
    }
    form = {"properties": {"dataframe_records": {"type": "array", "items": record}}}
    content = {"application/json": {"schema": {"oneOf": [form]}}}
    described = {"paths": {"/x": {"post": {"requestBody": {"content": content}}}}}
    assert snippets.example_body(described, None) == {
        "dataframe_records": [{"carrier": "text", "distance": 1.0, "late": True}]
    }
    assert snippets.example_body({}, "llm/v1/chat") == snippets.CHAT
    assert snippets.example_body({}, None) == snippets.EXAMPLE


def test_a_request_is_sent_again_as_it_was_received() -> None:
    body = '{"inputs": ["it\'s $HOME", "\\u00fc"]}'
    words = shlex.split(snippets.again(URL, "x", body))
    assert words[words.index("--data-binary") + 1] == body


def test_requests_that_begin_things_are_shell_commands() -> None:
    for code in (
        snippets.labels(URL, "x"),
        snippets.experiment(URL, "x", ["v1", "v2"]),
        snippets.monitor(URL, "main.a.b_unpacked"),
    ):
        assert shlex.split(code)[0] == "curl"


def test_a_body_is_written_with_a_row_per_line() -> None:
    body = {"dataframe_split": {"columns": ["a", "b [m]"], "data": [[1.0, "x\ny"], [2.0, None]]}}
    text = snippets.written(body)
    assert json.loads(text) == body
    assert '[1.0, "x\\ny"]' in text and "[2.0, null]" in text
