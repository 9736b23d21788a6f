"""A rule tried on the past fires when it would have fired."""

from datetime import UTC, datetime, timedelta

import pytest

from capture import database
from monitors import alert_contract, alert_state, alerts, contract, reads, state, trials

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(weeks=1)
TABLE, BASELINE = "main.flights.p_unpacked", "main.flights.p_baseline"


def rule(metric: str, threshold: float = 0.0, windows: int = 1, **changes) -> alert_state.Rule:
    made = alerts.defaults("delay", 0)[0]
    given = {"metric": metric, "threshold": threshold, "windows": windows, **changes}
    return made._replace(**given)


def fact(week: int, value: float | None) -> alerts.Fact:
    window = (MONDAY + week * WEEK).isoformat(), (MONDAY + (week + 1) * WEEK).isoformat()
    return alerts.Fact("ks", "temp", None, value, 900, window, f"temp: KS {value}", "1 week")


def weeks(found: list[dict]) -> list[tuple[str, str | None]]:
    return [(one["opened_time"][:10], (one["closed_time"] or "")[:10] or None) for one in found]


def test_an_alert_opens_closes_and_opens_again() -> None:
    made = [fact(week, value) for week, value in enumerate((0.05, 0.3, 0.4, 0.05, 0.3))]
    found = trials.fired(rule("ks", 0.1), made)
    assert weeks(found) == [("2024-01-15", "2024-01-29"), ("2024-02-05", None)]
    assert found[0]["column"] == "temp" and found[0]["threshold"] == 0.1


def test_a_rule_over_two_windows_waits_for_the_second() -> None:
    made = [fact(week, value) for week, value in enumerate((0.3, 0.05, 0.3, 0.3, None, 0.3))]
    assert weeks(trials.fired(rule("ks", 0.1, windows=2), made)) == [("2024-01-29", None)]


def test_a_disabled_rule_can_be_tried_and_no_rows_fire_nothing() -> None:
    assert weeks(trials.fired(rule("ks", 0.1, enabled=False), [fact(0, 0.3)]))
    assert trials.fired(rule("ks", 0.1), []) == []


@pytest.fixture
def lived(lake):
    """Three weeks, refreshed one by one; `temp` moves in the second and is back in the third."""
    lake.baseline()
    lake.monitor(baseline_table_name=BASELINE)
    for number, shift in enumerate((0.0, 10.0, 0.0)):
        rows = lake.rows(MONDAY + number * WEEK, 900, shift=shift)
        lake.write(rows)
        lake.label(rows)
        lake.done(MONDAY + (number + 1) * WEEK)
    return lake


def tried(lake, one: alert_state.Rule, start: int = 0, end: int = 9) -> list[dict]:
    with database.reading(lake.engine) as connection:
        monitor = state.monitor(connection, TABLE)
    profile_table, drift_table = contract.metric_tables(TABLE, monitor.config)
    asked = {
        "rule": one._asdict(),
        "profile_table": profile_table,
        "drift_table": drift_table,
        "filters": {
            "from": (MONDAY + start * WEEK).isoformat(),
            "to": (MONDAY + end * WEEK).isoformat(),
        },
        **contract.reading_hints(monitor.config),
    }
    return reads.try_rule(lake.settings, asked)


def test_what_a_trial_finds_is_what_the_refreshes_raised(lived):
    with database.reading(lived.engine) as connection:
        raised = alert_state.find_alerts(connection, "delay", None, None)
    raised = sorted((a.column, a.state) for a in raised if a.metric == "drift")
    found = tried(lived, rule("drift"))
    states = sorted((a["column"], "closed" if a["closed_time"] else "open") for a in found)
    assert states == raised and ("temp", "closed") in states
    (temp,) = [one for one in found if one["column"] == "temp"]
    assert temp["opened_time"].startswith("2024-01-15")


def test_the_time_asked_for_bounds_what_is_looked_at(lived):
    assert not [a for a in tried(lived, rule("drift"), start=2) if a["column"] == "temp"]
    assert tried(lived, rule("drift"), start=5) == []


def test_every_metric_whose_past_is_kept_can_be_tried(lived):
    """Against a threshold that everything exceeds."""
    silent = set()
    for metric in alert_contract.ON_THE_PAST:
        found = tried(lived, rule(metric, -1e12))
        assert all(one["metric"] == metric and one["message"] for one in found)
        if not any(isinstance(one["value"], float | int) for one in found):
            silent.add(metric)
    assert silent == {"mae", "mse", "rmse", "mape", "r2"}  # the monitor's problem has none of these
