"""Alembic's migrations of the store; run by ``service.storage.database`` when it is opened."""
