"""SQL of alert rules, alerts, webhooks and deliveries. Times are Unix milliseconds."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import database, errors

alert_rules = sa.Table(
    "alert_rules",
    database.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("endpoint", sa.String(63), nullable=False, index=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("metric", sa.String(64), nullable=False),
    sa.Column("column", sa.String(256)),
    sa.Column("slice", sa.String(256)),
    sa.Column("served_entity", sa.String(63)),
    sa.Column("operator", sa.String(1), nullable=False),
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("cool_down_minutes", sa.Integer, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

alerts = sa.Table(
    "alerts",
    database.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("rule_id", sa.String(32), nullable=False, index=True),
    sa.Column("cause", sa.String(800), nullable=False),
    sa.Column("endpoint", sa.String(63), nullable=False, index=True),
    sa.Column("metric", sa.String(64), nullable=False),
    sa.Column("column", sa.String(256)),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("closed_ms", sa.BigInteger),
    sa.Column("notified_ms", sa.BigInteger),
    sa.Column("value", sa.Float),
    sa.Column("threshold", sa.Float),
    sa.Column("n", sa.BigInteger),
    sa.Column("window", sa.JSON),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("acknowledged_by", sa.String(256)),
    sa.Column("muted_until_ms", sa.BigInteger),
    sa.Column("mute_reason", sa.Text),
    sa.Column("slice", sa.Text),
)

webhooks = sa.Table(
    "webhooks",
    database.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("events", sa.JSON, nullable=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("sealed_secret", sa.Text, nullable=False),
    sa.Column("sealed_old_secret", sa.Text),
    sa.Column("old_secret_until_ms", sa.BigInteger),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    database.metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("message_id", sa.String(64), nullable=False),
    sa.Column("webhook_id", sa.String(32), nullable=False, index=True),
    sa.Column("event_type", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("first_attempt_ms", sa.BigInteger),
    sa.Column("next_attempt_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("last_status", sa.Integer),
    sa.Column("last_error", sa.Text),
    sqlite_autoincrement=True,
)


class Rule(NamedTuple):
    """Metric and condition, for how many windows, how bad, how often told. `slice`: a slicing
    expression, for each of its values, or `expression=value` for one; None: all rows."""

    id: str
    endpoint: str
    name: str
    metric: str
    column: str | None
    slice: str | None
    served_entity: str | None
    operator: str
    threshold: float
    windows: int
    severity: str
    cool_down_minutes: int
    enabled: bool
    created_ms: int


class Alert(NamedTuple):
    """One cause that holds or held. `cause`: rule, column, served entity and slice in one text;
    `slice`: `expression=value`, None: all rows."""

    id: str
    rule_id: str
    cause: str
    endpoint: str
    metric: str
    column: str | None
    severity: str
    state: str
    opened_ms: int
    updated_ms: int
    closed_ms: int | None
    notified_ms: int | None
    value: float | None
    threshold: float | None
    n: int | None
    window: list[str] | None
    message: str
    acknowledged_by: str | None
    muted_until_ms: int | None
    mute_reason: str | None
    slice: str | None = None


class Webhook(NamedTuple):
    """A receiver of events. Its secrets are sealed."""

    id: str
    url: str
    events: list[str]
    format: str
    description: str | None
    sealed_secret: str
    sealed_old_secret: str | None
    old_secret_until_ms: int | None
    created_by: str
    created_ms: int


class Delivery(NamedTuple):
    """One event on its way to one webhook. `state`: waiting, delivered or dead."""

    id: int
    message_id: str
    webhook_id: str
    event_type: str
    body: str
    created_ms: int
    state: str
    attempts: int
    first_attempt_ms: int | None
    next_attempt_ms: int
    ended_ms: int | None
    last_status: int | None
    last_error: str | None


# --- rules ---------------------------------------------------------------------------------------


def add_rule(connection: sa.Connection, rule: Rule) -> None:
    connection.execute(sa.insert(alert_rules).values(**rule._asdict()))


def get_rule(connection: sa.Connection, rule_id: str) -> Rule:
    """Raises DoesNotExist."""
    row = connection.execute(sa.select(alert_rules).where(alert_rules.c.id == rule_id)).first()
    if row is None:
        raise errors.DoesNotExist(f"Alert rule '{rule_id}' does not exist.")
    return Rule(**row._mapping)


def rules(connection: sa.Connection, endpoint: str | None = None) -> list[Rule]:
    """Rules in the order they were made."""
    query = sa.select(alert_rules).order_by(alert_rules.c.created_ms, alert_rules.c.id)
    if endpoint is not None:
        query = query.where(alert_rules.c.endpoint == endpoint)
    return [Rule(**row._mapping) for row in connection.execute(query)]


def change_rule(connection: sa.Connection, rule_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(alert_rules).where(alert_rules.c.id == rule_id).values(**values))


def delete_rule(connection: sa.Connection, rule_id: str, now_ms: int) -> None:
    """The rule goes, its open alerts close, its history stays."""
    connection.execute(
        sa.update(alerts)
        .where(alerts.c.rule_id == rule_id, alerts.c.state == "open")
        .values(state="closed", closed_ms=now_ms, updated_ms=now_ms)
    )
    connection.execute(sa.delete(alert_rules).where(alert_rules.c.id == rule_id))


# --- alerts --------------------------------------------------------------------------------------


def add_alert(connection: sa.Connection, alert: Alert) -> None:
    connection.execute(sa.insert(alerts).values(**alert._asdict()))


def change_alert(connection: sa.Connection, alert_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(alerts).where(alerts.c.id == alert_id).values(**values))


def get_alert(connection: sa.Connection, alert_id: str) -> Alert:
    """Raises DoesNotExist."""
    row = connection.execute(sa.select(alerts).where(alerts.c.id == alert_id)).first()
    if row is None:
        raise errors.DoesNotExist(f"Alert '{alert_id}' does not exist.")
    return Alert(**row._mapping)


def find_alerts(
    connection: sa.Connection,
    endpoint: str | None = None,
    state: str | None = None,
    before: tuple[int, str] | None = None,
    limit: int = 1000,
) -> list[Alert]:
    """Newest first, after the place `before` = (opened_ms, id)."""
    query = sa.select(alerts).order_by(alerts.c.opened_ms.desc(), alerts.c.id.desc())
    if endpoint is not None:
        query = query.where(alerts.c.endpoint == endpoint)
    if state is not None:
        query = query.where(alerts.c.state == state)
    if before is not None:
        place = sa.tuple_(alerts.c.opened_ms, alerts.c.id)
        query = query.where(place < sa.tuple_(*map(sa.literal, before)))
    return [Alert(**row._mapping) for row in connection.execute(query.limit(limit))]


def newest_alert_of_each_cause(connection: sa.Connection, endpoint: str) -> dict[str, Alert]:
    """Open or closed, the last alert of every cause on an endpoint."""
    found = connection.execute(
        sa.select(alerts)
        .where(alerts.c.endpoint == endpoint)
        .order_by(alerts.c.opened_ms, alerts.c.id)
    )
    return {row.cause: Alert(**row._mapping) for row in found}


# --- webhooks ------------------------------------------------------------------------------------


def add_webhook(connection: sa.Connection, webhook: Webhook) -> None:
    connection.execute(sa.insert(webhooks).values(**webhook._asdict()))


def get_webhook(connection: sa.Connection, webhook_id: str) -> Webhook:
    """Raises DoesNotExist."""
    row = connection.execute(sa.select(webhooks).where(webhooks.c.id == webhook_id)).first()
    if row is None:
        raise errors.DoesNotExist(f"Webhook '{webhook_id}' does not exist.")
    return Webhook(**row._mapping)


def all_webhooks(connection: sa.Connection) -> list[Webhook]:
    found = connection.execute(sa.select(webhooks).order_by(webhooks.c.created_ms, webhooks.c.id))
    return [Webhook(**row._mapping) for row in found]


def change_webhook(connection: sa.Connection, webhook_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(webhooks).where(webhooks.c.id == webhook_id).values(**values))


def delete_webhook(connection: sa.Connection, webhook_id: str) -> None:
    """With everything that was on its way to it."""
    connection.execute(sa.delete(deliveries).where(deliveries.c.webhook_id == webhook_id))
    connection.execute(sa.delete(webhooks).where(webhooks.c.id == webhook_id))


# --- deliveries ----------------------------------------------------------------------------------


def add_delivery(
    connection: sa.Connection,
    webhook_id: str,
    message_id: str,
    event_type: str,
    body: str,
    now_ms: int,
) -> int:
    """An event that waits for its receiver; gives the delivery's id."""
    done = connection.execute(
        sa.insert(deliveries).values(
            message_id=message_id,
            webhook_id=webhook_id,
            event_type=event_type,
            body=body,
            created_ms=now_ms,
            state="waiting",
            attempts=0,
            next_attempt_ms=now_ms,
        )
    )
    return int(done.inserted_primary_key[0])  # type: ignore[index]


def heads(connection: sa.Connection, busy: Iterable[str] = ()) -> list[Delivery]:
    """The oldest waiting delivery of each webhook that is not `busy`: order per target."""
    oldest = (
        sa.select(sa.func.min(deliveries.c.id))
        .where(deliveries.c.state == "waiting", deliveries.c.webhook_id.not_in(list(busy)))
        .group_by(deliveries.c.webhook_id)
    )
    found = connection.execute(
        sa.select(deliveries).where(deliveries.c.id.in_(oldest)).order_by(deliveries.c.id)
    )
    return [Delivery(**row._mapping) for row in found]


def head_of(connection: sa.Connection, webhook_id: str) -> Delivery | None:
    """The oldest waiting delivery of one webhook."""
    row = connection.execute(
        sa.select(deliveries)
        .where(deliveries.c.webhook_id == webhook_id, deliveries.c.state == "waiting")
        .order_by(deliveries.c.id)
    ).first()
    return Delivery(**row._mapping) if row else None


def get_delivery(connection: sa.Connection, webhook_id: str, delivery_id: int) -> Delivery:
    """Raises DoesNotExist."""
    where = (deliveries.c.webhook_id == webhook_id, deliveries.c.id == delivery_id)
    row = connection.execute(sa.select(deliveries).where(*where)).first()
    if row is None:
        raise errors.DoesNotExist(f"Webhook '{webhook_id}' has no delivery {delivery_id}.")
    return Delivery(**row._mapping)


def find_deliveries(
    connection: sa.Connection, webhook_id: str, before_id: int | None = None, limit: int = 50
) -> list[Delivery]:
    """Newest first."""
    query = sa.select(deliveries).where(deliveries.c.webhook_id == webhook_id)
    if before_id is not None:
        query = query.where(deliveries.c.id < before_id)
    found = connection.execute(query.order_by(deliveries.c.id.desc()).limit(limit))
    return [Delivery(**row._mapping) for row in found]


def change_delivery(connection: sa.Connection, delivery_id: int, values: Mapping[str, Any]) -> None:
    connection.execute(sa.update(deliveries).where(deliveries.c.id == delivery_id).values(**values))


def forget_deliveries(connection: sa.Connection, state: str, before_ms: int) -> int:
    """Drop deliveries that ended so before this time; gives their number."""
    old = (deliveries.c.state == state, deliveries.c.ended_ms < before_ms)
    return connection.execute(sa.delete(deliveries).where(*old)).rowcount


def forget_endpoint(connection: sa.Connection, endpoint: str, now_ms: int) -> None:
    """The endpoint is gone: its rules go, its open alerts close."""
    connection.execute(
        sa.update(alerts)
        .where(alerts.c.endpoint == endpoint, alerts.c.state == "open")
        .values(state="closed", closed_ms=now_ms, updated_ms=now_ms)
    )
    connection.execute(sa.delete(alert_rules).where(alert_rules.c.endpoint == endpoint))
