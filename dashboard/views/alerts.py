"""What is wrong now, which rules watch, and who hears of it?"""

from datetime import timedelta

import streamlit as st

from dashboard import actions, address, api, frame, receivers, rules, words

SIGNS: dict[str, tuple[frame.Tint, str]] = {
    "critical": ("red", ":material/error:"),
    "warning": ("orange", ":material/warning:"),
}
MOST_ALIKE = 6
SERVING = ("error_rate", "p99_ms", "capture_lag_seconds")
MUTES = {"1 hour": 1, "1 day": 24, "1 week": 168}


def main() -> None:
    frame.page("Alerts", "What is wrong now, which rules watch, and who hears of it?")
    st.markdown("#### Open")
    live_open()
    st.markdown("#### Closed")
    closed()
    rules.draw()
    receivers.draw()


@st.fragment(run_every=frame.LIVE_SECONDS)
def live_open() -> None:
    reply = frame.load("the open alerts", api.alerts, "open")
    if reply is None:
        return
    found = rules.mine(reply.get("alerts") or [])
    if not found:
        st.success("No alert is open.", icon=":material/check_circle:")
    for alerts in alike(found):
        group(alerts)


def alike(alerts: list[api.Json]) -> list[list[api.Json]]:
    """Alerts of one endpoint and metric together; the worst first, in and between groups."""
    groups: dict[tuple[str, str], list[api.Json]] = {}
    for alert in sorted(alerts, key=rank):
        key = (str(alert.get("endpoint")), str(alert.get("metric")))
        groups.setdefault(key, []).append(alert)
    return list(groups.values())


def rank(alert: api.Json) -> tuple[bool, bool]:
    return alert.get("severity") != "critical", bool(alert.get("acknowledged"))


def group(alerts: list[api.Json]) -> None:
    first = alerts[0]
    name = f"{first.get('endpoint')}: {words.metric(str(first.get('metric')))}"
    with st.container(border=True):
        st.markdown(f"**{words.plain(name)}** ({words.several(len(alerts), 'alert')})")
        for alert in alerts[:MOST_ALIKE]:
            row(alert)
        if len(alerts) > MOST_ALIKE:
            with st.expander(f"{len(alerts) - MOST_ALIKE} more"):
                for alert in alerts[MOST_ALIKE:]:
                    row(alert)


def row(alert: api.Json) -> None:
    """One alert: what, how much, since when; look into it, acknowledge, mute."""
    tint, icon = SIGNS.get(str(alert.get("severity")), SIGNS["warning"])
    sign, text, look, know, mute = st.columns(
        [1, 6.9, 0.7, 1.4, 1], vertical_alignment="center", gap="small"
    )
    with sign.container(gap="xxsmall"):
        st.badge(str(alert.get("severity") or "warning"), icon=icon, color=tint)
        if alert.get("muted_until"):
            st.badge("muted", color="gray", help=words.clock(alert["muted_until"]))
    with text.container(gap=None):
        st.markdown(words.plain(alert.get("message") or heading(alert)))
        st.caption(words.plain(numbers(alert)))
    with look:
        page, query = place(alert)
        st.page_link(page, label="**Look**", query_params=query)
    with know:
        acknowledge(alert)
    with mute:
        silence(alert)


def place(alert: api.Json) -> tuple[str, dict[str, str]]:
    """Where to look into it."""
    page = "views/quality.py" if quality(alert) else "views/drift.py"
    if str(alert.get("metric")) in SERVING:
        page = "views/endpoint.py"
    query = {"endpoint": str(alert.get("endpoint"))}
    if alert.get("column"):
        query["column"] = str(alert["column"])
    if page == "views/drift.py" and isinstance(alert.get("window"), list):
        query["window"] = str(alert["window"][0])
    return page, query


def quality(alert: api.Json) -> bool:
    return str(alert.get("metric")) in ("accuracy", "log_loss", "roc_auc", "rmse", "mae", "f1")


def heading(alert: api.Json) -> str:
    parts = [words.metric(str(alert.get("metric")))]
    if alert.get("column"):
        parts.append(f"of {alert['column']}")
    if alert.get("slice"):
        parts.append(f"where {alert['slice']}")
    return f"{alert.get('endpoint')}: {' '.join(parts)}"


def numbers(alert: api.Json) -> str:
    """Value against threshold where the message does not say it, n, window, since when."""
    told = []
    if not alert.get("message"):
        told.append(f"value {words.amount(alert.get('value'))}")
        told.append(f"threshold {words.amount(alert.get('threshold'))}")
    if words.figure(alert.get("n")) is not None:
        told.append(f"n {words.count(alert['n'])}")
    window = alert.get("window")
    if isinstance(window, list):
        told.append(f"window {words.window(window)}")
    elif window:
        told.append(f"window {words.clock(window)}")
    told.append(f"open since {words.clock(alert.get('opened_time'))}")
    return " · ".join(told)


def acknowledge(alert: api.Json) -> None:
    number, known = str(alert.get("id")), bool(alert.get("acknowledged"))
    title = "Acknowledged" if known else "Acknowledge"
    if st.button(title, key=f"ack_{number}", disabled=known, type="tertiary") and actions.done(
        "Acknowledged.", api.acknowledge_alert, number
    ):
        st.rerun()


def silence(alert: api.Json) -> None:
    number = str(alert.get("id"))
    with st.popover("Mute", type="tertiary"), st.form(f"mute_{number}", border=False):
        length = st.selectbox("For", list(MUTES), key=f"mute_for_{number}")
        reason = st.text_input("Reason", key=f"mute_why_{number}")
        until = address.rfc3339(frame.now() + timedelta(hours=MUTES[length]))
        if st.form_submit_button("Mute") and actions.done(
            f"Muted for {length}.", api.mute_alert, number, until, reason
        ):
            st.rerun()


def closed() -> None:
    reply = frame.load("the closed alerts", api.alerts, "closed")
    if reply is None:
        return
    found = rules.mine(reply.get("alerts") or [])
    if not found:
        st.caption("No alert has been closed yet.")
        return
    rows = [
        {
            "what": heading(alert),
            "severity": str(alert.get("severity")),
            "opened": words.clock(alert.get("opened_time")),
            "closed": words.clock(alert.get("closed_time")),
            "message": str(alert.get("message") or ""),
        }
        for alert in found
    ]
    st.dataframe(rows, hide_index=True, key="alerts_closed")


main()
