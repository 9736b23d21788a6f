"""Is this endpoint healthy, and how do I use it?"""

import difflib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import streamlit as st

from dashboard import actions, address, api, charts, frame, snippets, words

TABS = ("Overview", "Metrics", "Configuration", "Logs")
METRICS = "requests,errors,p50,p95,p99,execution"
LOG_LINES = 400
SHADES = {"p50": "#56B4E9", "p95": "#0B5CAD", "p99": "#7A3E9D", "execution": charts.GREY}
NAMES = {"execution": "mean inside the model"}
DEPLOYMENT: dict[str, tuple[str, frame.Tint]] = {
    "DEPLOYMENT_CREATING": ("starting", "orange"),
    "DEPLOYMENT_RECOVERING": ("recovering", "orange"),
    "DEPLOYMENT_READY": ("ready", "green"),
    "DEPLOYMENT_FAILED": ("failed", "red"),
    "DEPLOYMENT_ABORTED": ("stopped before it was ready", "gray"),
}


def main() -> None:
    frame.page("Endpoint", "Is this endpoint healthy, and how do I use it?")
    name = frame.need_endpoint("its state")
    if name is None:
        return
    endpoint = frame.load("this endpoint", api.endpoint, name)
    if endpoint is None:
        return
    head(endpoint)
    tab = frame.choice("Part", "tab", TABS, TABS[0], label_visibility="collapsed")
    draw = {"Metrics": metrics, "Configuration": configuration, "Logs": logs}
    draw.get(tab, overview)(endpoint)


def head(endpoint: api.Json) -> None:
    """State in plain words, the split, and what can be done."""
    ready, update = actions.state_words(endpoint)
    left, right = st.columns([5, 1.4], vertical_alignment="center")
    with left, st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{words.plain(endpoint['name'])}**", width="content")
        st.badge(ready, color="green" if ready == "ready" else "red")
        if update:
            st.badge(update, color="orange")
        version = (endpoint.get("config") or {}).get("config_version")
        st.caption(
            f"configuration {version or words.NOTHING} · "
            f"created by {words.plain(endpoint.get('creator') or 'unknown')} · "
            f"changed {words.ago(endpoint.get('last_updated_timestamp'), frame.now())}",
            width="content",
        )
    with right:
        menu(endpoint, actions.refused(endpoint))
    recording(endpoint["name"])
    split = actions.routes(endpoint.get("config"))
    if split:
        st.plotly_chart(charts.traffic([("", split)]), config=charts.CONFIG, key="endpoint_split")


def menu(endpoint: api.Json, why_not: str | None) -> None:
    """Shift, stop, start, delete."""
    name = endpoint["name"]
    with st.popover("Actions", icon=":material/more_vert:", width="stretch"):
        split = actions.routes(endpoint.get("config"))
        if len(split) > 1:
            entity = max(split, key=lambda route: route[1])[0]
            actions.button(
                "Shift traffic…",
                actions.shift(endpoint, entity),
                "endpoint_shift",
                why_not,
                width="stretch",
            )
        stop, start = st.columns(2)
        look: dict[str, Any] = {"disabled": bool(why_not), "help": why_not, "width": "stretch"}
        stopped = f"{name} is stopped: queries answer 400."
        if stop.button("Stop", **look) and actions.done(stopped, api.stop_endpoint, name):
            st.rerun()
        if start.button("Start", **look) and actions.done(
            f"{name} starts.", api.start_endpoint, name
        ):
            st.rerun()
        with st.form("delete_endpoint", border=False):
            typed = st.text_input("To delete, type the endpoint's name")
            sent = st.form_submit_button("Delete", disabled=bool(why_not), help=why_not)
        if sent and typed != name:
            st.error("The name is not the endpoint's: nothing was deleted.")
        elif sent and actions.done(
            f"{name} is deleted; its tables stay.", api.delete_endpoint, name
        ):
            st.switch_page("views/endpoints.py")


def overview(endpoint: api.Json) -> None:
    waiting = endpoint.get("pending_config")
    if waiting:
        st.info(
            f"Configuration {waiting.get('config_version') or 'pending'} is being prepared: "
            f"{words.plain(words.split(actions.routes(waiting)))}. The present one keeps serving.",
            icon=":material/hourglass_top:",
        )
    entities(endpoint)
    left, right = st.columns(2, gap="large")
    body = example(endpoint)
    with left:
        st.markdown("#### Try it")
        query_box(endpoint["name"], body)
    with right:
        st.markdown("#### Use it")
        codes = snippets.query(frame.server_url(), endpoint["name"], body, endpoint.get("task"))
        for tab, (title, code) in zip(st.tabs(list(codes)), codes.items(), strict=True):
            tab.code(
                code, language="bash" if title == "curl" else "python", height=330, wrap_lines=True
            )


def entities(endpoint: api.Json) -> None:
    """Each served entity: what it is, how much it gets, how it stands."""
    config = endpoint.get("config") or endpoint.get("pending_config") or {}
    shares = dict(actions.routes(config))
    found = config.get("served_entities") or []
    if not found:
        frame.empty("No version is served", "Give this endpoint a configuration.")
        return
    for entity in found:
        name = str(entity.get("name"))
        state = entity.get("state") or {}
        word, tint = DEPLOYMENT.get(str(state.get("deployment")), ("unknown", "gray"))
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge(word, color=tint)
            external = entity.get("external_model") or {}
            model = entity.get("entity_name") or external.get("name") or "unknown model"
            version = entity.get("entity_version")
            about = [f"{shares.get(name, 0):g} % of the traffic", str(model)]
            if version:
                about.append(f"version {version}")
            if entity.get("workload_size"):
                about.append(f"size {entity['workload_size']}")
            st.markdown(f"**{words.plain(name)}**", width="content")
            st.caption(words.plain(" · ".join(about)), width="content")
            message = str(state.get("deployment_state_message") or "")
            if message.lower() != word:
                st.caption(words.plain(message), width="content")


def example(endpoint: api.Json) -> dict[str, Any]:
    """A body to begin with: the newest answered request, else the endpoint's own description."""
    key = f"example_{endpoint['name']}"
    if key not in st.session_state:
        found = last_request(endpoint["name"])
        st.session_state[key] = found or snippets.example_body(
            described(endpoint["name"]), endpoint.get("task")
        )
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


def described(name: str) -> api.Json:
    try:
        return api.openapi(frame.client(), name)
    except api.ApiError:
        return {}


def query_box(name: str, body: dict[str, Any]) -> None:
    with st.form("query", border=False):
        text = st.text_area(
            "Body", json.dumps(body, indent=2), height=260, key=f"query_body_{name}"
        )
        sent = st.form_submit_button("Send", type="primary", icon=":material/send:")
    if not sent:
        return
    try:
        answer = api.query(frame.client(), name, text)
    except api.ApiError as error:
        st.error(words.plain(error.message))
        return
    facts = [f"status {answer.status}", f"{answer.elapsed_ms:.0f} ms seen from here"]
    if answer.served_by:
        facts.append(f"served by {answer.served_by}")
    if answer.request_id:
        facts.append(f"request id {answer.request_id}")
    st.caption(words.plain(" · ".join(facts)))
    st.code(pretty(answer.body), language="json", height=200)


def pretty(text: str) -> str:
    """JSON indented; anything else as it is."""
    try:
        return json.dumps(json.loads(text), indent=2)
    except ValueError:
        return text


# metrics


def metrics(endpoint: api.Json) -> None:
    by = frame.choice("Lines", "by", ["together", "per version"], "together")
    live_metrics(endpoint["name"], endpoint.get("creation_timestamp"), by == "per version")


@st.fragment(run_every=frame.LIVE_SECONDS)
def live_metrics(name: str, created: object, per_version: bool) -> None:
    start, end = span(created)
    step = address.step_seconds(start, end)
    reply = frame.load(
        "the metrics",
        api.timeseries,
        name,
        METRICS,
        address.rfc3339(start.replace(microsecond=0)),
        address.rfc3339(end.replace(microsecond=0)),
        step,
        "served_entity" if per_version else None,
    )
    record(name)
    if reply is None:
        return
    series = reply.get("series") or []
    if not any(entry.get("points") for entry in series):
        frame.empty(
            "No request in this time range",
            "Choose a longer range above, or send a request from the Overview tab.",
        )
        return
    draw_metrics(series, reply.get("step_seconds") or step, events(reply.get("events")))


def span(created: object) -> tuple[datetime, datetime]:
    """The time range in wall-clock time; `All` begins with the endpoint."""
    now = frame.now()
    start, end = address.bounds(frame.here(), now)
    first = words.moment(created) or now - timedelta(days=1)
    return max(start or first, first), end or now


def draw_metrics(series: list[api.Json], step: int, marks: list[charts.Event]) -> None:
    wanted = frame.here().version
    kept = [s for s in series if wanted in (None, s.get("by")) or s.get("by") is None]
    left, right = st.columns(2)
    with left:
        st.markdown("**Requests per second**")
        chart(lines(kept, "requests", step), "requests/s", marks, "metric_requests")
    with right:
        st.markdown("**Failed requests** (status 500 and above, or the model raised)")
        chart(lines(kept, "errors", 1), f"errors in {words.duration(step)}", marks, "metric_errors")
    st.markdown("**Latency** (whole stay in the server)")
    apart = len({s.get("by") for s in kept}) > 1
    names = ("p95",) if apart else ("p50", "p95", "p99", "execution")
    drawn = [line for metric in names for line in lines(kept, metric, 1, name_metric=True)]
    chart(drawn, "ms", marks, "metric_latency")
    st.caption(f"Each point covers {words.duration(step)}; times are UTC.")


def lines(
    series: list[api.Json], metric: str, divide: float, name_metric: bool = False
) -> list[charts.Line]:
    """Series of one metric as lines; several percentiles of one version differ in colour."""
    found = []
    for entry in series:
        if entry.get("metric") != metric:
            continue
        version = entry.get("by")
        points = [(words.moment(t), words.figure(v)) for t, v in entry.get("points") or []]
        times = [t for t, _ in points if t is not None]
        values = [None if v is None else v / divide for t, v in points if t is not None]
        tint = charts.colour(str(version)) if version else SHADES.get(metric, charts.CURRENT)
        told = NAMES.get(metric, metric) if name_metric else None
        name = " ".join(filter(None, [version, told])) or "all versions"
        found.append(charts.Line(name, times, values, tint, dashed=metric == "execution"))
    return found


def chart(drawn: Sequence[charts.Line], unit: str, marks: Sequence[charts.Event], key: str) -> None:
    figure = charts.lines(drawn, unit, marks)
    st.plotly_chart(figure, config=charts.CONFIG, key=key)


def events(given: object) -> list[charts.Event]:
    """What happened to the endpoint, for the marks on time charts."""
    found = []
    for entry in given if isinstance(given, list) else []:
        at = words.moment(entry.get("time"))
        text = entry.get("text") or entry.get("title") or entry.get("kind") or "event"
        if at is not None:
            found.append(charts.Event(at, str(text)))
    return found


@st.fragment(run_every=frame.LIVE_SECONDS)
def recording(name: str) -> None:
    """Where requests are recorded and how far that is, in one line."""
    try:
        reply = frame.recent_capture(frame.client(), name)
    except api.ApiError as error:
        st.caption(words.plain(f"How far the record is cannot be told: {error.message}"))
        return
    if not reply.get("table"):
        st.caption("Requests are not recorded: set auto_capture_config to keep them in a table.")
        return
    if reply.get("failing"):
        st.error(words.plain(f"Requests wait for their table: {reply['failing']}"))
    lag = words.duration(words.figure(reply.get("lag_seconds")))
    facts = [
        f"{'Records' if reply.get('enabled', True) else 'Recorded, until it was switched off,'} "
        f"to {reply['table']}",
        f"{words.count(reply.get('committed_rows'))} requests",
        f"{lag} behind",
    ]
    st.caption(words.plain(" · ".join(facts)))


def record(name: str) -> None:
    """How the record of this endpoint stands: rows, lag, what was dropped."""
    reply = frame.load("the record of this endpoint", frame.recent_capture, name, absent={})
    if not reply or not reply.get("table"):
        return
    dropped = sum(v for v in (reply.get("dropped") or {}).values() if isinstance(v, int | float))
    cells = [
        ("requests recorded", words.count(reply.get("committed_rows"))),
        ("lag to the table", words.duration(words.figure(reply.get("lag_seconds")))),
        ("waiting in the log", f"{words.count(reply.get('wal_bytes'))} bytes"),
        ("dropped", words.count(dropped)),
    ]
    for column, (caption, value) in zip(st.columns(4), cells, strict=True):
        column.metric(caption, value)


# configuration


def configuration(endpoint: api.Json) -> None:
    reply = frame.load("the versions of the configuration", api.versions, endpoint["name"])
    if reply is None:
        return
    history = reply.get("versions") or []
    current = (endpoint.get("config") or {}).get("config_version")
    if not history:
        frame.empty("No configuration yet", "The first one appears when a version is served.")
        return
    st.caption("Every change is a numbered configuration. Select one to see what it changed.")
    table = [history_row(entry, current) for entry in history]
    picked = st.dataframe(
        table, hide_index=True, on_select="rerun", selection_mode="single-row", key="versions"
    )
    rows = picked["selection"]["rows"]
    place = rows[0] if rows else 0
    entry, before = history[place], history[place + 1] if place + 1 < len(history) else None
    number = entry.get("config_version")
    st.markdown(f"#### Configuration {number}")
    if number != current:
        actions.button(
            f"Roll back to configuration {number}",
            actions.restoration(endpoint, entry),
            "restore",
            actions.refused(endpoint),
            icon=":material/undo:",
        )
    difference(entry, before)


def history_row(entry: api.Json, current: object) -> dict[str, Any]:
    number = entry.get("config_version")
    return {
        "number": number,
        "now": "active" if number == current else "",
        "split": words.split(actions.routes(entry.get("config"))),
        "when": words.clock(entry.get("created_time")),
        "by": entry.get("created_by") or words.NOTHING,
        "origin": entry.get("origin") or words.NOTHING,
        "reason": entry.get("reason") or words.NOTHING,
    }


def difference(entry: api.Json, before: api.Json | None) -> None:
    """What this configuration changed, line by line; the first one whole."""
    new = json.dumps(entry.get("config"), indent=2, sort_keys=True).splitlines()
    if before is None:
        st.code("\n".join(new), language="json", height=400)
        return
    old = json.dumps(before.get("config"), indent=2, sort_keys=True).splitlines()
    first, second = (f"configuration {c.get('config_version')}" for c in (before, entry))
    changed = list(difflib.unified_diff(old, new, first, second, lineterm=""))
    st.code("\n".join(changed) or "Nothing changed.", language="diff")
    with st.expander("Whole configuration"):
        st.code("\n".join(new), language="json")


# logs


def logs(endpoint: api.Json) -> None:
    config = endpoint.get("config") or endpoint.get("pending_config") or {}
    names = [str(e.get("name")) for e in config.get("served_entities") or []]
    if not names:
        frame.empty("No version is served", "Logs appear with the first served version.")
        return
    left, middle, right = st.columns([2, 2, 4])
    wanted = frame.here().version
    entity = left.selectbox("Version", names, index=names.index(wanted) if wanted in names else 0)
    kind = middle.segmented_control("Log", ["service", "build"], default="service")
    search = right.text_input("Search", placeholder="text in a line")
    read = api.build_logs if kind == "build" else api.service_logs
    reply = frame.load(f"the {kind} log of {entity}", read, endpoint["name"], entity, absent={})
    if reply is None:
        return
    text = str(reply.get("logs") or "")
    if not text.strip():
        frame.empty("The log is empty", "Lines appear when the version starts or says something.")
        return
    found = [line for line in text.splitlines() if (search or "").lower() in line.lower()]
    st.caption(f"{len(found):,} lines; the last {min(len(found), LOG_LINES)} are shown.")
    st.code("\n".join(found[-LOG_LINES:]) or "No line matches.", language=None, height=420)
    st.download_button("Download", text, f"{endpoint['name']}-{entity}-{kind}.log", "text/plain")


main()
