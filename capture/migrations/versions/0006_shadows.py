"""Which version gets copies of an endpoint's requests."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "shadows",
        sa.Column("endpoint_id", sa.String(32), primary_key=True),
        sa.Column("served_entity", sa.String(63), nullable=False),
        sa.Column("sample_percentage", sa.Float(53), nullable=False),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
    )
