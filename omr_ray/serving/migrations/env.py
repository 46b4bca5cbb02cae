"""Alembic runs this: the connection comes from `store.database.Database.migrate`, which commits."""

from alembic import context

from omr_ray.serving.store.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata, render_as_batch=True)
context.run_migrations()
