import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import database, outbox
from capture.settings import Settings
from monitors import alert_state, alerts

DAY = 86_400_000


def rule(metric="null_share", threshold=0.25, **changes):
    made = next(r for r in alerts.defaults("delay", 0) if r.metric == "null_share")
    return made._replace(metric=metric, threshold=threshold, **changes)


def fact(value, week=1, column="temp", n=500, **changes):
    window = (f"2024-01-{week:02d}T00:00:00+00:00", f"2024-01-{week + 1:02d}T00:00:00+00:00")
    values = {
        "metric": "null_share", "column": column, "served_entity": None, "value": value, "n": n,
        "window": window, "text": f"{column} is null in {value} of {n} rows",
        "granularity": "1 day",
    }  # fmt: skip
    return alerts.Fact(**(values | changes))


@pytest.fixture
def engine(tmp_path):
    settings = Settings(data_dir=tmp_path)
    database.migrate(settings)
    engine = database.open_engine(settings)
    yield engine
    engine.dispose()


def judged(engine, rules, facts, now_ms):
    with database.transaction(engine) as connection:
        alerts.apply(connection, rules, facts, "delay", now_ms)
    with database.transaction(engine) as connection:
        events = outbox.waiting(connection)
        outbox.mark_dispatched(connection, [event.id for event in events])
        return [event.type for event in events], alert_state.find_alerts(connection, "delay")


def test_one_cause_is_one_alert_from_its_opening_to_its_recovery(engine):
    rules = [rule()]
    told, found = judged(engine, rules, [fact(0.9)], 1)
    assert told == ["alert.opened"] and len(found) == 1 and found[0].state == "open"
    assert found[0].value == 0.9 and found[0].n == 500 and found[0].threshold == 0.25
    assert "temp is null in 0.9 of 500 rows; more than 0.25 is an alert." in found[0].message
    told, found = judged(engine, rules, [fact(0.9), fact(0.8, week=2)], 2)
    assert told == [] and len(found) == 1 and found[0].value == 0.8
    told, found = judged(engine, rules, [fact(0.01, week=3)], 3)
    assert told == ["alert.closed"] and found[0].state == "closed" and found[0].closed_ms == 3


def test_a_window_without_data_neither_raises_nor_closes(engine):
    rules = [rule()]
    assert judged(engine, rules, [fact(None)], 1) == ([], [])
    judged(engine, rules, [fact(0.9)], 2)
    told, found = judged(engine, rules, [fact(None, week=2)], 3)
    assert told == [] and found[0].state == "open"


def test_the_newest_window_with_data_decides(engine):
    told, found = judged(engine, [rule()], [fact(0.9), fact(0.0, week=2), fact(None, week=3)], 1)
    assert (told, found) == ([], [])


def test_a_rule_over_two_windows_waits_for_the_second(engine):
    rules = [rule(windows=2)]
    assert judged(engine, rules, [fact(0.9)], 1)[0] == []
    assert judged(engine, rules, [fact(0.9), fact(0.0, week=2)], 2)[0] == []
    assert judged(engine, rules, [fact(0.9, week=3), fact(0.9, week=2)], 3)[0] == ["alert.opened"]


def test_drift_brings_its_own_severity_and_a_change_of_it_is_told(engine):
    rules = [rule("drift", 0.0, severity="warning")]
    mild = fact(0.15, metric="drift", severity="warning", threshold=0.1)
    strong = fact(0.4, metric="drift", severity="critical", threshold=0.1)
    told, found = judged(engine, rules, [mild], 1)
    assert told == ["alert.opened"] and found[0].severity == "warning"
    assert found[0].threshold == 0.1
    told, found = judged(engine, rules, [strong], 2)
    assert told == ["alert.changed"] and found[0].severity == "critical"


def test_an_error_rate_that_may_be_chance_is_no_alert(engine):
    rules = [rule("error_rate", 0.05)]
    lucky = fact(0.07, metric="error_rate", column=None, served_entity="v3", certain=0.01)
    assert judged(engine, rules, [lucky], 1)[0] == []
    sure = fact(
        0.29, metric="error_rate", column=None, served_entity="v3", certain=0.12,
        explanation="By carrier: MQ 4 of 5.",
    )  # fmt: skip
    told, found = judged(engine, rules, [sure], 2)
    assert told == ["alert.opened"] and found[0].message.endswith("By carrier: MQ 4 of 5.")


def test_an_alert_on_a_version_without_requests_closes(engine):
    rules = [rule("error_rate", 0.05)]
    bad = {"metric": "error_rate", "column": None, "served_entity": "v3"}
    judged(engine, rules, [fact(0.3, certain=0.2, **bad)], 1)
    idle = fact(None, week=2, idle=True, **(bad | {"n": 0}))
    assert judged(engine, rules, [idle], 2)[0] == ["alert.closed"]


def test_a_muted_cause_is_written_down_and_not_told(engine):
    rules = [rule()]
    _, found = judged(engine, rules, [fact(0.9)], 1)
    with database.transaction(engine) as connection:
        alert_state.change_alert(connection, found[0].id, {"muted_until_ms": DAY})
    assert judged(engine, rules, [fact(0.0, week=2)], 2)[0] == []
    told, found = judged(engine, rules, [fact(0.9, week=3)], 3)
    assert told == [] and found[0].state == "open" and found[0].muted_until_ms == DAY


def test_a_cool_down_keeps_a_flickering_cause_quiet(engine):
    rules = [rule(cool_down_minutes=60)]
    assert judged(engine, rules, [fact(0.9)], 1)[0] == ["alert.opened"]
    assert judged(engine, rules, [fact(0.0, week=2)], 2)[0] == ["alert.closed"]
    assert judged(engine, rules, [fact(0.9, week=3)], 3)[0] == []
    assert judged(engine, rules, [fact(0.0, week=4)], 4)[0] == ["alert.closed"]
    assert judged(engine, rules, [fact(0.9, week=5)], 2 * 3_600_000)[0] == ["alert.opened"]


def test_a_rule_on_one_column_and_a_disabled_rule_stay_with_it(engine):
    rules = [rule(column="wind"), rule(enabled=False)]
    assert judged(engine, rules, [fact(0.9, column="temp")], 1) == ([], [])
    assert judged(engine, rules, [fact(0.9, column="wind")], 2)[0] == ["alert.opened"]


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.floats(0, 1)))),
        max_size=8,
    )
)
def test_there_is_never_more_than_one_open_alert_per_cause(rounds):
    rules, known = [rule()], {}
    for now, values in enumerate(rounds):
        facts = [fact(value, week=now + 1, column=column) for column, value in dict(values).items()]
        for step in alerts.changes(alerts.findings(rules, facts), known, now):
            if step.new is not None:
                assert known.get(step.new.cause) is None or known[step.new.cause].state == "closed"
                known[step.new.cause] = step.new
            else:
                cause = next(c for c, a in known.items() if a.id == step.alert_id)
                known[cause] = known[cause]._replace(**step.values)


def test_a_slice_is_a_cause_of_its_own(engine):
    rules = [rule(id="all"), rule(id="each", slice="carrier"), rule(id="one", slice="carrier=UA")]
    cuts = [None, ("carrier", "UA"), ("carrier", "B6"), ("temp > 3", "true")]
    facts = [fact(0.9, slice=cut) for cut in cuts]
    _, found = judged(engine, rules, facts, 1)
    raised = sorted((alert.rule_id, alert.slice or "") for alert in found)
    assert raised == [
        ("all", ""), ("each", "carrier=B6"), ("each", "carrier=UA"), ("one", "carrier=UA"),
    ]  # fmt: skip
    assert len({alert.cause for alert in found}) == 4
    told, found = judged(engine, rules, [fact(0.0, week=2, slice=("carrier", "B6"))], 2)
    assert told == ["alert.closed"]
    assert {alert.slice for alert in found if alert.state == "closed"} == {"carrier=B6"}


def test_a_long_slice_still_has_a_cause_that_fits():
    long = ("carrier = '" + "x" * 900 + "'", "true")
    longer = ("carrier = '" + "x" * 901 + "'", "true")
    one = rule()
    causes = [alerts.cause_of(one, fact(0.9, slice=cut)) for cut in (long, longer, long)]
    assert len(causes[0]) <= alerts.LONGEST_CAUSE
    assert causes[0] == causes[2] != causes[1]
