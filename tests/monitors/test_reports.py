import re
import threading
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from capture import database, errors
from monitors import job_state, jobs, report_rows, reports

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = "main.flights.p_unpacked"
WEEK = [MONDAY.isoformat(), (MONDAY + timedelta(weeks=1)).isoformat()]
TRAINING = {"kind": "training", "table": "main.flights.p_baseline"}
HOSTILE = "</script><script>document.title='stolen'</script>"


def job(lake, **arguments) -> str:
    given = {
        "table": TABLE,
        "window": WEEK,
        "baseline": TRAINING,
        "served_entity": None,
        "slice": None,
        **arguments,
    }
    with database.transaction(lake.engine) as connection:
        return job_state.create(connection, "report", given, "delay", TABLE, "ann", 1)


def done(lake, job_id: str) -> job_state.Job:
    assert jobs.Runner(lake.engine, lake.settings, lambda: True).run_next(threading.Event())
    with database.reading(lake.engine) as connection:
        return job_state.get(connection, job_id)


def refusal(lake, job_id: str) -> str | None:
    """What a report that cannot be made says; it ends before Evidently is loaded."""
    with database.transaction(lake.engine) as connection:
        job_state.start(connection, job_id, 2)
    assert jobs.run(lake.settings, job_id) == "failed"
    with database.reading(lake.engine) as connection:
        return job_state.get(connection, job_id).message


def test_a_report_shows_a_window_beside_its_baseline_and_runs_nothing_of_theirs(lake):
    lake.monitor(baseline_table_name="main.flights.p_baseline")
    lake.baseline(3000)
    frame = lake.rows(MONDAY, 1200, shift=6.0)
    hostile = pl.when(pl.int_range(pl.len()) % 50 == 0).then(pl.lit(HOSTILE)).otherwise("carrier")
    lake.write(frame.with_columns(carrier=hostile))
    lake.write(lake.rows(MONDAY + timedelta(weeks=1), 300))
    lake.done()
    found = done(lake, job(lake))
    assert found.state == "succeeded", found.message
    assert found.result["rows"] == {"current": 1200, "baseline": 3000}
    assert found.result["drifted"][0] == "temp" and "distance" not in found.result["drifted"]
    page = (jobs.folder(lake.settings, found.id) / found.result["file"]).read_text()
    assert HOSTILE not in page and "stolen" in page
    assert "1,200 rows" in page and "table main.flights.p_baseline" in page
    assert "2024-01-01 00:00 to 2024-01-08 00:00 UTC" in page
    assert "Dataset Drift is detected" in page
    # The page itself asks for nothing from outside.
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"?https?:", page)
    assert "default-src 'none'" in page


def test_a_report_without_rows_says_which_side_has_none(lake):
    lake.monitor(baseline_table_name="main.flights.p_baseline")
    lake.write(lake.rows(MONDAY, 300))
    later = [side.replace("2024", "2025") for side in WEEK]
    assert refusal(lake, job(lake, window=later)) == "window: the table has no rows in it."
    assert "does not exist" in refusal(lake, job(lake))
    before = {"kind": "previous", "windows": 1}
    no_rows = "baseline: there are no rows to compare with."
    assert refusal(lake, job(lake, baseline=before)) == no_rows
    assert "no window before" in refusal(lake, job(lake, baseline=before, window=None))


def test_a_sample_is_even_bounded_and_the_same_each_time(lake):
    for week in range(3):
        lake.write(lake.rows(MONDAY + timedelta(weeks=week), 500))
    uri = lake.uri(TABLE)
    steps = []
    everything = report_rows.Wanted("event_time")
    one = report_rows.sample(uri, everything, 300, lambda *step: steps.append(step))
    again = report_rows.sample(uri, everything, 300, lambda *_: None)
    assert (one.found, one.rows.height) == (1500, 300) and steps[-1] == (3, 3)
    assert one.rows.equals(again.rows)
    weeks = one.rows["event_time"].dt.week().value_counts()["count"].to_list()
    assert len(weeks) == 3 and min(weeks) > 70  # 100 each, 8 of standard deviation


def test_only_the_wanted_rows_are_taken(lake):
    for week in range(3):
        lake.write(lake.rows(MONDAY + timedelta(weeks=week), 200, split={"v1": 50, "v2": 50}))
    span = (MONDAY + timedelta(weeks=1), MONDAY + timedelta(weeks=2))
    steps = []
    week = report_rows.Wanted("event_time", span)
    found = report_rows.sample(lake.uri(TABLE), week, 1000, lambda *step: steps.append(step))
    assert found.found == 200 and steps[-1] == (1, 1)  # statistics tell which file it is
    assert found.rows["event_time"].min() >= span[0] and found.rows["event_time"].max() < span[1]
    of_v2 = report_rows.Wanted("event_time", span, ("served_entity_name", "v2"))
    rows = report_rows.sample(lake.uri(TABLE), of_v2, 1000, lambda *_: None).rows
    assert set(rows["served_entity_name"]) == {"v2"} and 0 < rows.height < 200
    cold = report_rows.Wanted("event_time", span, None, ("temp < 10", "true"))
    assert report_rows.sample(lake.uri(TABLE), cold, 1000, lambda *_: None).rows["temp"].max() < 10
    broken = report_rows.Wanted("event_time", span, None, ("colour", "red"))
    with pytest.raises(errors.InvalidParameter, match="colour"):
        report_rows.sample(lake.uri(TABLE), broken, 1000, lambda *_: None)


def test_what_cannot_be_compared_is_left_out_with_its_reason():
    from monitors import watched

    reference = pl.DataFrame({"a": [1.0, None, 3.0], "b": [None, None, None], "c": ["x", "y", "z"]})
    current = pl.DataFrame({"a": [1.0, float("inf"), 2.0], "b": [1.0, 2.0, 3.0]})
    number, text = watched.Column("numeric"), watched.Column("categorical")
    sides = reports.Sides.of(reference, current, {"a": number, "b": number, "c": text})
    assert sides.numeric == ["a"] and sides.current["a"].to_list() == [1.0, None, 2.0]
    assert sides.left_out == {
        "b": "one side has no values",
        "c": "the window does not have it",
    }
    with pytest.raises(errors.InvalidParameter, match="nothing to compare"):
        reports.Sides.of(reference, current, {"c": text})
