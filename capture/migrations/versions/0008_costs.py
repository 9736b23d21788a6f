"""What replicas and requests cost, how long each replica lived, and where a change came from."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("audit", sa.Column("address", sa.String(64)))
    op.create_table(
        "prices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("updated_by", sa.String(256), nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "replica_lives",
        sa.Column("replica_id", sa.String(32), primary_key=True),
        sa.Column("endpoint", sa.String(63), nullable=False, index=True),
        sa.Column("served_entity", sa.String(63), nullable=False),
        sa.Column("workload_type", sa.String(32), nullable=False),
        sa.Column("workload_size", sa.String(32)),
        sa.Column("from_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False, index=True),
    )
