"""From a server's CapabilityStatement to the searches that read a patient's record.

Servers differ in what they search by (HAPI, Blaze, Google and Azure in nearly everything;
Epic and Oracle Health only by patient, and by code for few types), so nothing is asked
that a server does not declare. What comes is filtered by code again later: a search may
be wider than the trial needs, but never narrower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

import msgspec

from service.errors import SourceError
from service.fhir.bundles import narrows
from service.fhir.source import NOT_OFFERED, SiteSearch

URL_LIMIT = 2000
_VERSIONS = ("4.0", "4.3")

# How a type's patient is searched for; the first that a server declares is used. Epic wants
# the bare id for `patient`, while `subject` and `individual` may name other types too.
_PATIENT_PARAMETERS = ("patient", "subject", "individual")
_USUAL_PARAMETER = {"AdverseEvent": "subject"}
_FINAL = frozenset({"final", "amended", "corrected"})
# What a record's resources refer to that lies in another resource.
_INCLUDES = {
    "MedicationRequest": "medication",
    "MedicationAdministration": "medication",
    "MedicationStatement": "medication",
    "MedicationDispense": "medication",
    "ResearchSubject": "study",
}
# The categories of FHIR's own value set, for a server that demands one while the site file
# names none.
OBSERVATION_CATEGORIES = (
    "laboratory",
    "exam",
    "survey",
    "vital-signs",
    "procedure",
    "imaging",
    "social-history",
    "therapy",
    "activity",
)


class _Parameter(msgspec.Struct):
    name: str = ""


class _Interaction(msgspec.Struct):
    code: str = ""


class _Resource(msgspec.Struct, rename="camel"):
    type: str = ""
    search_param: tuple[_Parameter, ...] | None = None
    search_include: tuple[str, ...] = ()
    interaction: tuple[_Interaction, ...] | None = None


class _Rest(msgspec.Struct):
    mode: str = "server"
    resource: tuple[_Resource, ...] = ()
    interaction: tuple[_Interaction, ...] = ()


class _Statement(
    msgspec.Struct, rename="camel", tag_field="resourceType", tag="CapabilityStatement"
):
    fhir_version: str = ""
    rest: tuple[_Rest, ...] = ()


@dataclass(frozen=True, slots=True)
class Ability:
    """What a server can do with one resource type; None: it does not say.

    ``history``: whether it tells what became of all resources of the type, deletions too.
    """

    parameters: frozenset[str] | None = None
    includes: frozenset[str] = frozenset()
    searchable: bool = True
    history: bool = False

    def declares(self, name: str) -> bool:
        """Whether a search parameter is declared."""
        return self.parameters is not None and name in self.parameters


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server can do; ``types`` is empty if it does not list its types.

    ``batch``: it takes several requests in one Bundle.
    """

    version: str
    types: Mapping[str, Ability]
    batch: bool = False

    def of(self, kind: str) -> Ability | None:
        """Give a type's ability, or None if the server does not offer the type.

        A server that lists no types at all is taken to have them: nothing says that it
        has not, and a search will show.
        """
        return self.types.get(kind) if self.types else Ability()


def capabilities(body: bytes) -> Capabilities:
    """Read a CapabilityStatement; raises SourceError if it is none or not of R4 or R4B."""
    try:
        statement = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=_Statement)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise SourceError("the FHIR server's /metadata is not a CapabilityStatement") from error
    version = statement.fhir_version
    if version not in _VERSIONS and not version.startswith(tuple(f"{v}." for v in _VERSIONS)):
        shown = version if re.fullmatch(r"[0-9A-Za-z.-]{1,15}", version) else "without version"
        raise SourceError(f"the FHIR server offers FHIR {shown}, not R4 (4.0) or R4B (4.3)")
    types: dict[str, Ability] = {}
    batch = False
    for rest in statement.rest:
        if rest.mode == "server":
            batch |= any(found.code == "batch" for found in rest.interaction)
            for resource in rest.resource:
                types[resource.type] = _ability(resource)
    return Capabilities(version, types, batch)


def _ability(resource: _Resource) -> Ability:
    parameters = resource.search_param
    interactions = resource.interaction
    return Ability(
        None if parameters is None else frozenset(found.name for found in parameters),
        frozenset(resource.search_include),
        interactions is None or any(found.code == "search-type" for found in interactions),
        any(found.code == "history-type" for found in interactions or ()),
    )


@dataclass(frozen=True, slots=True)
class Query:
    """One search of a type, for any patient.

    ``patient_parameter`` is what the patient is named by. ``comfort`` holds parameters that
    only make the reply better (sorting, includes); they are left out if the server refuses
    them. ``newest_first``: the reply is asked for sorted by date, newest first.
    """

    kind: str
    patient_parameter: str
    parameters: tuple[tuple[str, str], ...] = ()
    comfort: tuple[tuple[str, str], ...] = ()
    newest_first: bool = False

    def plain(self) -> Query:
        """Give the same search without its comforts."""
        return replace(self, comfort=(), newest_first=False)

    def form(self, *ids: str) -> str:
        """Write the query string for a patient, or for any of several."""
        bare = self.patient_parameter in ("patient", "_id")
        who = ",".join(found if bare else f"Patient/{found}" for found in ids)
        return encode(((self.patient_parameter, who), *self.parameters, *self.comfort))

    @property
    def shape(self) -> tuple[str, ...]:
        """Tell searches apart that a server may understand differently."""
        return (self.kind, self.patient_parameter, *(name for name, _ in self.parameters))


@dataclass(frozen=True, slots=True)
class TypePlan:
    """How one resource type is read.

    ``narrow``: searches restricted to the trial's codes. ``wide``: searches for all of the
    patient's resources of the type. ``start_wide``: the narrow ones alone can't be
    complete. ``by_category``: for a server that demands a category unexpectedly.
    ``narrowed``: why even all searches together may miss some of the type. Without any
    search ``problem`` says why, or the type is ``none_kept``.
    """

    kind: str
    narrow: tuple[Query, ...] = ()
    wide: tuple[Query, ...] = ()
    start_wide: bool = True
    by_category: tuple[Query, ...] = ()
    problem: str | None = None
    not_offered: bool = False
    none_kept: bool = False
    narrowed: str | None = None


def encode(parameters: Iterable[tuple[str, str]]) -> str:
    """Write a query string; commas stay readable, since they separate a list's values."""
    return "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in parameters)


def _quoted(text: str) -> str:
    return quote(text, safe=",:/")


def escape(text: str) -> str:
    """Escape what separates values in a search parameter (FHIR R4 search, 3.1.1.5)."""
    for mark in ("\\", ",", "|", "$"):
        text = text.replace(mark, "\\" + mark)
    return text


def plan_type(
    kind: str,
    codes: frozenset[tuple[str, str]] | None,
    server: Capabilities,
    site: SiteSearch,
) -> TypePlan:
    """Plan how a type is read from a server; ``codes`` None means all of it."""
    ability = server.of(kind)
    if ability is None:
        return TypePlan(
            kind,
            problem=NOT_OFFERED,
            not_offered=True,
            none_kept=site.none_kept(kind),
        )
    if not ability.searchable:
        return TypePlan(kind, problem="the FHIR server offers no search for this resource type")
    who = _patient_parameter(kind, ability)
    if who is None:
        return TypePlan(kind, problem="the FHIR server can't search this resource type by patient")
    base = Query(
        kind,
        who,
        (*site.extra_parameters.get(kind, {}).items(), ("_count", str(site.page_size))),
        _includes(kind, ability),
    )
    if kind == "Observation" and ability.declares("date"):
        base = replace(base, comfort=(("_sort", "-date"), *base.comfort), newest_first=True)
    wanted = site.category_required.get(kind, ())
    wide = tuple(_with_categories(base, wanted))
    by_category: tuple[Query, ...] = ()
    if kind == "Observation" and not wanted and ability.declares("category"):
        by_category = tuple(_with_categories(base, OBSERVATION_CATEGORIES))
    narrow, covers_components = _narrow(kind, codes, ability, wide, site)
    return TypePlan(
        kind,
        narrow,
        wide,
        not narrow or (site.results_in_components and not covers_components),
        by_category,
        narrowed=_narrowed(kind, site.extra_parameters.get(kind, {})),
    )


def _narrowed(kind: str, extra: Mapping[str, str]) -> str | None:
    """Say which of the site's own parameters may leave some of a type out, or None.

    A search for all Observations that are final counts as whole: others decide nothing.
    """
    found = [
        name
        for name, value in extra.items()
        if (name in _PATIENT_PARAMETERS or narrows(name, value))
        and not (kind == "Observation" and name == "status" and set(value.split(",")) >= _FINAL)
    ]
    if not found:
        return None
    return f"the site file's extra_parameters narrow the search ({', '.join(found)})"


def _patient_parameter(kind: str, ability: Ability) -> str | None:
    if ability.parameters is None:
        return _USUAL_PARAMETER.get(kind, "patient")
    return next((name for name in _PATIENT_PARAMETERS if ability.declares(name)), None)


def _includes(kind: str, ability: Ability) -> tuple[tuple[str, str], ...]:
    name = _INCLUDES.get(kind)
    found = f"{kind}:{name}"
    return (("_include", found),) if name and found in ability.includes else ()


def _with_categories(base: Query, categories: Iterable[str]) -> Iterator[Query]:
    """Give one search per category: no server must understand lists of them (US Core)."""
    found = False
    for category in categories:
        found = True
        yield replace(base, parameters=(("category", category), *base.parameters))
    if not found:
        yield base


def _narrow(
    kind: str,
    codes: frozenset[tuple[str, str]] | None,
    ability: Ability,
    wide: tuple[Query, ...],
    site: SiteSearch,
) -> tuple[tuple[Query, ...], bool]:
    """Plan searches by code, and tell whether they find results in components too.

    Only Observations are searched by code: of other types texts and prefixes matter, which
    no code list can ask for (semantics 1.5).
    """
    if kind != "Observation" or not codes:
        return (), False
    if ability.declares("combo-code"):
        names: tuple[str, ...] = ("combo-code",)
    elif ability.declares("code"):
        # Oracle Health and Epic match Observation.code only, not components.
        both = ability.declares("component-code")
        names = ("code", "component-code") if both else ("code",)
    else:
        return (), False
    found = tuple(
        replace(query, parameters=((name, listed), *query.parameters))
        for query in wide
        for name in names
        for listed in code_lists(codes, site.codes_per_search, _room(query, name))
    )
    return found, names != ("code",)


def _room(query: Query, name: str) -> int:
    # Ids have up to 64 characters; the base URL's share is an estimate.
    return URL_LIMIT - 200 - len(query.form("x" * 64)) - len(name) - 2


def code_lists(codes: Iterable[tuple[str, str]], most: int, room: int) -> Iterator[str]:
    """Split codes into comma lists of at most ``most`` codes and ``room`` encoded characters.

    Each code is asked for with its system and bare: some servers want a system, while the
    bare code finds it under the system's other names (its OID: semantics 1.5).
    """
    batch: list[str] = []
    length = 0
    for system, code in sorted(codes):
        bare = escape(code)
        token = f"{escape(system)}|{bare},{bare}" if system else bare
        size = len(_quoted(token)) + 1
        if batch and (len(batch) >= most or length + size > room):
            yield ",".join(batch)
            batch, length = [], 0
        batch.append(token)
        length += size
    if batch:
        yield ",".join(batch)
