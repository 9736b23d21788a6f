"""Recommendations in SQL, from one look to the next."""

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from capture import database
from monitors import advice, decisions, experiment_state, roles

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
EXPERIMENT = experiment_state.Experiment("shop", 2, True, {}, "ann", 1)


def look(champion: str, challenger: str, effect: float, kind: str = "full") -> decisions.Look:
    shown = {"value": {}, "effect": effect, "interval": [effect - 0.02, effect + 0.02]}
    decision = {
        "action": "promote" if effect > 0.02 else "keep_collecting",
        "reasons": ["better" if effect > 0.02 else "undecided"],
        "summary": "A sentence.",
        "champion": champion,
        "challenger": challenger,
        "primary": "accuracy",
        "metrics": {"accuracy": shown},
    }
    who = roles.Roles(champion, challenger)
    return decisions.Look(EXPERIMENT, who, NOW, kind, decision, {}, 1_000, 1, 500, NOW)


def advised(
    engine: sa.Engine, found: decisions.Look, shares: dict[str, int]
) -> list[experiment_state.Recommendation]:
    with database.transaction(engine) as connection:
        advice.advise(connection, [found], shares, [], 1)
    with database.reading(engine) as connection:
        return experiment_state.find_recommendations(connection, "shop")


@pytest.fixture
def applied(state: sa.Engine) -> sa.Engine:
    """A state in which the promotion of v2 to 90 % was applied."""
    [proposed] = advised(state, look("v1", "v2", 0.04), {"v1": 50, "v2": 50})
    assert proposed.action["kind"] == "promote"
    values: dict[str, Any] = {"state": "applied", "outcome": {"applied_by": "ann"}}
    with database.transaction(state) as connection:
        experiment_state.change_recommendation(connection, proposed.id, values)
    return state


def outcome(engine: sa.Engine, found: decisions.Look) -> dict[str, Any] | None:
    [one] = [r for r in advised(engine, found, {"v1": 10, "v2": 90}) if r.state == "applied"]
    return one.outcome


def test_what_was_applied_is_told_what_was_measured_since(applied: sa.Engine) -> None:
    assert outcome(applied, look("v1", "v2", 0.01)) == {
        "applied_by": "ann",
        "text": "measured since: v2 against v1, accuracy +1.00 points [-1.00, +3.00]",
    }
    # The version that was promoted has the larger share now, and may be the champion.
    told = outcome(applied, look("v2", "v1", -0.01))
    assert told is not None
    assert told["text"].startswith("measured since: v1 against v2, accuracy -1.00 points")


@pytest.mark.parametrize(
    "other",
    [look("v1", "v2", 0.01, kind="guard"), look("v3", "v4", 0.01)],
    ids=["the guard's look", "another pair"],
)
def test_nothing_is_told_of_what_was_not_measured(
    applied: sa.Engine, other: decisions.Look
) -> None:
    assert outcome(applied, other) == {"applied_by": "ann"}
