"""Notes of annotations"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

EMPTY = '{"left": {"description": "", "tags": []}, "right": {"description": "", "tags": []}}'


def upgrade() -> None:
    with op.batch_alter_table("annotations", schema=None) as batch_op:
        batch_op.add_column(sa.Column("notes", sa.JSON(none_as_null=True), nullable=False, server_default=sa.text(f"'{EMPTY}'")))
    with op.batch_alter_table("annotations", schema=None) as batch_op:
        batch_op.alter_column("notes", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("annotations", schema=None) as batch_op:
        batch_op.drop_column("notes")
