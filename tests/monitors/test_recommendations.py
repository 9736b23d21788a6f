"""Proposals, and the gates of a ramp: one test per gate, and that nothing missing ever advances."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors import policies, recommendations

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
POLICY = {"primary": {"name": "accuracy", "mde": 0.02}}
RAMP = recommendations.Ramp(
    steps=(1, 5, 20, 50, 100),
    step=1,
    since=NOW - timedelta(hours=2),
    challenger_requests=5_000,
    newest_row=NOW - timedelta(seconds=5),
    decided=NOW - timedelta(seconds=30),
    refresh_seconds=60,
)
SPLIT = {"v2": 50, "v3": 50}


def decision(action: str = "keep_collecting", reason: str = "undecided", **changes: Any) -> Any:
    shown = {"value": {"v3": 0.9, "v2": 0.86}, "effect": 0.04, "interval": [0.02, 0.06]}
    errors = {**shown, "effect": 0.0, "interval": [-0.001, 0.001], "crossed": False}
    return {
        "action": action,
        "reasons": [reason],
        "summary": f"{action}: {reason}.",
        "champion": "v2",
        "challenger": "v3",
        "primary": "accuracy",
        "metrics": {"accuracy": shown},
        "guardrails": {"error_rate": errors},
        "slices": [],
        "remaining": {"labels": 2_100, "labels_at_most": 9_000, "hours": 9.2},
        **changes,
    }


def propose(
    given_decision: Any, shares: dict[str, int] | None = None, holdout: int = 0, drift: Any = ()
) -> list[dict[str, Any]]:
    found = recommendations.recommend([given_decision], shares or SPLIT, holdout, drift, NOW)
    shown = [one.to_dict() for one in found]
    json.dumps(shown, allow_nan=False)
    return shown


def step(ramp: recommendations.Ramp = RAMP, given: Any = None) -> recommendations.Step:
    return recommendations.next_step(ramp, given or decision(), POLICY, NOW)


# Proposals


def test_a_better_challenger_is_proposed_for_all_but_the_hold_out() -> None:
    [found] = propose(decision("promote", "better"), holdout=10)
    assert found["action"] == {
        "kind": "promote",
        "served_entity": "v3",
        "routes": [
            {"served_entity_name": "v2", "traffic_percentage": 10},
            {"served_entity_name": "v3", "traffic_percentage": 90},
        ],
    }
    assert found["expected_effect"].startswith("accuracy +4.00 points [+2.00, +6.00] for 40 % more")
    assert "v2 keeps 10 %" in found["expected_effect"]
    assert found["evidence"][1]["interval"] == [0.02, 0.06]
    assert found["expires_time"] == "2026-03-09T12:00:00Z"


def test_what_is_so_already_is_not_proposed() -> None:
    assert propose(decision("promote", "better"), {"v2": 10, "v3": 90}, holdout=10) == []
    assert propose(decision("roll_back", "worse"), {"v2": 100, "v3": 0}) == []
    assert propose(decision("hold", "below_mde"), {"v2": 100, "v3": 0}) == []


def test_a_worse_challenger_is_proposed_to_go_back() -> None:
    errors = {"value": {"v3": 0.08, "v2": 0.003}, "effect": 0.077, "interval": None}
    guardrails = {"error_rate": {**errors, "crossed": True}}
    [found] = propose(
        decision("roll_back", "error_rate", guardrails=guardrails), {"v1": 20, "v2": 70, "v3": 10}
    )
    assert (found["action"]["kind"], found["action"]["served_entity"]) == ("roll_back", "v2")
    shares = {r["served_entity_name"]: r["traffic_percentage"] for r in found["action"]["routes"]}
    assert shares == {"v1": 20, "v2": 80, "v3": 0}
    assert found["evidence"][-1]["text"] == "error_rate: v3 0.08, v2 0.003"


def test_a_gain_too_small_gives_the_traffic_back() -> None:
    [found] = propose(decision("hold", "below_mde"))
    assert found["action"]["kind"] == "shift"
    assert found["action"]["routes"][1] == {"served_entity_name": "v3", "traffic_percentage": 0}


@pytest.mark.parametrize("reason", ["sample_ratio", "labels_uneven", "fading"])
def test_a_doubt_is_proposed_for_investigation(reason: str) -> None:
    [found] = propose(decision("hold", reason))
    assert found["action"] == {"kind": "investigate", "served_entity": "v3", "routes": None}


def test_a_slice_that_got_worse_is_evidence() -> None:
    part = {"slice": "region=apac", "effect": -0.1, "interval": [-0.2, -0.05], "regression": True}
    [found] = propose(decision("hold", "slice_regression:region=apac", slices=[part]))
    assert found["evidence"][-1]["text"] == "region=apac"


def test_an_undecided_experiment_is_told_how_long_it_takes() -> None:
    [found] = propose(decision())
    assert found["action"]["kind"] == "collect"
    assert found["expected_effect"] == "a decision after about 2,100 more labels, about 9 hours"
    assert propose(decision(reason="no_data")) == []


def test_drifted_columns_are_one_proposal_with_the_farthest_first() -> None:
    columns = [
        {"column": "temp", "metric": "ks", "value": 0.2, "threshold": 0.1},
        {"column": "delay", "metric": "psi", "value": 0.9, "threshold": 0.2},
    ]
    found = propose(decision(reason="no_data"), drift=columns)
    assert [one["action"]["kind"] for one in found] == ["investigate"]
    assert [item["text"] for item in found[0]["evidence"]] == [
        "delay drifted: psi 0.9, threshold 0.2",
        "temp drifted: ks 0.2, threshold 0.1",
    ]
    assert found[0]["evidence"][0]["link"] == "/drift?column=delay"


def test_a_version_without_a_route_is_not_proposed() -> None:
    assert propose(decision("promote", "better"), {"v2": 100}) == []


# The ramp


def test_a_ramp_advances_when_every_gate_is_passed() -> None:
    assert step() == recommendations.Step("advance", 20, "on to 20 %", "gates_passed")
    assert step(replace(RAMP, step=0)).share == 5


def test_a_ramp_begins_with_its_first_share_without_soaking() -> None:
    fresh = replace(RAMP, step=-1, since=NOW, challenger_requests=0)
    assert step(fresh, decision(reason="no_data")).share == 1


def test_the_last_step_finishes_the_ramp() -> None:
    before = replace(RAMP, step=3)
    assert step(before, decision("promote", "better")).kind == "finish"
    assert step(before, decision("promote", "better")).share == 100
    done = step(replace(RAMP, step=4), decision())
    assert (done.kind, done.share, done.reason) == ("finish", 100, "completed")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"since": NOW - timedelta(minutes=29)}, "soak"),
        ({"challenger_requests": 199}, "requests"),
        ({"newest_row": NOW - timedelta(seconds=60)}, "stale_rows"),
        ({"newest_row": None}, "stale_rows"),
        ({"decided": NOW - timedelta(seconds=121)}, "stale_decision"),
        ({"decided": None}, "no_decision"),
        ({"auto": False}, "approval"),
        ({"paused": True}, "paused"),
        ({"latched": True}, "latched"),
    ],
)
def test_whatever_is_missing_or_late_holds_the_ramp(changes: dict[str, Any], reason: str) -> None:
    found = step(replace(RAMP, **changes))
    assert (found.kind, found.share, found.reason) == ("hold", 5, reason)
    assert found.gate


def test_a_decision_on_hold_holds_the_ramp() -> None:
    assert step(given=decision("hold", "sample_ratio")).reason == "decision_hold"


def test_from_twenty_percent_on_the_error_rate_has_to_be_known_safe() -> None:
    wide = decision()
    wide["guardrails"]["error_rate"]["interval"] = [-0.001, 0.0021]
    assert step(given=wide).reason == "error_rate"
    assert step(replace(RAMP, step=0), wide).kind == "advance"
    unknown = decision()
    unknown["guardrails"]["error_rate"]["interval"] = None
    assert step(given=unknown).reason == "error_rate"
    without = policies.Policy.parse({**POLICY, "guardrails": []})
    assert recommendations.next_step(RAMP, wide, without, NOW).kind == "advance"


def test_all_traffic_only_on_a_verdict() -> None:
    assert step(replace(RAMP, step=3), decision()).reason == "not_promoted"


def test_a_person_who_approved_lets_the_ramp_go_on() -> None:
    assert step(replace(RAMP, auto=False, approved=True)).kind == "advance"


def test_a_regression_goes_back_at_once_or_holds_by_choice() -> None:
    back = step(replace(RAMP, paused=True, newest_row=None), decision("roll_back", "error_rate"))
    assert (back.kind, back.share, back.reason) == ("roll_back", 0, "error_rate")
    held = step(replace(RAMP, on_regression="hold"), decision("roll_back", "worse"))
    assert (held.kind, held.share, held.reason) == ("hold", 5, "regression")


@given(
    age=st.integers(0, 200),
    requests=st.integers(0, 400),
    minutes=st.integers(0, 60),
    row=st.one_of(st.none(), st.integers(0, 120)),
    action=st.sampled_from(["promote", "keep_collecting", "hold"]),
    index=st.integers(0, 3),
)
def test_no_combination_with_a_failed_gate_advances(
    age: int, requests: int, minutes: int, row: int | None, action: str, index: int
) -> None:
    ramp = replace(
        RAMP,
        step=index,
        since=NOW - timedelta(minutes=minutes),
        challenger_requests=requests,
        newest_row=None if row is None else NOW - timedelta(seconds=row),
        decided=NOW - timedelta(seconds=age),
    )
    found = step(ramp, decision(action, "better"))
    passed = age <= 120 and requests >= 200 and minutes >= 30 and row is not None and row < 60
    passed = passed and action != "hold" and (index < 3 or action == "promote")
    assert (found.kind in ("advance", "finish")) == passed
    assert found.share == (RAMP.steps[index + 1] if passed else RAMP.steps[index])


def test_a_bad_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="primary"):
        recommendations.next_step(RAMP, decision(), {}, NOW)
