"""What needs me?"""

import streamlit as st

from dashboard import actions, address, api, charts, frame, words

MOST_ITEMS, MOST_ROWS = 12, 10
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
    for place, item in enumerate(items[:MOST_ITEMS]):
        entry(item, place)
    if len(items) > MOST_ITEMS:
        st.caption(f"{len(items) - MOST_ITEMS} more: see Alerts and Recommendations.")


def entry(item: api.Json, place: int) -> None:
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
            ("worst drift", drift_words(drift)),
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
    return f"{drift.get('column')} {effect:.1f} × limit"


def state(endpoint: api.Json) -> None:
    """The state of an endpoint as a word with a colour."""
    ready, update = actions.state_words(endpoint)
    tint: frame.Tint = "green" if ready == "ready" else "red"
    st.badge(ready, color=tint)
    if update:
        st.badge(update, color="orange")


main()
