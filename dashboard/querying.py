"""Try and use an endpoint: a first body, the query box, and code to copy."""

import json
from typing import Any

import streamlit as st

from dashboard import api, frame, snippets, words

MOST_SHOWN = 100_000


def draw(endpoint: api.Json, not_yet: str | None) -> None:
    """Query box and snippets. not_yet: why a request would not be answered now."""
    name, body = str(endpoint["name"]), example(endpoint)
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("#### Try it")
        box(name, body, not_yet)
    with right:
        st.markdown("#### Use it")
        codes = snippets.query(frame.server_url(), name, body, endpoint.get("task"))
        for tab, (title, code) in zip(st.tabs(list(codes)), codes.items(), strict=True):
            language = "bash" if title == "curl" else "python"
            tab.code(code, language=language, height=330, wrap_lines=True)


def example(endpoint: api.Json) -> dict[str, Any]:
    """A body to begin with: the newest answered request, else the input that the model was logged
    with, else a row of the columns that it asks for."""
    key = f"example_{endpoint['name']}"
    if key not in st.session_state:
        found = last_request(str(endpoint["name"])) or logged(endpoint)
        if found is None:
            found = snippets.example_body(described(str(endpoint["name"])), endpoint.get("task"))
        st.session_state[key] = found
    return st.session_state[key]


def last_request(name: str) -> dict[str, Any] | None:
    """The body of the newest answered request, for those who may see payloads."""
    try:
        reply = api.requests(frame.client(), {"endpoint": name, "status": 200, "page_size": 1})
        for row in reply.get("requests") or []:
            found = api.request(frame.client(), str(row.get("databricks_request_id")))
            body = json.loads(found.get("request") or "null")
            if isinstance(body, dict):
                return {k: v for k, v in body.items() if k != "client_request_id"}
    except (api.ApiError, ValueError):
        return None
    return None


def logged(endpoint: api.Json) -> dict[str, Any] | None:
    """The example of the first served version that has one."""
    config = endpoint.get("config") or endpoint.get("pending_config") or {}
    for entity in (config.get("served_entities") or [])[:2]:
        model, version = entity.get("entity_name"), entity.get("entity_version")
        if not model or not version:
            continue
        try:
            found = api.model_version(frame.client(), str(model), str(version)).get("example")
        except api.ApiError:
            continue
        if isinstance(found, dict):
            return found
    return None


def described(name: str) -> api.Json:
    try:
        return api.openapi(frame.client(), name)
    except api.ApiError:
        return {}


def box(name: str, body: dict[str, Any], not_yet: str | None) -> None:
    with st.form("query", border=False):
        text = st.text_area("Body", snippets.written(body), height=260, key=f"query_body_{name}")
        sent = st.form_submit_button(
            "Send",
            type="primary",
            icon=":material/send:",
            disabled=not_yet is not None,
            help=not_yet and words.plain(not_yet),
        )
    if sent:
        try:
            st.session_state["answer"] = (name, api.query(frame.client(), name, text))
        except api.ApiError as error:
            st.session_state.pop("answer", None)
            st.error(words.plain(error.message))
    asked, answer = st.session_state.get("answer", (None, None))
    if answer is not None and asked == name:
        show(name, answer)


def show(name: str, answer: api.Answer) -> None:
    """An answer with its facts, and the way to its row in the record."""
    good = answer.status < 400
    st.badge(f"status {answer.status}", color="green" if good else "red")
    facts = [f"{answer.elapsed_ms:.0f} ms seen from here"]
    if answer.served_by:
        facts.append(f"served by {answer.served_by}")
    if answer.request_id:
        facts.append(f"request id {answer.request_id}")
    st.caption(words.plain(" · ".join(facts)))
    st.code(pretty(answer.body)[:MOST_SHOWN], language="json", height=200, wrap_lines=True)
    if answer.request_id and frame.is_recorded(name):
        st.page_link(
            "views/requests.py",
            label="See it in the record",
            icon=":material/list_alt:",
            query_params={"endpoint": name, "request": answer.request_id},
        )


def pretty(text: str) -> str:
    """JSON indented; anything else as it is."""
    try:
        return snippets.written(json.loads(text))
    except ValueError:
        return text
