"""The upkeep of tables, and facts on their way to the system tables."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "table_upkeep",
        sa.Column("full_name", sa.String(400), primary_key=True),
        sa.Column("retention_days", sa.Integer),
        sa.Column("asked_ms", sa.BigInteger),
        sa.Column("asked", sa.JSON),
        sa.Column("answered_ms", sa.BigInteger),
        sa.Column("done_ms", sa.BigInteger),
        sa.Column("done", sa.JSON),
    )
    op.create_table(
        "ledger",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("table_name", sa.String(400), nullable=False),
        sa.Column("fact", sa.JSON, nullable=False),
        sa.Column("batch", sa.BigInteger),
    )
    op.create_index("ix_ledger_table_name", "ledger", ["table_name"])
