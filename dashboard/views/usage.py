"""Who uses what, and what does it cost?"""

import streamlit as st

from dashboard import actions, address, api, charts, frame, spending, words

MOST_ROWS, MOST_DAYS, TOP_USERS = 100, 1000, 5


def main() -> None:
    frame.page("Usage and cost", "Who uses what, and what does it cost?")
    who, name = st.session_state.get("user") or {}, frame.here().endpoint
    if not who.get("is_admin") and not name:
        name = frame.need_endpoint("its usage")
        if name is None:
            return
    start, end = address.bounds(frame.here(), frame.now())
    asked: api.Json = {"endpoint": name}
    asked |= {"from": minute(address.rfc3339(start)), "to": minute(address.rfc3339(end))}
    days = frame.load("the usage", api.usage, asked | {"by": "day", "page_size": MOST_DAYS})
    if days is None:
        return
    total, currency = days.get("total") or {}, days.get("currency")
    if not total.get("requests") and not total.get("replica_hours"):
        nothing(name)
        return
    for place, (title, value, meaning) in zip(
        st.columns(5), spending.tiles(total, currency), strict=True
    ):
        place.metric(title, value, help=meaning)
    unknown(total)
    found = days.get("usage") or []
    if len(found) > 1:
        st.plotly_chart(spending.by_day(found, currency), config=charts.CONFIG, key="usage_by_day")
    table(asked, currency)


def minute(text: str | None) -> str | None:
    """A time cut to the minute, so that a page that is drawn again asks the same question."""
    return None if text is None else f"{text[:16]}:00Z"


def nothing(name: str | None) -> None:
    if not st.session_state.get("known_endpoints"):
        frame.no_endpoints()
        return
    url = f"{frame.server_url()}/serving-endpoints/{name or 'NAME'}/invocations"
    frame.empty(
        "Nothing was used in this time",
        "No request came and no replica was there. Choose a longer range above, or send a request:",
        actions.curl("POST", url, {"dataframe_records": [{"column": 1}]}),
    )


def unknown(total: api.Json) -> None:
    """Why a cost is not shown, and the next step."""
    reason = total.get("cost_reason")
    if not reason:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"The cost is not known: {words.plain(reason)}.", width="content")
        st.page_link(
            "views/settings.py",
            label="Set prices",
            icon=":material/payments:",
            query_params={"section": "prices"},
        )


def table(asked: api.Json, currency: object) -> None:
    by = frame.choice("By", "by", list(spending.DIMENSIONS), "version")
    names = spending.DIMENSIONS[by]
    more: api.Json = {"by": ",".join(names), "page_size": MOST_ROWS}
    if by != "day":
        more["order_by"] = "requests"
    reply = frame.load(f"the usage by {by}", api.usage, asked | more)
    if reply is None:
        return
    found = reply.get("usage") or []
    order = "by day" if by == "day" else "most requests first"
    said = f"{words.several(len(found), 'row')}, {order}."
    if reply.get("next_page_token"):
        said += f" There are more than {MOST_ROWS}: narrow the range, or ask the API."
    if by == "user":
        said += " Replica-hours are shared out by time in the model."
    st.caption(said)
    rows = [spending.row(one, names, currency) for one in found]
    st.dataframe(rows, hide_index=True, key=f"usage_{by}")
    if by != "user":
        top_users(asked, currency)


def top_users(asked: api.Json, currency: object) -> None:
    more = {"by": "user", "order_by": "requests", "page_size": TOP_USERS}
    reply = frame.load("the top users", api.usage, asked | more)
    found = [one for one in (reply or {}).get("usage") or [] if one.get("user")]
    if found:
        st.markdown("#### Top users")
        rows = [spending.row(one, ("user",), currency) for one in found]
        st.dataframe(rows, hide_index=True, key="usage_top_users")


main()
