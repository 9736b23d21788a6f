"""What a replica reports: which ways to its model are proven, and how often each was taken."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("replicas", sa.Column("report", sa.JSON))
