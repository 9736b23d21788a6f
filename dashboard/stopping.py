"""Stop, start and delete an endpoint; its name is typed before it goes."""

from typing import Any

import streamlit as st

from dashboard import actions, api, frame


def draw(endpoint: api.Json, why_not: str | None) -> None:
    """The buttons, disabled with the reason where the right is missing."""
    name = str(endpoint["name"])
    stop, start = st.columns(2)
    look: dict[str, Any] = {"width": "stretch"}
    is_stopped = bool(endpoint.get("stopped"))
    no = why_not or ("It is stopped already." if is_stopped else None)
    stopped = f"{name} is stopped: queries answer 400."
    if stop.button("Stop", disabled=no is not None, help=no, **look) and actions.done(
        stopped, api.stop_endpoint, name
    ):
        st.rerun()
    no = why_not or (None if is_stopped else "It is not stopped.")
    if start.button("Start", disabled=no is not None, help=no, **look) and actions.done(
        f"{name} starts.", api.start_endpoint, name
    ):
        st.rerun()
    with st.form("delete_endpoint", border=False):
        typed = st.text_input("To delete, type the endpoint's name")
        sent = st.form_submit_button("Delete", disabled=why_not is not None, help=why_not)
    if sent and typed.strip() != name:
        st.error("The name is not the endpoint's: nothing was deleted.")
    elif sent and actions.done(f"{name} is deleted; its tables stay.", api.delete_endpoint, name):
        frame.forget_endpoint()
        st.switch_page("views/endpoints.py")
