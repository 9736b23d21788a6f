"""Section of the Alerts page: who is told, with which secret, and what became of each delivery."""

from typing import Any

import streamlit as st

from dashboard import actions, api, frame, words
from dashboard.credentials import ADMIN_ONLY

EVENTS = (
    "alert.*",
    "recommendation.*",
    "ramp.*",
    "endpoint.*",
    "capture.*",
    "monitor.failed",
)
FORMATS = {
    "standard": "Standard Webhooks: JSON, signed",
    "slack": "Slack: a sentence for a channel",
}
MOST_ROWS = 100


def draw() -> None:
    st.markdown("#### Receivers")
    if not (st.session_state.get("user") or {}).get("is_admin"):
        st.caption(f"Receivers hear of every endpoint. {ADMIN_ONLY}")
        return
    reply = frame.load("the receivers", api.webhooks)
    if reply is None:
        return
    frame.shown_once("webhook", "The receiver checks the signature of every delivery with it.")
    found = (reply.get("webhooks") or [])[:MOST_ROWS]
    if not found:
        frame.empty(
            "Nobody is told",
            "A receiver is an address that gets a signed POST when something happens: an alert "
            "opens, traffic moves, a version is rolled back. Add one below.",
        )
    else:
        st.caption(
            f"{words.several(len(found), 'receiver')}. Select one to test it, to see what became "
            "of its deliveries, or to delete it."
        )
        picked = st.dataframe(
            [row(one) for one in found],
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            key="receivers",
        )
        chosen = picked["selection"]["rows"]
        if chosen:
            one = found[chosen[0]]
            controls(one)
            deliveries(str(one.get("id")))
    new()


def row(receiver: api.Json) -> dict[str, str]:
    return {
        "address": str(receiver.get("url")),
        "told of": ", ".join(str(event) for event in receiver.get("events") or []),
        "form": str(receiver.get("format")),
        "what for": str(receiver.get("description") or words.NOTHING),
        "since": words.clock(receiver.get("created_time")),
    }


def controls(receiver: api.Json) -> None:
    number = str(receiver.get("id"))
    with st.container(horizontal=True):
        if st.button("Send a test", key="receiver_test", icon=":material/send:") and actions.done(
            "A test is on its way; its line below says what became of it.",
            api.test_webhook,
            number,
        ):
            st.rerun()
        if st.button(
            "New secret",
            key="receiver_rotate",
            help="For a day deliveries are signed with both the old and the new one.",
        ):
            remember(receiver, api.rotate_webhook_secret, number)
        with st.popover("Delete"):
            st.caption("Deliveries that wait are dropped with it.")
            if st.button("Delete the receiver", key="receiver_delete") and actions.done(
                "The receiver is deleted.", api.delete_webhook, number
            ):
                st.rerun()


def remember(receiver: api.Json, function: Any, *given: Any) -> None:
    """Do what answers with a secret, and keep that for the next run of the page."""
    try:
        made = function(frame.client(), *given)
    except api.ApiError as error:
        st.error(words.plain(error.message), icon=":material/error:")
        return
    address = words.plain(str(made.get("url") or receiver.get("url")))
    frame.keep_secret("webhook", f"The secret of **{address}**.", made["secret"])
    st.rerun()


@st.fragment(run_every=frame.LIVE_SECONDS)
def deliveries(receiver: str) -> None:
    """The newest deliveries: state, attempts, answer; a failed one can be sent again."""
    reply = frame.load("the deliveries", api.deliveries, receiver)
    if reply is None:
        return
    found = (reply.get("deliveries") or [])[:MOST_ROWS]
    if not found:
        st.caption("Nothing was sent to it yet. Send a test.")
        return
    picked = st.dataframe(
        [delivery_row(one) for one in found],
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"deliveries_{receiver}",
    )
    chosen = picked["selection"]["rows"]
    if not chosen:
        st.caption("Select a delivery to send it again, under the same message id.")
        return
    one = found[chosen[0]]
    if st.button("Send it again", key="redeliver", icon=":material/replay:") and actions.done(
        "It is on its way again.", api.redeliver, receiver, str(one.get("id"))
    ):
        st.rerun()


def delivery_row(delivery: api.Json) -> dict[str, Any]:
    answer = delivery.get("last_status")
    ended = delivery.get("ended_time") or delivery.get("next_attempt_time")
    return {
        "event": str(delivery.get("event")),
        "state": str(delivery.get("state")),
        "attempts": delivery.get("attempts"),
        "answer": str(answer if answer is not None else delivery.get("last_error") or ""),
        "made": words.clock(delivery.get("created_time")),
        "ended, or next try": words.clock(ended) if ended else words.NOTHING,
        "message id": str(delivery.get("message_id")),
    }


def new() -> None:
    with st.expander("New receiver", icon=":material/add:"), st.form("new_receiver", border=False):
        left, right = st.columns([3, 2])
        url = left.text_input("Address", placeholder="https://…", key="receiver_url")
        form = right.selectbox(
            "Form", list(FORMATS), format_func=FORMATS.__getitem__, key="receiver_format"
        )
        left, right = st.columns([3, 2])
        events = left.multiselect(
            "Told of",
            EVENTS,
            default=["alert.*"],
            accept_new_options=True,
            key="receiver_events",
        )
        note = right.text_input("What it is for", key="receiver_note", max_chars=256)
        if st.form_submit_button("Add the receiver", type="primary"):
            asked = {"url": url.strip(), "events": list(events), "format": form}
            if note.strip():
                asked["description"] = note.strip()
            remember(asked, api.create_webhook, asked)
