"""Leases, the catalogue of recorded tables, the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("renewals", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "recorded_tables",
        sa.Column("full_name", sa.String(400), primary_key=True),
        sa.Column("table_id", sa.String(36), nullable=False, unique=True),
        sa.Column("endpoint_id", sa.String(32), nullable=False),
        sa.Column("endpoint_name", sa.String(63), nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("request_columns", sa.JSON, nullable=False),
        sa.Column("looked_up_columns", sa.JSON, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_recorded_tables_endpoint_name", "recorded_tables", ["endpoint_name"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("dispatched", sa.Boolean, nullable=False),
    )
    op.create_index("ix_outbox_dispatched", "outbox", ["dispatched"])
