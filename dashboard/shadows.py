"""The version in the shadow: what became of its copies, how it compares, and its controls."""

import streamlit as st

from dashboard import actions, api, frame, words

LOOKS: dict[str, tuple[str, frame.Tint, str]] = {
    "ready": ("Ready for a first share", "green", ":material/check:"),
    "hold": ("Hold", "orange", ":material/pause_circle:"),
}
COLLECTING: tuple[str, frame.Tint, str] = ("Keep collecting", "blue", ":material/hourglass_top:")
WHY = {"queue_full": "it was busy", "not_ready": "it had no replica", "not_recorded": "no record"}


def draw(endpoint: api.Json) -> None:
    """The section of an endpoint; nothing where it has no second version."""
    name, why_not = str(endpoint["name"]), actions.refused(endpoint)
    entities = [entity for entity, _ in actions.routes(endpoint.get("config"))]
    if len(entities) < 2:
        return
    st.markdown("#### In the shadow")
    shadow = frame.load("the shadow", api.shadow, name, absent={})
    if shadow is None:
        return
    if not shadow.get("served_entity"):
        begin(name, entities, why_not)
        return
    comparison = shadow.get("comparison") or {}
    with st.container(border=True):
        verdict(shadow, comparison)
        if comparison.get("requests"):
            st.dataframe(sides(comparison), hide_index=True, key="shadow_sides")
        st.caption(words.plain(" · ".join(facts(shadow, comparison))))
    off = st.button("Copy no more", disabled=why_not is not None, help=why_not, key="shadow_end")
    if off and actions.done("No more requests are copied.", api.delete_shadow, name):
        st.rerun()


def verdict(shadow: api.Json, comparison: api.Json) -> None:
    """At most ready for a first share: behind a copy waits no user."""
    if shadow.get("state") == "paused":
        st.badge("Paused", icon=":material/pause:", color="gray")
        st.markdown(f"**{words.plain(shadow.get('message') or '')}**")
        return
    title, tint, icon = LOOKS.get(str(comparison.get("action")), COLLECTING)
    st.badge(title, icon=icon, color=tint)
    said = comparison.get("summary") or "Nothing to compare with yet."
    st.markdown(f"**{words.plain(said)}**")


def facts(shadow: api.Json, comparison: api.Json) -> list[str]:
    """What stands below the verdict, in words."""
    copies = shadow.get("copies") or {}
    share = f"{words.amount(shadow.get('sample_percentage'))} % of the requests"
    said = [f"{shadow['served_entity']} gets copies of {share}"]
    if comparison.get("requests"):
        said.append(f"{words.count(comparison['requests'])} compared")
    if words.figure(comparison.get("agreement")) is not None:
        said.append(f"{words.percent(comparison['agreement'])} answered alike")
    difference = comparison.get("prediction_difference") or {}
    if words.pair(difference.get("interval_95")):
        mean = words.signed(difference.get("mean"))
        ends = words.interval(difference["interval_95"])
        said.append(f"answers differ by {mean} {ends} on average")
    dropped = copies.get("dropped") or {}
    for why, count in dropped.items():
        said.append(f"{words.count(count)} copies dropped, as {WHY.get(why, why)}")
    return [*said, "no client ever sees these answers"]


def sides(comparison: api.Json) -> list[dict[str, str]]:
    """A row a version: its metric, its failures, how long its model takes."""
    metric = comparison.get("metric") or {}
    named = words.metric(str((comparison.get("primary") or {}).get("name")))
    found = []
    for role in ("champion", "challenger"):
        version = str(comparison.get(role))
        found.append(
            {
                "version": version,
                named: words.amount((metric.get("value") or {}).get(version)),
                "failed": words.percent((comparison.get("error_rate") or {}).get(version)),
                "model time, p95": words.amount(
                    (comparison.get("latency_ms") or {}).get(version), "ms"
                ),
            }
        )
    return found


def begin(name: str, entities: list[str], why_not: str | None) -> None:
    """The form that has requests copied."""
    st.caption(
        "A version in the shadow answers copies of the requests after the client has its answer. "
        "Its answers are recorded and compared, and nobody sees them."
    )
    with st.expander("Try a version in the shadow", icon=":material/visibility_off:"):
        with st.form("shadow", border=False):
            left, right = st.columns(2)
            entity = left.selectbox("Version", entities, index=len(entities) - 1)
            share = right.number_input("Percent of the requests", 0.01, 100.0, 100.0)
            sent = st.form_submit_button("Copy", disabled=why_not is not None, help=why_not)
        body = {"served_entity": entity, "sample_percentage": float(share)}
        actions.as_curl("PUT", f"{api.OURS}/endpoints/{name}/shadow", body)
        if sent and actions.done("Requests are copied.", api.put_shadow, name, body):
            st.rerun()
