"""Is this endpoint healthy, and how do I use it?"""

import streamlit as st

from dashboard import (
    actions,
    api,
    charts,
    configuring,
    frame,
    granting,
    happenings,
    metering,
    querying,
    starting,
    stopping,
    words,
)

TABS = ("Overview", "Metrics", "Events", "Logs", "Configuration", "Permissions")
DEPLOYMENT: dict[str, tuple[str, frame.Tint]] = {
    "DEPLOYMENT_CREATING": ("starting", "orange"),
    "DEPLOYMENT_RECOVERING": ("recovering", "orange"),
    "DEPLOYMENT_READY": ("ready", "green"),
    "DEPLOYMENT_FAILED": ("failed", "red"),
    "DEPLOYMENT_ABORTED": ("stopped before it was ready", "gray"),
}


def main() -> None:
    frame.page("Endpoint", "Is this endpoint healthy, and how do I use it?")
    name = frame.need_endpoint("its state")
    if name is None:
        return
    endpoint = frame.load("this endpoint", api.endpoint, name)
    if endpoint is None:
        return
    head(endpoint)
    tab = frame.choice("Part", "tab", TABS, TABS[0], label_visibility="collapsed")
    draw = {
        "Metrics": metering.draw,
        "Events": happenings.events,
        "Logs": happenings.logs,
        "Configuration": configuring.draw,
        "Permissions": granting.draw,
    }
    draw.get(tab, overview)(endpoint)


def head(endpoint: api.Json) -> None:
    """State in plain words, the split, and what can be done."""
    ready, update = actions.state_words(endpoint)
    left, right = st.columns([5, 1.4], vertical_alignment="center")
    with left, st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{words.plain(endpoint['name'])}**", width="content")
        version = (endpoint.get("config") or {}).get("config_version")
        first = starting.is_starting(endpoint) and not version
        if first:
            st.badge("starting", color="orange")
        else:
            st.badge(ready, color="green" if ready == "ready" else "red")
        if update and not first:
            st.badge(update, color="orange")
        st.caption(
            f"{f'configuration {version}' if version else 'no configuration is live yet'} · "
            f"created by {words.plain(endpoint.get('creator') or 'unknown')} · "
            f"changed {words.ago(endpoint.get('last_updated_timestamp'), frame.now())}",
            width="content",
        )
    with right:
        menu(endpoint, actions.refused(endpoint))
    recording(endpoint["name"])
    split = actions.routes(endpoint.get("config"))
    if split:
        st.plotly_chart(charts.traffic([("", split)]), config=charts.CONFIG, key="endpoint_split")


def menu(endpoint: api.Json, why_not: str | None) -> None:
    """Shift, stop, start, delete."""
    with st.popover("Actions", icon=":material/more_vert:", width="stretch"):
        split = actions.routes(endpoint.get("config"))
        if len(split) > 1:
            entity = max(split, key=lambda route: route[1])[0]
            actions.button(
                "Shift traffic…",
                actions.shift(endpoint, entity),
                "endpoint_shift",
                why_not,
                width="stretch",
            )
        stopping.draw(endpoint, why_not)


def overview(endpoint: api.Json) -> None:
    """How it stands, where it is called, and a first request."""
    name = str(endpoint["name"])
    if starting.has_ended(endpoint):
        st.rerun()
    if starting.is_starting(endpoint):
        starting.progress(name)
    elif starting.has_failed(endpoint):
        starting.failure(endpoint)
    entities(endpoint)
    url = (
        endpoint.get("endpoint_url") or f"{frame.server_url()}/serving-endpoints/{name}/invocations"
    )
    st.code(f"POST {url}", language=None, wrap_lines=True)
    querying.draw(endpoint, not_yet(endpoint))


def not_yet(endpoint: api.Json) -> str | None:
    """Why a request would not be answered now, or may not be sent by this person."""
    if endpoint.get("stopped"):
        return "The endpoint is stopped: start it under Actions."
    if not endpoint.get("config"):
        return "No version is ready yet."
    return actions.refused(endpoint, "CAN_QUERY")


def entities(endpoint: api.Json) -> None:
    """Each served entity: what it is, how much it gets, how it stands."""
    config = endpoint.get("config") or endpoint.get("pending_config") or {}
    shares = dict(actions.routes(config))
    found = config.get("served_entities") or []
    if not found:
        frame.empty("No version is served", "Give this endpoint a configuration.")
        return
    for entity in found:
        name = str(entity.get("name"))
        state = entity.get("state") or {}
        word, tint = DEPLOYMENT.get(str(state.get("deployment")), ("unknown", "gray"))
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge(word, color=tint)
            external = entity.get("external_model") or {}
            model = entity.get("entity_name") or external.get("name") or "unknown model"
            version = entity.get("entity_version")
            about = [f"{shares.get(name, 0):g} % of the traffic", str(model)]
            if version:
                about.append(f"version {version}")
            if entity.get("workload_size"):
                about.append(f"size {entity['workload_size']}")
            st.markdown(f"**{words.plain(name)}**", width="content")
            st.caption(words.plain(" · ".join(about)), width="content")
            message, _ = starting.reason(str(state.get("deployment_state_message") or word))
            if message.lower() != word:
                st.caption(words.plain(message), width="content")


@st.fragment(run_every=frame.LIVE_SECONDS)
def recording(name: str) -> None:
    """Where requests are recorded and how far that is, in one line."""
    try:
        reply = frame.recent_capture(frame.client(), name)
    except api.ApiError as error:
        st.caption(words.plain(f"How far the record is cannot be told: {error.message}"))
        return
    if not reply.get("table"):
        st.caption("Requests are not recorded: set auto_capture_config to keep them in a table.")
        return
    if reply.get("failing"):
        st.error(words.plain(f"Requests wait for their table: {reply['failing']}"))
    lag = words.duration(words.figure(reply.get("lag_seconds")))
    facts = [
        f"{'Records' if reply.get('enabled', True) else 'Recorded, until it was switched off,'} "
        f"to {reply['table']}",
        words.several(words.figure(reply.get("committed_rows")) or 0, "request"),
        f"{lag} behind",
    ]
    st.caption(words.plain(" · ".join(facts)))


main()
