"""What do I run?"""

from typing import Any

import streamlit as st

from dashboard import actions, api, frame, words

TYPES = {"external_model": "external", "foundation_model": "foundation"}


def main() -> None:
    frame.page("Endpoints", "What do I run?")
    reply = frame.load("the endpoints", api.endpoints)
    if reply is None:
        return
    endpoints = reply.get("endpoints") or []
    if not endpoints:
        frame.no_endpoints()
        return
    search, state = st.columns([3, 2])
    text = search.text_input("Search", placeholder="name or creator", key="endpoints_search")
    wanted = state.segmented_control(
        "State", ["all", "ready", "not ready", "updating"], default="all", key="endpoints_state"
    )
    rows = [summary(endpoint) for endpoint in endpoints]
    shown = [r for r in rows if matches(r, text or "", wanted or "all")]
    if not shown:
        st.info("No endpoint matches. Clear the search or choose another state.")
        return
    st.caption(f"{len(shown)} of {len(rows)} endpoints. Select a row to open it.")
    picked = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="endpoints_table",
        column_config={"last change": st.column_config.TextColumn(width="medium")},
    )
    selected = picked["selection"]["rows"]
    if selected:
        st.switch_page("views/endpoint.py", query_params={"endpoint": shown[selected[0]]["name"]})


def summary(endpoint: api.Json) -> dict[str, Any]:
    """One row of the table."""
    config = endpoint.get("config") or endpoint.get("pending_config") or {}
    entities = config.get("served_entities") or []
    ready, update = actions.state_words(endpoint)
    split = actions.routes(config)
    return {
        "name": str(endpoint.get("name")),
        "state": f"{ready}, {update}" if update else ready,
        "versions and split": words.split(split) if split else words.NOTHING,
        "type": kind(entities),
        "task": endpoint.get("task") or "tabular",
        "creator": endpoint.get("creator") or words.NOTHING,
        "last change": words.clock(endpoint.get("last_updated_timestamp")),
    }


def kind(entities: list[api.Json]) -> str:
    for field, word in TYPES.items():
        if any(entity.get(field) for entity in entities):
            return word
    return "custom"


def matches(row: dict[str, Any], text: str, wanted: str) -> bool:
    state = row["state"]
    fits = {
        "all": True,
        "ready": state.startswith("ready"),
        "not ready": not state.startswith("ready"),
        "updating": "updat" in state,
    }[wanted]
    return fits and text.lower() in f"{row['name']} {row['creator']}".lower()


main()
