"""How things are timed and printed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_STATM = Path("/proc/self/statm")
_PAGE = 4096


class Timing(NamedTuple):
    """Seconds of repeated calls."""

    median: float
    p95: float
    count: int


def timed(call: Callable[[], object], count: int, *, warm_up: int = 3) -> Timing:
    """Call repeatedly and give the median and the 95th percentile."""
    for _ in range(warm_up):
        call()
    seconds: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def summary(seconds: list[float]) -> Timing:
    """Summarise measured seconds."""
    ordered = sorted(seconds)
    return Timing(statistics.median(ordered), ordered[int(len(ordered) * 0.95)], len(ordered))


def once(call: Callable[[], object]) -> float:
    """Give the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident_bytes() -> int:
    """Give the memory that this process holds, after a collection of garbage."""
    gc.collect()
    return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE


def show(name: str, value: str, note: str = "") -> None:
    """Print a measure on one line."""
    print(f"  {name:<52}{value:>14}  {note}".rstrip(), flush=True)


def milliseconds(seconds: float) -> str:
    """Write a duration."""
    return f"{seconds * 1000:.2f} ms"
