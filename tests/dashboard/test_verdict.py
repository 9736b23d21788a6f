from typing import Any

import pytest

from dashboard import verdict


def decision(action: str, reason: str, **changes: Any) -> dict[str, Any]:
    found = {
        "effect": -0.0318,
        "interval": [-0.071, 0.0074],
        "direction": "lower",
        "n": {"v2": 16_789, "v1": 4_206},
    }
    return {
        "challenger": "v2",
        "champion": "v1",
        "action": action,
        "reasons": [reason],
        "primary": "log_loss",
        "metrics": {"log_loss": found},
        "guardrails": {},
        "remaining": {"labels": 10_668, "hours": 2061.0},
    } | changes


RAMP = {"challenger": "v2", "state": "running", "on_regression": "roll_back", "next_gate": "soak"}


@pytest.mark.parametrize(
    ("action", "reason", "headline", "then"),
    [
        ("keep_collecting", "undecided", "v2 may be better or worse than v1", "about 86 days; the"),
        ("keep_collecting", "min_labels", "too few labels", "10,668 more labels"),
        ("promote", "better", "v2 is better than v1.", "Promote it with the button"),
        ("promote", "not_worse", "v2 is no worse than v1.", "Promote it with the button"),
        ("roll_back", "worse", "v2 is worse than v1.", "Roll back to v1 with the button"),
        ("roll_back", "error_rate", "too risky: its error rate crossed", "Roll back to v1"),
        ("hold", "sample_ratio", "No verdict: the observed split", "Find out why requests"),
        ("hold", "below_mde", "too little over v1", "Give the traffic back"),
        ("hold", "lost_to:v3", "v3 is surer to gain more", "the winner is the one to promote"),
        ("hold", "slice_regression:region=apac", "worse in a slice (region=apac)", "slices below"),
    ],
)
def test_the_verdict_is_told_with_what_happens_next(
    action: str, reason: str, headline: str, then: str
) -> None:
    told = verdict.of(decision(action, reason), {})
    assert headline in told.headline and then in told.then


def test_a_difference_says_its_direction_and_both_ends() -> None:
    assert verdict.of(decision("keep_collecting", "undecided"), {}).why == (
        "Log loss is 0.032 lower (better); the truth may lie anywhere from 0.0074 higher (worse) "
        "to 0.071 lower (better). From 16,789 and 4,206 labels of v2 and v1."
    )


def test_a_crossed_guardrail_is_the_reason() -> None:
    shown = {"effect": 0.0596, "interval": None, "direction": "lower", "n": {"v2": 50, "v1": 4900}}
    given = decision("roll_back", "error_rate", guardrails={"error_rate": {"crossed": True}})
    given["metrics"]["error_rate"] = shown
    told = verdict.of(given, {})
    assert told.why == (
        "Error rate is 6 points higher (worse). From 50 and 4,900 requests of v2 and v1."
    )


@pytest.mark.parametrize(
    ("action", "ramp", "then"),
    [
        ("roll_back", RAMP, "within seconds"),
        ("roll_back", RAMP | {"state": "rolled_back"}, "went back to v1 by itself"),
        ("roll_back", RAMP | {"on_regression": "hold"}, "nothing is moved for you"),
        ("roll_back", RAMP | {"challenger": "v3"}, "nothing is moved for you"),
        ("promote", RAMP, "The ramp moves it; its next gate: soak."),
        ("keep_collecting", RAMP, "the ramp goes on by its gates"),
    ],
)
def test_a_ramp_of_this_challenger_says_what_it_will_do(
    action: str, ramp: dict[str, Any], then: str
) -> None:
    assert then in verdict.of(decision(action, "undecided"), ramp).then


def test_an_empty_decision_is_told_as_such() -> None:
    told = verdict.of({}, {})
    assert told.why == "" and "the challenger may be better or worse" in told.headline
