"""Alembic's entry point; :mod:`cloudfarm.store.schema` hands it a connection with an open transaction."""

from alembic import context

from cloudfarm.store.rows import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
