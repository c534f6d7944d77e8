"""Rendering verdicts and errors for people and programs."""
