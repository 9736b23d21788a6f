"""Recommendations as they live in SQL: made of a decision, renewed, expired, told.

One open recommendation per cause (experiment, kind, version it is about): a new look renews its
evidence; what no longer follows from the newest decisions expires; what a person dismissed stays
away until its time is over; what was applied is told what has been measured since."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from capture import names, outbox
from monitors import contract, costs, decisions, experiment_state, recommendations

LASTING = ("dismissed", "snoozed")


def advise(
    connection: sa.Connection,
    looks: Sequence[decisions.Look],
    shares: Mapping[str, int],
    drift: Sequence[Mapping[str, Any]],
    now_ms: int,
    known_costs: Mapping[str, costs.Cost] | None = None,
) -> None:
    """Write what follows from the decisions of one moment about an endpoint, with its events.

    known_costs: of versions, as far as they are known."""
    experiment, moment = looks[0].experiment, looks[0].moment
    endpoint = experiment.endpoint
    holdout = int(experiment.body.get("holdout_percentage", 0))
    made = recommendations.recommend(
        [one.decision for one in looks], shares, holdout, drift, moment, known_costs
    )
    known = experiment_state.find_recommendations(connection, endpoint)
    wanted = {f"{experiment.number}|{one.action['kind']}|{one.about or ''}": one for one in made}
    for before in known:
        if before.state == "open" and before.cause not in wanted:
            _expire(connection, before, now_ms)
        if before.state == "applied":
            _follow_up(connection, before, looks)
    for cause, one in wanted.items():
        _renew(connection, endpoint, cause, one, known, moment, now_ms)


def _follow_up(
    connection: sa.Connection,
    applied: experiment_state.Recommendation,
    looks: Sequence[decisions.Look],
) -> None:
    """What has been measured since a proposal was applied, as long as its experiment runs."""
    number, _, about = applied.cause.split("|", 2)
    for look in looks:
        who = look.roles
        if look.kind != decisions.MAIN or about not in (who.champion, who.challenger):
            continue
        if number != str(look.experiment.number):
            continue
        said = recommendations.difference(look.decision)
        text = f"measured since: {who.challenger} against {who.champion}, {said}"
        if text != (applied.outcome or {}).get("text"):
            outcome = {**(applied.outcome or {}), "text": text}
            experiment_state.change_recommendation(connection, applied.id, {"outcome": outcome})
        return


def _renew(
    connection: sa.Connection,
    endpoint: str,
    cause: str,
    one: recommendations.Recommendation,
    known: Sequence[experiment_state.Recommendation],
    moment: datetime,
    now_ms: int,
) -> None:
    values: dict[str, Any] = {
        "action": dict(one.action),
        "evidence": [dict(item) for item in one.evidence],
        "expected_effect": one.expected_effect,
        "risk": one.risk,
        "expires_ms": contract.unix_ms(one.expires_time),
    }
    for before in known:
        if before.cause != cause:
            continue
        if before.state == "open":
            experiment_state.change_recommendation(connection, before.id, values)
            return
        if before.state == "snoozed" and (before.snoozed_until_ms or 0) <= now_ms:
            values |= {"state": "open", "snoozed_until_ms": None}
            experiment_state.change_recommendation(connection, before.id, values)
            return
        if before.state in LASTING and before.expires_ms > contract.unix_ms(moment):
            return
    made = experiment_state.Recommendation(
        id=names.new_id(),
        endpoint=endpoint,
        cause=cause,
        created_ms=now_ms,
        state="open",
        outcome=None,
        snoozed_until_ms=None,
        **values,
    )
    experiment_state.add_recommendation(connection, made)
    told = contract.recommendation_info(made)
    outbox.emit(connection, "recommendation.created", told, now_ms)


def _expire(connection: sa.Connection, one: experiment_state.Recommendation, now_ms: int) -> None:
    experiment_state.change_recommendation(connection, one.id, {"state": "expired"})
    told = contract.recommendation_info(one._replace(state="expired"))
    outbox.emit(connection, "recommendation.expired", told, now_ms)
