"""Values: three-valued logic, dates as intervals, exact quantities."""
