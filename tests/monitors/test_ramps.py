from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import database, outbox
from monitors import contract, experiment_state, ramps, state

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
ENDPOINT = "delay"
POLICY = {
    "primary": {"name": "accuracy", "kind": "binary", "mode": "superiority", "mde": 0.1},
    "guardrails": [{"name": "error_rate", "kind": "error_rate", "margin": 0.002}],
    "champion": "v1",
    "challenger": "v2",
    "min_hours": 12,
    "stratum_hours": 24,
    "label_window_hours": 6,
}
HALF = {"v1": 50, "v2": 50}


def begin(lake, **changes) -> None:
    body = contract.experiment({**POLICY, "start_time": MONDAY.isoformat(), **changes})
    with database.transaction(lake.engine) as connection:
        experiment_state.begin_experiment(connection, ENDPOINT, body, "ann", 1)


def plan(lake, **changes) -> None:
    body = contract.ramp_request({"challenger": "v2", **changes})
    with database.transaction(lake.engine) as connection:
        experiment_state.put_ramp(connection, ENDPOINT, body, 1)


def ramp(lake) -> experiment_state.Ramp:
    with database.reading(lake.engine) as connection:
        found = experiment_state.get_ramp(connection, ENDPOINT)
    assert found is not None
    return found


def events(lake) -> list[str]:
    with database.reading(lake.engine) as connection:
        return [event.type for event in outbox.waiting(connection)]


def decisions(lake) -> list[dict]:
    frame = pl.read_delta(lake.uri("main.flights.p_decisions")).sort("written_time")
    return frame.rows(named=True)


def day(number: float) -> datetime:
    return MONDAY + timedelta(days=number)


def send(lake, start: datetime, n: int, hours: float = 24, **options) -> pl.DataFrame:
    frame = lake.rows(start, n, hours, **options)
    lake.write(frame)
    lake.label(frame)
    return frame


def test_failures_of_the_challenger_take_its_traffic_away_and_it_stays_away(lake):
    lake.gateway.configure(**HALF)
    lake.monitor()
    begin(lake)
    plan(lake, auto=False)
    frame = lake.rows(day(0), 300, 24, split=HALF, config_version=2)
    failing = (pl.col("served_entity_name") == "v2") & (pl.col("carrier") == "AA")
    lake.write(lake.failing(frame, failing))
    lake.done(day(1))
    assert lake.gateway.shares == {"v1": 100}
    action, _, body = lake.gateway.calls[0]
    assert action == "rollback" and body["to_config_version"] == 1 and body["origin"] == "ramp"
    assert "error_rate" in body["reason"]
    assert ramp(lake).state == "rolled_back" and "ramp.rolled_back" in events(lake)
    (decided,) = decisions(lake)
    assert decided["action"] == "roll_back" and decided["kind"] == "full"
    assert decided["reasons"] == ["error_rate"] and decided["config_version"] == 2
    lake.gateway.configure(**HALF)  # somebody gives it traffic again
    lake.done(day(1.5))
    assert len(lake.gateway.calls) == 1 and lake.gateway.shares == HALF


def test_a_new_experiment_clears_the_latch(lake):
    lake.gateway.configure(**HALF)
    lake.monitor()
    begin(lake)
    plan(lake)
    frame = lake.rows(day(0), 300, 24, split=HALF, config_version=2)
    lake.write(lake.failing(frame, pl.col("served_entity_name") == "v2"))
    lake.done(day(1))
    lake.gateway.configure(**HALF)
    begin(lake)
    plan(lake)
    lake.done(day(1.1))
    assert [call[0] for call in lake.gateway.calls] == ["rollback", "rollback"]


def test_a_paused_and_a_completed_ramp_still_guard(lake):
    lake.gateway.configure(**HALF)
    lake.monitor()
    begin(lake)
    plan(lake)
    with database.transaction(lake.engine) as connection:
        found = experiment_state.get_ramp(connection, ENDPOINT)
        values = {"state": "completed", "paused": True}
        experiment_state.change_ramp(connection, found, values)
    frame = lake.rows(day(0), 300, 24, split=HALF, config_version=2)
    lake.write(lake.failing(frame, pl.col("served_entity_name") == "v2"))
    lake.done(day(1))
    assert ramp(lake).state == "rolled_back"


@pytest.mark.parametrize("changes", [{"on_regression": "hold"}, None])
def test_without_a_ramp_that_says_so_nothing_is_rolled_back(lake, changes):
    lake.gateway.configure(**HALF)
    lake.monitor()
    begin(lake)
    if changes is not None:
        plan(lake, auto=False, **changes)
    frame = lake.rows(day(0), 300, 24, split=HALF, config_version=2)
    lake.write(lake.failing(frame, pl.col("served_entity_name") == "v2"))
    lake.done(day(1))
    assert decisions(lake)[0]["action"] == "roll_back"
    assert lake.gateway.calls == []


def test_what_the_server_refused_is_tried_again(lake):
    lake.gateway.configure(**HALF)
    lake.monitor()
    begin(lake)
    plan(lake)
    frame = lake.rows(day(0), 300, 24, split=HALF, config_version=2)
    lake.write(lake.failing(frame, pl.col("served_entity_name") == "v2"))
    lake.gateway.refuse = "An update is in progress."
    found = lake.done(day(1))
    assert "An update is in progress." in found.message and ramp(lake).state == "running"
    lake.gateway.refuse = None
    lake.done(day(1.1))
    assert ramp(lake).state == "rolled_back"


def test_the_guard_sees_in_the_newest_hours_what_the_whole_does_not_show_yet(lake):
    lake.gateway.configure(**HALF)
    lake.monitor()
    guard = {
        "window_hours": 12, "label_window_hours": 2, "min_labels": 15, "min_units": 15,
        "stratum_hours": 1,
        "guardrails": [{"name": "accuracy", "kind": "binary", "margin": 0.2, "mde": 0.2}],
    }  # fmt: skip
    begin(lake, guard=guard)
    plan(lake, auto=False)
    skill = {"v1": 0.8, "v2": 0.9}
    frame = lake.rows(day(0), 4000, 24 * 10, split=HALF, config_version=2, skill=skill)
    lake.write(frame)
    lake.label(frame, timedelta(hours=1))
    lake.done(day(10))
    assert decisions(lake)[-1]["kind"] == "full" and lake.gateway.calls == []
    bad = lake.rows(day(10), 200, 12, split=HALF, config_version=2, skill=skill)
    turned = pl.when(pl.col("served_entity_name") == "v2").then(1 - pl.col("score"))
    score = turned.otherwise(pl.col("score"))
    bad = bad.with_columns(score=score, prediction=(score >= 0.5).cast(pl.Float64))
    lake.write(bad)
    lake.label(bad, timedelta(hours=1))
    lake.done(day(10.5))
    decided = decisions(lake)[-1]
    assert (decided["kind"], decided["action"]) == ("guard", "roll_back")
    assert "accuracy" in decided["reasons"] and lake.gateway.shares == {"v1": 100}


def test_a_better_challenger_is_recommended_once_and_again_only_while_it_holds(lake):
    lake.gateway.configure(**HALF)
    lake.monitor()
    begin(lake, holdout_percentage=10)
    skill = {"v1": 0.1, "v2": 1.0}
    send(lake, day(0), 1500, 48, split=HALF, config_version=2, skill=skill)
    lake.done(day(2))
    with database.reading(lake.engine) as connection:
        found = state.open_recommendations(connection, ENDPOINT)
    assert [r.action["served_entity"] for r in found if r.action["kind"] != "investigate"] == ["v2"]
    assert events(lake).count("recommendation.created") == len(found)
    lake.done(day(2.1))
    with database.reading(lake.engine) as connection:
        again = state.open_recommendations(connection, ENDPOINT)
    assert {r.id for r in again} == {r.id for r in found}
    lake.gateway.configure(v1=10, v2=90)
    lake.done(day(2.2))
    with database.reading(lake.engine) as connection:
        left = state.open_recommendations(connection, ENDPOINT)
    assert [r for r in left if r.action["kind"] in ("promote", "shift")] == []
    assert "recommendation.expired" in events(lake)


def test_no_data_never_advances_and_a_persons_change_pauses(lake):
    lake.gateway.configure(v1=99, v2=1)
    lake.monitor()
    begin(lake)
    plan(lake, auto=True, steps=[1, 50, 100], min_minutes_per_step=30)
    split = {"v1": 99, "v2": 1}
    send(lake, day(0), 200, 12, split=split, config_version=2)
    for hours in (12, 13, 14):
        lake.done(day(0) + timedelta(hours=hours))
    assert lake.gateway.shares == split and ramp(lake).state in ("running", "held")
    lake.gateway.configure(v1=80, v2=20)
    lake.done(day(0) + timedelta(hours=15))
    found = ramp(lake)
    assert found.paused and found.state == "held" and found.reason == ramps.CHANGED_BY_A_PERSON
    assert events(lake)[-1] == "ramp.held"


def test_a_good_challenger_climbs_step_by_step(lake):
    lake.gateway.configure(v1=95, v2=5)
    lake.monitor()
    begin(lake)
    plan(lake, auto=True, steps=[5, 50, 100], min_minutes_per_step=30)
    split, version = {"v1": 95, "v2": 5}, 2
    seen = []
    for number in range(6):
        frame = lake.rows(
            day(number / 4), 6000, 6, split=split, config_version=version,
            skill={"v1": 0.1, "v2": 1.0},
        )  # fmt: skip
        lake.write(frame)
        lake.label(frame, timedelta(minutes=10))
        lake.done(day((number + 1) / 4))
        split, version = lake.gateway.shares, len(lake.gateway.configurations)
        seen.append(split["v2"])
    assert seen == sorted(seen) and 50 in seen and seen[-1] == 100
    assert ramp(lake).state == "completed"
    assert [e for e in events(lake) if e.startswith("ramp.")][-1] == "ramp.completed"


def test_of_two_challengers_the_failing_one_goes_and_the_other_keeps_its_traffic(lake):
    split = {"v1": 50, "v2": 25, "v3": 25}
    lake.gateway.configure(**split)
    lake.monitor()
    begin(lake, champion=None, challenger=None)
    plan(lake, auto=False)
    frame = lake.rows(day(0), 1200, 24, split=split, config_version=2)
    lake.write(lake.failing(frame, pl.col("served_entity_name") == "v2"))
    lake.done(day(1))
    actions = {one["challenger"]: one["action"] for one in decisions(lake)}
    assert actions == {"v2": "roll_back", "v3": "keep_collecting"}
    [(action, _, body)] = lake.gateway.calls
    assert (action, body["served_entity"], body["traffic_percentage"]) == ("promote", "v2", 0)
    assert lake.gateway.shares == {"v1": 67, "v2": 0, "v3": 33}
    with database.reading(lake.engine) as connection:
        [experiment] = [experiment_state.get_experiment(connection, ENDPOINT)]
        latched = [
            experiment_state.is_latched(connection, experiment, "v1", name) for name in ("v2", "v3")
        ]
    assert latched == [True, False]


configurations = st.lists(
    st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), st.integers(0, 100), min_size=1),
    min_size=1,
    max_size=8,
)


def numbered(found: list[dict[str, int]]) -> list[dict[str, object]]:
    return [
        {
            "config_version": number,
            "config": {
                "traffic_config": {
                    "routes": [
                        {"served_model_name": name, "traffic_percentage": share}
                        for name, share in shares.items()
                    ]
                }
            },
        }
        for number, shares in enumerate(found, 1)
    ]


@given(configurations)
def test_what_is_restored_takes_nothing_from_others_and_revives_nobody(found):
    target = ramps.restore_target(numbered(found), len(found), "v1", "v2")
    if target is not None:
        then, now = found[target - 1], found[-1]
        assert not then.get("v2") and then.get("v1")
        assert bool(then.get("v3")) == bool(now.get("v3"))
        assert then.get("v3", 0) >= now.get("v3", 0) - 1


@pytest.mark.parametrize(
    ("before", "now", "fits"),
    [
        ({"v1": 100}, {"v1": 90, "v2": 10}, True),
        ({"v1": 90, "v3": 10}, {"v1": 81, "v2": 10, "v3": 9}, True),  # v2 took from both
        ({"v1": 90, "v3": 10}, {"v1": 80, "v2": 10, "v3": 10}, True),  # v2 took from v1 alone
        ({"v1": 60, "v3": 40}, {"v1": 80, "v2": 10, "v3": 10}, False),  # v3 has less since
        ({"v1": 100}, {"v1": 80, "v2": 10, "v3": 10}, False),  # v3 came later
        ({"v1": 90, "v3": 10}, {"v1": 90, "v2": 10}, False),  # v3 was taken away
        ({"v3": 100}, {"v1": 90, "v2": 10}, False),
        ({"v1": 100, "v3": 0}, {"v2": 100}, True),
    ],
)
def test_a_configuration_is_restored_where_others_keep_their_traffic(before, now, fits):
    target = ramps.restore_target(numbered([before, now]), 2, "v1", "v2")
    assert target == (1 if fits else None)
