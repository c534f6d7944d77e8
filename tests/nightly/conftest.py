"""What the tests of nights share: the store tests' PostgreSQL server."""

from __future__ import annotations

from tests.storage.conftest import postgres

__all__ = ["postgres"]
