"""What should I do, and why?"""

from datetime import timedelta

import streamlit as st

from dashboard import actions, address, api, frame, words

KINDS: dict[str, tuple[str, str, frame.Tint]] = {
    "promote": ("Promote", ":material/trending_up:", "green"),
    "shift": ("Shift traffic", ":material/swap_horiz:", "blue"),
    "roll_back": ("Roll back", ":material/undo:", "red"),
    "collect": ("Collect more", ":material/hourglass_top:", "gray"),
    "investigate": ("Investigate", ":material/search:", "orange"),
}
SNOOZES = {"1 hour": 1, "1 day": 24, "1 week": 168}


def main() -> None:
    frame.page("Recommendations", "What should I do, and why?")
    name = frame.here().endpoint
    reply = frame.load("the recommendations", api.recommendations, name, "open")
    if reply is not None:
        found = reply.get("recommendations") or []
        if not found:
            frame.empty(
                "No open recommendation",
                "One appears when an experiment is decided, a guardrail is crossed, or a monitor "
                "finds something worth a look. Nothing has to be done now.",
            )
            if name:
                st.page_link(
                    "views/experiment.py",
                    label="How does the experiment stand?",
                    icon=":material/science:",
                    query_params={"endpoint": name},
                )
        for entry in found:
            card(entry)
    history(name)


def card(entry: api.Json) -> None:
    """One proposal: the action, what it rests on, what it may bring and cost."""
    action = entry.get("action") or {}
    word, icon, tint = KINDS.get(str(action.get("kind")), KINDS["investigate"])
    with st.container(border=True):
        text, buttons = st.columns([4.6, 1.4], gap="large")
        with text:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge(word, icon=icon, color=tint)
                st.markdown(f"**{words.plain(title(entry))}**", width="content")
            evidence(entry)
            when = f"made {words.ago(entry.get('created_time'), frame.now())}"
            if entry.get("expires_time"):
                when += f" · counts until {words.clock(entry['expires_time'])}"
            st.caption(words.plain(when))
        with buttons:
            controls(entry)


def title(entry: api.Json) -> str:
    """The proposal in a sentence."""
    action = entry.get("action") or {}
    entity, name = action.get("served_entity"), entry.get("endpoint")
    split = wanted_split(action)
    if split:
        return f"{name}: {words.split(split)}"
    return f"{name}: {entity}" if entity else str(name)


def wanted_split(action: api.Json) -> actions.Routes:
    """The proposed shares; routes as the contract writes them, or a plain map."""
    given = action.get("routes")
    if isinstance(given, dict):
        return tuple((str(k), float(v)) for k, v in given.items())
    return actions.routes({"traffic_config": {"routes": given or []}})


def evidence(entry: api.Json) -> None:
    """What it rests on, with numbers, and where to look."""
    lines, targets = [], {}
    for fact in entry.get("evidence") or []:
        said = str(fact.get("text") or "")
        if words.figure(fact.get("value")) is not None:
            said += f": {words.amount(fact['value'])}"
        if words.pair(fact.get("interval")):
            said += f" {words.interval(fact['interval'])}"
        lines.append(f"- {words.plain(said)}")
        target = address.link(fact.get("link"))
        if target:
            targets[target[0]] = {"endpoint": str(entry.get("endpoint"))} | target[1]
    for name, fact in (("Expected", "expected_effect"), ("Risk", "risk")):
        if entry.get(fact):
            lines.append(f"- {name}: {words.plain(entry[fact])}")
    st.markdown("\n".join(lines))
    with st.container(horizontal=True):
        for page, query in targets.items():
            name = page.removeprefix("views/").removesuffix(".py")
            st.page_link(page, label=f"See {name}", icon=":material/search:", query_params=query)


def controls(entry: api.Json) -> None:
    action, number = entry.get("action") or {}, str(entry.get("id"))
    if action.get("kind") in ("promote", "shift", "roll_back"):
        apply_button(entry, number)
    with st.popover("Dismiss", width="stretch"), st.form(f"dismiss_{number}", border=False):
        reason = st.text_input("Reason (kept)")
        if st.form_submit_button("Dismiss") and actions.done(
            "Dismissed.", api.dismiss, number, reason
        ):
            st.rerun()
    with st.popover("Snooze", width="stretch"):
        for label, hours in SNOOZES.items():
            until = address.rfc3339(frame.now() + timedelta(hours=hours))
            if st.button(label, key=f"snooze_{number}_{hours}", width="stretch") and actions.done(
                f"Snoozed for {label}.", api.snooze, number, until
            ):
                st.rerun()


def apply_button(entry: api.Json, number: str) -> None:
    endpoint = frame.load("this endpoint", api.endpoint, str(entry.get("endpoint")))
    if endpoint is None:
        return
    config = endpoint.get("config") or {}
    after = wanted_split(entry.get("action") or {})
    known = dict(after)
    before = actions.routes(config)
    change = actions.Change(
        title=f"Apply: {title(entry)}",
        endpoint=str(endpoint["name"]),
        path=api.apply_path(number),
        body={"if_config_version": config.get("config_version")},
        before=before,
        after=tuple((n, known.get(n, 0.0)) for n, _ in before) if after else None,
        config_version=config.get("config_version"),
        evidence=tuple(str(f.get("text")) for f in entry.get("evidence") or []),
    )
    actions.button(
        "Apply…",
        change,
        f"apply_{number}",
        actions.refused(endpoint),
        type="primary",
        width="stretch",
    )


def history(name: str | None) -> None:
    """What was recommended before, and what happened then."""
    reply = frame.load("past recommendations", api.recommendations, name, None)
    past = [r for r in (reply or {}).get("recommendations") or [] if r.get("state") != "open"]
    if not past:
        return
    st.markdown("#### Before")
    rows = [
        {
            "when": words.clock(entry.get("created_time")),
            "recommendation": f"{(entry.get('action') or {}).get('kind')}: {title(entry)}",
            "state": str(entry.get("state")),
            "what happened": outcome(entry.get("outcome")),
        }
        for entry in past
    ]
    st.dataframe(rows, hide_index=True, key="recommendations_history")


def outcome(given: object) -> str:
    """What became of a proposal, in words."""
    if not isinstance(given, dict):
        return str(given or words.NOTHING)
    said = []
    for deed in ("applied", "dismissed"):
        if given.get(f"{deed}_by"):
            at = words.clock(given.get(f"{deed}_time"))
            said.append(f"{deed} by {given[f'{deed}_by']}, {at}")
    if given.get("traffic_percentage") is not None:
        said.append(f"share {given['traffic_percentage']} %")
    said += [str(given[key]) for key in ("reason", "text") if given.get(key)]
    return "; ".join(said) or words.NOTHING


main()
