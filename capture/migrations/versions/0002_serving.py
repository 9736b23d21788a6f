"""Endpoints, configurations, replicas, demand, tokens, grants, secrets, audit, change counters."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False, unique=True),
        sa.Column("creator", sa.String(256), nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("active_version", sa.Integer),
        sa.Column("pending_version", sa.Integer),
        sa.Column("config_update", sa.String(20), nullable=False),
        sa.Column("update_message", sa.Text),
        sa.Column("update_started_ms", sa.BigInteger),
        sa.Column("stopped", sa.Boolean, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("ai_gateway", sa.JSON),
        sa.Column("rate_limits", sa.JSON),
        sa.Column("email_notifications", sa.JSON),
        sa.Column("telemetry_config", sa.JSON),
        sa.Column("route_optimized", sa.Boolean, nullable=False),
        sa.Column("budget_policy_id", sa.String(256)),
        sa.Column("row_version", sa.Integer, nullable=False),
    )
    op.create_table(
        "configurations",
        sa.Column("endpoint_id", sa.String(32), primary_key=True),
        sa.Column("config_version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("origin", sa.String(20), nullable=False),
        sa.Column("activated_ms", sa.BigInteger),
    )
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("endpoint_id", sa.String(32), nullable=False),
        sa.Column("served_entity_id", sa.String(32), nullable=False),
        sa.Column("socket", sa.String(400), nullable=False),
        sa.Column("pid", sa.Integer),
        sa.Column("pid_start", sa.Float(53)),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("ready_ms", sa.BigInteger),
        sa.Column("concurrency", sa.Integer, nullable=False),
    )
    op.create_index("ix_replicas_served_entity_id", "replicas", ["served_entity_id"])
    op.create_table(
        "entity_states",
        sa.Column("endpoint_id", sa.String(32), primary_key=True),
        sa.Column("served_entity_id", sa.String(32), primary_key=True),
        sa.Column("deployment", sa.String(30), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "demand",
        sa.Column("served_entity_id", sa.String(32), primary_key=True),
        sa.Column("gateway", sa.String(64), primary_key=True),
        sa.Column("waiting", sa.Integer, nullable=False),
        sa.Column("in_flight", sa.Integer, nullable=False),
        sa.Column("last_request_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("user", sa.String(256), nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
    )
    op.create_table(
        "sign_in_codes",
        sa.Column("hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("user", sa.String(256), nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("used", sa.Boolean, nullable=False),
    )
    op.create_table(
        "grants",
        sa.Column("endpoint_id", sa.String(32), primary_key=True),
        sa.Column("principal", sa.String(280), primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("level", sa.String(20), nullable=False),
    )
    op.create_table(
        "secret_scopes",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("creator", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("scope", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(63)),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
        sa.Column("reason", sa.Text),
    )
    op.create_index("ix_audit_time_ms", "audit", ["time_ms"])
    changes = op.create_table(
        "changes",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("counter", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(changes, [{"name": "routes", "counter": 0}])
