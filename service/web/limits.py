"""Limits on what callers may ask for: rate, evaluations at a time, time of each."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import TypeVar

from service.errors import Overloaded, SourceTimeout

_T = TypeVar("_T")
_MINUTE = 60.0
_CALLERS = 10_000


class TooManyRequests(Overloaded):
    """A caller asks too often."""

    status = 429


class Rate:
    """A token bucket per caller: so many requests a minute, as many at once.

    Of very many callers those longest silent are forgotten.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = float(per_minute)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count a request; raises TooManyRequests."""
        if not self._size:
            return
        now = self._clock()
        with self._lock:
            left, since = self._buckets.pop(caller, (self._size, now))
            left = min(self._size, left + (now - since) * self._size / _MINUTE)
            allowed = left >= 1
            self._buckets[caller] = (left - 1 if allowed else left, now)
            if len(self._buckets) > _CALLERS:
                self._buckets.popitem(last=False)
        if not allowed:
            wait = (1 - left) * _MINUTE / self._size
            raise TooManyRequests("too many requests", retry_after=max(1, round(wait + 0.5)))


class Gate:
    """Runs evaluations in threads of its own, only so many at a time and for so long.

    One that takes too long keeps its place until it ends, so that slow ones can't pile up.
    """

    def __init__(self, places: int, seconds: float) -> None:
        self._places = places
        self._seconds = seconds
        self._free = threading.BoundedSemaphore(places)
        # Its threads start with the first evaluation: after a server's fork, not before.
        self._pool = ThreadPoolExecutor(places, thread_name_prefix="evaluation")

    def run(self, work: Callable[[], _T]) -> _T:
        """Run one evaluation; raises Overloaded or SourceTimeout."""
        if not self._free.acquire(blocking=False):
            raise Overloaded("too many evaluations at once; try again later")
        future = self._submit(work)
        try:
            return future.result(self._seconds)
        except NotInTime as error:
            if future.done():
                raise
            raise SourceTimeout("the evaluation did not end in time") from error

    def _submit(self, work: Callable[[], _T]) -> Future[_T]:
        try:
            future = self._pool.submit(work)
        except RuntimeError:
            self._free.release()
            raise
        future.add_done_callback(lambda _: self._free.release())
        return future
