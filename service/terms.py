"""Code sets and units: loads the tables of ``mappings/`` and classifies codes and texts.

Source: semantics 1.4 (units, fallback limits) and 1.5 (codes, prefixes, keywords).
Reads files once, at start; every bad row is an error with file and line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from service.errors import MappingError
from service.fhir.resources import (
    MASKED_CODES,
    NO_CODE_SYSTEMS,
    CodeableConcept,
    Coding,
    Quantity,
)
from service.values.quantities import Unit
from service.yamlfile import load_yaml

UCUM = "http://unitsofmeasure.org"


class Role(StrEnum):
    """What a row of a code set says of its code."""

    INCLUDE = "include"
    EXCLUDE = "exclude"
    JUDGEMENT = "judgement"


class Match(StrEnum):
    """How a record's code relates to code sets."""

    INCLUDE = "include"
    JUDGEMENT = "judgement"
    CONFLICT = "conflict"
    UNMAPPED = "unmapped"
    EXCLUDE = "exclude"


class Row(NamedTuple):
    """One row of a code table; ``system`` is the URI, ``match`` exact, prefix or range."""

    set: str
    role: Role
    match: str
    system: str
    code: str
    display: str
    source: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class CodeSet:
    """A named set of codes with the keywords that betray an unmapped record of its class.

    ``local``: has no public codes. ``vague_exclusions``: its excluded codes are too general
    to say what a record is not, so its text is still read for keywords.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    keywords: tuple[str, ...] = ()
    not_keywords: tuple[str, ...] = ()
    local: bool = False
    vague_exclusions: bool = False
    file: str = ""
    line: int = 0


class LocalCode(NamedTuple):
    """A site's own code: stands for a standard one, or belongs to a set."""

    system: str
    code: str
    standard: tuple[str, str] | None = None
    set: str | None = None
    file: str = "site file"
    line: int | None = None


class SiteLimit(NamedTuple):
    """A laboratory's own upper limit of normal; ages in whole years, inclusive."""

    analyte: str
    sex: str
    limit: str
    unit: str
    age_from: int = 0
    age_to: int | None = None
    file: str = "site file"
    line: int | None = None


class Uln(NamedTuple):
    """A fallback upper limit of normal; ages in whole years or days, inclusive."""

    analyte: str
    sex: str
    age_low: tuple[int, str] | None
    age_high: tuple[int, str] | None
    limit: Fraction
    unit: Unit
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """A CodeableConcept as the code sets see it.

    ``roles``: per set the roles of its codings there. ``keywords``: sets whose class its
    text or display names although no coding is in them. ``masked``: neither code nor text.
    ``known_sets``: all sets that either concerns. ``by_coding``: for each coding the sets it
    is included in.
    """

    label: str
    codings: frozenset[tuple[str, str]]
    roles: Mapping[str, frozenset[Role]]
    keywords: frozenset[str]
    masked: bool
    texts: tuple[str, ...]
    known_sets: tuple[str, ...] = ()
    by_coding: tuple[frozenset[str], ...] = ()
    _matches: dict[tuple[str, ...], Match | None] = field(default_factory=dict, repr=False)

    def match(self, sets: tuple[str, ...]) -> Match | None:
        """Tell how the concept relates to the sets taken together; None if not at all.

        The answer is kept: concepts are shared by all records with the same coding.
        """
        if sets not in self._matches:
            self._matches[sets] = self._match(sets)
        return self._matches[sets]

    def _match(self, sets: tuple[str, ...]) -> Match | None:
        found: set[Match] = set()
        for name in sets:
            roles = self.roles.get(name)
            if name in self.keywords:
                found.add(Match.UNMAPPED)
            if roles is not None:
                if Role.EXCLUDE in roles and len(roles) > 1:
                    found.add(Match.CONFLICT)
                elif Role.INCLUDE in roles:
                    found.add(Match.INCLUDE)
                elif Role.JUDGEMENT in roles:
                    found.add(Match.JUDGEMENT)
                else:
                    found.add(Match.EXCLUDE)
        for match in Match:
            if match in found:
                return match
        return None

    def included(self, sets: Iterable[str]) -> bool:
        """Tell whether any coding is included in one of the sets, whatever the others are."""
        return any(Role.INCLUDE in self.roles.get(name, ()) for name in sets)

    def only_by(self, sets: Iterable[str], allowed: Iterable[str]) -> bool:
        """Tell whether every coding included in ``sets`` is also included in ``allowed``."""
        wanted, accepted = set(sets), set(allowed)
        return all(names & accepted for names in self.by_coding if names & wanted)

    def concerns(self, sets: Iterable[str]) -> bool:
        """Tell whether any coding is in one of the sets or the text names their class."""
        return any(name in self.roles or name in self.keywords for name in sets)

    @property
    def relevant(self) -> bool:
        """Whether any set knows the concept, or it is masked and so may be anything."""
        return bool(self.roles) or bool(self.keywords) or self.masked


NOTHING = Concept("", frozenset(), {}, frozenset(), True, ())
_BARE_OID = re.compile(r"[0-2](?:\.\d+){3,}", re.ASCII)
_CACHE_LIMIT = 20_000
_TRIPLE = 3
_BREAK = re.compile(r"[;,.()\[\]|]+")


@dataclass(slots=True)
class Terms:
    """All code sets and units, and a cache of what was classified already."""

    sets: Mapping[str, CodeSet]
    systems: Mapping[str, str]
    aliases: Mapping[str, str]
    units: Mapping[str, Unit]
    molar_masses: Mapping[str, Fraction]
    ulns: tuple[Uln, ...]
    common_not_keywords: tuple[str, ...] = ()
    common_not_after: tuple[str, ...] = ()
    local_codes: tuple[LocalCode, ...] = ()
    _exact: dict[tuple[str, str], list[tuple[str, Role]]] = field(default_factory=dict)
    _prefix: dict[tuple[str, str], list[tuple[str, Role]]] = field(default_factory=dict)
    _ranges: dict[str, list[tuple[int, int, str, Role]]] = field(default_factory=dict)
    _local: dict[tuple[str, str], list[LocalCode]] = field(default_factory=dict)
    _concepts: dict[CodeableConcept, Concept] = field(default_factory=dict)
    _patterns: list[tuple[str, re.Pattern[str], re.Pattern[str] | None, frozenset[str]]] = field(
        default_factory=list
    )
    _common: re.Pattern[str] | None = None
    _after: re.Pattern[str] | None = None

    def __post_init__(self) -> None:
        """Index the rows and compile the keywords."""
        for code_set in self.sets.values():
            for row in code_set.rows:
                self._index(row)
            if code_set.keywords:
                self._patterns.append(
                    (
                        code_set.name,
                        _phrases(code_set.keywords),
                        _optional(code_set.not_keywords),
                        frozenset(map(_triple, code_set.keywords)),
                    )
                )
        self._common = _optional(self.common_not_keywords)
        self._after = _optional(self.common_not_after)
        for local in self.local_codes:
            key = (self.system(local.system), local.code.strip())
            self._local.setdefault(key, []).append(local)

    def _index(self, row: Row) -> None:
        if row.match == "range":
            low, high = (int(end) for end in row.code.split("-"))
            self._ranges.setdefault(row.system, []).append((low, high, row.set, row.role))
            return
        table = self._prefix if row.match == "prefix" else self._exact
        key = (row.system, self.normal_code(row.system, row.code))
        table.setdefault(key, []).append((row.set, row.role))

    def system(self, uri: str) -> str:
        """Give the canonical URI of a code system; an OID and its URI are the same."""
        uri = uri.strip()
        if _BARE_OID.fullmatch(uri):
            uri = f"urn:oid:{uri}"
        return self.systems.get(uri) or self.systems.get(uri.rstrip("/").lower(), uri)

    def normal_code(self, system: str, code: str) -> str:
        """Bring a code to the form it is compared in: ICD without dots and case."""
        code = code.strip()
        if self.aliases.get(system, "").startswith("icd"):
            return code.replace(".", "").upper()
        return code

    def roles_of(self, system: str, code: str) -> dict[str, Role]:
        """Classify one coding: per set the role of the longest match (semantics 1.5)."""
        best: dict[str, tuple[int, int, Role]] = {}
        normal = self.normal_code(system, code)

        def note(name: str, length: int, role: Role) -> None:
            entry = (length, _STRENGTH[role], role)
            if name not in best or entry[:2] > best[name][:2]:
                best[name] = entry

        for name, role in self._exact.get((system, normal), ()):
            note(name, len(normal), role)
        for length in range(len(normal) + 1):
            for name, role in self._prefix.get((system, normal[:length]), ()):
                note(name, length, role)
        if system in self._ranges and normal.isascii() and normal.isdecimal() and len(normal) < 12:
            number = int(normal)
            for low, high, name, role in self._ranges[system]:
                if low <= number <= high:
                    note(name, 0, role)
        return {name: role for name, (_, _, role) in best.items()}

    def concept(self, coded: CodeableConcept | None) -> Concept:
        """Classify a CodeableConcept; the answer is cached."""
        if coded is None:
            return NOTHING
        known = self._concepts.get(coded)
        if known is None:
            if len(self._concepts) >= _CACHE_LIMIT:
                self._concepts.clear()
            known = self._concepts[coded] = self._classify(coded)
        return known

    def joined(self, coded: CodeableConcept | None, more: Iterable[Coding]) -> Concept:
        """Classify a concept together with codings that sit elsewhere in its resource."""
        extra = tuple(more)
        if not extra:
            return self.concept(coded)
        base = coded or CodeableConcept()
        return self.concept(CodeableConcept(coding=(*base.coding, *extra), text=base.text))

    def _classify(self, coded: CodeableConcept) -> Concept:
        roles: dict[str, set[Role]] = {}
        codings: set[tuple[str, str]] = set()
        by_coding: list[frozenset[str]] = []
        hidden = False
        texts: list[str] = [coded.text] if coded.text and coded.text.strip() else []
        for coding in coded.coding:
            if coding.system in NO_CODE_SYSTEMS:
                hidden = hidden or coding.code in MASKED_CODES
                continue
            if coding.display and coding.display.strip():
                texts.append(coding.display)
            if not coding.code or not coding.code.strip():
                continue
            system = self.system(coding.system or "")
            codings.add((system, self.normal_code(system, coding.code)))
            own = list(self._coding_roles(system, coding.code.strip()))
            by_coding.append(frozenset(name for name, role in own if role is not Role.EXCLUDE))
            for name, role in own:
                roles.setdefault(name, set()).add(role)
        keywords = self._named(tuple(texts), roles)
        label = self._label(coded)
        return Concept(
            label,
            frozenset(codings),
            {name: frozenset(found) for name, found in roles.items()},
            keywords,
            not codings and (hidden or not texts),
            tuple(texts),
            tuple(dict.fromkeys((*roles, *keywords))),
            tuple(by_coding),
        )

    def _coding_roles(self, system: str, code: str) -> Iterator[tuple[str, Role]]:
        yield from self.roles_of(system, code).items()
        for local in self._local.get((system, code), ()):
            if local.set is not None:
                yield local.set, Role.INCLUDE
            if local.standard is not None:
                standard_system = self.system(local.standard[0])
                yield from self.roles_of(standard_system, local.standard[1]).items()

    def _named(self, texts: tuple[str, ...], roles: Mapping[str, set[Role]]) -> frozenset[str]:
        """Find the sets whose keywords the texts hold and that no coding is in."""
        found: set[str] = set()
        for text in texts:
            for part in _BREAK.split(" ".join(text.lower().split())):
                cut = self._after.search(part) if self._after else None
                chunk = part[: cut.start()] if cut else part
                if not chunk.strip() or (self._common and self._common.search(chunk)):
                    continue
                if "-" in chunk:
                    chunk += " " + chunk.replace("-", " ")
                # Most texts hold none of a set's keywords, which is seen sooner by triples.
                triples = {chunk[start : start + _TRIPLE] for start in range(len(chunk))}
                triples.add("")
                for name, words, cancelled, needed in self._patterns:
                    if needed.isdisjoint(triples):
                        continue
                    if name in found or (name in roles and not self._vague(name, roles[name])):
                        continue
                    left = cancelled.sub(" ", chunk) if cancelled else chunk
                    if words.search(left):
                        found.add(name)
        return frozenset(found)

    def _vague(self, name: str, roles: Collection[Role]) -> bool:
        return self.sets[name].vague_exclusions and set(roles) == {Role.EXCLUDE}

    def _label(self, coded: CodeableConcept) -> str:
        for coding in coded.coding:
            if coding.code:
                system = self.aliases.get(self.system(coding.system or ""), coding.system or "")
                name = coding.display or coded.text or ""
                return f"{system} {coding.code} {name}".strip()
        return coded.text or ""

    def unit(self, spelling: str) -> Unit | None:
        """Find a unit by UCUM code or a known spelling; annotations in braces are dropped."""
        spelling = spelling.strip()
        found = self.units.get(spelling)
        if found is None and "{" in spelling:
            found = self.units.get(re.sub(r"\{[^{}]*\}", "", spelling).strip() or "1")
        return found

    def unit_of(self, quantity: Quantity) -> Unit | None:
        """Give a quantity's unit: the UCUM code, else the unit's text; None if it has none.

        An unknown unit comes back without dimension, comparable only with itself.
        """
        spelling = None
        if quantity.code and (quantity.system is None or self.system(quantity.system) == UCUM):
            spelling = quantity.code
        elif quantity.unit:
            spelling = quantity.unit
        elif quantity.code:
            spelling = quantity.code
        if spelling is None or not spelling.strip():
            return None
        return self.unit(spelling) or Unit(spelling.strip())


_STRENGTH = {Role.EXCLUDE: 3, Role.JUDGEMENT: 2, Role.INCLUDE: 1}


def _triple(word: str) -> str:
    """Give letters that stand side by side in every text that holds a keyword."""
    longest = max(re.findall(r"[^\W_]+", word.lower()), key=len, default="")
    return longest[:_TRIPLE] if len(longest) >= _TRIPLE else ""


def _phrases(words: tuple[str, ...]) -> re.Pattern[str]:
    """Compile keywords: at the start of a word, or anywhere when marked with ``~``."""
    parts = [
        re.escape(word[1:].lower()) if word.startswith("~") else rf"\b{re.escape(word.lower())}"
        for word in words
    ]
    return re.compile("|".join(parts))


def _optional(words: tuple[str, ...]) -> re.Pattern[str] | None:
    return _phrases(words) if words else None


def load_terms(
    folder: Path,
    *,
    local_codes: tuple[LocalCode, ...] = (),
    spellings: Mapping[str, str] | None = None,
    ulns: tuple[SiteLimit, ...] = (),
) -> Terms:
    """Load all tables of ``mappings/``, with what a site adds.

    ``spellings``: a site's unit spellings to UCUM codes; ``ulns``: its own fallback limits
    (analyte, sex, limit, unit), which replace those of the table. Raises MappingError.
    """
    systems, aliases = _load_systems(folder / "systems.csv")
    by_alias = {alias: uri for uri, alias in aliases.items()}
    rows: dict[str, list[Row]] = {}
    for path in sorted((folder / "codes").glob("*.csv")):
        for row in _load_codes(path, by_alias):
            rows.setdefault(row.set, []).append(row)
    sets, common, after = _load_sets(folder / "sets.yaml", rows)
    units, masses, limits = _load_units(folder / "units.csv")
    for spelling, code in (spellings or {}).items():
        known = units.get(code)
        if known is None:
            raise MappingError(f"no unit {code!r} to spell as {spelling!r}", file="site file")
        units[spelling] = known
    own = tuple(_site_uln(entry, units, limits) for entry in ulns)
    limits = _without_replaced(limits, own)
    terms = Terms(sets, systems, aliases, units, masses, limits, common, after, local_codes)
    for local in local_codes:
        _check_local(local, terms)
    return terms


def _without_replaced(limits: tuple[Uln, ...], own: tuple[Uln, ...]) -> tuple[Uln, ...]:
    """Let a site's limits take the place of the table's for the same analyte and sex."""
    replaced = {
        (entry.analyte, sex)
        for entry in own
        for sex in (_SEXES if entry.sex == "any" else (entry.sex,))
    }
    kept = (entry for entry in limits if (entry.analyte, entry.sex) not in replaced)
    return (*kept, *own)


def _check_local(local: LocalCode, terms: Terms) -> None:
    """Raise MappingError for a local code that would be silently useless."""
    if local.set is not None and local.set not in terms.sets:
        raise MappingError(f"no code set {local.set!r}", file=local.file, line=local.line)
    if local.standard is not None:
        system, code = local.standard
        if not terms.roles_of(terms.system(system), code.strip()):
            raise MappingError(
                f"no code set holds the standard code {code!r}", file=local.file, line=local.line
            )


_SEXES = ("male", "female", "any")


def _site_uln(entry: SiteLimit, units: Mapping[str, Unit], known: tuple[Uln, ...]) -> Uln:
    """Read a site's limit; the analyte and the kind of its unit must be the table's."""
    number, unit = _decimal(entry.limit), units.get(entry.unit)
    theirs = [row for row in known if row.analyte == entry.analyte]
    if not theirs:
        message = f"no analyte {entry.analyte!r} has a limit"
    elif unit is None or unit.dimension not in _dimensions(theirs):
        message = f"{entry.unit!r} is no unit of {entry.analyte}"
    elif number is None or number <= 0:
        message = "the limit must be a number above 0"
    else:
        return Uln(
            entry.analyte,
            entry.sex,
            (entry.age_from, "y"),
            None if entry.age_to is None else (entry.age_to, "y"),
            number,
            unit,
            "the site's laboratory",
        )
    raise MappingError(message, file=entry.file, line=entry.line)


def _dimensions(rows: list[Uln]) -> set[str | None]:
    found = {row.unit.dimension for row in rows}
    concentrations: set[str | None] = {"mass-concentration", "substance-concentration"}
    return found | concentrations if found & concentrations else found


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV with header and ``#`` comment lines; yields line number and row."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError("can't be read as UTF-8 text", file=path.name) from error
    kept = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]
    reader = csv.reader((line for _, line in kept), strict=True)
    numbers = [number for number, _ in kept]
    try:
        for index, cells in enumerate(reader):
            line = numbers[index]
            if index == 0:
                if tuple(cells) != columns:
                    raise MappingError(
                        f"columns must be {','.join(columns)}", file=path.name, line=line
                    )
                continue
            if len(cells) != len(columns):
                raise MappingError(
                    f"{len(cells)} cells instead of {len(columns)}", file=path.name, line=line
                )
            yield line, dict(zip(columns, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise MappingError(f"not CSV: {error}", file=path.name) from error


def _load_systems(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    systems: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for line, row in _table(path, ("alias", "uri", "other_uris", "title")):
        if row["uri"] in aliases:
            raise MappingError(f"system {row['uri']} is listed twice", file=path.name, line=line)
        aliases[row["uri"]] = row["alias"]
        for uri in (row["uri"], *row["other_uris"].split()):
            systems[uri] = systems[uri.rstrip("/").lower()] = row["uri"]
    return systems, aliases


_MATCHES = ("exact", "prefix", "range")
_RANGE = re.compile(r"\d{1,9}-\d{1,9}")


def _load_codes(path: Path, by_alias: Mapping[str, str]) -> Iterator[Row]:
    columns = ("set", "role", "match", "system", "code", "display", "source")
    for line, row in _table(path, columns):
        if row["system"] not in by_alias:
            raise MappingError(f"unknown system {row['system']!r}", file=path.name, line=line)
        if row["role"] not in tuple(Role) or row["match"] not in _MATCHES:
            raise MappingError("unknown role or match", file=path.name, line=line)
        if not row["set"] or not (row["code"] or row["match"] == "prefix"):
            raise MappingError("a set and a code are needed", file=path.name, line=line)
        if row["match"] == "range" and _RANGE.fullmatch(row["code"]) is None:
            raise MappingError("a range is written as 10004-69990", file=path.name, line=line)
        yield Row(
            row["set"],
            Role(row["role"]),
            row["match"],
            by_alias[row["system"]],
            row["code"],
            row["display"],
            row["source"],
            path.name,
            line,
        )


def _load_sets(
    path: Path, rows: Mapping[str, list[Row]]
) -> tuple[dict[str, CodeSet], tuple[str, ...], tuple[str, ...]]:
    content = load_yaml(path)
    sets: dict[str, CodeSet] = {}
    listed = content.mapping("sets")
    for name in listed:
        entry = listed.mapping(name)
        sets[name] = CodeSet(
            name=name,
            title=entry.text("title"),
            rows=tuple(rows.get(name, ())),
            keywords=entry.texts("keywords"),
            not_keywords=entry.texts("not_keywords"),
            local=entry.flag("local"),
            vague_exclusions=entry.flag("vague_exclusions"),
            file=path.name,
            line=listed.line(name),
        )
    for name, found in rows.items():
        if name not in sets:
            raise MappingError(
                f"code set {name!r} is not described in {path.name}",
                file=found[0].file,
                line=found[0].line,
            )
    return sets, content.texts("common_not_keywords"), content.texts("common_not_after")


def _decimal(text: str) -> Fraction | None:
    try:
        if "/" in text:
            return Fraction(text)
        number = Decimal(text)
    except (InvalidOperation, ValueError, ZeroDivisionError):
        return None
    return Fraction(number) if number.is_finite() else None


_AGE = re.compile(r"(\d{1,3}) ?([ymd])")


def _age(text: str, path: Path, line: int) -> tuple[int, str] | None:
    if not text:
        return None
    found = _AGE.fullmatch(text)
    if found is None:
        raise MappingError("an age is written as 18 y, 6 m or 15 d", file=path.name, line=line)
    return int(found[1]), found[2]


def _load_units(
    path: Path,
) -> tuple[dict[str, Unit], dict[str, Fraction], tuple[Uln, ...]]:
    columns = (
        "kind",
        "spelling",
        "ucum",
        "dimension",
        "factor",
        "analyte",
        "molar_mass",
        "sex",
        "age_low",
        "age_high",
        "uln",
        "unit",
        "source",
        "note",
    )
    units: dict[str, Unit] = {}
    masses: dict[str, Fraction] = {}
    limits: list[tuple[int, dict[str, str]]] = []
    for line, row in _table(path, columns):
        if row["kind"] == "unit":
            factor = _decimal(row["factor"])
            if factor is None or factor <= 0 or not row["dimension"] or not row["spelling"]:
                raise MappingError(
                    "a unit needs spelling, dimension and factor", file=path.name, line=line
                )
            if row["spelling"] in units:
                raise MappingError(
                    f"unit {row['spelling']!r} is listed twice", file=path.name, line=line
                )
            units[row["spelling"]] = Unit(row["ucum"], row["dimension"], factor)
        elif row["kind"] == "analyte":
            mass = _decimal(row["molar_mass"]) if row["molar_mass"] else None
            if row["molar_mass"] and (mass is None or mass <= 0):
                raise MappingError("the molar mass is not a number", file=path.name, line=line)
            if mass is not None:
                masses[row["analyte"]] = mass
        elif row["kind"] == "uln":
            limits.append((line, row))
        else:
            raise MappingError(f"unknown kind {row['kind']!r}", file=path.name, line=line)
    ulns: list[Uln] = []
    for line, row in limits:
        limit = _decimal(row["uln"])
        if limit is None or row["unit"] not in units or row["sex"] not in _SEXES:
            raise MappingError(
                "a limit needs sex, number and a known unit", file=path.name, line=line
            )
        ulns.append(
            Uln(
                row["analyte"],
                row["sex"],
                _age(row["age_low"], path, line),
                _age(row["age_high"], path, line),
                limit,
                units[row["unit"]],
                row["source"],
            )
        )
    return units, masses, tuple(ulns)
