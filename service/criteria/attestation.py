"""Attestations: what only a person can settle, laid over what the record says (1.6).

An attestation turns ``unknown`` into ``pass`` or ``fail`` and a computed ``pass`` into
``fail``; it never overturns a ``fail`` that the record proves. The computed outcome stays
beside it. It can expire and be withdrawn; none is ever deleted, so both are kept in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path

from service.criteria.context import Context
from service.criteria.model import Evidence, Result
from service.criteria.trial import Trial
from service.values.dates import day_text, parse
from service.values.logic import Outcome, Reason
from service.yamlfile import Node, load_yaml


@dataclass(frozen=True, slots=True)
class Attestation:
    """One attestation: criterion or part, outcome, who, when, and why.

    Days are ordinals: ``day`` from which it holds, ``last_day`` on which it still does
    (None: no expiry), ``withdrawn`` from which it no longer does.
    """

    trial: str
    patient: str
    criterion: str
    outcome: Outcome
    by: str
    day: int
    why: str
    last_day: int | None = None
    withdrawn: int | None = None

    def holds(self, ctx: Context) -> bool:
        """Tell whether it holds on the day, noting the days on which that turns."""
        ctx.turns(self.day)
        if self.last_day is not None:
            ctx.turns(self.last_day + 1)
        if self.withdrawn is not None:
            ctx.turns(self.withdrawn)
        return (
            self.day <= ctx.as_of
            and (self.last_day is None or ctx.as_of <= self.last_day)
            and (self.withdrawn is None or ctx.as_of < self.withdrawn)
        )


def laid_over(result: Result, attestations: Iterable[Attestation], ctx: Context) -> Result:
    """Lay the attestations of a criterion over its computed result."""
    valid = [entry for entry in attestations if entry.holds(ctx)]
    if not valid or result.outcome is Outcome.FAIL:
        return result
    newest = max(entry.day for entry in valid)
    latest = [entry for entry in valid if entry.day == newest]
    # Of one day's statements the one against enrolment holds.
    decided = min(latest, key=lambda entry: entry.outcome is not Outcome.FAIL)
    if result.outcome is Outcome.PASS and decided.outcome is Outcome.PASS:
        return result
    evidence = Evidence(
        reference="Attestation",
        date=day_text(decided.day),
        recorded=decided.why,
        compared=f"{decided.outcome.value}, attested by {decided.by}",
    )
    return replace(
        result,
        outcome=decided.outcome,
        reason=Reason.ATTESTED,
        message=f"attested by {decided.by}: {decided.why}",
        evidence=(*result.evidence, evidence),
        settled_by=(),
        computed=(result.outcome, result.reason),
    )


def load_attestations(path: Path, trials: Iterable[Trial]) -> tuple[Attestation, ...]:
    """Read a file of attestations; raises MappingError with file and line.

    YAML (or JSON): ``attestations``, a list of ``trial``, ``patient`` (an id), ``criterion``,
    ``outcome`` (pass or fail), ``by``, ``when``, ``why``, and if need be ``expires`` (its last
    day) and ``withdrawn`` (the day from which it no longer holds).
    """
    known = {trial.id: trial for trial in trials}
    top = load_yaml(path)
    found = tuple(_attestation(entry, known) for entry in top.mappings("attestations"))
    top.done()
    return found


def _attestation(entry: Node, trials: dict[str, Trial]) -> Attestation:
    trial = trials.get(entry.text("trial"))
    if trial is None:
        raise entry.error("no such trial", "trial")
    criterion = entry.text("criterion")
    if criterion not in trial.by_id:
        raise entry.error(f"{trial.id} has no criterion {criterion!r}", "criterion")
    outcome = entry.text("outcome")
    if outcome not in (Outcome.PASS, Outcome.FAIL):
        raise entry.error("outcome must be pass or fail", "outcome")
    attestation = Attestation(
        trial=trial.id,
        patient=entry.text("patient").removeprefix("Patient/"),
        criterion=criterion,
        outcome=Outcome(outcome),
        by=entry.text("by"),
        day=_day(entry, "when"),
        why=entry.text("why"),
        last_day=_day(entry, "expires") if "expires" in entry else None,
        withdrawn=_day(entry, "withdrawn") if "withdrawn" in entry else None,
    )
    entry.done()
    return attestation


def _day(entry: Node, key: str) -> int:
    value = entry.raw(key)
    try:
        return parse(str(value), UTC).first
    except ValueError:
        raise entry.error(f"{key} must be a date", key) from None
