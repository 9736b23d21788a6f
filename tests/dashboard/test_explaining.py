"""The Drift page asks for a report, shows how far it is, and gives it."""

from typing import Any

from streamlit.testing.v1 import AppTest

from dashboard import api, explaining
from tests.dashboard import provider as standin

RUNNING = {
    "id": "job-1",
    "kind": "report",
    "state": "running",
    "stage": "reading the window",
    "done": 3,
    "total": 40,
    "table": standin.TABLE,
    "cancel_requested": False,
    "started_time": "2026-11-01T00:00:00Z",
}
RESULT = {
    "window": standin.window(0),
    "rows": {"current": 1200, "baseline": 3000},
    "drifted": ["temp", "wind_speed"],
}


def told(app: AppTest) -> str:
    parts = [*app.markdown, *app.caption, *app.error, *app.info]
    return "\n".join(str(part.value) for part in parts)


def test_a_report_on_the_open_window_is_asked_for(opened: Any, provider: Any) -> None:
    provider.overrides["/jobs/job-1"] = RUNNING
    app = opened("drift")
    app.button(key="explain").click().run()
    _, path, body = provider.sent[-1]
    assert path == "/api/1.0/reports"
    assert body == {"table": standin.TABLE, "window": standin.drift()["windows"][-1]}
    assert app.query_params["job"] in ("job-1", ["job-1"])
    app.button(key="explain_cancel").click().run()
    assert provider.sent[-1][1] == "/api/1.0/jobs/job-1/cancel"


def test_progress_is_said_in_words() -> None:
    assert explaining.stage(RUNNING).startswith("The report: reading the window, 3 of 40, ")
    waiting = RUNNING | {"state": "queued", "started_time": None}
    assert explaining.stage(waiting) == "The report: waits its turn"
    begun = explaining.stage(RUNNING | {"stage": "", "total": 0})
    assert begun.startswith("The report: starting, ")
    assert "is being cancelled" in explaining.stage(RUNNING | {"cancel_requested": True})


def test_a_finished_report_says_what_it_found_and_can_be_opened(opened: Any, provider: Any) -> None:
    provider.overrides["/jobs/job-1"] = RUNNING | {"state": "succeeded", "result": RESULT}
    provider.overrides["/jobs/job-1/result"] = "<p>the page</p>"
    app = opened("drift", job="job-1")
    said = told(app)
    assert "1,200 rows beside 3,000" in said and "temp, wind" in said
    assert app.get("download_button")
    client = api.Client(provider.url, standin.TOKEN)
    assert api.job_result(client, "job-1") == b"<p>the page</p>"


def test_a_failed_or_cancelled_report_says_so(opened: Any, provider: Any) -> None:
    failed = RUNNING | {"state": "failed", "message": "window: the table has no rows in it."}
    provider.overrides["/jobs/job-1"] = failed
    assert "the table has no rows in it" in told(opened("drift", job="job-1")).replace("\\", "")
    provider.overrides["/jobs/job-1"] = RUNNING | {"state": "cancelled"}
    assert "was cancelled" in told(opened("drift", job="job-1"))


def test_a_report_that_is_gone_or_of_another_table_is_not_shown(opened: Any, provider: Any) -> None:
    provider.modes["/jobs/job-1"] = "gone"
    assert "report" not in told(opened("drift", job="job-1")).lower().replace("a report of", "")
    provider.modes.clear()
    provider.overrides["/jobs/job-1"] = RUNNING | {"table": "main.other.t"}
    app = opened("drift", job="job-1")
    assert not [button for button in app.button if button.key == "explain_cancel"]


def test_an_alert_leads_to_its_window(opened: Any, provider: Any) -> None:
    first = standin.drift()["windows"][0]
    app = opened("drift", window=first[0].replace("Z", "+00:00"), range="all")
    assert app.selectbox(key="drift_window").value == 0
    assert "window" not in app.query_params
