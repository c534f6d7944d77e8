"""Rules over the patient: alive, age, sex (semantics 1.2, 1.4, 1.5)."""

from __future__ import annotations

from collections.abc import Iterator

from service.criteria.context import Context, Draft
from service.criteria.model import Evidence, Settles
from service.criteria.rules.base import RuleBase
from service.values.dates import age_text
from service.values.logic import Outcome, Reason


class Alive(RuleBase, frozen=True, kw_only=True, tag="alive"):
    """The patient is not known to have died by the day of evaluation."""

    def evaluate(self, ctx: Context) -> Draft:
        person = ctx.facts.person
        dead: bool | None = bool(person.deceased)
        recorded = "deceased" if person.deceased else None
        if person.died is not None and not person.deceased:
            # A partial date of death counts if death may have occurred (semantics 1.5).
            dead = ctx.past(person.died) is not False
            recorded = f"died {person.died.text}"
        evidence = (Evidence(person.reference, recorded=recorded, version=person.version),)
        if person.conflicting:
            return Draft(
                Outcome.UNKNOWN,
                Reason.CONFLICTING_DATA,
                "versions of the Patient differ",
                evidence,
                settled_by=(Settles("which version of the Patient holds", "Patient"),),
            )
        if dead:
            return Draft(Outcome.FAIL, Reason.RECORD_PRESENT, "the patient has died", evidence)
        return Draft(Outcome.PASS, Reason.RECORD_ABSENT, "no death on record", evidence)

    def words(self) -> str:
        return "the patient is alive: no death on record at or before the day of evaluation"


class Age(RuleBase, frozen=True, kw_only=True, tag="age"):
    """Age in whole years, both limits included."""

    at_least: int | None = None
    at_most: int | None = None

    def evaluate(self, ctx: Context) -> Draft:
        person = ctx.facts.person
        evidence = Evidence(
            person.reference,
            recorded=person.birth.text if person.birth else None,
            threshold=self._limits(),
            version=person.version,
        )
        if person.conflicting:
            return self._open(Reason.CONFLICTING_DATA, "versions of the Patient differ", evidence)
        if person.birth_problem is not None:
            return self._open(Reason.UNREADABLE_VALUE, person.birth_problem, evidence)
        if person.birth is None:
            return self._open(Reason.NO_DATA, "no birth date on record", evidence)
        ctx.names_age(person.birth)
        evidence = evidence._replace(compared=f"{age_text(person.birth, ctx.as_of)} years")
        old_enough = True if self.at_least is None else ctx.age_at_least(self.at_least)
        too_old = False if self.at_most is None else ctx.age_at_least(self.at_most + 1)
        text = f"age {age_text(person.birth, ctx.as_of)} years, asked for {self._limits()}"
        if old_enough is False or too_old is True:
            return Draft(Outcome.FAIL, Reason.VALUE_VIOLATES, text, (evidence,))
        if old_enough is None or too_old is None:
            return self._open(Reason.INDETERMINATE_DATE, text, evidence)
        return Draft(Outcome.PASS, Reason.VALUE_MEETS, text, (evidence,))

    def _open(self, reason: Reason, text: str, evidence: Evidence) -> Draft:
        return Draft(
            Outcome.UNKNOWN,
            reason,
            text,
            (evidence,),
            settled_by=(Settles("the full date of birth", "Patient"),),
        )

    def _limits(self) -> str:
        parts = []
        if self.at_least is not None:
            parts.append(f">= {self.at_least} years")
        if self.at_most is not None:
            parts.append(f"<= {self.at_most} years")
        return " and ".join(parts)

    def words(self) -> str:
        return f"age {self._limits()}, in whole years on the day of evaluation"

    def unknowns(self) -> tuple[str, ...]:
        return ("no-data", "indeterminate-date", "unreadable-value", "conflicting-data")

    def problems(self) -> Iterator[str]:
        if self.at_least is None and self.at_most is None:
            yield "an age needs at_least or at_most"
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            yield f"no age is at least {self.at_least} and at most {self.at_most}"


class Sex(RuleBase, frozen=True, kw_only=True, tag="sex"):
    """The patient's sex; unknown where gender and a birth-sex extension differ."""

    allowed: tuple[str, ...]

    def evaluate(self, ctx: Context) -> Draft:
        person = ctx.facts.person
        evidence = (
            Evidence(
                person.reference,
                recorded=person.gender,
                compared=person.sex,
                threshold=" or ".join(self.allowed),
                version=person.version,
            ),
        )
        if person.sex is None or person.conflicting:
            return Draft(
                Outcome.UNKNOWN,
                Reason.NO_DATA,
                "the sex is not known",
                evidence,
                settled_by=(Settles("the patient's sex", "Patient"),),
            )
        if person.sex in self.allowed:
            return Draft(Outcome.PASS, Reason.VALUE_MEETS, f"sex is {person.sex}", evidence)
        return Draft(Outcome.FAIL, Reason.VALUE_VIOLATES, f"sex is {person.sex}", evidence)

    def words(self) -> str:
        return f"sex is {' or '.join(self.allowed)}"

    def unknowns(self) -> tuple[str, ...]:
        return ("no-data",)

    def problems(self) -> Iterator[str]:
        for sex in self.allowed:
            if sex not in ("male", "female"):
                yield f"no sex {sex!r}; male or female"
