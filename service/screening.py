"""The use cases that web, command line and nightly run share: evaluate a patient.

Nothing here knows HTTP, Flask or the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from service.criteria.attestation import Attestation
from service.criteria.evaluate import evaluate, steady_until_of
from service.criteria.model import Verdict
from service.criteria.trial import Trial
from service.errors import UnknownTrial
from service.facts.build import Site, facts_of
from service.fhir.record import PatientRecord
from service.fhir.source import Fetched, Source, record_of
from service.terms import Terms

__all__ = ["Screening"]


@dataclass(frozen=True, slots=True)
class Screening:
    """Trials, terms, site settings and attestations, loaded once."""

    trials: dict[str, Trial]
    terms: Terms
    site: Site
    attestations: tuple[Attestation, ...] = ()

    def trial(self, trial_id: str) -> Trial:
        """Find a trial by its id; raises UnknownTrial."""
        found = self.trials.get(trial_id)
        if found is None:
            raise UnknownTrial(f"no trial {trial_id[:64]!r} is configured")
        return found

    def verdict(self, trial: Trial, record: PatientRecord, as_of: date) -> Verdict:
        """Evaluate a record for a trial as of a day in the site's time zone."""
        keys = set(record.patient_ids)
        own = tuple(entry for entry in self.attestations if entry.patient in keys)
        return evaluate(trial, facts_of(record, self.terms, self.site), as_of, own)

    def steady_until(
        self, trial: Trial, record: PatientRecord, as_of: date, criterion_id: str
    ) -> str | None:
        """Give the last day on which a criterion's result stays the same without attestations."""
        return steady_until_of(trial, facts_of(record, self.terms, self.site), as_of, criterion_id)

    def evaluate_patient(
        self, trial: Trial, source: Source, patient_id: str, as_of: date
    ) -> Verdict:
        """Read a patient from a source and evaluate the record.

        Raises UnknownPatient, PatientUnreadable, SourceError.
        """
        fetched = source.fetch(patient_id, trial.wanted)
        return self.verdict(trial, record_of(fetched), as_of)

    def evaluate_fetched(self, trial: Trial, fetched: Fetched, as_of: date) -> Verdict:
        """Evaluate what was read already (a Bundle handed in, or merged with a server's)."""
        return self.verdict(trial, record_of(fetched), as_of)
