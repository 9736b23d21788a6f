"""What is wrong now, and which rules watch?"""

from datetime import timedelta
from typing import Any

import streamlit as st

from dashboard import actions, address, api, frame, words

METRICS = (
    "drift",
    "null_share",
    "feature_age_hours",
    "accuracy",
    "log_loss",
    "roc_auc",
    "error_rate",
    "p99_ms",
    "capture_lag_seconds",
)
SIGNS: dict[str, tuple[frame.Tint, str]] = {
    "critical": ("red", ":material/error:"),
    "warning": ("orange", ":material/warning:"),
}
MOST_ALIKE = 6
SERVING = ("error_rate", "p99_ms", "capture_lag_seconds")
MUTES = {"1 hour": 1, "1 day": 24, "1 week": 168}


def main() -> None:
    frame.page("Alerts", "What is wrong now, and which rules watch?")
    st.markdown("#### Open")
    live_open()
    st.markdown("#### Closed")
    closed()
    st.markdown("#### Rules")
    rules()


def mine(entries: list[api.Json]) -> list[api.Json]:
    """Those of the chosen endpoint."""
    chosen = frame.here().endpoint
    return [entry for entry in entries if chosen in (None, entry.get("endpoint"))]


@st.fragment(run_every=frame.LIVE_SECONDS)
def live_open() -> None:
    reply = frame.load("the open alerts", api.alerts, "open")
    if reply is None:
        return
    found = mine(reply.get("alerts") or [])
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
    found = mine(reply.get("alerts") or [])
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


# rules


def rules() -> None:
    reply = frame.load("the alert rules", api.alert_rules)
    if reply is None:
        return
    found = mine(reply.get("alert_rules") or [])
    if not found:
        frame.empty(
            "No rule watches",
            "A rule compares one number with a threshold after every refresh. A new monitor brings "
            "sensible rules with it; add your own below.",
        )
    else:
        st.caption(f"{words.several(len(found), 'rule')}. Select one to switch or delete it.")
        picked = st.dataframe(
            [rule_row(rule) for rule in found],
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            key="alert_rules",
        )
        chosen = picked["selection"]["rows"]
        if chosen:
            rule_controls(found[chosen[0]])
    new_rule()


def rule_row(rule: api.Json) -> dict[str, Any]:
    return {
        "name": str(rule.get("name")),
        "endpoint": str(rule.get("endpoint")),
        "condition": condition(rule),
        "windows": rule.get("windows"),
        "severity": str(rule.get("severity")),
        "on": "on" if rule.get("enabled", True) else "off",
    }


def condition(rule: api.Json) -> str:
    given = rule.get("condition") or {}
    what = words.metric(str(rule.get("metric")))
    where = [str(rule[key]) for key in ("column", "slice", "served_entity") if rule.get(key)]
    about = f" of {', '.join(where)}" if where else ""
    return f"{what}{about} {given.get('operator')} {words.amount(given.get('threshold'))}"


def rule_controls(rule: api.Json) -> None:
    number, on = str(rule.get("id")), bool(rule.get("enabled", True))
    with st.container(horizontal=True):
        if st.button("Switch off" if on else "Switch on", key="rule_switch") and actions.done(
            "The rule is off." if on else "The rule is on.",
            api.change_alert_rule,
            number,
            {"enabled": not on},
        ):
            st.rerun()
        if st.button("Delete", key="rule_delete") and actions.done(
            "The rule is deleted.", api.delete_alert_rule, number
        ):
            st.rerun()


def new_rule() -> None:
    names = sorted(st.session_state.get("known_endpoints", {}))
    if not names:
        return
    chosen = frame.here().endpoint
    with st.expander("New rule", icon=":material/add:"), st.form("new_rule", border=False):
        one, two, three = st.columns(3)
        name = one.text_input("Name", placeholder="late flights")
        endpoint = two.selectbox(
            "Endpoint", names, index=names.index(chosen) if chosen in names else 0
        )
        metric = three.selectbox("Metric", METRICS, format_func=words.metric)
        four, five, six, seven = st.columns(4)
        column = four.text_input("Column (empty: any)")
        operator = five.selectbox("Is", [">", "<"])
        threshold = six.number_input("Threshold", value=0.0, format="%g")
        severity = seven.selectbox("Severity", ["warning", "critical"])
        if st.form_submit_button("Create the rule", type="primary"):
            rule = {
                "name": name.strip() or f"{metric} {operator} {threshold:g}",
                "endpoint": endpoint,
                "metric": metric,
                "condition": {"operator": operator, "threshold": threshold},
                "windows": 1,
                "severity": severity,
                "cool_down_minutes": 0,
                "enabled": True,
            }
            if column.strip():
                rule["column"] = column.strip()
            if actions.done(
                "The rule watches from the next refresh on.", api.create_alert_rule, rule
            ):
                st.rerun()


main()
