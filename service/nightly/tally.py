"""Counts verdicts: how many of each, what stands in the way, what data would settle most."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from service.criteria.model import Settles, Verdict, VerdictCode, walk
from service.criteria.trial import Trial
from service.nightly.model import CriterionCount, Missing, TrialCount
from service.values.logic import Outcome

_REFERENCE = re.compile(r"\b([A-Z][A-Za-z]{3,40})/[^\s,;:)]+|\burn:[^\s,;)]+|https?://[^\s,;)]+")
_MISSING = 100


class _Wanted(msgspec.Struct):
    text: str
    type: str | None
    sets: tuple[str, ...]
    criteria: dict[str, int] = {}
    patients: int = 0


class _Result(msgspec.Struct, rename="camel"):
    """What of a criterion in a verdict's line is counted."""

    id: str
    outcome: Outcome
    settled_by: tuple[str, ...] = ()
    parts: tuple[_Result, ...] = ()


class _Line(msgspec.Struct):
    verdict: str
    criteria: tuple[_Result, ...]


_LINES = msgspec.json.Decoder(_Line)


def _read(results: Iterable[_Result]) -> Iterator[tuple[str, Settles]]:
    """Go through what would settle the unknown criteria and parts of a line."""
    for result in results:
        if result.parts:
            yield from _read(result.parts)
        elif result.outcome is Outcome.UNKNOWN:
            yield from ((result.id, Settles.read(words)) for words in result.settled_by)


class Tally(msgspec.Struct):
    """Counts over patients for one trial; counts of parts of the population can be joined.

    ``criteria``: per criterion pass, fail, unknown, alone, alone open.
    """

    population: int = 0
    outside: int = 0
    failed: int = 0
    verdicts: dict[str, int] = {}
    criteria: dict[str, list[int]] = {}
    wanted: dict[str, _Wanted] = {}

    def add(self, verdict: Verdict) -> None:
        """Count one patient of the population."""
        self.population += 1
        code = verdict.code.value
        self.verdicts[code] = self.verdicts.get(code, 0) + 1
        failing = [each.id for each in verdict.criteria if each.outcome is Outcome.FAIL]
        opening = [each.id for each in verdict.criteria if each.outcome is not Outcome.PASS]
        for each in verdict.criteria:
            self._count(each.id, each.outcome, failing, opening)
        if verdict.code is not VerdictCode.INELIGIBLE:
            self._settling(
                (result.id, settles)
                for result, _ in walk(verdict.criteria)
                if result.outcome is Outcome.UNKNOWN and not result.parts
                for settles in result.settled_by
            )

    def add_line(self, line: bytes) -> None:
        """Count one patient by the verdict's line: the same as by the verdict itself."""
        verdict = _LINES.decode(line)
        self.population += 1
        self.verdicts[verdict.verdict] = self.verdicts.get(verdict.verdict, 0) + 1
        failing = [each.id for each in verdict.criteria if each.outcome is Outcome.FAIL]
        opening = [each.id for each in verdict.criteria if each.outcome is not Outcome.PASS]
        for each in verdict.criteria:
            self._count(each.id, each.outcome, failing, opening)
        if verdict.verdict != VerdictCode.INELIGIBLE:
            self._settling(_read(verdict.criteria))

    def _count(
        self, criterion: str, outcome: Outcome, failing: list[str], opening: list[str]
    ) -> None:
        counts = self.criteria.setdefault(criterion, [0] * 5)
        counts[_PLACE[outcome]] += 1
        counts[3] += failing == [criterion]
        counts[4] += opening == [criterion]

    def _settling(self, wanted: Iterable[tuple[str, Settles]]) -> None:
        """Count once what would settle something of a patient, whatever it would settle."""
        found: dict[str, _Wanted] = {}
        for criterion, settles in wanted:
            text = _without_references(settles.text)
            key = "\n".join((text, settles.type or "", *settles.sets))
            entry = found.setdefault(key, _Wanted(text, settles.type, settles.sets, {}))
            entry.criteria[criterion] = 1
        for key, entry in found.items():
            known = self.wanted.get(key)
            if known is None:
                known = self.wanted[key] = _Wanted(entry.text, entry.type, entry.sets, {})
            known.patients += 1
            for name in entry.criteria:
                known.criteria[name] = known.criteria.get(name, 0) + 1

    def join(self, other: Tally) -> None:
        """Add the counts of another part of the population."""
        self.population += other.population
        self.outside += other.outside
        self.failed += other.failed
        for code, count in other.verdicts.items():
            self.verdicts[code] = self.verdicts.get(code, 0) + count
        for name, counts in other.criteria.items():
            mine = self.criteria.get(name, [0] * 5)
            self.criteria[name] = [a + b for a, b in zip(mine, counts, strict=True)]
        for key, entry in other.wanted.items():
            known = self.wanted.get(key)
            if known is None:
                known = self.wanted[key] = _Wanted(entry.text, entry.type, entry.sets, {})
            known.patients += entry.patients
            for name, count in entry.criteria.items():
                known.criteria[name] = known.criteria.get(name, 0) + count

    def counted(self, trial: Trial) -> TrialCount:
        """Write the counts for the statement."""
        attrition = []
        for criterion in trial.criteria:
            numbers = self.criteria.get(criterion.id, [0] * 5)
            attrition.append(
                CriterionCount(criterion.id, criterion.kind, *numbers, text=criterion.text)
            )
        ranked = sorted(
            self.wanted.values(),
            key=lambda each: (-each.patients, each.text, each.type or "", each.sets),
        )
        missing = [
            Missing(each.text, each.type, each.sets, tuple(sorted(each.criteria)), each.patients)
            for each in ranked[:_MISSING]
        ]
        return TrialCount(
            trial=trial.id,
            version=trial.version,
            name=trial.name,
            population=self.population + self.failed,
            evaluated=self.population,
            failed=self.failed,
            verdicts={code.value: self.verdicts.get(code.value, 0) for code in VerdictCode},
            attrition=tuple(attrition),
            missing=tuple(missing),
        )


_PLACE = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNKNOWN: 2}


def _without_references(text: str) -> str:
    """Name a record by its type only: what settles one patient's may settle another's."""
    return _REFERENCE.sub(lambda found: _any(found[1]), text)


def _any(kind: str | None) -> str:
    if kind is None:
        return "a record"
    return f"{'an' if kind[0] in 'AEIO' else 'a'} {kind}"
