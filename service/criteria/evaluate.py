"""Evaluates every criterion as of a day and combines the verdict (semantics 1.1, 1.7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from service.criteria.attestation import Attestation, laid_over
from service.criteria.context import Context, Draft, period_text, unique
from service.criteria.model import Result, Settles, Verdict, VerdictCode
from service.criteria.rules import Rule
from service.criteria.rules.base import types_of, window_of
from service.criteria.trial import Criterion, Trial
from service.facts.model import PatientFacts
from service.values.dates import day_text
from service.values.logic import Outcome, Reason, all_of, any_of


def evaluate(
    trial: Trial,
    facts: PatientFacts,
    as_of: date,
    attestations: Sequence[Attestation] = (),
) -> Verdict:
    """Evaluate a patient's facts for a trial; a pure function of its arguments.

    ``attestations`` are those of this trial and patient, whether they hold or not.
    """
    evaluation = _Evaluation(trial, facts, _by_criterion(trial, attestations))
    ctx = evaluation.context(as_of.toordinal())
    results = tuple(ctx.result(criterion.id) for criterion in trial.criteria)
    valid_until, steady_until = evaluation.horizons(ctx)
    return Verdict(
        trial=trial.id,
        trial_version=trial.version,
        patient=facts.person.reference,
        as_of=as_of.isoformat(),
        code=verdict_of(results),
        valid_until=valid_until,
        criteria=results,
        messages=facts.messages,
        patient_version=facts.person.version,
        steady_until=steady_until,
    )


def verdict_of(results: tuple[Result, ...]) -> VerdictCode:
    """Combine criteria: ineligible if one fails, eligible if all pass (semantics 1.1)."""
    outcome = all_of(result.outcome for result in results)
    return {
        Outcome.FAIL: VerdictCode.INELIGIBLE,
        Outcome.PASS: VerdictCode.ELIGIBLE,
        Outcome.UNKNOWN: VerdictCode.POTENTIALLY_ELIGIBLE,
    }[outcome]


def valid_until_of(trial: Trial, facts: PatientFacts, as_of: date, criterion_id: str) -> str | None:
    """Give the last day on which one criterion keeps its outcome; None if it holds."""
    return _horizons_of(trial, facts, as_of, criterion_id)[0]


def steady_until_of(
    trial: Trial, facts: PatientFacts, as_of: date, criterion_id: str
) -> str | None:
    """Give the last day on which one criterion's result, reason included, stays the same."""
    return _horizons_of(trial, facts, as_of, criterion_id)[1]


def _horizons_of(
    trial: Trial, facts: PatientFacts, as_of: date, criterion_id: str
) -> tuple[str | None, str | None]:
    evaluation = _Evaluation(trial, facts, {})
    ctx = evaluation.context(as_of.toordinal())
    ctx.result(criterion_id)
    return evaluation.horizons(ctx)


def result_of(
    trial: Trial,
    facts: PatientFacts,
    as_of: date,
    criterion_id: str,
    attestations: Sequence[Attestation] = (),
) -> Result:
    """Evaluate one criterion, with what it rests on; as ``evaluate`` does for all."""
    evaluation = _Evaluation(trial, facts, _by_criterion(trial, attestations))
    return evaluation.context(as_of.toordinal()).result(criterion_id)


def _by_criterion(
    trial: Trial, attestations: Sequence[Attestation]
) -> dict[str, list[Attestation]]:
    """Sort attestations by the criteria they serve (one may serve two, E2.contraception)."""
    found: dict[str, list[Attestation]] = {}
    for attestation in attestations:
        if attestation.trial != trial.id:
            continue
        for criterion in trial.by_id.values():
            own = attestation.criterion == criterion.id
            shared = trial.by_id[attestation.criterion].attested_with == criterion.id
            if own or shared or criterion.attested_with == attestation.criterion:
                found.setdefault(criterion.id, []).append(attestation)
    return found


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """What stays the same on whatever day a patient is evaluated."""

    trial: Trial
    facts: PatientFacts
    attestations: Mapping[str, Sequence[Attestation]]

    def context(self, day: int) -> Context:
        """Begin an evaluation as of a day."""
        return Context(
            facts=self.facts,
            as_of=day,
            evaluate=self._result,
            index_sets=self.trial.index,
            study_identifiers=self.trial.identifiers,
        )

    def horizons(self, ctx: Context) -> tuple[str | None, str | None]:
        """Find the last days on which all outcomes, and on which all results, stay the same.

        Only the criteria whose tests turn on a day are evaluated again as of that day; what
        they test there may turn on days that nothing tested before.
        """
        pending = {day: set(ids) for day, ids in ctx.turning_days.items()}
        steady = min(ctx.rewording_days, default=None)
        while pending:
            day = min(pending)
            later = self.context(day)
            for criterion_id in pending.pop(day):
                found, known = later.result(criterion_id), ctx.results.get(criterion_id)
                if known is None:
                    continue
                if (steady is None or day < steady) and not _alike(found, known):
                    steady = day
                if found.outcome is not known.outcome:
                    return day_text(day - 1), _day_before(steady)
            for turning, ids in later.turning_days.items():
                pending.setdefault(turning, set()).update(ids)
            if later.rewording_days:
                first = min(later.rewording_days)
                steady = first if steady is None else min(steady, first)
        return None, _day_before(steady)

    def _result(self, criterion_id: str, ctx: Context) -> Result:
        criterion = self.trial.by_id[criterion_id]
        ctx.stack.append(criterion_id)
        try:
            if criterion.rule is not None:
                result = _of_draft(criterion, criterion.rule.evaluate(ctx), ctx)
            else:
                parts = tuple(ctx.result(part.id) for part in criterion.parts)
                result = _of_parts(criterion, parts)
            return laid_over(result, self.attestations.get(criterion_id, ()), ctx)
        finally:
            ctx.stack.pop()


def _day_before(day: int | None) -> str | None:
    return None if day is None else day_text(day - 1)


def _alike(one: Result, other: Result) -> bool:
    """Tell whether two results read the same; periods of data wanted move with the day."""
    return (
        one.outcome is other.outcome
        and one.reason is other.reason
        and one.message == other.message
        and one.evidence == other.evidence
        and one.assumptions == other.assumptions
        and one.computed == other.computed
        and [wanted.words for wanted in one.settled_by]
        == [wanted.words for wanted in other.settled_by]
        and all(map(_alike, one.parts, other.parts))
    )


def _of_draft(criterion: Criterion, draft: Draft, ctx: Context) -> Result:
    settled = draft.settled_by if draft.outcome is Outcome.UNKNOWN else ()
    if criterion.rule is not None and any(settles.type is not None for settles in settled):
        settled = unique(_filled(settled, criterion.rule, ctx))
    assumptions = draft.assumptions
    if draft.outcome is Outcome.PASS or draft.reason is Reason.RECORD_ABSENT:
        assumptions = unique(assumptions, _taken_as_complete(criterion, ctx))
    return Result(
        criterion.id,
        criterion.kind,
        criterion.text,
        draft.outcome,
        draft.reason,
        draft.message,
        draft.evidence,
        assumptions,
        settled,
    )


def _filled(settled: Iterable[Settles], rule: Rule, ctx: Context) -> Iterable[Settles]:
    """Name the code sets and the period of data wanted, where the rule's answer left them open.

    Of the sets named for several types together each type keeps those read of it: the codes
    of a disease are none of a ResearchSubject or a Consent, which are read without codes.
    The rule's period holds for its one type; with several types it may be that of another.
    """
    sets: dict[str, tuple[str, ...]] = {}
    for reads in rule.reads():
        for kind in types_of(reads.type):
            sets[kind] = unique(sets.get(kind, ()), reads.sets)
    within = getattr(rule, "within", None) if len(sets) == 1 else None
    first, last = period_text(ctx, window_of(within) if within else None)
    if "Observation" in sets:
        # Reports are read for the codes of the results they hold.
        sets.setdefault("DiagnosticReport", sets["Observation"])
    for settles in settled:
        if settles.type is None or settles.type not in sets:
            yield settles
            continue
        known = sets[settles.type]
        named = tuple(name for name in settles.sets if name in known) or known
        dated = settles.first_day is not None or settles.last_day is not None
        period = (settles.first_day, settles.last_day) if dated else (first, last)
        yield Settles(settles.text, settles.type, named, *period)


def _taken_as_complete(criterion: Criterion, ctx: Context) -> tuple[str, ...]:
    """Name the types whose completeness is an assumption (files, a Bundle handed in, 1.5).

    Any pass rests on it: of a result on its being the latest, of a record on there being
    none that speaks against it.
    """
    if criterion.rule is None:
        return ()
    kinds = dict.fromkeys(kind for reads in criterion.rule.reads() for kind in types_of(reads.type))
    assumed = [kind for kind in kinds if ctx.facts.reading(kind).assumed]
    return (f"taken as complete: {', '.join(assumed)}",) if assumed else ()


def _of_parts(criterion: Criterion, parts: tuple[Result, ...]) -> Result:
    """Combine parts: the first in order with the parent's outcome gives the reason."""
    outcomes = [part.outcome for part in parts]
    outcome = all_of(outcomes) if criterion.combine == "all" else any_of(outcomes)
    same = [part for part in parts if part.outcome is outcome]
    first = next((part for part in same if part.reason is not Reason.NOT_APPLICABLE), same[0])
    unknown = [part for part in parts if part.outcome is Outcome.UNKNOWN]
    return Result(
        criterion.id,
        criterion.kind,
        criterion.text,
        outcome,
        first.reason,
        f"{first.id}: {first.message}",
        unique(*(part.evidence for part in parts)),
        unique(*(part.assumptions for part in parts)),
        unique(*(part.settled_by for part in unknown)) if outcome is Outcome.UNKNOWN else (),
        parts,
    )
