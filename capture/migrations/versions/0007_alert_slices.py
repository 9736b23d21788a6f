"""Which slice an alert is about."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("alerts", sa.Column("slice", sa.Text))
