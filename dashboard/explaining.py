"""Explain a window: Evidently's report, made by a job of the server; its progress and its page.

The job stands in the URL (`?job=`), so that a link shows a colleague the same report."""

from typing import Any

import streamlit as st

from dashboard import actions, api, frame, words

BEAT_SECONDS = 2
UNFINISHED = ("queued", "running")


def draw(table: str, window: list[Any], version: str | None) -> None:
    """The button, and the report that was asked for last."""
    given: api.Json = {"table": table, "window": window}
    if version:
        given["served_entity"] = version
    left, right = st.columns([1.4, 5], vertical_alignment="center")
    right.caption(
        "A report of Evidently's on this window beside the baseline, at most 20,000 rows a side; "
        "half a minute or so. It informs; what rings are the monitor's own numbers."
    )
    if left.button("Explain this window", icon=":material/troubleshoot:", key="explain"):
        begin(given)
    actions.as_curl("POST", f"{api.OURS}/reports", given)
    job_id = st.query_params.get("job")
    if job_id:
        job = frame.load("the report", api.job, job_id, absent={})
        if job:
            show(job, table)


def begin(given: api.Json) -> None:
    try:
        st.query_params["job"] = str(api.report(frame.client(), given)["job_id"])
    except api.ApiError as error:
        st.error(words.plain(error.message), icon=":material/error:")
        return
    st.rerun()


def show(job: api.Json, table: str) -> None:
    """Where the job is; of another table nothing."""
    if job.get("table") != table:
        return
    if job.get("state") in UNFINISHED:
        progress(str(job["id"]))
    elif job.get("state") == "succeeded":
        finished(job)
    elif job.get("state") == "cancelled":
        st.info("The report was cancelled.", icon=":material/cancel:")
    else:
        why = words.plain(job.get("message") or "The server does not say why.")
        st.error(f"The report failed: {why}", icon=":material/error:")


@st.fragment(run_every=BEAT_SECONDS)
def progress(job_id: str) -> None:
    """How far the report is; when it has ended the page is drawn with it."""
    try:
        job = api.job(frame.client(), job_id)
    except api.ApiError:
        return  # the dot above says that the server does not answer
    if job.get("state") not in UNFINISHED:
        st.rerun()
    done, total = words.figure(job.get("done")) or 0, words.figure(job.get("total")) or 0
    bar, end = st.columns([6, 1], vertical_alignment="center")
    bar.progress(min(done / total, 1.0) if total else 0.0, text=words.plain(stage(job)))
    if end.button("Cancel", key="explain_cancel", disabled=bool(job.get("cancel_requested"))):
        actions.done("The report ends in a moment.", api.cancel_job, job_id)


def stage(job: api.Json) -> str:
    """`The report: reading the window, 3 of 40, 12 s`."""
    if job["state"] == "queued":
        said = ["waits its turn"]
    else:
        stage = str(job.get("stage") or "starting")
        said = ["is being cancelled" if job.get("cancel_requested") else stage]
        if job.get("total"):
            said.append(f"{words.count(job['done'])} of {words.count(job['total'])}")
    began = words.moment(job.get("started_time") or job.get("created_time"))
    if began is not None:
        said.append(words.duration((frame.now() - began).total_seconds()))
    return f"The report: {', '.join(said)}"


def finished(job: api.Json) -> None:
    result = job.get("result") or {}
    rows = result.get("rows") or {}
    drifted = [str(name) for name in result.get("drifted") or []]
    found = f"Evidently finds drift in {', '.join(drifted[:5])}" if drifted else "no drift"
    more = f" and {len(drifted) - 5} more" if len(drifted) > 5 else ""
    window = result.get("window")
    of = words.window(window) if isinstance(window, list) else "all rows"
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(
            words.plain(
                f"Report on {of}: {words.count(rows.get('current'))} rows beside "
                f"{words.count(rows.get('baseline'))}; {found}{more}."
            ),
            width="stretch",
        )
        client, number = frame.client(), str(job["id"])
        st.download_button(
            "Open the report",
            lambda: api.job_result(client, number),
            file_name=f"drift-report-{number[:8]}.html",
            mime="text/html",
            icon=":material/open_in_new:",
            help="An HTML file that needs no network.",
            key="explain_open",
            on_click="ignore",
        )
