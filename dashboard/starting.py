"""How far the start of an endpoint is: which step, what it does, for how long, and why it failed.

The server keeps it all, so a tab that is closed and opened again shows the same."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import streamlit as st

from dashboard import actions, api, frame, words

BEAT_SECONDS = 1
STEPS = ("find the model", "environment", "load and first answer", "ready")
# How messages of the second step begin; the third says `Starting`.
ENVIRONMENT = (
    "The server's environment",
    "Making a Python",
    "Python ",
    "Resolv",
    "Download",
    "Prepar",
    "Install",
    "Build",
    "Environment",
)
PLAIN = ("", "Waiting to start", "Finding the model", "Starting")
BUILDING = "Building its Python environment, "
LOG_LINES, LOG_CHARACTERS, LONGEST_REASON = 40, 20_000, 300


# pure


def step_of(deployment: object, message: object) -> int:
    """Place in STEPS of an entity that starts."""
    text = str(message or "")
    if deployment == "DEPLOYMENT_READY":
        return 3
    if text.startswith(ENVIRONMENT):
        return 1
    return 0 if text.startswith(("Waiting", "Finding")) or not text else 2


def told(entity: Mapping[str, Any], now: datetime) -> str:
    """`step 2 of 4, environment: Resolving packages, for 12 s`."""
    place = step_of(entity.get("deployment"), entity.get("message"))
    message = words.cut(str(entity.get("message") or ""), 160).rstrip(".")
    if place == 3:
        return "answers"
    # Messages that say no more than the step does; that of a build tells its own seconds.
    told_more = "" if message in PLAIN else f": {message}"
    since = words.moment(entity.get("since"))
    timed = since is not None and not message.startswith(BUILDING)
    spent = f", for {words.duration((now - since).total_seconds())}" if timed and since else ""
    return f"step {place + 1} of {len(STEPS)}, {STEPS[place]}{told_more}{spent}"


def ticks(place: int) -> str:
    """All steps in one line: done, here, to come."""
    return " → ".join(
        f"{'✓' if n < place or place == 3 else '●' if n == place else '○'} {step}"
        for n, step in enumerate(STEPS)
    )


def reason(message: str) -> tuple[str, str]:
    """A failure in a sentence, and the lines of the model's log that were told with it.

    Of a traceback the last line says what is wrong: `Served entity 'v1' did not start.
    ValueError: no such column`."""
    head, found, rest = message.partition(" did not start. ")
    if not found:
        head, rest = "", message
    lines = [line.strip() for line in rest.splitlines() if line.strip()]
    last = words.cut(lines[-1] if lines else "It gives no reason.", LONGEST_REASON)
    first = f"{head}{found}{last}"
    return first, rest if len(lines) > 1 or len(rest) > LONGEST_REASON else ""


def is_starting(endpoint: api.Json) -> bool:
    state = endpoint.get("state")
    return isinstance(state, dict) and state.get("config_update") == "IN_PROGRESS"


def has_failed(endpoint: api.Json) -> bool:
    state = endpoint.get("state")
    return isinstance(state, dict) and state.get("config_update") == "UPDATE_FAILED"


def began(endpoint: api.Json) -> datetime | None:
    return words.moment((endpoint.get("pending_config") or {}).get("start_time"))


# drawn


@st.fragment(run_every=BEAT_SECONDS)
def progress(name: str) -> None:
    """The steps of every entity that starts, once a second; draws the page anew at the end."""
    endpoint = frame.load("this endpoint", api.endpoint, name)
    if endpoint is None:
        return
    if not is_starting(endpoint):
        st.rerun()
    st.session_state["starting"] = (name, began(endpoint))
    waiting = endpoint.get("pending_config") or {}
    with st.container(border=True):
        at = began(endpoint)
        spent = words.NOTHING if at is None else words.duration((frame.now() - at).total_seconds())
        number = waiting.get("config_version") or "the next"
        st.markdown(f"**Configuration {words.plain(number)} starts** · {words.plain(spent)} so far")
        reply = frame.load("its replicas", api.replicas, name) or {}
        wanted = {str(e.get("name")) for e in waiting.get("served_entities") or []}
        for entity in reply.get("entities") or []:
            if entity.get("served_entity") in wanted:
                _entity(entity)
        keeps = " The present configuration keeps serving." if endpoint.get("config") else ""
        st.caption(
            "It goes on when this page is closed; the page shows it again whenever you come back."
            + keeps
        )


def _entity(entity: api.Json) -> None:
    place = step_of(entity.get("deployment"), entity.get("message"))
    name = words.plain(entity.get("served_entity"))
    st.progress((place + 1) / len(STEPS), f"**{name}**: {words.plain(told(entity, frame.now()))}")
    st.caption(words.plain(ticks(place)))


def expect(name: str) -> None:
    """Somebody waits for this endpoint: say how long it took once it is ready."""
    st.session_state["starting"] = (name, frame.now())


def has_ended(endpoint: api.Json) -> bool:
    """Whether a start that was watched in this tab is over; leaves a message if it went well.
    Failures stay on the page by themselves."""
    name, at = st.session_state.get("starting") or (None, None)
    if name != endpoint.get("name") or at is None or is_starting(endpoint):
        return False
    del st.session_state["starting"]
    ready, update = actions.state_words(endpoint)
    if ready != "ready" or update:
        return False
    took = words.duration((frame.now() - at).total_seconds())
    frame.say(f"{name} is ready after {took}. A first request: Try it, under Overview.")
    return True


def failure(endpoint: api.Json) -> None:
    """Why the last update failed, with the last lines of the model's log."""
    first, lines = reason(str(endpoint.get("update_message") or "The server gives no reason."))
    keeps = (
        "The configuration before it keeps serving."
        if endpoint.get("config")
        else "Nothing is served yet."
    )
    st.error(
        f"The update failed: {words.plain(first)}  \n{keeps} "
        "Choose another version, or mend the model and register it again.",
        icon=":material/error:",
    )
    if not lines:
        lines = _log_of(endpoint)
    if lines:
        st.caption("The model's last lines (all of them on the tab Logs):")
        kept = "\n".join(lines.splitlines()[-LOG_LINES:])
        st.code(kept[-LOG_CHARACTERS:], language=None, wrap_lines=True)


def _log_of(endpoint: api.Json) -> str:
    for entity in (endpoint.get("pending_config") or {}).get("served_entities") or []:
        if (entity.get("state") or {}).get("deployment") == "DEPLOYMENT_FAILED":
            try:
                name = str(endpoint["name"])
                reply = api.service_logs(frame.client(), name, str(entity.get("name")))
            except api.ApiError:
                return ""
            return str(reply.get("logs") or "")
    return ""
