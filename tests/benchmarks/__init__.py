"""Measures speed and memory: ``python -m tests.benchmarks [--brief]``.

Each measure stands beside a baseline from the same run, on the same records: parsing
everything with ``fhir.resources``. Ratios travel between machines, milliseconds don't.
"""
