"""Section of the settings: what an hour of a replica and a thousand requests cost."""

import streamlit as st

from dashboard import actions, api, frame, spending, words
from dashboard.credentials import ADMIN_ONLY

TYPES = (
    "CPU",
    "CPU_MEDIUM",
    "CPU_LARGE",
    "GPU_SMALL",
    "GPU_MEDIUM",
    "GPU_LARGE",
    "GPU_XLARGE",
    "GPU_XLARGE_8",
    "MULTIGPU_MEDIUM",
)
EVERY = "every size"
SIZES = (EVERY, "Small", "Medium", "Large")


def prices(who: api.Json) -> None:
    st.markdown("#### Prices")
    st.caption(
        "What usage is counted with, past usage too. Without prices costs are unknown, not 0."
    )
    reply = frame.load("the prices", api.prices)
    if reply is None:
        return
    admin = bool(who.get("is_admin"))
    if not admin:
        st.info(f"You see the prices. {ADMIN_ONLY}", icon=":material/lock:")
    currency, hours = reply.get("currency"), reply.get("replica_hours") or []
    if reply.get("updated_time"):
        st.caption(
            words.plain(f"Set by {reply.get('updated_by')}, {words.clock(reply['updated_time'])}.")
        )
    else:
        frame.empty("No price is set", "Set the price of a replica-hour, or of requests, below.")
    table(hours, reply.get("per_1000_requests"), currency)
    requests_form(reply, admin)
    hours_form(reply, admin)
    actions.as_curl("PUT", "/api/1.0/prices", body(reply))
    st.page_link("views/usage.py", label="See usage and cost", icon=":material/payments:")


def table(hours: list[api.Json], per_1000: object, currency: object) -> None:
    rows = [
        {
            "what": f"1 hour of a replica, {each.get('workload_type')}, "
            f"{each.get('workload_size') or EVERY}",
            "price": spending.money(each.get("price"), currency),
        }
        for each in hours
    ]
    if per_1000 is not None:
        rows.append({"what": "1,000 requests", "price": spending.money(per_1000, currency)})
    if rows:
        st.dataframe(rows, hide_index=True, key="prices_table")


def body(reply: api.Json, **changed: object) -> api.Json:
    """The whole table with a change: what PUT takes."""
    kept = {name: reply.get(name) for name in ("currency", "replica_hours", "per_1000_requests")}
    return {**kept, "currency": kept["currency"] or "USD", **changed}


def with_hour(reply: api.Json, kind: str, size: str | None, price: float | None) -> api.Json:
    """The table with this price of an hour; None: without it."""
    kept = [
        each
        for each in reply.get("replica_hours") or []
        if (each.get("workload_type"), each.get("workload_size")) != (kind, size)
    ]
    if price is not None:
        kept.append({"workload_type": kind, "workload_size": size, "price": price})
    return body(reply, replica_hours=kept)


def requests_form(reply: api.Json, admin: bool) -> None:
    with st.form("prices_requests"):
        left, middle, right = st.columns([1.5, 3, 1.2], vertical_alignment="bottom")
        currency = left.text_input(
            "Currency",
            str(reply.get("currency") or "USD"),
            max_chars=3,
            disabled=not admin,
            key="price_currency",
        )
        per_1000 = middle.number_input(
            "Price of 1,000 requests (empty: not charged)",
            min_value=0.0,
            value=words.figure(reply.get("per_1000_requests")),
            format="%.4f",
            disabled=not admin,
            key="price_requests",
        )
        pressed = right.form_submit_button(
            "Save", width="stretch", disabled=not admin, help=None if admin else ADMIN_ONLY
        )
    if pressed:
        save(body(reply, currency=currency.strip().upper(), per_1000_requests=per_1000))


def hours_form(reply: api.Json, admin: bool) -> None:
    with st.form("prices_hours"):
        kind_at, size_at, price_at, right = st.columns(
            [2, 1.5, 2, 1.2], vertical_alignment="bottom"
        )
        kind = kind_at.selectbox("Workload type", TYPES, disabled=not admin, key="price_type")
        size = size_at.selectbox("Size", SIZES, disabled=not admin, key="price_size")
        price = price_at.number_input(
            "Price of a replica-hour (empty: remove)",
            min_value=0.0,
            value=None,
            format="%.4f",
            disabled=not admin,
            key="price_hour",
        )
        pressed = right.form_submit_button(
            "Set",
            type="primary",
            width="stretch",
            disabled=not admin,
            help=None if admin else ADMIN_ONLY,
        )
    if pressed:
        save(with_hour(reply, kind, None if size == EVERY else size, price))


def save(table: api.Json) -> None:
    if actions.done("The prices are saved; usage is counted with them.", api.put_prices, table):
        st.rerun()
