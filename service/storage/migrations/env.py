"""Runs migrations on the connection that the store hands over, in the store's transaction."""

from __future__ import annotations

from alembic import context

from service.storage.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
