"""What was sent elsewhere: resources written to a FHIR server, digests by mail or webhook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from service.errors import StoreError
from service.storage.models import DigestRow, PublicationRow, RunRow
from service.storage.store import Store
from service.storage.wording import packed, unpacked

_IDS = 400


class Mark(NamedTuple):
    """What this program knows of a resource that it wrote; bodies are JSON.

    ``sent``: as written last; ``seen``: as the server showed it then, as far as it is ours;
    ``pending``: what was about to be written, if that did not come to its end.
    """

    resource_id: str | None
    version: str | None
    sent: bytes | None
    seen: bytes | None
    pending: bytes | None
    run_id: int


class Marks:
    """The marks of one trial on one server; written one at a time, each kept at once."""

    def __init__(self, store: Store, target: str, trial: str, run_id: int) -> None:
        self._store = store
        self._run_id = run_id
        self._here = {"target": target, "trial": trial}
        self._where = (PublicationRow.target == target, PublicationRow.trial == trial)

    def one(self, kind: str, name: str) -> Mark | None:
        """Give the mark of a resource; None if it was never written."""
        return self.of(kind, name).get(name)

    def of(self, kind: str, only: str | None = None) -> dict[str, Mark]:
        """Give the marks of a resource type (or the one of a name) by name."""
        query = select(
            PublicationRow.name, PublicationRow.resource_id, PublicationRow.version,
            PublicationRow.sent, PublicationRow.seen, PublicationRow.pending,
            PublicationRow.run_id,
        ).where(*self._where, PublicationRow.kind == kind)  # fmt: skip
        if only is not None:
            query = query.where(PublicationRow.name == only)
        with self._store.database.reading() as connection:
            return {
                name: Mark(found, version, _body(sent), _body(seen), _body(pending), run_id)
                for name, found, version, sent, seen, pending, run_id in connection.execute(query)
            }  # fmt: skip

    def newest_run(self) -> int | None:
        """Give the newest run that anything was written for; None if nothing was."""
        query = select(func.max(PublicationRow.run_id)).where(*self._where)
        with self._store.database.reading() as connection:
            return connection.scalar(query)

    def intend(self, kind: str, name: str, body: bytes) -> None:
        """Note what is about to be written."""
        self._keep(kind, name, {"pending": packed(body)})

    def record(
        self,
        kind: str,
        name: str,
        *,
        resource_id: str,
        version: str | None,
        sent: bytes | None,
        seen: bytes | None,
    ) -> None:
        """Note what the server has, and what of it was written by this program."""
        self._keep(
            kind,
            name,
            {
                "resource_id": resource_id,
                "version": version,
                "sent": None if sent is None else packed(sent),
                "seen": None if seen is None else packed(seen),
                "pending": None,
            },
        )

    def confirm(self, kind: str, names: Iterable[str]) -> None:
        """Note that the run asks for resources as they were written before."""
        listed = sorted(names)
        with self._store.database.writing() as connection:
            for start in range(0, len(listed), _IDS):
                connection.execute(
                    update(PublicationRow)
                    .where(
                        *self._where,
                        PublicationRow.kind == kind,
                        PublicationRow.name.in_(listed[start : start + _IDS]),
                    )
                    .values(run_id=self._run_id)
                )

    def _keep(self, kind: str, name: str, values: dict[str, object]) -> None:
        values = values | {"run_id": self._run_id, "at": self._store.now()}
        where = (*self._where, PublicationRow.kind == kind, PublicationRow.name == name)
        with self._store.database.writing() as connection:
            done = connection.execute(update(PublicationRow).where(*where).values(**values))
            if not done.rowcount:
                row = self._here | {"kind": kind, "name": name} | values
                connection.execute(insert(PublicationRow), row)


class DigestState(NamedTuple):
    """What became of a run's digest on a channel; ``status`` as of ``DigestRow``."""

    run_id: int
    channel: str
    status: str
    attempts: int
    problem: str | None


# What is never tried again: it was sent, may have been, or there was nothing to send.
SETTLED = ("sent", "nothing", "uncertain", "sending")


class Digests:
    """Which digests were sent."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def state(self, run_id: int, channel: str) -> DigestState | None:
        """Give what became of a digest; None if it was never tried."""
        with self._store.database.reading() as connection:
            return _state(connection, run_id, channel)

    def failed(self, channel: str) -> list[int]:
        """List the runs, oldest first, whose digest is still to be sent."""
        query = (
            select(DigestRow.run_id)
            .join(RunRow, RunRow.id == DigestRow.run_id)
            .where(
                DigestRow.channel == channel,
                DigestRow.status == "failed",
                RunRow.purged.is_(None),
            )
            .order_by(DigestRow.run_id)
        )
        with self._store.database.reading() as connection:
            return list(connection.scalars(query))

    def doubtful(self, channel: str, before: int) -> list[int]:
        """List earlier runs of which it isn't known whether the digest arrived."""
        query = (
            select(DigestRow.run_id)
            .where(
                DigestRow.channel == channel,
                DigestRow.status.in_(("sending", "uncertain")),
                DigestRow.run_id < before,
            )
            .order_by(DigestRow.run_id)
        )
        with self._store.database.reading() as connection:
            return list(connection.scalars(query))

    def claim(self, run_id: int, channel: str) -> bool:
        """Take on the sending of a digest; False if it is settled or somebody else does it."""
        with self._store.database.writing() as connection:
            # Two processes that send at once wait for each other here.
            run = select(RunRow.id).where(RunRow.id == run_id).with_for_update()
            if connection.scalar(run) is None:
                raise StoreError(f"the store has no run {run_id}")
            found = _state(connection, run_id, channel)
            if found is not None and found.status in SETTLED:
                return False
            attempts = 1 if found is None else found.attempts + 1
            values = {"status": "sending", "attempts": attempts, "problem": None,
                      "at": self._store.now()}  # fmt: skip
            if found is None:
                here = {"run_id": run_id, "channel": channel}
                connection.execute(insert(DigestRow), here | values)
            else:
                connection.execute(
                    update(DigestRow)
                    .where(DigestRow.run_id == run_id, DigestRow.channel == channel)
                    .values(**values)
                )
            return True

    def settle(self, run_id: int, channel: str, status: str, problem: str | None = None) -> None:
        """Note how it ended."""
        with self._store.database.writing() as connection:
            connection.execute(
                update(DigestRow)
                .where(DigestRow.run_id == run_id, DigestRow.channel == channel)
                .values(status=status, problem=problem, at=self._store.now())
            )


def _body(kept: bytes | None) -> bytes | None:
    return None if kept is None else unpacked(kept)


def _state(connection: Connection, run_id: int, channel: str) -> DigestState | None:
    query = select(
        DigestRow.run_id, DigestRow.channel, DigestRow.status, DigestRow.attempts, DigestRow.problem
    ).where(DigestRow.run_id == run_id, DigestRow.channel == channel)
    row = connection.execute(query).one_or_none()
    return None if row is None else DigestState(*row)
