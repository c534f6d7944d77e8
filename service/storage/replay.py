"""Gives a stored verdict again, from the stored record, with the versions then used."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

from service import __version__
from service.criteria.model import Verdict
from service.errors import MappingError, NotReplayable
from service.results.json import verdict_line
from service.screening import Screening
from service.storage.materials import ATTESTATIONS, MAPPINGS, SITE
from service.storage.store import Run, Store

# Builds what evaluates from folders and files: mappings, site, attestations.
Build = Callable[[Path, Path | None, Path | None], Screening]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A verdict given again, its line, and the line that was kept."""

    verdict: Verdict
    line: bytes
    kept: bytes

    @property
    def same(self) -> bool:
        """Tell whether it is the same, byte for byte."""
        return self.line == self.kept


def replay(
    store: Store, run_id: int, patient: str, build: Build, *, trial: str | None = None
) -> list[Replayed]:
    """Give a patient's verdicts of a run again, one per trial (or for one trial).

    Raises UsageError for an unknown run, NotReplayable if a version, file or fact is missing.
    """
    run = store.run(run_id)
    if run.purged is not None:
        raise NotReplayable(f"what run {run_id} rests on was purged on {run.purged[:10]}")
    kept = [one for one in store.verdict(run_id, patient) if trial in (None, one.trial)]
    if not kept:
        raise NotReplayable(f"run {run_id} gave no verdict on that patient")
    then = run.spec.versions.get("service")
    if then != __version__:
        raise NotReplayable(
            f"version {then} of the service is missing (this is {__version__}): "
            f"install trial-eligibility=={then} to replay run {run_id}"
        )
    fetched = store.facts(run_id, patient)
    if fetched is None:
        raise NotReplayable(f"run {run_id} kept no facts of that patient")
    with _files(store, run) as (mappings, site, attestations):
        try:
            screening = build(mappings, site, attestations)
        except MappingError as error:
            raise NotReplayable(f"the mappings of run {run_id} can't be read: {error}") from error
        found = []
        for one in kept:
            if one.trial not in screening.trials:
                raise NotReplayable(f"the file of trial {one.trial} is missing from run {run_id}")
            verdict = screening.evaluate_fetched(
                screening.trial(one.trial), fetched, date.fromisoformat(run.spec.as_of)
            )
            found.append(Replayed(verdict, verdict_line(verdict).encode(), one.line))
    return found


def differences(run: Run, now: Mapping[str, str]) -> list[str]:
    """Name what a run's verdicts may also rest on and is another version here."""
    return [
        f"{name} {then} (here {now.get(name, 'none')})"
        for name, then in run.environment.items()
        if now.get(name) != then
    ]


@contextmanager
def _files(store: Store, run: Run) -> Iterator[tuple[Path, Path | None, Path | None]]:
    """Lay the files of a run out; raises NotReplayable if one is missing."""
    materials = store.materials(run.id)
    if not any(name.startswith(MAPPINGS) for name in materials):
        raise NotReplayable(f"run {run.id} kept no mappings")
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        root = Path(folder)
        for name, (digest, body) in materials.items():
            if body is None:
                raise NotReplayable(f"{name} of run {run.id} is missing (sha256:{digest[:16]})")
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts:
                raise NotReplayable(f"run {run.id} names a file outside its mappings")
            path = root / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        site, attestations = (
            root / name if name in materials else None for name in (SITE, ATTESTATIONS)
        )
        yield root / MAPPINGS, site, attestations
