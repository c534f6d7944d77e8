"""The store: runs, verdicts, what they rest on and what changed, in SQLite or PostgreSQL."""
