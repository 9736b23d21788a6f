"""Section of the settings: users, and what each may do on which endpoint."""

import streamlit as st

from dashboard import actions, api, frame, words
from dashboard.credentials import ADMIN_ONLY

LEVELS = {
    "CAN_VIEW": "CAN_VIEW: see it, its metrics and verdicts",
    "CAN_QUERY": "CAN_QUERY: also send requests and labels",
    "CAN_MANAGE": "CAN_MANAGE: also change it, and read payloads",
    "": "no access",
}


def users(who: api.Json) -> None:
    st.markdown("#### Users and grants")
    st.caption("A user is a name that a token was made for. Without a grant an endpoint is unseen.")
    mine, admin = str(who.get("user") or ""), bool(who.get("is_admin"))
    user = mine
    if admin:
        reply = frame.load("the users", api.tokens) or {}
        known = sorted({str(each.get("user")) for each in reply.get("tokens") or []} | {mine})
        user = st.selectbox(
            "User", known, index=known.index(mine), key="grants_user", accept_new_options=True
        )
    else:
        st.info(
            f"These are your own grants. {ADMIN_ONLY} Whoever manages an endpoint can give access "
            "to it on its Permissions tab.",
            icon=":material/lock:",
        )
    if not user:
        return
    reply = frame.load("the grants of this user", api.grants, user)
    if reply is None:
        return
    found = reply.get("grants") or []
    if found:
        rows = [{"endpoint": str(g.get("endpoint")), "may": str(g.get("level"))} for g in found]
        st.dataframe(rows[:100], hide_index=True, key="grants_table")
    else:
        why = "This user sees no endpoint by a grant of their own; grants to all users come on top."
        if admin and user == mine:
            why = "Administrators see and manage everything."
        frame.empty("No grant", why)
    change(user, found, admin)


def change(user: str, found: list[api.Json], admin: bool) -> None:
    """One form: an endpoint and a level; the other grants stay."""
    names = sorted(st.session_state.get("known_endpoints", {}))
    with st.form("grant"):
        left, middle, right = st.columns([2, 3, 1.2], vertical_alignment="bottom")
        endpoint = left.selectbox("Endpoint", names, key="grant_endpoint", disabled=not admin)
        level = middle.selectbox(
            "May",
            list(LEVELS),
            format_func=LEVELS.__getitem__,
            index=1,
            key="grant_level",
            disabled=not admin,
        )
        pressed = right.form_submit_button(
            "Save",
            type="primary",
            width="stretch",
            disabled=not admin or not names,
            help=None if admin else ADMIN_ONLY,
        )
    if not endpoint:
        return
    kept = [g for g in found if g.get("endpoint") != endpoint]
    wanted = [*kept, {"endpoint": endpoint, "level": level}] if level else kept
    said = f"{user}: {LEVELS[level].partition(':')[0]} on {endpoint}."
    if pressed and actions.done(said, api.put_grants, user, wanted):
        st.rerun()
    if admin:
        path = f"/api/1.0/users/{words.cut(user, 256)}/grants"
        actions.as_curl("PUT", path, {"grants": wanted})
