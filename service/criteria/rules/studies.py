"""Participation in other studies and consent to this one (part 2, E7, I12)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from service.criteria.context import (
    Context,
    Draft,
    Finding,
    draft_of,
    settles,
    unavailable,
    worst,
)
from service.criteria.model import Evidence, Settles
from service.criteria.rules.base import Reads, RuleBase, WindowText, window_of
from service.criteria.rules.records import Finder
from service.facts.model import ConsentFact, ParticipationFact
from service.values.dates import When
from service.values.logic import Outcome, Reason

_ON_STUDY = ("on-study", "on-study-intervention")
_ENDED = ("off-study", "withdrawn")
# Not (yet) in the study. Any other status, or none, is a matter of judgement.
_NOT_TAKING_PART = (
    "candidate",
    "potential-candidate",
    "eligible",
    "ineligible",
    "not-registered",
    "screening",
)
# Registry numbers that name a study wherever they are written.
_REGISTERED = re.compile(r"\b(?:NCT\d{8}|EUCTR\d{4}-\d{6}-\d\d|ChiCTR\d{8,10})\b", re.IGNORECASE)


def names_study(texts: Iterable[str], identifiers: Iterable[str]) -> bool:
    """Tell whether a text holds one of a study's numbers, alone or in a longer text.

    Blanks inside a number don't count; a longer number is another one.
    """
    own = [r"\s*".join(map(re.escape, "".join(number.split()))) for number in identifiers]
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(own)})(?![A-Za-z0-9])", re.IGNORECASE)
    return any(pattern.search(text) for text in texts)


class Participation(RuleBase, frozen=True, kw_only=True, tag="participation"):
    """Participation in another study within a window; participant codes need a judgement."""

    within: WindowText
    codes: tuple[str, ...] = ()
    question: str

    def evaluate(self, ctx: Context) -> Draft:
        findings = [
            finding
            for fact in ctx.facts.participations
            if (finding := self._judged(fact, ctx)) is not None
        ]
        for kind in ("Condition", "Procedure"):
            findings += self._coded(kind, ctx)
        gaps = ctx.gaps(("ResearchSubject", "Condition", "Procedure"), self.codes)
        if gaps:
            findings.append(unavailable(gaps, self.codes, "participation in other studies"))
        decided = worst(findings)
        if decided is None:
            return Draft(Outcome.PASS, Reason.RECORD_ABSENT, "no other study on record")
        if decided.reason is Reason.JUDGEMENT_REQUIRED:
            decided = decided._replace(settled_by=(Settles(self.question),))
        return draft_of(decided)

    def _coded(self, kind: str, ctx: Context) -> list[Finding]:
        finder = Finder(
            resource="Condition" if kind == "Condition" else "Procedure",
            codes=self.codes,
            then="judgement",
            within=self.within,
        )
        return finder.findings(ctx)

    def _judged(self, fact: ParticipationFact, ctx: Context) -> Finding | None:
        other = self._is_other(fact, ctx)
        if other is False:
            return None
        reason = self._reason(fact, ctx)
        if reason is None:
            return None
        if reason is Reason.RECORD_PRESENT:
            if fact.modified:
                reason = Reason.UNCONFIRMED
            elif fact.conflicting:
                reason = Reason.CONFLICTING_DATA
            elif other is None:
                reason = Reason.JUDGEMENT_REQUIRED
        elif other is None and reason is not Reason.INDETERMINATE_DATE:
            reason = Reason.JUDGEMENT_REQUIRED
        evidence = Evidence(
            fact.reference,
            date=fact.period.text if fact.period else None,
            recorded=fact.status,
            version=fact.version,
        )
        outcome = Outcome.FAIL if reason is Reason.RECORD_PRESENT else Outcome.UNKNOWN
        return Finding(
            outcome,
            reason,
            f"{fact.reference}: {fact.status} ({reason.value})",
            (evidence,),
            settled_by=(settles(reason, fact.reference),) if outcome is Outcome.UNKNOWN else (),
        )

    @staticmethod
    def _is_other(fact: ParticipationFact, ctx: Context) -> bool | None:
        """Tell whether the study is another one; None if it can't be told from this one."""
        named = fact.study_identifiers
        if named is None:
            named = tuple(_REGISTERED.findall(fact.study_text)) or None
        return None if named is None else not names_study(named, ctx.study_identifiers)

    def _reason(self, fact: ParticipationFact, ctx: Context) -> Reason | None:
        """Weigh status and period: RECORD_PRESENT takes part in time, None doesn't count."""
        if fact.status in _NOT_TAKING_PART:
            return None
        if fact.period is not None and not ctx.begun(fact.period):
            return None
        if fact.status in _ENDED and fact.open_end:
            return Reason.INDETERMINATE_DATE
        inside = self._inside(fact, ctx)
        if inside is False:
            return None
        if inside is None:
            return Reason.INDETERMINATE_DATE
        taking_part = fact.status in (*_ON_STUDY, *_ENDED)
        return Reason.RECORD_PRESENT if taking_part else Reason.JUDGEMENT_REQUIRED

    def _inside(self, fact: ParticipationFact, ctx: Context) -> bool | None:
        """Tell whether the period overlaps the window; without a period it is now."""
        if fact.period is None:
            return True
        window = window_of(self.within)
        if not ctx.period_overlaps(fact.period, window):
            return False
        if fact.open_end or fact.end is None:
            return True
        ctx.turns(window.leaves(fact.end.first))
        return True if fact.end.first >= window.start(ctx.as_of) else None

    def words(self) -> str:
        return (
            f"a ResearchSubject of another study on study or ended within {self.within}: fail; "
            f"pending, observation, follow-up or an untellable study, or a code of "
            f"{', '.join(self.codes)}: judgement; none: pass"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("ResearchSubject")
        yield Reads("Condition", self.codes)
        yield Reads("Procedure", self.codes)

    def unknowns(self) -> tuple[str, ...]:
        return (
            "judgement-required",
            "indeterminate-date",
            "unconfirmed",
            "conflicting-data",
            "source-unavailable",
        )


class ConsentGiven(RuleBase, frozen=True, kw_only=True, tag="consent"):
    """The latest research consent that names this study: given, refused, or to be judged."""

    question: str

    def evaluate(self, ctx: Context) -> Draft:
        consents = [c for c in ctx.facts.consents if ctx.begun(c.when)]
        evidence = tuple(_evidence(c) for c in consents if c.research or self._named(c, ctx))
        named = [consent for consent in consents if self._named(consent, ctx)]
        dated = [consent for consent in named if consent.when is not None]
        top = [
            consent
            for consent in (dated or named)
            if not any(
                consent.when and other.when and consent.when.definitely_before(other.when)
                for other in dated
            )
        ]
        outcomes = {self._given(consent, ctx) for consent in top}
        gaps = ctx.gaps(("Consent",), ())
        if len(outcomes) == 1 and not gaps:
            outcome = outcomes.pop()
            if outcome is not None:
                found = Outcome.PASS if outcome else Outcome.FAIL
                text = "consent is on record" if outcome else "consent was refused"
                return Draft(found, Reason.RECORD_PRESENT, text, evidence)
        if len(outcomes - {None}) > 1:
            return Draft(
                Outcome.UNKNOWN,
                Reason.CONFLICTING_DATA,
                "consents of the same time differ",
                evidence,
                settled_by=(Settles(self.question),),
            )
        return Draft(
            Outcome.UNKNOWN,
            Reason.JUDGEMENT_REQUIRED,
            self.question,
            evidence,
            settled_by=(Settles(self.question),),
        )

    @staticmethod
    def _named(consent: ConsentFact, ctx: Context) -> bool:
        return consent.research and names_study(consent.names, ctx.study_identifiers)

    @staticmethod
    def _given(consent: ConsentFact, ctx: Context) -> bool | None:
        """Tell what a consent says: True given, False refused, None to be judged."""
        if consent.modified or consent.conflicting:
            return None
        if consent.status == "rejected":
            return False
        if consent.status != "active" or consent.permit is None:
            return None
        if not (_begun(consent.period_start, ctx) and _lasts(consent.period_end, ctx)):
            return None
        return consent.permit

    def words(self) -> str:
        return (
            "the latest research consent naming this study: active, in its period and permitting: "
            "pass; rejected or denying: fail; else judgement"
        )

    def reads(self) -> Iterator[Reads]:
        yield Reads("Consent")

    def unknowns(self) -> tuple[str, ...]:
        return ("judgement-required", "conflicting-data")


def _begun(start: When | None, ctx: Context) -> bool:
    """Tell whether a period has certainly begun."""
    return start is None or ctx.past(start) is True


def _lasts(end: When | None, ctx: Context) -> bool:
    """Tell whether a period certainly lasts on the day; its last day belongs to it."""
    if end is None:
        return True
    ctx.turns(end.first + 1)
    return ctx.as_of <= end.first


def _evidence(consent: ConsentFact) -> Evidence:
    return Evidence(
        consent.reference,
        date=consent.when.text if consent.when else None,
        recorded=consent.status,
        version=consent.version,
    )
