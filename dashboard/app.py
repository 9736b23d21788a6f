"""Navigation: one page per question, in groups; every page stands in the same frame.

The pages lie in `views`: beside a folder called `pages` Streamlit would serve the first deep link
after a start from there, without this script and so without sign-in and frame.
"""

import streamlit as st

from dashboard import actions, api, frame, words

st.set_page_config(
    page_title="inferlake",
    page_icon="🌊",
    layout="wide",
    initial_sidebar_state=215,
)

GROUPS = {
    "Now": [
        st.Page("views/overview.py", title="Overview", icon=":material/home:", default=True),
        st.Page("views/alerts.py", title="Alerts", icon=":material/notifications:"),
    ],
    "Serve": [
        st.Page("views/endpoints.py", title="Endpoints", icon=":material/dns:"),
        st.Page("views/endpoint.py", title="Endpoint", icon=":material/deployed_code:"),
        st.Page("views/create.py", title="New endpoint", icon=":material/add_circle:"),
        st.Page("views/usage.py", title="Usage and cost", icon=":material/payments:"),
    ],
    "Watch": [
        st.Page("views/requests.py", title="Requests", icon=":material/list_alt:"),
        st.Page("views/drift.py", title="Drift", icon=":material/ssid_chart:"),
        st.Page("views/quality.py", title="Quality", icon=":material/verified:"),
    ],
    "Decide": [
        st.Page("views/experiment.py", title="Experiment", icon=":material/science:"),
        st.Page("views/recommendations.py", title="Recommendations", icon=":material/lightbulb:"),
    ],
    "Operate": [
        st.Page("views/audit.py", title="Audit", icon=":material/history:"),
        st.Page("views/settings.py", title="Settings", icon=":material/settings:"),
    ],
}


def whoami() -> None:
    """Who is signed in where, and the way out."""
    if "user" not in st.session_state:
        try:
            st.session_state["user"] = api.me(frame.client())
        except api.ApiError:
            return
    user = st.session_state["user"]
    with st.sidebar:
        name = words.plain(user.get("user") or user.get("name") or "unknown")
        where = frame.server_url().partition("://")[2]
        st.caption(f"Signed in as **{name}** at {words.plain(where)}")
        st.button("Sign out", on_click=frame.sign_out, type="tertiary", icon=":material/logout:")


def main() -> None:
    has_token = bool(st.session_state.get("token") or "code" in st.query_params)
    page = st.navigation(GROUPS, position="sidebar" if has_token else "hidden", expanded=True)
    if not frame.signed_in():
        return
    whoami()
    frame.header()
    page.run()
    actions.pending()


main()
