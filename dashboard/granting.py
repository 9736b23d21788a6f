"""Who may do what on an endpoint: list, grant, revoke."""

from typing import Any

import streamlit as st

from dashboard import actions, api, frame, words

MOST_ROWS = 100
LEVELS = {
    "CAN_VIEW": "see it, its metrics and its configuration",
    "CAN_QUERY": "also send requests and labels",
    "CAN_MANAGE": "also change and delete it, see payloads, and grant",
}
KINDS = {
    "user": "user_name",
    "group": "group_name",
    "service principal": "service_principal_name",
}
GROUPS = ["users", "admins"]


def draw(endpoint: api.Json) -> None:
    why_not = actions.refused(endpoint)
    endpoint_id = str(endpoint.get("id"))
    reply = frame.load("who may use this endpoint", api.permissions, endpoint_id)
    if reply is None:
        return
    listed = grants(reply)
    st.caption(
        "Each level holds the ones before it: "
        + "; ".join(f"**{words.plain(level)}** may {what}" for level, what in LEVELS.items())
        + "."
    )
    st.dataframe([row(each) for each in listed[:MOST_ROWS]], hide_index=True, key="grants")
    if len(listed) > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS} of {len(listed)}.")
    left, right = st.columns(2, gap="large")
    with left:
        grant(endpoint_id, why_not)
    with right:
        revoke(endpoint, listed, why_not)


def grants(reply: api.Json) -> list[dict[str, Any]]:
    """(kind, who, level, inherited) of each entry of the list. Pure."""
    return [
        {
            "kind": kind,
            "who": str(entry[key]),
            "level": str(permission.get("permission_level")),
            "inherited": bool(permission.get("inherited")),
        }
        for entry in reply.get("access_control_list") or []
        for kind, key in KINDS.items()
        if entry.get(key)
        for permission in entry.get("all_permissions") or []
    ]


def row(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "who": given["who"],
        "kind": given["kind"],
        "may": given["level"],
        "comes from": "being an administrator" if given["inherited"] else "a grant here",
    }


def entry_of(kind: str, who: str, level: str) -> api.Json:
    """A grant as the API takes it. Pure."""
    return {KINDS[kind]: who, "permission_level": level}


def grant(endpoint_id: str, why_not: str | None) -> None:
    st.markdown("#### Grant")
    kind = st.segmented_control("To a", list(KINDS), default="user", key="grant_kind") or "user"
    with st.form("grant", border=False):
        if kind == "group":
            who = st.selectbox("Group", GROUPS, key="grant_group")
        else:
            who = st.text_input("Name", key="grant_who", max_chars=256)
        level = st.selectbox("May", list(LEVELS), index=1, key="grant_level")
        sent = st.form_submit_button(
            "Grant", type="primary", disabled=why_not is not None, help=why_not
        )
    who = str(who or "").strip()
    if sent and not who:
        st.error("Give a name: nothing was granted.")
    elif sent:
        given = entry_of(kind, who, str(level))
        if actions.done(f"{who}: {level}.", api.grant, endpoint_id, [given]):
            st.rerun()


def revoke(endpoint: api.Json, listed: list[dict[str, Any]], why_not: str | None) -> None:
    st.markdown("#### Revoke")
    creator = endpoint.get("creator")
    direct = [each for each in listed if not each["inherited"]]
    others = [each for each in direct if each["who"] != creator]
    if not others:
        st.caption("Nobody but the creator has a grant here; the creator keeps CAN\\_MANAGE.")
        return
    names = [f"{each['who']} ({each['kind']})" for each in others]
    with st.form("revoke", border=False):
        chosen = st.selectbox("Grant of", names, key="revoke_who")
        sent = st.form_submit_button("Revoke", disabled=why_not is not None, help=why_not)
    if sent and chosen:
        gone = others[names.index(str(chosen))]
        kept = [entry_of(e["kind"], e["who"], e["level"]) for e in direct if e is not gone]
        if actions.done(
            f"{gone['who']} has no grant here any more.",
            api.set_permissions,
            str(endpoint.get("id")),
            kept,
        ):
            st.rerun()
