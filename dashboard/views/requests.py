"""What happened to this request?"""

import json
from typing import Any

import streamlit as st

from dashboard import actions, address, api, charts, frame, snippets, words

PAGE_SIZE = 100
STATUSES = {"all": None, "answered": "2xx", "refused": "4xx", "failed": "5xx"}
FIRST = (
    "request_time",
    "served_entity_name",
    "status_code",
    "execution_duration_ms",
    "prediction",
    "score",
    "label",
)
LAST = ("client_request_id", "databricks_request_id")
TITLES = {
    "request_time": "time (UTC)",
    "served_entity_name": "version",
    "status_code": "status",
    "execution_duration_ms": "model ms",
    "client_request_id": "client id",
    "databricks_request_id": "request id",
}
HIDDEN = {
    "row_index",
    "request_date",
    "unit_id",
    "model_name",
    "model_version",
    "config_version",
    "route_share",
    "route_split",
    "shadow",
    "error_source",
    "unpack_errors",
    "label_time",
    "endpoint",
}
PARTS = ("gateway", "queue", "features", "predict", "log")


def main() -> None:
    frame.page("Requests", "What happened to this request?")
    name = frame.need_endpoint("its requests")
    if name is None:
        return
    filters = choose_filters(name)
    if filters is None:
        return
    tokens = st.session_state.setdefault("requests_tokens", [])
    if st.session_state.get("requests_filters") != filters:
        tokens.clear()
        st.session_state["requests_filters"] = filters
    page = {"page_size": PAGE_SIZE, "page_token": tokens[-1] if tokens else None}
    reply = frame.load("the requests", api.requests, filters | page)
    if reply is None:
        return
    rows = rows_of(reply)
    asked = st.query_params.get("request")
    if not rows and not tokens and not asked:
        nothing(name, filters)
        return
    selected = listing(rows, reply.get("next_page_token"))
    if not tokens:
        newer(filters, rows[0] if rows else None)
    take_away(filters, name)
    if selected is not None:
        asked = str(selected.get("databricks_request_id"))
    if asked:
        detail(asked)


def rows_of(reply: api.Json) -> list[api.Json]:
    found = reply.get("requests")
    return found if isinstance(found, list) else []


def choose_filters(name: str) -> dict[str, Any] | None:
    """The filters as the API takes them; None while one of them is no range."""
    chosen = frame.here()
    start, end = address.bounds(chosen, frame.now())
    filters: dict[str, Any] = {"endpoint": name, "served_entity": chosen.version}
    filters |= {"from": minute(start), "to": minute(end)}
    with st.container(border=True):
        one, two, three, four = st.columns([3, 1.8, 1.8, 1.8], vertical_alignment="bottom")
        status = one.segmented_control(
            "Status", list(STATUSES), default="all", key="requests_status"
        )
        filters["status"] = STATUSES[status or "all"]
        filters["client_request_id"] = two.text_input("Client request id", key="requests_client")
        filters["text"] = three.text_input("Text in request or answer", key="requests_text")
        condition = four.text_input(
            "Feature range",
            placeholder="distance=100..500",
            help="column=low..high; either end may be left out",
            key="requests_feature",
        )
        if condition:
            column, _, limits = condition.partition("=")
            if ".." not in limits:
                st.caption("A feature range reads column=low..high, for example distance=100..500.")
                return None
            filters[f"feature.{column.strip()}"] = limits.strip()
    return {key: value for key, value in filters.items() if value}


def minute(at: Any) -> str | None:
    """Whole minutes, so that the same page is asked for while somebody reads it."""
    return None if at is None else address.rfc3339(at.replace(second=0, microsecond=0))


def nothing(name: str, filters: dict[str, Any]) -> None:
    if set(filters) - {"endpoint"}:
        frame.empty("No request matches", "Widen the time range above, or clear a filter.")
        return
    body = snippets.EXAMPLE
    frame.empty(
        "No request has been recorded yet",
        "Send one; it shows here in less than a second. If you did: does the endpoint record its "
        "requests (auto_capture_config)?",
        snippets.query(frame.server_url(), name, body, None)["curl"],
    )


def listing(rows: list[api.Json], following: str | None) -> api.Json | None:
    """The table, newest first, and the way to the pages before and after; the selected row."""
    tokens = st.session_state["requests_tokens"]
    shown = [table_row(row) for row in rows]
    st.caption(f"{len(rows)} rows, newest first, page {len(tokens) + 1}. Select a row to open it.")
    picked = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"requests_table_{len(tokens)}",
        placeholder=words.NOTHING,
        height=min(420, 38 + 35 * max(len(shown), 1)),
    )
    with st.container(horizontal=True):
        st.button("Newer", disabled=not tokens, on_click=_back, icon=":material/chevron_left:")
        st.button(
            "Older",
            disabled=not following,
            on_click=_forward,
            args=(following,),
            icon=":material/chevron_right:",
        )
    selected = picked["selection"]["rows"]
    return rows[selected[0]] if selected and selected[0] < len(rows) else None


def _forward(token: str) -> None:
    st.session_state["requests_tokens"].append(token)


def _back() -> None:
    st.session_state["requests_tokens"].pop()


def table_row(row: api.Json) -> dict[str, Any]:
    """Known columns under their titles, then the features; values as text where they are nested."""
    features = [key for key in row if key not in (*FIRST, *LAST) and key not in HIDDEN]
    order = [*[key for key in FIRST if key in row], *features, *[k for k in LAST if k in row]]
    return {TITLES.get(key, key): shown_value(key, row[key]) for key in order}


def shown_value(key: str, value: Any) -> Any:
    if key == "request_time":
        at = words.moment(value)
        return words.NOTHING if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, dict | list):
        return json.dumps(value)
    if key in ("prediction", "label") and value is not None:
        return words.amount(value) if words.figure(value) is not None else str(value)
    return value


@st.fragment(run_every=frame.LIVE_SECONDS)
def newer(filters: dict[str, Any], first: api.Json | None) -> None:
    """Says that rows have arrived without moving the table under the reader."""
    if first is None or "to" in filters:
        return
    try:
        reply = api.requests(frame.client(), filters | {"page_size": PAGE_SIZE})
    except api.ApiError:
        return  # the dot above says that the server does not answer
    ids = [row.get("databricks_request_id") for row in rows_of(reply)]
    mine = first.get("databricks_request_id")
    fresh = ids.index(mine) if mine in ids else len(ids)
    if fresh:
        more = "+" if fresh >= PAGE_SIZE else ""
        if st.button(f"{fresh}{more} new rows: show", icon=":material/arrow_upward:"):
            st.rerun()


def take_away(filters: dict[str, Any], name: str) -> None:
    """The same rows as a file or as code."""
    with st.expander("Take these rows elsewhere", icon=":material/download:"):
        form = st.segmented_control("File", ["csv", "parquet"], default="csv", key="export_form")
        if st.button("Prepare the file"):
            data = frame.load("the export", api.export, form or "csv", filters)
            if data is not None:
                st.download_button("Download", data, f"{name}-requests.{form}")
        capture = frame.load("the record of this endpoint", api.capture, name, absent={}) or {}
        table = str(capture.get("table") or "").removesuffix("_payload")
        if table:
            st.code(snippets.rows(f"{table}_unpacked", filters), language="python")
        query = "&".join(f"{key}={value}" for key, value in filters.items())
        st.code(actions.curl("GET", f"{frame.server_url()}/api/1.0/requests?{query}"))


def detail(request_id: str) -> None:
    """One request: as received, as looked up, where the time went, and its truth."""
    st.divider()
    st.markdown("#### Request")
    st.code(request_id, language=None)
    reply = frame.load("this request", api.request, request_id)
    if reply is None:
        return
    facts = [
        ("received", words.clock(reply.get("request_time"))),
        ("version", str(reply.get("served_entity_name") or words.NOTHING)),
        ("status", str(reply.get("status_code") or words.NOTHING)),
        ("label", label_words(reply)),
    ]
    for column, (caption, value) in zip(st.columns(4), facts, strict=True):
        with column.container(gap=None):
            st.caption(caption)
            st.markdown(f"**{words.plain(value)}**")
    spent = part_times(reply.get("parts") or {})
    if spent:
        st.markdown("**Where the time went**")
        st.plotly_chart(charts.parts(spent), config=charts.CONFIG, key="request_parts")
    left, right = st.columns(2)
    with left:
        st.markdown("**Request as received**")
        payload(reply.get("request"))
    with right:
        st.markdown("**Answer as sent**")
        payload(reply.get("response"))
    looked_up = reply.get("looked_up")
    if looked_up:
        st.markdown("**Features as looked up**")
        rows = [{"feature": name, "value": per_row(v)} for name, v in looked_up.items()]
        st.dataframe(rows, hide_index=True, key="request_looked_up", width="content")


def per_row(values: Any) -> str:
    """A looked-up feature: its value, or one value per row of the request."""
    alone = values[0] if isinstance(values, list) and len(values) == 1 else values
    return words.NOTHING if alone is None else json.dumps(alone)


def label_words(reply: api.Json) -> str:
    labels = reply.get("labels")
    if isinstance(labels, list) and labels:
        return ", ".join(str(entry.get("label")) for entry in labels[:5])
    label = reply.get("label")
    return "not yet" if label is None else str(label)


def part_times(parts: api.Json) -> list[tuple[str, float]]:
    """(part, ms), in the order of a request's way."""
    known = [key for key in parts if words.figure(parts[key]) is not None]
    order = sorted(known, key=lambda key: (_place(key), key))
    return [(key.removesuffix("_ms"), float(parts[key])) for key in order if parts[key] > 0]


def _place(key: str) -> int:
    name = key.removesuffix("_ms")
    return PARTS.index(name) if name in PARTS else len(PARTS)


def payload(value: Any) -> None:
    """A payload as text, never as markup."""
    if value is None:
        st.caption("Not stored: it was longer than the cap, or there was none.")
        return
    text = value
    if isinstance(value, str):
        try:
            text = json.dumps(json.loads(value), indent=2)
        except ValueError:
            text = value
    else:
        text = json.dumps(value, indent=2)
    st.code(text[:100_000], language="json", height=260)


main()
