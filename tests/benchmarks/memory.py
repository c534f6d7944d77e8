"""Memory over many requests: what is held after the first tenth, and at the end."""

from __future__ import annotations

from typing import Any

from service.config import load_settings
from service.web import create_app
from tests.benchmarks.inline import call
from tests.benchmarks.measuring import resident_bytes, show
from tests.benchmarks.records import copies, request_body

_MEGA = 1_000_000
_TARGET_GROWTH = 0.02


def run(*, brief: bool) -> list[str]:
    """Send requests with records that differ in ids and in one text each."""
    app = create_app(load_settings({}, {"rate_per_minute": 0, "log_level": "error"}))
    count = 1_000 if brief else 10_000
    first = 0
    for number, bundle in enumerate(copies(count)):
        if number == count // 10:
            first = resident_bytes()
        call(app, request_body(_with_own_text(bundle, number)))
    last = resident_bytes()
    growth = (last - first) / first
    show(f"held after {count // 10:,} requests", f"{first / _MEGA:.1f} MB")
    show(f"held after {count:,} requests", f"{last / _MEGA:.1f} MB")
    show("growth", f"{growth * 100:.1f} %", f"target: at most {_TARGET_GROWTH * 100:.0f} %")
    if growth > _TARGET_GROWTH and not brief:
        return [f"memory grew by {growth * 100:.1f} % over {count:,} requests"]
    return []


def _with_own_text(bundle: dict[str, Any], number: int) -> dict[str, Any]:
    """Give a diagnosis words that no other record has, as in life: a cache has to bear it."""
    for entry in bundle["entry"]:
        if entry["resource"]["resourceType"] == "Condition":
            entry["resource"]["code"]["text"] = f"as in letter {number}"
            break
    return bundle
