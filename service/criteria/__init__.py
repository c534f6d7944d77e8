"""Criteria: rules over facts, their results and the verdict."""
