"""SQL of experiments, latches, ramps and recommendations. Times are Unix milliseconds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import database, errors

UNFINISHED = ("running", "held")

experiments = sa.Table(
    "experiments",
    database.metadata,
    sa.Column("endpoint", sa.String(63), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("started_ms", sa.BigInteger, nullable=False),
)

ramps = sa.Table(
    "ramps",
    database.metadata,
    sa.Column("endpoint", sa.String(63), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64)),
    sa.Column("next_gate", sa.Text),
    sa.Column("approved", sa.Boolean, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("config_version", sa.Integer),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("since_event_ms", sa.BigInteger),
    sa.Column("row_version", sa.Integer, nullable=False),
)

latches = sa.Table(
    "latches",
    database.metadata,
    sa.Column("endpoint", sa.String(63), primary_key=True),
    sa.Column("experiment", sa.Integer, primary_key=True),
    sa.Column("champion", sa.String(63), primary_key=True),
    sa.Column("challenger", sa.String(63), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
)

recommendations = sa.Table(
    "recommendations",
    database.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("endpoint", sa.String(63), nullable=False, index=True),
    sa.Column("cause", sa.String(400), nullable=False),
    sa.Column("action", sa.JSON, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("expected_effect", sa.Text, nullable=False),
    sa.Column("risk", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("outcome", sa.JSON),
    sa.Column("snoozed_until_ms", sa.BigInteger),
)


class Experiment(NamedTuple):
    """Policy and service keys of an endpoint's experiment; `number` grows with each new one."""

    endpoint: str
    number: int
    active: bool
    body: dict[str, Any]
    created_by: str
    started_ms: int


class Ramp(NamedTuple):
    """A planned way up for a challenger. `config_version`: the configuration it last set or saw;
    `since_event_ms`: like `since_ms`, in the time of the monitor's timestamp column."""

    endpoint: str
    body: dict[str, Any]
    step: int
    state: str
    reason: str | None
    next_gate: str | None
    approved: bool
    paused: bool
    config_version: int | None
    since_ms: int
    since_event_ms: int | None
    row_version: int


class Recommendation(NamedTuple):
    """A proposal with its evidence; one open one per cause (experiment, kind, version)."""

    id: str
    endpoint: str
    cause: str
    action: dict[str, Any]
    evidence: list[dict[str, Any]]
    expected_effect: str
    risk: str
    created_ms: int
    expires_ms: int
    state: str
    outcome: dict[str, Any] | None
    snoozed_until_ms: int | None


# --- experiments, latches ------------------------------------------------------------------------


def get_experiment(connection: sa.Connection, endpoint: str) -> Experiment | None:
    where = (experiments.c.endpoint == endpoint, experiments.c.active.is_(True))
    row = connection.execute(sa.select(experiments).where(*where)).first()
    return Experiment(**row._mapping) if row else None


def begin_experiment(
    connection: sa.Connection,
    endpoint: str,
    body: Mapping[str, Any],
    created_by: str,
    now_ms: int,
) -> Experiment:
    """Start a new experiment on an endpoint; the one before, and its latches, are over."""
    where = experiments.c.endpoint == endpoint
    before = connection.execute(sa.select(experiments.c.number).where(where)).scalar()
    values = {
        "number": (before or 0) + 1,
        "active": True,
        "body": dict(body),
        "created_by": created_by,
        "started_ms": now_ms,
    }
    if before is None:
        connection.execute(sa.insert(experiments).values(endpoint=endpoint, **values))
    else:
        connection.execute(sa.update(experiments).where(where).values(**values))
    found = get_experiment(connection, endpoint)
    assert found is not None
    return found


def end_experiment(connection: sa.Connection, endpoint: str) -> None:
    """Its number stays, so that the next one is a new one. Raises DoesNotExist."""
    where = (experiments.c.endpoint == endpoint, experiments.c.active.is_(True))
    done = connection.execute(sa.update(experiments).where(*where).values(active=False))
    if done.rowcount == 0:
        raise errors.DoesNotExist(f"Endpoint '{endpoint}' has no experiment.")


def is_latched(
    connection: sa.Connection, experiment: Experiment, champion: str, challenger: str
) -> bool:
    """Was this pair rolled back in this experiment?"""
    row = connection.execute(
        sa.select(latches.c.since_ms).where(
            latches.c.endpoint == experiment.endpoint,
            latches.c.experiment == experiment.number,
            latches.c.champion == champion,
            latches.c.challenger == challenger,
        )
    ).first()
    return row is not None


def latch(
    connection: sa.Connection,
    experiment: Experiment,
    champion: str,
    challenger: str,
    reason: str,
    now_ms: int,
) -> None:
    """The challenger stays back until a new experiment begins."""
    if not is_latched(connection, experiment, champion, challenger):
        connection.execute(
            sa.insert(latches).values(
                endpoint=experiment.endpoint,
                experiment=experiment.number,
                champion=champion,
                challenger=challenger,
                reason=reason,
                since_ms=now_ms,
            )
        )


# --- ramps ---------------------------------------------------------------------------------------


def get_ramp(connection: sa.Connection, endpoint: str) -> Ramp | None:
    row = connection.execute(sa.select(ramps).where(ramps.c.endpoint == endpoint)).first()
    return Ramp(**row._mapping) if row else None


def put_ramp(
    connection: sa.Connection, endpoint: str, body: Mapping[str, Any], now_ms: int
) -> None:
    """Plan a ramp, or replace the plan; it begins before its first step."""
    delete_ramp(connection, endpoint)
    connection.execute(
        sa.insert(ramps).values(
            endpoint=endpoint,
            body=dict(body),
            step=-1,
            state="running",
            approved=False,
            paused=False,
            since_ms=now_ms,
            row_version=0,
        )
    )


def delete_ramp(connection: sa.Connection, endpoint: str) -> None:
    connection.execute(sa.delete(ramps).where(ramps.c.endpoint == endpoint))


def change_ramp(connection: sa.Connection, ramp: Ramp, values: Mapping[str, Any]) -> bool:
    """Write the next state of a ramp; False: somebody changed it since it was read."""
    done = connection.execute(
        sa.update(ramps)
        .where(ramps.c.endpoint == ramp.endpoint, ramps.c.row_version == ramp.row_version)
        .values(row_version=ramp.row_version + 1, **values)
    )
    return done.rowcount == 1


# --- recommendations -----------------------------------------------------------------------------


def proposed_split(found: Recommendation) -> dict[str, int] | None:
    """Served entity -> percentage as a recommendation proposes; None: it moves no traffic."""
    routes = found.action.get("routes")
    if not routes:
        return None
    return {
        route.get("served_entity_name") or route["served_model_name"]: int(
            route["traffic_percentage"]
        )
        for route in routes
    }


def expire_other_splits(connection: sa.Connection, applied: Recommendation) -> None:
    """What else was proposed for the endpoint's split was meant for the one that is no more."""
    others = [
        one.id
        for one in find_recommendations(connection, applied.endpoint)
        if one.id != applied.id and one.state in ("open", "snoozed") and one.action.get("routes")
    ]
    if others:
        where = recommendations.c.id.in_(others)
        connection.execute(sa.update(recommendations).where(where).values(state="expired"))


def add_recommendation(connection: sa.Connection, recommendation: Recommendation) -> None:
    connection.execute(sa.insert(recommendations).values(**recommendation._asdict()))


def change_recommendation(
    connection: sa.Connection, recommendation_id: str, values: Mapping[str, Any]
) -> None:
    where = recommendations.c.id == recommendation_id
    connection.execute(sa.update(recommendations).where(where).values(**values))


def get_recommendation(connection: sa.Connection, recommendation_id: str) -> Recommendation:
    """Raises DoesNotExist."""
    where = recommendations.c.id == recommendation_id
    row = connection.execute(sa.select(recommendations).where(where)).first()
    if row is None:
        raise errors.DoesNotExist(f"Recommendation '{recommendation_id}' does not exist.")
    return Recommendation(**row._mapping)


def find_recommendations(
    connection: sa.Connection,
    endpoint: str | None = None,
    state: str | None = None,
    before: tuple[int, str] | None = None,
    limit: int = 1000,
) -> list[Recommendation]:
    """Newest first, after the place `before` = (created_ms, id)."""
    query = sa.select(recommendations).order_by(
        recommendations.c.created_ms.desc(), recommendations.c.id.desc()
    )
    if endpoint is not None:
        query = query.where(recommendations.c.endpoint == endpoint)
    if state is not None:
        query = query.where(recommendations.c.state == state)
    if before is not None:
        place = sa.tuple_(recommendations.c.created_ms, recommendations.c.id)
        query = query.where(place < sa.tuple_(*map(sa.literal, before)))
    found = connection.execute(query.limit(limit))
    return [Recommendation(**row._mapping) for row in found]


def forget_endpoint(connection: sa.Connection, endpoint: str) -> None:
    """The endpoint is gone: its experiment, ramp and recommendations end; monitors stay."""
    where = (experiments.c.endpoint == endpoint,)
    connection.execute(sa.update(experiments).where(*where).values(active=False))
    delete_ramp(connection, endpoint)
    connection.execute(
        sa.update(recommendations)
        .where(recommendations.c.endpoint == endpoint, recommendations.c.state == "open")
        .values(state="expired")
    )
