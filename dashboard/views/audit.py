"""Who did what, when, from where, and what was it before?"""

from urllib.parse import urlencode

import streamlit as st

from dashboard import actions, address, api, changes, frame, words

MOST_ROWS = 100
KINDS = {
    "everything": None,
    "traffic": "endpoint.*",
    "tokens": "token.*",
    "grants": "grants.*",
    "secrets": "secrets.*",
    "prices": "prices.*",
    "alerts": "alert*",
    "webhooks": "webhook.*",
    "monitors": "monitor.*",
    "experiments": "experiment.*",
    "ramps": "ramp.*",
}


def main() -> None:
    frame.page("Audit", "Who did what, when, from where, and what was it before?")
    who, name = st.session_state.get("user") or {}, frame.here().endpoint
    if not who.get("is_admin") and not name:
        name = frame.need_endpoint("who changed it; only administrators see all changes")
        if name is None:
            return
    filters = chosen(name)
    page = st.query_params.get("before")
    reply = frame.load("the audit", api.audit, filters | {"page_token": page})
    if reply is None:
        return
    found = reply.get("audit") or []
    if not found:
        nothing(bool(page), filters)
        return
    st.caption(
        f"{words.several(len(found), 'change')}, newest first. Select a row to see what changed."
    )
    picked = st.dataframe(
        [changes.row(entry) for entry in found],
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="audit_table",
        column_config={"change": st.column_config.TextColumn(width="large")},
    )
    older(reply.get("next_page_token"), page)
    rows = picked["selection"]["rows"]
    if rows and rows[0] < len(found):
        detail(found[rows[0]])
    take_away(filters)


def chosen(name: str | None) -> api.Json:
    """The filters, all of them in the URL: endpoint and range of the header, action and actor."""
    left, right = st.columns(2)
    kind = frame.pick(left, "What", "what", list(KINDS), "everything")
    actor = frame.entry(right, "Who (exact name)", "who")
    start, end = address.bounds(frame.here(), frame.now())
    filters: api.Json = {"endpoint": name, "action": KINDS[kind], "actor": actor or None}
    return filters | {
        "from": address.rfc3339(start and start.replace(second=0, microsecond=0)),
        "to": address.rfc3339(end and end.replace(second=0, microsecond=0)),
        "page_size": MOST_ROWS,
    }


def nothing(paged: bool, filters: api.Json) -> None:
    if paged:
        st.info("These were the oldest entries.")
        older(None, "")
        return
    frame.empty(
        "No change in this time",
        "Every change of endpoints, traffic, tokens, grants, secrets, prices, alerts and monitors "
        "makes an entry. Choose a longer range above, or another filter; for example:",
        actions.curl("GET", f"{frame.server_url()}/api/1.0/audit?page_size=10"),
    )


def older(token: str | None, page: str | None) -> None:
    """The ways to older and to the newest entries; the place is in the URL."""
    with st.container(horizontal=True):
        if token:
            st.button(
                "Older", key="audit_older", icon=":material/west:", on_click=_go, args=(token,)
            )
        if page is not None:
            st.button("Newest", key="audit_newest", on_click=_go, args=(None,))


def _go(token: str | None) -> None:
    if token is not None:
        st.query_params["before"] = token
    elif "before" in st.query_params:
        del st.query_params["before"]


def detail(entry: api.Json) -> None:
    """One change: who, from where, why, and field by field what it was and became."""
    st.divider()
    st.markdown(f"#### {words.plain(entry.get('action'))}")
    facts = [
        f"{words.clock(entry.get('time'))}, by {entry.get('actor')}",
        f"from {entry.get('address') or 'the server'}",
        f"entry {entry.get('id')}",
    ]
    if entry.get("reason"):
        facts.append(f"reason: {entry['reason']}")
    st.markdown(words.plain(" · ".join(facts)))
    found = changes.fields(entry)
    if not found:
        st.caption("No field changed.")
        return
    shown = found[: changes.MOST_FIELDS]
    st.dataframe(
        [{"field": path, "before": before, "after": after} for path, before, after in shown],
        hide_index=True,
        key="audit_fields",
    )
    if len(found) > len(shown):
        st.caption(f"{len(found) - len(shown)} more fields; the API shows them all.")


def take_away(filters: api.Json) -> None:
    """All entries of the filter as a file, and the request behind this page."""
    asked = {key: value for key, value in filters.items() if value and key != "page_size"}
    with st.expander("Take these entries elsewhere", icon=":material/download:"):
        if st.button("Prepare a CSV file", help="All entries that match."):
            try:
                data = api.audit_file(frame.client(), asked)
            except api.Denied as error:
                frame.denied("the export", error)
            except api.ApiError as error:
                frame.failed("the export", error)
            else:
                st.download_button("Download", data, "audit.csv")
        st.caption("From the API; the same entries stand in the table system.access.audit:")
        query = urlencode(asked)
        st.code(actions.curl("GET", f"{frame.server_url()}/api/1.0/audit?{query}"))


main()
