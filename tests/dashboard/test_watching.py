"""Windows of one length, inside the range that the person chose."""

from typing import Any

from dashboard import watching
from tests.dashboard import provider as standin


def test_windows_are_told_apart_by_their_length() -> None:
    day = ["2013-07-01T00:00:00Z", "2013-07-02T00:00:00Z"]
    week = ["2013-07-01T00:00:00Z", "2013-07-08T00:00:00Z"]
    assert watching.lengths([day, week, week]) == {"1 day": [0], "1 week": [1, 2]}


def test_a_length_is_said_in_its_unit() -> None:
    assert watching.length(1_800) == "30 minutes"
    assert watching.length(1_209_600) == "2 weeks"
    assert watching.length(2_592_000) == "30 days"


def test_a_window_that_is_no_window_is_left_out() -> None:
    assert watching.lengths([[None, None], ["x", "y"]]) == {}
    assert not watching.inside(["x", "y"], None, None)


def test_a_refresh_that_runs_shows_how_far_it_is(opened: Any, provider: Any) -> None:
    last = {
        "state": "RUNNING",
        "start_time_ms": standin.now().timestamp() * 1000,
        "progress": {"files": 4, "files_done": 1},
    }
    running = standin.MONITOR | {"last_refresh": last}
    provider.overrides["/api/1.0/monitors"] = {"monitors": [running]}
    app = opened("drift")
    bar = app.get("progress")[0]
    assert bar.value == 25
    assert "1 of 4 files" in bar.text.replace("\\", "")


def test_nothing_is_told_of_refreshes_that_never_were() -> None:
    assert watching.refreshes({}) == []
