"""What happened to an endpoint, and what its builds and replicas wrote."""

import re
from typing import Any

import streamlit as st

from dashboard import api, frame, words

MOST_ROWS = 100
LOG_LINES = 400
KINDS = {
    "all": (),
    "configurations": ("configuration", "live", "failed"),
    "alerts": ("alert", "alert_closed"),
    "changes": ("stop", "start", "tags", "rate_limits", "ai_gateway", "permissions"),
}
REPLICA = re.compile(r"==> replica-(.+)\.log <==")
EVERY = "all replicas"


# events


def events(endpoint: api.Json) -> None:
    reply = frame.load("what happened here", api.events, str(endpoint["name"]))
    if reply is None:
        return
    wanted = frame.choice("Show", "kind", list(KINDS), "all", label_visibility="collapsed")
    kept = [e for e in reply.get("events") or [] if not KINDS[wanted] or e["kind"] in KINDS[wanted]]
    if not kept:
        frame.empty("Nothing has happened yet", "Changes, starts and alerts appear here.")
        return
    st.caption(f"{words.several(len(kept), 'event')}, newest first.")
    st.dataframe(
        [event_row(entry) for entry in kept[:MOST_ROWS]],
        hide_index=True,
        key="events",
        column_config={"what": st.column_config.TextColumn(width="large")},
    )


def event_row(entry: api.Json) -> dict[str, Any]:
    took = words.figure(entry.get("duration_seconds"))
    return {
        "when": words.clock(entry.get("time")),
        "what": words.cut(str(entry.get("text") or entry.get("kind") or "event"), 300),
        "by": entry.get("actor") or words.NOTHING,
        "took": words.NOTHING if took is None else words.duration(took),
        "reason": words.cut(str(entry.get("reason") or words.NOTHING), 1000),
    }


# logs


def logs(endpoint: api.Json) -> None:
    names = entities(endpoint)
    if not names:
        frame.empty("No version is served", "Logs appear with the first served version.")
        return
    left, middle, right = st.columns([2, 2, 4])
    wanted = frame.here().version
    default = wanted if wanted in names else names[0]
    entity = frame.pick(left, "Version", "of", names, default)
    kind = frame.choice("Log", "log", ["service", "build"], "service", middle)
    search = frame.entry(right, "Search", "find", placeholder="text in a line")
    text(str(endpoint["name"]), entity, kind, search)


def entities(endpoint: api.Json) -> list[str]:
    """Versions that are served, then those that wait or failed to start."""
    found: dict[str, None] = {}
    for key in ("config", "pending_config"):
        for entity in (endpoint.get(key) or {}).get("served_entities") or []:
            found[str(entity.get("name"))] = None
    return list(found)


@st.fragment(run_every=frame.LIVE_SECONDS)
def text(name: str, entity: str, kind: str, search: str) -> None:
    """The end of a log, read again every few seconds."""
    read = api.build_logs if kind == "build" else api.service_logs
    reply = frame.load(f"the {kind} log of {entity}", read, name, entity, absent={})
    if reply is None:
        return
    whole = str(reply.get("logs") or "")
    if not whole.strip():
        why = (
            "The server's own Python environment serves this version, so nothing was built."
            if kind == "build"
            else "Lines appear when the version starts or says something."
        )
        frame.empty("The log is empty", why)
        return
    parts = by_replica(whole)
    if len(parts) > 1:
        # A replica that has ended takes its name along: the choice is the fragment's own.
        chosen = st.selectbox("Replica", [EVERY, *parts], key=f"replica_{entity}_{kind}")
        whole = whole if chosen == EVERY else parts.get(str(chosen), whole)
    found = [line for line in whole.splitlines() if search.lower() in line.lower()]
    shown = found[-LOG_LINES:]
    cut = f"; the last {len(shown)} are shown" if len(shown) < len(found) else ""
    st.caption(f"{words.several(len(found), 'line')}{cut}.")
    st.code("\n".join(shown) or "No line matches.", language=None, height=420, wrap_lines=True)
    file = f"{name}-{entity}-{kind}.log"
    st.download_button("Download", whole, file, "text/plain", icon=":material/download:")


def by_replica(whole: str) -> dict[str, str]:
    """A service log cut at the lines that name its replicas; newest written last, as it came."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in whole.splitlines():
        named = REPLICA.fullmatch(line)
        if named:
            lines = found.setdefault(named[1], [])
        else:
            lines.append(line)
    return {name: "\n".join(kept) for name, kept in found.items()}
