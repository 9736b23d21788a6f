"""Section of the settings: what lies on disk, what waits to be recorded, and how long rows stay."""

import streamlit as st

from dashboard import actions, api, frame, words
from dashboard.credentials import ADMIN_ONLY

GIB = 1 << 30
LOW_DISK, LATE_LOG = 0.05, 0.5


def storage(who: api.Json) -> None:
    st.markdown("#### Storage")
    if who.get("is_admin"):
        health()
    else:
        st.info(f"Disk and log: {ADMIN_ONLY}", icon=":material/lock:")
    reply = frame.load("the tables", api.tables, st.query_params.get("tables"))
    if reply is None:
        return
    found = reply.get("tables") or []
    if not found:
        frame.empty(
            "No table yet",
            "An endpoint writes one when its inference table is switched on: "
            "auto_capture_config in its configuration.",
        )
        return
    rows = [
        {
            "table": str(each.get("full_name")),
            "endpoint": str(each.get("endpoint") or words.NOTHING),
            "written": "yes" if each.get("enabled") else "no longer",
            "keeps rows": kept(each.get("retention_days")),
        }
        for each in found
    ]
    st.dataframe(rows, hide_index=True, key="tables_table")
    if reply.get("next_page_token"):
        st.button("More tables", key="tables_more", on_click=_go, args=(reply["next_page_token"],))
    names = [row["table"] for row in rows]
    siblings = [str(name) for each in found for name in each.get("siblings") or []]
    name = st.selectbox(
        "Look at a table", list(dict.fromkeys([*names, *siblings])), index=None, key="table_name"
    )
    if name:
        table(name)


def _go(token: str) -> None:
    st.query_params["tables"] = token


def kept(days: object) -> str:
    return f"{words.count(days)} days" if days else "for ever"


def size(value: object) -> str:
    """Bytes in the unit that reads best."""
    number = words.figure(value)
    if number is None:
        return words.NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def health() -> None:
    """The log's backlog and the disk, in words that say when something has to be done."""
    reply = frame.load("the storage", api.storage)
    if reply is None:
        return
    waiting, most = words.figure(reply.get("wal_bytes")), words.figure(reply.get("wal_limit_bytes"))
    free, all_ = (words.figure(reply.get(f"disk_{part}_bytes")) for part in ("free", "total"))
    left, right = st.columns(2)
    left.metric(
        "Waits to be recorded",
        size(waiting),
        help="Acknowledged requests in the log that are in no table yet.",
    )
    right.metric("Free on the disk", size(free), help=f"Of {size(all_)}.")
    if waiting and most and waiting / most >= LATE_LOG:
        st.error(
            f"The record is behind: {words.percent(waiting / most)} of what may wait. At 100 % "
            "requests are refused. `inferlake doctor` says why.",
            icon=":material/error:",
        )
    if free is not None and all_ and (free / all_ < LOW_DISK or free < 2 * GIB):
        st.error(
            "The disk is nearly full. Keep fewer days below, or move the data directory.",
            icon=":material/hard_drive:",
        )
    st.caption("`inferlake doctor` looks at everything that can be wrong, on the server's machine.")


def table(name: str) -> None:
    """One table: what is in it, its last maintenance, how long its rows stay."""
    reply = frame.load("this table", api.table, name)
    if reply is None:
        return
    if not reply.get("exists"):
        st.caption("It has not been written yet.")
        return
    versions = reply.get("versions") or {}
    facts = [
        ("Files", words.count(reply.get("files"))),
        ("Size", size(reply.get("bytes"))),
        ("Rows", words.count(reply.get("rows"))),
        (
            "Version",
            words.count(versions.get("newest") if isinstance(versions, dict) else versions),
        ),
    ]
    for place, (title, value) in zip(st.columns(len(facts)), facts, strict=True):
        place.metric(title, value)
    last = reply.get("last_maintenance") or {}
    done = words.clock(last.get("time")) if last.get("time") else "not yet"
    st.caption(words.plain(f"Last maintenance: {done}. It runs by itself."))
    keeping(name, reply.get("retention_days"))


def keeping(name: str, days: object) -> None:
    with st.form("retention"):
        left, middle, right = st.columns([3, 1.2, 1.4], vertical_alignment="bottom")
        number = words.figure(days)
        wanted = left.number_input(
            "Keep rows for this many days (empty: for ever)",
            min_value=1,
            max_value=36_500,
            value=None if number is None else int(number),
            key="retention_days",
        )
        pressed = middle.form_submit_button("Save", type="primary", width="stretch")
        now = right.form_submit_button("Maintain now", width="stretch")
    if wanted is not None and (number is None or wanted < number):
        st.caption(
            "Rows of days that are closed longer than that are dropped, and do not come back."
        )
    if pressed and actions.done(
        f"{name} keeps rows {'for ever' if wanted is None else f'for {wanted} days'}.",
        api.keep_days,
        name,
        wanted,
    ):
        st.rerun()
    if now and actions.done(f"{name} was looked after.", api.maintain, name):
        st.rerun()
    actions.as_curl("PATCH", f"/api/1.0/tables/{name}", {"retention_days": wanted})
