"""Finds mistakes in mapping files, each with file and line, before they meet a patient.

Loading refuses what can't work, at the first mistake; this lists all it can find, also what
works but can't be meant: a set that is empty or never used, a code in two sets that contradict
each other, a protocol's sentence that no criterion covers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from service.criteria.rules.base import RuleBase, WindowText
from service.criteria.rules.judgement import Judgement
from service.criteria.rules.records import Finder, Records
from service.criteria.trial import CriterionFile, TrialFile, load_trial
from service.errors import MappingError
from service.site import load_site
from service.terms import CodeSet, Role, Terms, load_terms
from service.yamlfile import Listed, Mapped, load_yaml

# Sets that reading a result uses, whatever the trial (semantics 1.4, coded results).
_ANSWERS = ("result-positive", "result-negative", "result-indeterminate")
# Parameters of one rule whose sets mean opposite things, so that no code may be in both.
_OPPOSITE = (
    ("positive_codes", "negative_codes"),
    ("status_pregnant", "status_not_pregnant"),
    ("stated", "other"),
    ("stated", "unstated"),
    ("accepted", "rejected"),
    ("remission", "relapse"),
)
_ALL_OF_IT = 100
_LETTERS = {"I": "inclusion", "E": "exclusion"}
_LETTERED = re.compile(r"[IE][0-9]")
_NUMBERED = re.compile(r"([A-Z])([0-9]+)")
_WINDOW_PATTERN: str = get_args(WindowText)[1].pattern
_WINDOW_MISTAKE = "a window needs a number and its unit, as in: 28 days"
_AS_NUMBER = re.compile(r"Expected `str[^`]*`, got `int`")


class Finding(NamedTuple):
    """A mistake, and where it is."""

    file: str
    line: int | None
    message: str


def check_files(paths: Sequence[Path], mappings: Path) -> list[Finding]:
    """Check files or whole folders of mappings.

    ``mappings`` holds the code sets for a trial or site file that lies elsewhere.
    """
    found: list[Finding] = []
    for path in paths:
        if path.is_dir():
            found += _folder(path)
        elif path.suffix in (".yaml", ".yml"):
            found += _yaml(path, _home(path) or mappings)
        elif path.suffix == ".csv" and (home := _home(path)) is not None:
            found += _only(path, home)
        else:
            found.append(Finding(str(path), None, "no trial, site, set or table of mappings"))
    return list(dict.fromkeys(found))


def _home(path: Path) -> Path | None:
    """Find the folder of mappings that a file belongs to."""
    for folder in path.resolve().parents[:2]:
        if (folder / "sets.yaml").is_file():
            return folder
    return None


def _only(path: Path, folder: Path) -> list[Finding]:
    """Check one file of the sets by checking its folder.

    A mistake elsewhere for which the sets can't be loaded is told too: nothing was checked.
    """
    try:
        load_terms(folder)
    except MappingError as error:
        return [_of(error, path, folder)]
    whole = path.resolve()
    return [
        one._replace(file=str(path)) for one in _folder(folder) if Path(one.file).resolve() == whole
    ]


def _folder(folder: Path) -> list[Finding]:
    try:
        terms = load_terms(folder)
    except MappingError as error:
        return [_of(error, folder)]
    trials = sorted((folder / "trials").glob("*.yaml"))
    found = [*_sets(terms, folder)]
    for path in (*trials, *sorted(folder.glob("site*.yaml"))):
        found += _yaml(path, folder)
    if not found:
        found += _unused(terms, trials, folder)
    return found


def _yaml(path: Path, mappings: Path) -> list[Finding]:
    try:
        content = load_yaml(path)
        if path.name == "sets.yaml":
            return _only(path, path.parent)
        if "criteria" in content:
            return _trial(path, content.content, load_terms(mappings))
        site = load_site(path)
        load_terms(mappings, local_codes=site.local_codes, spellings=site.spellings, ulns=site.ulns)
    except MappingError as error:
        return [_of(error, path, mappings)]
    return []


def _of(error: MappingError, *near: Path) -> Finding:
    """Give an error's place with the file's real path.

    ``near``: the file that was read and the folders of mappings it rests on.
    """
    for place in near:
        folder = place if place.is_dir() else place.parent
        for path in (
            place,
            *(folder / part / error.file for part in ("", "codes", "trials")),
        ):
            if path.name == error.file and path.is_file():
                return Finding(str(path), error.line, error.problem)
    return Finding(str(near[0]), error.line, error.problem)


# --- code sets


def _sets(terms: Terms, folder: Path) -> Iterator[Finding]:
    for code_set in terms.sets.values():
        if not code_set.rows and not code_set.local:
            place = str(folder / code_set.file)
            yield Finding(place, code_set.line, f"the code set {code_set.name!r} has no codes")
        yield from _rows(code_set, terms, folder)


def _rows(code_set: CodeSet, terms: Terms, folder: Path) -> Iterator[Finding]:
    """Find codes listed twice in a set, in one role or in two."""
    known: dict[tuple[str, str, str], Role] = {}
    for row in code_set.rows:
        key = (row.system, terms.normal_code(row.system, row.code), row.match)
        place = str(folder / "codes" / row.file)
        if key not in known:
            known[key] = row.role
        elif known[key] is row.role:
            yield Finding(place, row.line, f"{row.code} is listed twice in {code_set.name!r}")
        else:
            message = f"{row.code} is both {known[key]} and {row.role} in {code_set.name!r}"
            yield Finding(place, row.line, message)


def _unused(terms: Terms, trials: Iterable[Path], folder: Path) -> Iterator[Finding]:
    used = set(_ANSWERS)
    for path in trials:
        used.update(load_trial(path, terms).sets())
    for code_set in terms.sets.values():
        if code_set.name not in used:
            place = str(folder / code_set.file)
            yield Finding(place, code_set.line, f"no trial uses the code set {code_set.name!r}")


# --- trials


def _trial(path: Path, raw: Mapped, terms: Terms) -> list[Finding]:
    found = [Finding(str(path), line, f"the id {name} is used twice") for name, line in _twice(raw)]
    try:
        stated = msgspec.convert(raw, TrialFile)
    except msgspec.ValidationError:
        return found + _first_mistake(path, terms)
    places = _Places(str(path), raw)
    found += _uncovered(stated, places)
    found += _unknown_sets(stated, terms, places)
    for criterion in _walk(stated.criteria):
        if criterion.rule is not None:
            found += _rule(criterion.id, criterion.rule, terms, places)
    return [*(found or _first_mistake(path, terms)), *_unmeant(path, stated, places)]


def _unmeant(path: Path, stated: TrialFile, places: _Places) -> Iterator[Finding]:
    """Find what loads and works, but can't be meant."""
    if path.stem != stated.id:
        line = places.first(stated.id)
        yield Finding(places.file, line, f"the file of trial {stated.id} has another name")
    for criterion, kind, alternative in _kinds(stated.criteria):
        for problem in _contradictions(criterion, kind, alternative=alternative):
            yield Finding(places.file, places.first(criterion.id), f"{criterion.id}: {problem}")


def _kinds(
    criteria: Iterable[CriterionFile], kind: str | None = None, *, alternative: bool = False
) -> Iterator[tuple[CriterionFile, str | None, bool]]:
    """Go through criteria and parts with their kind, and whether another may decide instead."""
    for criterion in criteria:
        own = criterion.kind or kind
        yield criterion, own, alternative
        one_of_some = alternative or criterion.combine == "any"
        yield from _kinds(criterion.parts, own, alternative=one_of_some)


def _contradictions(
    criterion: CriterionFile, kind: str | None, *, alternative: bool
) -> Iterator[str]:
    """Say where a criterion's rule contradicts what the criterion is."""
    meant = _LETTERS.get(criterion.id[0]) if _LETTERED.match(criterion.id) else None
    if meant is not None and kind in _LETTERS.values() and kind != meant:
        yield f"the id says {meant}, the kind says {kind}"
    rule = criterion.rule
    if isinstance(rule, Judgement) and criterion.computed != "attested":
        yield f"a judgement is attested, not {criterion.computed} (computed)"
    if isinstance(rule, Records) and not alternative:
        reached = {rule.absent, *(then for finder in rule.find for then in _outcomes(finder))}
        if kind == "exclusion" and not reached & {"fail", "judgement"}:
            yield "no record can ever make this exclusion fail or need a judgement"
        settled = rule.not_applicable_if_male or criterion.computed == "attested"
        if kind == "inclusion" and "pass" not in reached and not settled:
            yield "no record can ever make this inclusion pass"


def _outcomes(finder: Finder) -> Iterator[str]:
    """List what finding a record can mean, other than that it is uncertain."""
    found = (finder.then, finder.inactive, finder.order, finder.intolerance)
    yield from (then for then in found if then is not None)
    if finder.long_ago is not None:
        yield "judgement"


def _first_mistake(path: Path, terms: Terms) -> list[Finding]:
    """Load the file as the service does, which stops at the first mistake."""
    try:
        load_trial(path, terms)
    except MappingError as error:
        finding = _of(error, path)
        if _WINDOW_PATTERN in finding.message or _is_window(finding.message):
            finding = finding._replace(message=_WINDOW_MISTAKE)
        return [finding]
    return []


def _is_window(message: str) -> bool:
    """Tell whether a number stands where a window belongs (``within: 28``)."""
    field = re.search(r"\.(\w+)\)$", message)
    return bool(_AS_NUMBER.search(message)) and field is not None and field[1] in _window_fields()


def _window_fields() -> set[str]:
    found: set[str] = set()
    waiting: list[type[msgspec.Struct]] = [msgspec.Struct]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            annotations = getattr(kind, "__annotations__", {})
            found.update(name for name, text in annotations.items() if "WindowText" in str(text))
    return found


class _Places:
    """Where a trial file holds each text."""

    def __init__(self, file: str, raw: Mapped) -> None:
        self.file = file
        self._lines: dict[str, list[int]] = {}
        for text, line in _texts(raw):
            self._lines.setdefault(text, []).append(line)

    def finding(self, text: str, message: str) -> Iterator[Finding]:
        """Make a finding for each line that holds the text."""
        for line in dict.fromkeys(self._lines.get(text, [1])):
            yield Finding(self.file, line, message)

    def first(self, text: str) -> int:
        """Give the first line that holds the text."""
        return self._lines.get(text, [1])[0]


def _texts(node: object) -> Iterator[tuple[str, int]]:
    """List the texts of a YAML node with their lines (keys that name sets too)."""
    if isinstance(node, Mapped):
        for key, value in node.items():
            yield key, node.key_lines[key]
            if isinstance(value, str):
                yield value, node.value_lines[key]
            else:
                yield from _texts(value)
    elif isinstance(node, Listed):
        for index, value in enumerate(node):
            if isinstance(value, str):
                yield value, node.lines[index]
            else:
                yield from _texts(value)


def _twice(node: object, seen: set[str] | None = None) -> Iterator[tuple[str, int]]:
    """Find criteria and parts whose id was used before."""
    seen = set() if seen is None else seen
    for key in ("criteria", "parts"):
        for entry in (node.get(key) if isinstance(node, Mapped) else None) or ():
            if not isinstance(entry, Mapped):
                continue
            name = entry.get("id")
            if isinstance(name, str):
                if name in seen:
                    yield name, entry.key_lines["id"]
                seen.add(name)
            yield from _twice(entry, seen)


def _walk(criteria: Iterable[CriterionFile]) -> Iterator[CriterionFile]:
    for criterion in criteria:
        yield criterion
        yield from _walk(criterion.parts)


def _uncovered(stated: TrialFile, places: _Places) -> Iterator[Finding]:
    """Find numbers of the protocol's sentences that no criterion has."""
    numbers: dict[str, set[int]] = {}
    for criterion in stated.criteria:
        found = _NUMBERED.fullmatch(criterion.id)
        if found is not None:
            numbers.setdefault(found[1], set()).add(int(found[2]))
        if not criterion.text:
            message = f"{criterion.id} lacks the protocol's sentence (text)"
            yield Finding(places.file, places.first(criterion.id), message)
    for letter, have in numbers.items():
        for number in sorted(set(range(1, max(have))) - have):
            message = f"no criterion covers the protocol's sentence {letter}{number}"
            yield Finding(places.file, places.first("criteria"), message)


def _unknown_sets(stated: TrialFile, terms: Terms, places: _Places) -> Iterator[Finding]:
    named = dict.fromkeys(stated.index)
    for criterion in _walk(stated.criteria):
        if criterion.rule is not None:
            for reads in criterion.rule.reads():
                named.update(dict.fromkeys(reads.sets))
    for name in named:
        if name not in terms.sets:
            yield from places.finding(name, f"there is no code set {name!r}")


def _rule(name: str, rule: RuleBase, terms: Terms, places: _Places) -> Iterator[Finding]:
    line = places.first(name)
    for problem in rule.problems():
        yield Finding(places.file, line, f"{name}: {problem}")
    for part in _structs(rule):
        unit = getattr(part, "unit", None)
        if isinstance(unit, str) and terms.unit(unit) is None:
            yield from places.finding(unit, f"{name}: no unit {unit!r} in units.csv")
        if unit == "%" and getattr(part, "times", None) is None:
            for end in ("at_most", "at_least", "above", "below"):
                limit = getattr(part, end, None)
                if limit is not None and limit > _ALL_OF_IT:
                    yield Finding(places.file, line, f"{name}: {end} is {limit}, more than 100 %")
        analyte = getattr(part, "analyte", None)
        known = {limit.analyte for limit in terms.ulns} | set(terms.molar_masses)
        if isinstance(analyte, str) and analyte not in known:
            yield from places.finding(analyte, f"{name}: no analyte {analyte!r} in units.csv")
        grades = list((getattr(part, "grades", None) or {}).values())
        for shared in dict.fromkeys(one for one in grades if grades.count(one) > 1):
            message = f"{name}: several grades have the one code set {shared!r}"
            yield Finding(places.file, line, message)
        for one, other in _opposites(part):
            for code in _shared(one, other, terms):
                message = f"{name}: {code} is in both {one!r} and {other!r}, which are opposites"
                yield Finding(places.file, line, message)


def _structs(value: object) -> Iterator[msgspec.Struct]:
    """Go through a rule and everything inside it."""
    if isinstance(value, msgspec.Struct):
        yield value
        for field in value.__struct_fields__:
            yield from _structs(getattr(value, field))
    elif isinstance(value, tuple):
        for entry in value:
            yield from _structs(entry)


def _opposites(part: msgspec.Struct) -> Iterator[tuple[str, str]]:
    """List pairs of sets that no code may share: opposite parameters, grades of a scale."""
    for first, second in _OPPOSITE:
        for one in getattr(part, first, ()) or ():
            for other in getattr(part, second, ()) or ():
                yield one, other
    grades = getattr(part, "grades", None) or {}
    yield from combinations(dict.fromkeys(grades.values()), 2)
    answers = getattr(part, "answers", None) or {}
    for one, other in combinations(answers, 2):
        if answers[one] != answers[other]:
            yield one, other


def _shared(one: str, other: str, terms: Terms) -> Iterator[str]:
    """List codes that both sets include."""
    if one not in terms.sets or other not in terms.sets:
        return
    for name, opposite in ((one, other), (other, one)):
        for row in terms.sets[name].rows:
            if row.role is not Role.INCLUDE or row.match == "range":
                continue
            roles = terms.roles_of(row.system, row.code)
            if roles.get(name) is Role.INCLUDE and roles.get(opposite) is Role.INCLUDE:
                yield row.code
