"""Searches as jobs: asked for over HTTP or by a schedule, run by workers."""
