"""Records by Bulk Data Access: the export that a search asks for, and what of it did not come.

The export lies in the search's working folder, so that a search that was cut short goes on
with the job or the files it has. Source: semantics 1.5; FHIR Bulk Data Access 3.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from service.config import Settings, is_server
from service.criteria.trial import Trial
from service.errors import SourceError
from service.facts.model import MEDICINE_TYPES
from service.fhir.bulk import BulkClient, BulkRequest, Export
from service.fhir.bulkjob import load_job
from service.fhir.bundles import RECORD_TYPES
from service.nightly.engine import Searched
from service.wiring import build_bulk, limits_of

__all__ = ["EXPORT", "bulk_request", "call_off", "exports_in", "types_of", "with_export"]

# Where in a search's working folder its export lies.
EXPORT = "export"
_NO_PATIENT = (
    "the export holds no Patient: see that the client's scope allows all patients, and that the "
    "Group has members"
)


def types_of(trials: Iterable[Trial]) -> tuple[str, ...]:
    """Give the resource types that trials need, and those that these refer to."""
    wanted = {kind for trial in trials for kind in trial.wanted.codes}
    if wanted & set(MEDICINE_TYPES):
        wanted.add("Medication")
    if "ResearchSubject" in wanted:
        wanted.add("ResearchStudy")
    return ("Patient", *(kind for kind in RECORD_TYPES if kind in wanted))


def bulk_request(level: str, trials: Iterable[Trial], since: str | None = None) -> BulkRequest:
    """Say what is exported: ``system``, ``patient`` or ``group/ID``; raises UsageError.

    ``since``: an instant; what changed from then on.
    """
    return BulkRequest(level, types_of(trials), since)


def exports_in(folder: Path) -> list[Path]:
    """Find the folders of exports that may be running, below a search's working folder."""
    return sorted(path.parent for path in folder.rglob("job.json"))


def call_off(
    settings: Settings, folder: Path, report: Callable[[str], None], *, needed: bool
) -> None:
    """Tell a server that an export in a folder that is about to go is over.

    ``needed``: an export of the source follows, which a forgotten job of ours would keep
    from beginning; raises SourceError then if the source can't be told.
    """
    job = load_job(folder)
    if job is None:
        return
    live = settings.source is not None and is_server(settings.source)
    if live:
        client = build_bulk(settings, report)
    else:
        # The search before this one was of a server: what it needs to be asked is not known.
        parts = urlsplit(job.poll)
        client = BulkClient(
            f"{parts.scheme}://{parts.netloc}", None, limits_of(settings), report=report
        )
    try:
        if not client.call_off(folder) and needed and client.trusts(job.poll):
            raise SourceError(
                "the FHIR server can't be told that an earlier export is over; the same command "
                "tries again"
            )
    finally:
        client.close()


def with_export(searched: Searched, export: Export) -> Searched:
    """Add to what was found what of the export did not come, and what the server remarked."""
    problems = [f"export: {problem}" for problem in export.problems]
    if searched.seen == 0:
        # A client that may see nobody gets an empty export, not a refusal.
        problems.append(_NO_PATIENT)
    return replace(
        searched,
        problems=tuple(dict.fromkeys((*problems, *searched.problems))),
        notes=tuple(dict.fromkeys((*export.notes, *searched.notes))),
    )
