"""Alembic's entry: runs our migrations on the engine of the settings handed over."""

from alembic import context

from capture import database

engine = database.open_engine(context.config.attributes["engine_settings"])
with database.transaction(engine) as connection:
    context.configure(connection=connection, target_metadata=database.metadata)
    context.run_migrations()
engine.dispose()
