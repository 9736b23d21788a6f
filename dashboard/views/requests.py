"""What happened to this request?"""

import functools
import json
import time
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from dashboard import actions, address, api, charts, frame, selecting, snippets, words

ON_ITS_WAY_SECONDS = 20.0
PAGE_SIZE = 100
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
SOURCES = {"request": "the request", "model": "the model", "server": "the server"}
MOST_ROWS_SHOWN = 5  # of one request, as columns of its features
MOST_SENT_AGAIN = 20_000  # characters of a body in a command


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
    reply = read_page(filters, tokens)
    if reply is None:
        return
    rows = rows_of(reply)
    asked = st.query_params.get("request")
    if not rows and not tokens and not asked:
        nothing(name, filters)
        take_away(filters, name, rows)
        return
    listing(rows, reply.get("next_page_token"))
    if not tokens:
        newer(filters, rows[0] if rows else None, time.monotonic())
    take_away(filters, name, rows)
    if asked:
        detail(name, asked)


def read_page(filters: dict[str, Any], tokens: list[str]) -> api.Json | None:
    """The page that is asked for. A row that was just selected leaves the table as it is: under a
    reader's hand it must not move."""
    if st.session_state.pop("requests_selected", False) and "requests_page" in st.session_state:
        kept: api.Json = st.session_state["requests_page"]
        return kept
    page = {"page_size": PAGE_SIZE, "page_token": tokens[-1] if tokens else None}
    reply = frame.load("the requests", api.requests, filters | page)
    if reply is not None:
        st.session_state["requests_page"] = reply
    return reply


def rows_of(reply: api.Json) -> list[api.Json]:
    found = reply.get("requests")
    return found if isinstance(found, list) else []


def choose_filters(name: str) -> dict[str, Any] | None:
    """The filters as the API takes them, kept in the URL; None while one of them is unreadable."""
    chosen = frame.here()
    start, end = address.bounds(chosen, frame.now())
    filters: dict[str, Any] = {"endpoint": name, "served_entity": chosen.version}
    filters |= {"from": minute(start), "to": minute(end)}
    with st.container(border=True):
        one, two, three, four = st.columns([3, 1.8, 1.8, 2.2], vertical_alignment="bottom")
        options = list(selecting.STATUSES)
        status = frame.choice(
            "Status", "status", options, options[0], one, help=selecting.STATUS_HELP
        )
        filters["status"] = selecting.STATUSES[status]
        filters["client_request_id"] = frame.entry(two, "Client request id", "client")
        filters["text"] = frame.entry(three, "Text in request or answer", "text")
        typed = frame.entry(
            four, "Features", "where", placeholder="amount > 100", help=selecting.HOW
        )
        try:
            filters |= selecting.conditions(typed)
        except selecting.Unreadable as error:
            st.warning(words.plain(str(error)), icon=":material/edit:")
            return None
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


def listing(rows: list[api.Json], following: str | None) -> None:
    """The table, newest first, and the way to the pages before and after."""
    tokens = st.session_state["requests_tokens"]
    known = features_of(rows)
    shown = [table_row(row, known) for row in rows]
    noun = "row" if len(rows) == 1 else "rows"
    more = "" if following or tokens else " in all"
    st.caption(
        f"{len(rows)} {noun}{more}, newest first, page {len(tokens) + 1}. Select a row to open it."
    )
    key = f"requests_table_{len(tokens)}"
    ids = [str(row.get("databricks_request_id")) for row in rows]
    st.dataframe(
        shown,
        hide_index=True,
        on_select=functools.partial(_select, key, ids),
        selection_mode="single-row",
        key=key,
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


def _select(key: str, ids: list[str]) -> None:
    """The selected request goes into the URL; ids: of the table that was under the hand."""
    st.session_state["requests_selected"] = True
    places = st.session_state[key]["selection"]["rows"]
    if places and places[0] < len(ids):
        st.query_params["request"] = ids[places[0]]
    else:
        st.query_params.pop("request", None)


def _forward(token: str) -> None:
    st.session_state["requests_tokens"].append(token)


def _back() -> None:
    st.session_state["requests_tokens"].pop()


def table_row(row: api.Json, features: list[str]) -> dict[str, Any]:
    """Known columns under their titles, then the features; values as text where they are nested."""
    order = [key for key in (*FIRST, *features, *LAST) if key in row]
    return {TITLES.get(key, key): shown_value(key, row[key]) for key in order}


def features_of(rows: list[api.Json]) -> list[str]:
    """Features that have a value in some row; what failed may lack all that is looked up."""
    own = {*FIRST, *LAST, *HIDDEN}
    return list(
        dict.fromkeys(k for row in rows for k in row if k not in own and row[k] is not None)
    )


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
def newer(filters: dict[str, Any], first: api.Json | None, drawn: float) -> None:
    """Says that rows have arrived without moving the table under the reader.

    drawn: when the table was read, on the monotonic clock: at once nothing can be new."""
    if first is None or "to" in filters or time.monotonic() - drawn < frame.LIVE_SECONDS / 2:
        return
    since = {"from": first.get("request_time"), "page_size": PAGE_SIZE}
    try:
        reply = api.requests(frame.client(), filters | since)
    except api.ApiError:
        return  # the dot above says that the server does not answer
    ids = [row.get("databricks_request_id") for row in rows_of(reply)]
    mine = first.get("databricks_request_id")
    fresh = ids.index(mine) if mine in ids else len(ids)
    if fresh:
        more = "+" if fresh >= PAGE_SIZE else ""
        if st.button(f"{fresh}{more} new rows: show", icon=":material/arrow_upward:"):
            st.rerun()


def take_away(filters: dict[str, Any], name: str, rows: list[api.Json]) -> None:
    """The same rows as a file or as code."""
    with st.expander("Take these rows elsewhere", icon=":material/download:"):
        form = st.segmented_control("File", ["csv", "parquet"], default="csv", key="export_form")
        if st.button("Prepare the file", help="All rows that match, up to a million."):
            prepare(form or "csv", filters, name)
        record = frame.load("the record of this endpoint", frame.recent_capture, name, absent={})
        folder = str((record or {}).get("location") or "").removesuffix("_payload")
        if folder:
            st.caption("All rows that match, from the Delta table:")
            st.code(selecting.polars(f"{folder}_unpacked", filters, rows), language="python")
        st.caption("This page, from the API:")
        url = f"{frame.server_url()}/api/1.0/requests?{urlencode(filters)}"
        st.code(actions.curl("GET", url))


def prepare(form: str, filters: dict[str, Any], name: str) -> None:
    """The file behind a button. Not kept for a bad day, as replies are: it may be large."""
    try:
        data = api.export(frame.client(), form, filters)
    except api.Denied as error:
        frame.denied("the export", error)
    except api.ApiError as error:
        frame.failed("the export", error)
    else:
        st.download_button("Download", data, f"{name}-requests.{form}")


def is_fresh(request_id: str) -> bool:
    """Whether it came in just now; this clock may be a little before the server's."""
    return abs(words.age_of_id(request_id, frame.now())) < ON_ITS_WAY_SECONDS


@st.fragment(run_every=0.5)
def on_its_way(request_id: str) -> None:
    """A request that was answered just now: a row is in the table half a second after its answer,
    and whoever follows a link may be sooner."""
    try:
        api.request(frame.client(), request_id)
    except api.NotFound:
        st.info("Answered just now; its row comes within a second.", icon=":material/hourglass:")
        if is_fresh(request_id):
            return
    except api.ApiError:
        return  # the dot above says that the server does not answer
    st.rerun()


def detail(name: str, request_id: str) -> None:
    """One request: as received, as looked up, where the time went, and its truth."""
    st.divider()
    st.markdown("#### Request")
    st.code(request_id, language=None)
    absent = {} if is_fresh(request_id) else frame.NOT_GIVEN
    reply = frame.load("this request", api.request, request_id, absent=absent)
    if not reply:
        if reply is not None:
            on_its_way(request_id)
        return
    facts = [
        ("received", words.clock(reply.get("request_time"))),
        ("version", str(reply.get("served_entity_name") or words.NOTHING)),
        ("status", status_words(reply)),
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
    features(reply)
    copies(name, request_id, reply)


def status_words(reply: api.Json) -> str:
    """`400, by the model`: a model that raises answers 400, too."""
    source = SOURCES.get(str(reply.get("error_source")))
    status = str(reply.get("status_code") or words.NOTHING)
    return f"{status}, by {source}" if source else status


def features(reply: api.Json) -> None:
    """What the model was given, value by value, and what was looked up for it."""
    rows = [row for row in reply.get("rows") or [] if isinstance(row, dict)]
    looked_up = reply.get("looked_up") or {}
    names = list(dict.fromkeys([*features_of(rows[:MOST_ROWS_SHOWN]), *looked_up]))
    if not names:
        return
    st.markdown("**Features**")
    table = []
    for key in names:
        found = [row.get(key) for row in rows[:MOST_ROWS_SHOWN]] or looked_up.get(key)
        values = found if isinstance(found, list) else [found]
        origin = "looked up" if key in looked_up else "request"
        shown = {f"row {place + 1}": one_value(value) for place, value in enumerate(values)}
        table.append({"feature": key, "from": origin, **shown})
    st.dataframe(table, hide_index=True, key="request_features", width="content")
    if len(rows) > MOST_ROWS_SHOWN:
        st.caption(f"The first {MOST_ROWS_SHOWN} of {len(rows)} rows.")
    unread = rows[0].get("unpack_errors") if rows else None
    if unread:
        st.caption(words.plain(f"Not readable in it: {'; '.join(map(str, unread))}"))


def one_value(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or words.NOTHING
    return json.dumps(value)


def copies(name: str, request_id: str, reply: api.Json) -> None:
    """The same as commands: send it again, read it."""
    with st.expander("Copy as curl", icon=":material/terminal:"):
        body = reply.get("request")
        is_text = reply.get("request_encoding", "utf-8") == "utf-8"
        if isinstance(body, str) and is_text and len(body) <= MOST_SENT_AGAIN:
            kind = str(reply.get("content_type") or "application/json")
            st.caption("Send it again:")
            st.code(snippets.again(frame.server_url(), name, body, kind))
        st.caption("Read what is recorded of it:")
        st.code(actions.curl("GET", f"{frame.server_url()}/api/1.0/requests/{request_id}"))


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
    st.code(text[:100_000], language="json", height=260, wrap_lines=True)


main()
