"""Stores of either kind, as for the tests of the store."""

from __future__ import annotations

from tests.storage.conftest import place, postgres, pytest_terminal_summary, store

__all__ = ["place", "postgres", "pytest_terminal_summary", "store"]
