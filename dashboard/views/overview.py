"""What needs me?"""

import streamlit as st

from dashboard import actions, address, api, charts, frame, words

MOST_ITEMS, MOST_ROWS = 12, 10
MOST_ALIKE, MOST_NAMES = 2, 6
SIGNS: dict[str, tuple[frame.Tint, str, str]] = {
    "critical": ("red", ":material/error:", "critical"),
    "warning": ("orange", ":material/warning:", "warning"),
    "info": ("blue", ":material/info:", "info"),
}
KINDS = {
    "recommendation": "recommendation",
    "alert": "alert",
    "endpoint": "endpoint",
    "monitor": "monitor",
}
FALLBACKS = {
    "recommendation": "views/recommendations.py",
    "alert": "views/alerts.py",
    "endpoint": "views/endpoint.py",
    "monitor": "views/drift.py",
}


def main() -> None:
    frame.page("Overview", "What needs me?")
    live()


@st.fragment(run_every=frame.LIVE_SECONDS)
def live() -> None:
    """Inbox and endpoints; read again every few seconds."""
    reply = frame.load("the overview", frame.recent_overview)
    if reply is None:
        return
    chosen = frame.here().endpoint
    endpoints = [e for e in reply.get("endpoints", []) if chosen in (None, e.get("name"))]
    inbox(reply.get("inbox", []), bool(endpoints))
    st.markdown("#### Endpoints")
    if not endpoints:
        frame.no_endpoints()
        return
    for endpoint in endpoints[:MOST_ROWS]:
        row(endpoint)
    if len(endpoints) > MOST_ROWS:
        st.page_link(
            "views/endpoints.py", label=f"All {len(endpoints)} endpoints", icon=":material/dns:"
        )


def inbox(items: list[api.Json], has_endpoints: bool) -> None:
    """Open recommendations, alerts, endpoints and monitors in trouble: the worst first."""
    if not items:
        if has_endpoints:
            st.success(
                "Nothing needs you: no open recommendation, no alert, every endpoint is ready.",
                icon=":material/check_circle:",
            )
        return
    shown = gathered(items)
    for item in shown[:MOST_ITEMS]:
        entry(item)
    if len(shown) > MOST_ITEMS:
        st.caption(f"{len(shown) - MOST_ITEMS} more: see Alerts and Recommendations.")


def gathered(items: list[api.Json]) -> list[api.Json]:
    """Items of one kind, severity and place become one where they are more than a few."""
    groups: dict[tuple[str, ...], list[api.Json]] = {}
    for item in items:
        key = tuple(str(item.get(field)) for field in ("kind", "severity", "link"))
        groups.setdefault(key, []).append(item)
    found = []
    for group in groups.values():
        found += [together(group)] if len(group) > MOST_ALIKE else group
    return found


def together(group: list[api.Json]) -> api.Json:
    """One item for many: how many, of what, and the first names."""
    first = group[0]
    owner, _, _ = str(first.get("title")).partition(": ")
    names = [str(item.get("title")).partition(": ")[2] or str(item.get("title")) for item in group]
    listed = ", ".join(names[:MOST_NAMES]) + (" …" if len(names) > MOST_NAMES else "")
    kind = KINDS.get(str(first.get("kind")), "note")
    times = [str(item["time"]) for item in group if item.get("time")]
    return first | {
        "title": f"{owner}: {words.several(len(group), kind)}",
        "text": listed,
        "time": max(times, default=None),
    }


def entry(item: api.Json) -> None:
    tint, icon, word = SIGNS.get(str(item.get("severity")), SIGNS["info"])
    kind = str(item.get("kind"))
    with st.container(border=True):
        sign, text, when, go = st.columns([1.9, 6, 1.3, 0.9], vertical_alignment="center")
        sign.badge(word if kind == "alert" else KINDS.get(kind, "note"), icon=icon, color=tint)
        with text.container(gap=None):
            st.markdown(f"**{words.plain(item.get('title', ''))}**")
            if item.get("text"):
                st.caption(words.plain(item["text"]))
        when.caption(words.ago(item.get("time"), frame.now()))
        target = address.link(item.get("link"))
        page, query = target or (FALLBACKS.get(kind, "views/alerts.py"), {})
        go.page_link(page, label="**Open**", query_params=query)


def row(endpoint: api.Json) -> None:
    """One endpoint: state, split, speed, errors, drift, labels."""
    name = str(endpoint.get("name"))
    with st.container(border=True):
        title, bar, *cells, go = st.columns(
            [1.8, 3, 0.9, 0.9, 0.9, 1.7, 0.9, 0.9], vertical_alignment="center"
        )
        with title.container(gap="xxsmall"):
            st.markdown(f"**{words.plain(name)}**")
            state(endpoint)
        split = [
            (str(e.get("name")), words.figure(e.get("percentage")) or 0.0)
            for e in endpoint.get("entities") or []
        ]
        bar.plotly_chart(charts.traffic([("", split)]), config=charts.CONFIG, key=f"split_{name}")
        drift = endpoint.get("worst_drift") or {}
        numbers = [
            ("req/s", words.amount(endpoint.get("requests_per_second"))),
            ("p99", words.amount(endpoint.get("p99_ms"), "ms")),
            ("errors", words.percent(endpoint.get("error_rate"))),
            ("drift / limit", drift_words(drift)),
            ("labelled", words.percent(endpoint.get("label_coverage"))),
        ]
        for cell, (caption, value) in zip(cells, numbers, strict=True):
            with cell.container(gap=None):
                st.caption(caption)
                st.markdown(f"**{words.plain(value)}**")
        go.page_link("views/endpoint.py", label="**Open**", query_params={"endpoint": name})


def drift_words(drift: api.Json) -> str:
    effect = words.figure(drift.get("effect"))
    if effect is None:
        return words.NOTHING
    return f"{drift.get('column')} {effect:.1f}×"


def state(endpoint: api.Json) -> None:
    """The state of an endpoint as a word with a colour."""
    ready, update = actions.state_words(endpoint)
    tint: frame.Tint = "green" if ready == "ready" else "red"
    st.badge(ready, color=tint)
    if update:
        st.badge(update, color="orange")


main()
