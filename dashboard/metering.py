"""How an endpoint does: load now, and requests, errors and latencies over time."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import streamlit as st

from dashboard import actions, address, api, charts, frame, words

PARTS = ("gateway", "queue", "features", "predict")
METRICS = ",".join(("requests", "errors", "p50", "p95", "p99", *PARTS))
SHADES = {"p50": "#56B4E9", "p95": "#0B5CAD", "p99": "#7A3E9D"}
PART_SHADES = dict(zip(PARTS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
MEGABYTE = 1_000_000
# Ways of the server to a model, fastest first, in the words of somebody who never saw them.
WAYS = {
    "linear": "its arithmetic alone",
    "numpy": "an array of numbers",
    "frame": "a typed table",
    "mlflow": "MLflow's own functions",
}


def draw(endpoint: api.Json) -> None:
    now(str(endpoint["name"]))
    by = frame.choice("Lines", "by", ["together", "per version"], "together")
    live(str(endpoint["name"]), endpoint.get("creation_timestamp"), by == "per version")


# now


@st.fragment(run_every=frame.LIVE_SECONDS)
def now(name: str) -> None:
    """Replicas, queue, processor and memory of every served version, as they are."""
    reply = frame.load("the load of this endpoint", api.replicas, name)
    if reply is None:
        return
    before, taken = st.session_state.get("cpu_seen", (None, {}))
    at = frame.now()
    seconds = (at - before).total_seconds() if before is not None else 0.0
    entities = reply.get("entities") or []
    rows = [load_row(entity, taken, seconds) for entity in entities]
    st.session_state["cpu_seen"] = (at, cpu_taken(entities))
    st.markdown("**Now**")
    if rows:
        st.dataframe(rows, hide_index=True, key="load_now")
        for told in filter(None, map(way_told, entities)):
            st.caption(told)
    else:
        st.caption("Nothing runs.")


def cpu_taken(entities: Sequence[api.Json]) -> dict[str, float]:
    """Processor seconds so far, by replica."""
    found = {}
    for entity in entities:
        for replica in entity.get("replicas") or []:
            spent = words.figure(replica.get("cpu_seconds"))
            if spent is not None:
                found[str(replica.get("id"))] = spent
    return found


def load_row(entity: api.Json, before: dict[str, float], seconds: float) -> dict[str, Any]:
    """One version. before: processor seconds by replica, `seconds` ago."""
    replicas = entity.get("replicas") or []
    ready = sum(r.get("state") == "READY" for r in replicas)
    memory = [m for r in replicas if (m := words.figure(r.get("memory_bytes"))) is not None]
    taken = cpu_taken([entity])
    spent = [taken[key] - before[key] for key in taken if key in before]
    share = max(sum(spent), 0) / seconds if spent and seconds > 0.5 else None
    return {
        "version": str(entity.get("served_entity")),
        "state": str(entity.get("message") or words.NOTHING),
        "replicas": f"{ready} ready" + (f" of {len(replicas)}" if len(replicas) != ready else ""),
        "in flight": words.count(entity.get("in_flight")),
        "waiting": words.count(entity.get("waiting")),
        "CPU": words.NOTHING if share is None else f"{100 * share:.0f} % of a core",
        "memory": f"{sum(memory) / MEGABYTE:,.0f} MB" if memory else words.NOTHING,
        "last request": words.ago(entity.get("last_request_time"), frame.now()),
    }


def way_told(entity: api.Json) -> str:
    """How requests reach the model of one version, and why not faster; empty while nobody knows."""
    reports = [r for r in entity.get("replicas") or [] if r.get("ways")]
    if not reports:
        return ""
    ways = reports[-1]["ways"]
    best = next((way for way in WAYS if ways.get(way) == "proven"), "mlflow")
    taken = {w: sum(int((r.get("calls") or {}).get(w, 0)) for r in reports) for w in WAYS}
    counted = ", ".join(f"{words.count(n)} by {way}" for way, n in taken.items() if n)
    faster = list(WAYS)[: list(WAYS).index(best)]
    slower = "; ".join(f"{way} ({words.plain(ways.get(way))})" for way in faster)
    proof = (
        ", a shortcut past MLflow that gave the same answers in a test at its start; unusual "
        "requests go through MLflow's own functions"
    )
    return (
        f"**{words.plain(entity.get('served_entity'))}** is called by {WAYS[best]} ({best})"
        f"{'' if best == 'mlflow' else proof}. Requests answered: {counted or 'none yet'}."
        + (f" Faster ways that are not taken: {slower}." if slower else "")
    )


# over time


@st.fragment(run_every=frame.LIVE_SECONDS)
def live(name: str, created: object, per_version: bool) -> None:
    start, end = span(created)
    step = address.step_seconds(start, end)
    times = [address.rfc3339(at.replace(microsecond=0)) for at in (start, end)]
    by = "served_entity" if per_version else None
    reply = frame.load("the metrics", api.timeseries, name, METRICS, *times, step, by)
    record(name)
    if reply is None:
        return
    series = reply.get("series") or []
    recorded = reply.get("recorded", True)
    if not recorded:
        unrecorded(name)
    if not any(entry.get("points") for entry in series):
        if not recorded:
            return
        frame.empty(
            "No request in this time range",
            "Choose a longer range above, or send a request from the Overview tab.",
        )
        return
    coded = frame.load(
        "the status codes", api.timeseries, name, "requests", *times, step, "status_code"
    )
    codes = (coded or {}).get("series") or []
    figures(series, codes, reply.get("step_seconds") or step, events(reply.get("events")))


def unrecorded(name: str) -> None:
    """Nothing of the traffic is seen here, and how that is changed."""
    frame.empty(
        "Requests of this endpoint are not recorded",
        "Charts over time are drawn from the record, so requests that come now do not show here. "
        "The request below switches the record on, without a restart: into the table it had, else "
        f"into main.default.{name}_payload; catalog_name and schema_name beside enabled name "
        "another place.",
    )
    body = {"inference_table_config": {"enabled": True}}
    path = f"{api.SERVING}/{name}/ai-gateway"
    actions.as_curl("PUT", path, body, "Switch the record on: copy as curl")


def span(created: object) -> tuple[datetime, datetime]:
    """The time range in wall-clock time; `All` begins with the endpoint."""
    now = frame.now()
    start, end = address.bounds(frame.here(), now)
    first = words.moment(created) or now - timedelta(days=1)
    return max(start or first, first), end or now


def figures(
    series: list[api.Json], codes: list[api.Json], step: int, marks: list[charts.Event]
) -> None:
    wanted = frame.here().version
    kept = [s for s in series if wanted in (None, s.get("by")) or s.get("by") is None]
    left, right = st.columns(2)
    with left:
        st.markdown("**Requests per second**")
        chart(charts.lines(lines(kept, "requests", step), "requests/s", marks), "requests")
    with right:
        st.markdown("**Refused and failed requests, by status code**")
        found = coded(codes, step)
        if found:
            chart(charts.lines(found, f"answers in {words.duration(step)}", marks), "errors")
        else:
            st.caption("None: every request was answered with a 2xx status.")
    st.markdown("**Latency** (whole stay in the server)")
    apart = len({s.get("by") for s in kept}) > 1
    names = ("p95",) if apart else ("p50", "p95", "p99")
    drawn = [line for metric in names for line in lines(kept, metric, 1, name_metric=True)]
    chart(charts.lines(drawn, "ms", marks), "latency")
    st.markdown("**Where the time goes** (means)")
    groups = sorted({s.get("by") for s in kept}, key=str)
    for place, group in zip(st.columns(max(len(groups[:3]), 1)), groups[:3], strict=True):
        with place:
            if group is not None:
                st.caption(words.plain(group))
            mine = [s for s in kept if s.get("by") == group]
            stack = [line for part in PARTS for line in lines(mine, part, 1, name_metric=True)]
            if stack:
                chart(charts.stacked([_bare(line) for line in stack], "ms"), f"parts_{group}")
    if len(groups) > 3:
        st.caption("Of three versions; choose one above to see another.")
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
        tint = charts.colour(str(version)) if version else SHADES.get(metric, charts.CURRENT)
        told = metric if name_metric else None
        name = " ".join(filter(None, [version, told])) or "all versions"
        found.append(line(name, entry, PART_SHADES.get(metric, tint), divide))
    return found


def coded(series: list[api.Json], step: int) -> list[charts.Line]:
    """Answers that were no 2xx, a line per status code."""
    return [
        line(f"status {entry.get('by')}", entry, charts.PALETTE[place % len(charts.PALETTE)], 1)
        for place, entry in enumerate(series)
        if not str(entry.get("by")).startswith("2") and any(v for _, v in entry.get("points") or [])
    ]


def line(name: str, entry: api.Json, tint: str, divide: float) -> charts.Line:
    points = [(words.moment(t), words.figure(v)) for t, v in entry.get("points") or []]
    times = [t for t, _ in points if t is not None]
    values = [None if v is None else v / divide for t, v in points if t is not None]
    return charts.Line(name, times, values, tint)


def _bare(given: charts.Line) -> charts.Line:
    """Only the part's name: the version stands above."""
    return charts.Line(given.name.split()[-1], given.times, given.values, given.colour)


def chart(figure: Any, key: str) -> None:
    st.plotly_chart(figure, config=charts.CONFIG, key=f"metric_{key}")


def events(given: object) -> list[charts.Event]:
    """What happened to the endpoint, for the marks on time charts."""
    found = []
    for entry in given if isinstance(given, list) else []:
        at = words.moment(entry.get("time"))
        text = entry.get("text") or entry.get("title") or entry.get("kind") or "event"
        if at is not None:
            found.append(charts.Event(at, str(text)))
    return found


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
