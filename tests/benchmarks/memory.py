"""Memory over many requests: what is held after the first tenth, and at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service.config import load_settings
from service.web import create_app
from tests.benchmarks.inline import Wsgi, call
from tests.benchmarks.measuring import resident_bytes, show
from tests.benchmarks.records import copies, request_body

_MEGA = 1_000_000
_TARGET_GROWTH = 0.02


def run(*, brief: bool) -> list[str]:
    """Send records that differ in all ids; then some that also differ in a text each.

    Classified texts are kept up to a limit, so the second measure grows until that is
    reached; the first must not grow at all.
    """
    app = create_app(load_settings({}, {"rate_per_minute": 0, "log_level": "error"}))
    count = 1_000 if brief else 10_000
    growth = _growth(app, copies(count), count)
    note = f"target: at most {_TARGET_GROWTH * 100:.0f} %"
    show("growth", f"{growth * 100:.1f} %", note)
    few = count // 5
    texts = _growth(app, (_with_own_text(one, n) for n, one in enumerate(copies(few))), few)
    show("growth with texts that no other record has", f"{texts * 100:.1f} %")
    if growth > _TARGET_GROWTH:
        return [f"memory grew by {growth * 100:.1f} % over {count:,} requests"]
    return []


def _growth(app: Wsgi, records: Iterable[dict[str, Any]], count: int) -> float:
    """Send requests; give the growth from the first tenth of them to the last."""
    first = 0
    for number, bundle in enumerate(records):
        if number == count // 10:
            first = resident_bytes()
        call(app, request_body(bundle))
    last = resident_bytes()
    show(f"held after {count // 10:,} requests", f"{first / _MEGA:.1f} MB")
    show(f"held after {count:,} requests", f"{last / _MEGA:.1f} MB")
    return (last - first) / first


def _with_own_text(bundle: dict[str, Any], number: int) -> dict[str, Any]:
    """Give a diagnosis words that no other record has, as in life: a cache has to bear it."""
    for entry in bundle["entry"]:
        if entry["resource"]["resourceType"] == "Condition":
            entry["resource"]["code"]["text"] = f"as in letter {number}"
            break
    return bundle
