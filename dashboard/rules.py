"""Section of the Alerts page: which rules watch, what they would have said, and a new one."""

from datetime import datetime, timedelta
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
PASTS = {"7 days": 7, "30 days": 30, "1 year": 365}
MOST_ROWS = 100


def mine(entries: list[api.Json]) -> list[api.Json]:
    """Those of the chosen endpoint."""
    chosen = frame.here().endpoint
    return [entry for entry in entries if chosen in (None, entry.get("endpoint"))]


def draw() -> None:
    st.markdown("#### Rules")
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
        number = words.several(len(found), "rule")
        st.caption(f"{number}. Select one to try it on the past, switch it or delete it.")
        picked = st.dataframe(
            [row(rule) for rule in found[:MOST_ROWS]],
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            key="alert_rules",
        )
        chosen = picked["selection"]["rows"]
        if chosen:
            controls(found[chosen[0]])
    new()


def row(rule: api.Json) -> dict[str, Any]:
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


def controls(rule: api.Json) -> None:
    number, on = str(rule.get("id")), bool(rule.get("enabled", True))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        past = st.selectbox("The last", list(PASTS), index=1, key="rule_past", width=140)
        tried = st.button("Try it on the past", key="rule_try", icon=":material/history:")
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
    if tried:
        on_the_past(rule, past)


def on_the_past(rule: api.Json, past: str) -> None:
    """The alerts that the rule would have opened. The days are counted back from the monitor's
    newest window: a replay of old events has its own now."""
    end = newest(str(rule.get("endpoint"))) or frame.now()
    span = {
        "from": address.rfc3339(end - timedelta(days=PASTS[past])),
        "to": address.rfc3339(end),
    }
    try:
        found = api.try_alert_rule(frame.client(), str(rule.get("id")), span).get("alerts") or []
    except api.ApiError as error:
        st.error(words.plain(error.message), icon=":material/error:")
        return
    st.markdown(
        f"It would have fired **{words.several(len(found), 'time')}** in the {past} up to "
        f"{words.plain(words.clock(end))}."
    )
    rows = [
        {
            "opened": words.clock(alert.get("opened_time")),
            "closed": words.clock(alert["closed_time"]) if alert.get("closed_time") else "open",
            "value": words.amount(alert.get("value")),
            "threshold": words.amount(alert.get("threshold")),
            "message": str(alert.get("message") or ""),
        }
        for alert in found[:MOST_ROWS]
    ]
    if rows:
        st.dataframe(rows, hide_index=True, key="rule_fired")


def newest(endpoint: str) -> datetime | None:
    """The end of the newest window that a monitor of the endpoint has judged."""
    try:
        monitors = api.monitors(frame.client()).get("monitors") or []
    except api.ApiError:
        return None  # the try itself says what is wrong
    windows = [m.get("window") for m in monitors if m.get("endpoint") == endpoint]
    ends = [words.moment(window[1]) for window in windows if isinstance(window, list)]
    return max((end for end in ends if end is not None), default=None)


def new() -> None:
    names = sorted(st.session_state.get("known_endpoints", {}))
    if not names:
        return
    chosen = frame.here().endpoint
    with st.expander("New rule", icon=":material/add:"), st.form("new_rule", border=False):
        one, two, three = st.columns(3)
        name = one.text_input("Name", placeholder="late flights", max_chars=256)
        endpoint = two.selectbox(
            "Endpoint", names, index=names.index(chosen) if chosen in names else 0
        )
        metric = three.selectbox("Metric", METRICS, format_func=words.metric)
        one, two, three = st.columns(3)
        where = {
            "column": one.text_input("Column (empty: any)", key="rule_column"),
            "slice": two.text_input(
                "Slice (empty: all rows)",
                key="rule_slice",
                placeholder="carrier=AA",
                help="A slicing expression of the monitor, for each of its values, or with =value.",
            ),
            "served_entity": three.text_input("Version (empty: any)", key="rule_version"),
        }
        one, two, three, four, five = st.columns(5)
        operator = one.selectbox("Is", [">", "<"])
        threshold = two.number_input("Threshold", value=0.0, format="%g")
        windows = three.number_input("For so many windows", 1, 100, 1, key="rule_windows")
        severity = four.selectbox("Severity", ["warning", "critical"])
        enabled = five.selectbox(
            "At first",
            ["on", "off"],
            help="Off: try it on the past first, then switch it on.",
            key="rule_enabled",
        )
        if st.form_submit_button("Create the rule", type="primary"):
            rule = {
                "name": name.strip() or f"{metric} {operator} {threshold:g}",
                "endpoint": endpoint,
                "metric": metric,
                "condition": {"operator": operator, "threshold": threshold},
                "windows": int(windows),
                "severity": severity,
                "cool_down_minutes": 0,
                "enabled": enabled == "on",
                **{key: text.strip() for key, text in where.items() if text.strip()},
            }
            said = "The rule watches from the next refresh on."
            if not rule["enabled"]:
                said = "The rule is there, and off. Select it to try it on the past."
            if actions.done(said, api.create_alert_rule, rule):
                st.rerun()
