"""What do I run?"""

from typing import Any

import streamlit as st

from dashboard import actions, api, frame, stopping, words

TYPES = {"external_model": "external", "foundation_model": "foundation"}
KINDS = ("all", "custom", "external", "foundation")
STATES = ("all", "ready", "not ready", "updating", "stopped")
ORDERS = ("name", "last change")
MOST_ROWS = 100


def main() -> None:
    frame.page("Endpoints", "What do I run?")
    reply = frame.load("the endpoints", api.endpoints)
    if reply is None:
        return
    endpoints = reply.get("endpoints") or []
    if not endpoints:
        first = st.button("Make your first endpoint", type="primary", icon=":material/add:")
        if first:
            st.switch_page("views/create.py")
        frame.no_endpoints()
        return
    shown = listed(endpoints)
    buttons(shown, endpoints)
    if not shown:
        st.info("No endpoint matches. Clear the search or choose another state.")
        return
    table(shown, len(endpoints))


def listed(endpoints: list[api.Json]) -> list[dict[str, Any]]:
    """The rows that the search, the filters and the order of the address leave."""
    search, state, order = st.columns([3, 4, 2], vertical_alignment="bottom")
    text = frame.entry(search, "Search", "find", placeholder="name, creator or version")
    wanted = frame.choice("State", "state", STATES, "all", state)
    by = frame.pick(order, "Order", "order", ORDERS, "name")
    kinds = sorted({kind(entities_of(endpoint)) for endpoint in endpoints})
    kind_wanted = "all"
    if len(kinds) > 1:
        kind_wanted = frame.choice("Type", "kind", KINDS, "all")
    changed = {str(e.get("name")): e.get("last_updated_timestamp") or 0 for e in endpoints}
    rows = [summary(endpoint) for endpoint in endpoints]
    rows = [r for r in rows if matches(r, text, wanted) and kind_wanted in ("all", r["type"])]
    if by == "name":
        return sorted(rows, key=lambda row: row["name"])
    return sorted(rows, key=lambda row: -changed[row["name"]])


def buttons(shown: list[dict[str, Any]], endpoints: list[api.Json]) -> None:
    """Create; stop, start and delete one of those that are shown."""
    left, right, _ = st.columns([1.6, 2.2, 5])
    if left.button("New endpoint", type="primary", icon=":material/add:", width="stretch"):
        st.switch_page("views/create.py")
    with right.popover("Stop, start or delete", icon=":material/more_vert:", width="stretch"):
        names = [row["name"] for row in shown[:MOST_ROWS]]
        name = st.selectbox(
            "Endpoint", names, index=None, key="endpoints_action", placeholder="choose one"
        )
        found = next((e for e in endpoints if e.get("name") == name), None)
        if name is not None and found is not None:
            endpoint = frame.load("this endpoint", api.endpoint, name)
            if endpoint is not None:
                stopping.draw(endpoint, actions.refused(endpoint))


def table(shown: list[dict[str, Any]], all_of_them: int) -> None:
    more = f", the first {MOST_ROWS} are shown" if len(shown) > MOST_ROWS else ""
    st.caption(f"{len(shown)} of {all_of_them} endpoints{more}. Select a row to open it.")
    picked = st.dataframe(
        shown[:MOST_ROWS],
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
    ready, update = actions.state_words(endpoint)
    split = actions.routes(endpoint.get("config") or endpoint.get("pending_config"))
    return {
        "name": str(endpoint.get("name")),
        "state": f"{ready}, {update}" if update else ready,
        "versions and split": words.split(split) if split else words.NOTHING,
        "type": kind(entities_of(endpoint)),
        "task": endpoint.get("task") or "tabular",
        "creator": endpoint.get("creator") or words.NOTHING,
        "last change": words.clock(endpoint.get("last_updated_timestamp")),
    }


def entities_of(endpoint: api.Json) -> list[api.Json]:
    config = endpoint.get("config") or endpoint.get("pending_config") or {}
    return list(config.get("served_entities") or [])


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
        "stopped": state.startswith("stopped"),
    }[wanted]
    whole = f"{row['name']} {row['creator']} {row['versions and split']}"
    return fits and text.lower() in whole.lower()


main()
