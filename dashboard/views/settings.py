"""Who may do what, with what, at what price, and where does it lie?"""

import streamlit as st

from dashboard import api, credentials, frame, pricing, rights, storing

SECTIONS = {
    "tokens": credentials.tokens,
    "users": rights.users,
    "secrets": credentials.secrets,
    "prices": pricing.prices,
    "storage": storing.storage,
}


def main() -> None:
    frame.page("Settings", "Who may do what, at what price, and where does it lie?")
    who: api.Json = st.session_state.get("user") or {}
    section = frame.choice("Section", "section", list(SECTIONS), "tokens")
    if section != "tokens":
        frame.forget_secret("token")
    SECTIONS[section](who)
    st.divider()
    st.page_link(
        "views/alerts.py", label="Receivers of alerts (webhooks)", icon=":material/notifications:"
    )


main()
