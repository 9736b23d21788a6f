"""Which metrics were judged, and whether the comparison itself can be trusted."""

from dashboard import evidence
from tests.dashboard import provider as standin


def test_guardrails_left_to_the_defaults_are_shown_as_judged() -> None:
    policy = {"primary": {"name": "accuracy", "mde": 0.02}}
    decision = {"guardrails": {"error_rate": {"margin": 0.002, "crossed": True}}}
    found = evidence.specs(policy, decision)
    assert [(role, spec["name"]) for role, spec in found] == [
        ("goal", "accuracy"),
        ("guardrail", "error_rate"),
    ]


def test_the_limit_of_a_guardrail_lies_on_its_bad_side() -> None:
    metric = {"effect": 0.0, "interval": [-0.01, 0.01], "direction": "lower"}
    row = evidence.effect_of(
        "guardrail", {"name": "error_rate", "margin": 0.002}, {"error_rate": metric}
    )
    assert row is not None
    assert row.limit == 0.002


def test_a_metric_without_an_interval_is_no_row() -> None:
    metric = {"effect": None, "interval": None, "direction": "higher"}
    assert evidence.effect_of("goal", {"name": "accuracy"}, {"accuracy": metric}) is None


def test_values_stand_with_their_n() -> None:
    rows = evidence.arms(standin.POLICY, standin.decision(15))
    assert rows[0]["v1 (champion)"] == "0.514 (n 1,520)"
    assert rows[1]["limit"] == "respected"


def test_a_failed_check_is_named_and_an_unknown_one_is_not_fine() -> None:
    broken = standin.decision(15) | {"reasons": ["sample_ratio"]}
    checks = {c.title: c.fine for c in evidence.checks(standin.POLICY, broken)}
    assert checks["Split"] is False
    assert checks["Labels of both"] is True
    empty = {c.title: c.fine for c in evidence.checks(standin.POLICY, {})}
    assert set(empty.values()) == {None}
