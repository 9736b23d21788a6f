"""Monitors, refreshes, experiments, ramps, recommendations, alerts, webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "monitors",
        sa.Column("table_name", sa.String(400), primary_key=True),
        sa.Column("table_id", sa.String(36), nullable=False, unique=True),
        sa.Column("endpoint", sa.String(63)),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("monitor_version", sa.Integer, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("failure_message", sa.Text),
        sa.Column("baseline_version", sa.Integer, nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("next_refresh_ms", sa.BigInteger),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_monitors_endpoint", "monitors", ["endpoint"])
    op.create_table(
        "refreshes",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("table_name", sa.String(400), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("trigger", sa.String(16), nullable=False),
        sa.Column("until_ms", sa.BigInteger),
        sa.Column("requested_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("message", sa.Text),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_refreshes_state", "refreshes", ["state"])
    op.create_index("ix_refreshes_table_name", "refreshes", ["table_name"])
    op.create_table(
        "baselines",
        sa.Column("table_name", sa.String(400), primary_key=True),
        sa.Column("baseline_version", sa.Integer, primary_key=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "experiments",
        sa.Column("endpoint", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ramps",
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
    op.create_table(
        "latches",
        sa.Column("endpoint", sa.String(63), primary_key=True),
        sa.Column("experiment", sa.Integer, primary_key=True),
        sa.Column("champion", sa.String(63), primary_key=True),
        sa.Column("challenger", sa.String(63), primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "recommendations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("endpoint", sa.String(63), nullable=False),
        sa.Column("cause", sa.String(400), nullable=False),
        sa.Column("action", sa.JSON, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("expected_effect", sa.Text, nullable=False),
        sa.Column("risk", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("outcome", sa.JSON),
        sa.Column("snoozed_until_ms", sa.BigInteger),
    )
    op.create_index("ix_recommendations_endpoint", "recommendations", ["endpoint"])
    op.create_index("ix_recommendations_state", "recommendations", ["state"])
    op.create_table(
        "alert_rules",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("endpoint", sa.String(63), nullable=False),
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
    op.create_index("ix_alert_rules_endpoint", "alert_rules", ["endpoint"])
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("rule_id", sa.String(32), nullable=False),
        sa.Column("cause", sa.String(800), nullable=False),
        sa.Column("endpoint", sa.String(63), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("column", sa.String(256)),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
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
    )
    op.create_index("ix_alerts_endpoint", "alerts", ["endpoint"])
    op.create_index("ix_alerts_rule_id", "alerts", ["rule_id"])
    op.create_index("ix_alerts_state", "alerts", ["state"])
    op.create_table(
        "webhooks",
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
    op.create_table(
        "deliveries",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("message_id", sa.String(64), nullable=False),
        sa.Column("webhook_id", sa.String(32), nullable=False),
        sa.Column("event_type", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("first_attempt_ms", sa.BigInteger),
        sa.Column("next_attempt_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deliveries_state", "deliveries", ["state"])
    op.create_index("ix_deliveries_webhook_id", "deliveries", ["webhook_id"])
