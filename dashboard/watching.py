"""Which monitor watches an endpoint, and the control strip that Drift and Quality share."""

from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from dashboard import actions, address, api, frame, snippets, words

BEAT_SECONDS = 2


def monitor_of(name: str) -> api.Json | None:
    """The monitor of the endpoint's unpacked table; draws what to do where there is none."""
    reply = frame.load("the monitors", api.monitors)
    if reply is None:
        return None
    found = [m for m in reply.get("monitors") or [] if m.get("endpoint") == name]
    if not found:
        table = _table(name)
        found = [m for m in reply.get("monitors") or [] if m.get("table") == table]
    if len(found) > 1:
        tables = [str(m.get("table")) for m in found]
        chosen = st.selectbox("Table", tables, key="monitor_table")
        return found[tables.index(chosen)]
    if found:
        return found[0]
    frame.empty(
        "No monitor watches this endpoint",
        "A monitor compares every window of requests with a baseline and measures quality as "
        "labels arrive. Create one on the endpoint's unpacked table:",
        snippets.monitor(frame.server_url(), _table(name)),
    )
    return None


def _table(name: str) -> str:
    capture = frame.load("the record of this endpoint", api.capture, name, absent={}) or {}
    table = str(capture.get("table") or f"main.default.{name}_payload")
    return f"{table.removesuffix('_payload')}_unpacked"


def strip(monitor: api.Json) -> None:
    """Which table, in whose time, when it was last refreshed, and the button that does it now."""
    table = str(monitor.get("table"))
    left, right = st.columns([6, 1.3], vertical_alignment="center")
    config = frame.load("the monitor", api.monitor, table, absent={}) or {}
    log = config.get("inference_log") or config.get("time_series") or {}
    facts = [f"table {table}"]
    if config.get("baseline_table_name"):
        facts.append(f"compared with {config['baseline_table_name']}")
    if log.get("timestamp_col"):
        facts.append(f"windows in the time of {log['timestamp_col']} (UTC)")
    facts += refreshes(monitor)
    left.caption(words.plain(" · ".join(facts)))
    if right.button("Refresh now", icon=":material/refresh:", width="stretch") and actions.done(
        "The refresh is under way; new numbers appear as it ends.", api.refresh, table
    ):
        st.rerun()
    if under_way(monitor):
        progress(table)
    if monitor.get("failure_message"):
        why = words.plain(monitor["failure_message"])
        st.error(f"The last refresh failed: {why}", icon=":material/error:")


def under_way(monitor: api.Json) -> bool:
    return (monitor.get("last_refresh") or {}).get("state") in ("PENDING", "RUNNING")


@st.fragment(run_every=BEAT_SECONDS)
def progress(table: str) -> None:
    """How far the refresh is; when it has ended the page is drawn with its numbers."""
    try:
        found = api.monitors(frame.client()).get("monitors") or []
    except api.ApiError:
        return  # the dot above says that the server does not answer
    monitor: api.Json = next((m for m in found if m.get("table") == table), {})
    if not under_way(monitor):
        st.rerun()
    last = monitor["last_refresh"]
    done = last.get("progress") or {}
    files, all_files = words.figure(done.get("files_done")), words.figure(done.get("files"))
    began = words.moment(last.get("start_time_ms"))
    said = ["waits its turn" if last["state"] == "PENDING" else "runs"]
    if files is not None and all_files:
        said.append(f"{words.count(files)} of {words.several(all_files, 'file')}")
    if began is not None:
        said.append(words.duration((frame.now() - began).total_seconds()))
    share = (files or 0) / all_files if all_files else 0.0
    st.progress(min(share, 1.0), text=words.plain(f"The refresh {', '.join(said)}"))


def refreshes(monitor: api.Json) -> list[str]:
    """When the numbers were made, and when they are made again."""
    last, found = monitor.get("last_refresh") or {}, []
    if last.get("end_time_ms"):
        found.append(f"refreshed {words.ago(last['end_time_ms'], frame.now())}")
    if monitor.get("next_refresh"):
        found.append(f"next at {words.clock(monitor['next_refresh'])}")
    return found


def lengths(windows: Sequence[Sequence[object]]) -> dict[str, list[int]]:
    """Window numbers by length ("1 day", "7 days"): several granularities are shown apart."""
    found: dict[str, list[int]] = {}
    for place, (start, end) in enumerate(windows):
        first, last = words.moment(start), words.moment(end)
        if first is not None and last is not None:
            found.setdefault(length((last - first).total_seconds()), []).append(place)
    return found


def length(seconds: float) -> str:
    for size, word in ((604_800, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size and seconds % size == 0:
            number = int(seconds // size)
            return f"{number} {word}{'s' if number > 1 else ''}"
    return words.duration(seconds)


def choose_length(windows: Sequence[Sequence[object]], key: str) -> list[int]:
    """Numbers of the windows to show: one granularity, inside the chosen time range, in order.

    The range is counted back from the newest window: a replay of old events has its own now."""
    groups = lengths(windows)
    if not groups:
        return []
    chosen = next(iter(groups))
    if len(groups) > 1:
        chosen = st.segmented_control("Windows of", list(groups), default=chosen, key=key) or chosen
    ends = [words.moment(windows[place][1]) for place in groups[chosen]]
    newest = max(end for end in ends if end is not None)
    start, end = address.bounds(frame.here(), newest)
    places = [p for p in groups[chosen] if inside(windows[p], start, end)]
    return sorted(places, key=lambda p: str(windows[p][0]))


def inside(window: Sequence[object], start: datetime | None, end: datetime | None) -> bool:
    first, last = words.moment(window[0]), words.moment(window[1])
    if first is None or last is None:
        return False
    return (start is None or last > start) and (end is None or first < end)
