"""The queue wakes one worker for each message, and its loss loses nothing."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.jobs.queue import Queue
from service.storage.store import Store

NEVER = threading.Event()


def test_each_message_is_given_once(store: Store) -> None:
    sender = Queue(store.database)
    readers = [Queue(store.database) for _ in range(3)]
    sent = {f"job{number}" for number in range(12)}
    for key in sorted(sent):
        assert sender.wake(key)

    def read(queue: Queue) -> list[str]:
        found = []
        while (key := queue.wait(0, NEVER)) is not None:
            found.append(key)
        queue.close()
        return found

    with ThreadPoolExecutor(3) as pool:
        lists = list(pool.map(read, readers))
    sender.close()
    assert sorted(key for found in lists for key in found) == sorted(sent)


def test_a_message_wakes_who_waits(store: Store) -> None:
    queue, sender = Queue(store.database), Queue(store.database)

    def wait() -> str | None:
        try:
            return queue.wait(30, NEVER)
        finally:
            queue.close()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert sender.wake("job")
        assert waiting.result(10) == "job"
    sender.close()


def test_who_is_told_to_stop_waits_no_longer(store: Store) -> None:
    stop = threading.Event()
    stop.set()
    queue = Queue(store.database)
    assert queue.wait(60, stop) is None
    queue.close()


def test_a_queue_that_fails_is_no_error(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "store.db")) as store:
        (tmp_path / "store.db-queue").write_bytes(b"no database at all, but long enough" * 100)
        queue = Queue(store.database)
        assert queue.wake("job") is False
        assert queue.wait(0, NEVER) is None


def test_only_its_owner_can_use_the_file(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "store.db")) as store:
        queue = Queue(store.database)
        queue.wake("job")
        queue.close()
    mode = stat.S_IMODE((tmp_path / "store.db-queue").stat().st_mode)
    assert mode == 0o600
