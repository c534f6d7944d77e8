"""Observations, their components and panel members as facts (semantics 1.2, 1.3)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo
from operator import attrgetter

from service.facts.dates import BadDate, period_end, read
from service.facts.model import Masked, ObservationFact
from service.fhir.record import Located, PatientRecord, contained_type
from service.fhir.resources import (
    DiagnosticReport,
    Observation,
    ObservationComponent,
    Reference,
)
from service.terms import Concept, Terms
from service.values.dates import When

# Statuses with which an observation says nothing yet, or nothing any more.
_COUNTED = frozenset(("final", "amended", "corrected"))
# Forms of value that no rule can use; a result of such a form is there, but unreadable.
_OTHER_VALUES = attrgetter(
    "value_boolean",
    "value_ratio",
    "value_sampled_data",
    "value_time",
    "value_date_time",
    "value_period",
)
_OTHER_FORMS = 6
_PERSONS = ("Patient", "RelatedPerson", "Group", "Practitioner", "PractitionerRole", "Person")


class Panels:
    """What panels and reports say of their members.

    ``dates``: the time they give to members without one. ``undatable``: members of a panel
    whose own date can't be read. ``inside``: members that a panel contains. ``missing``:
    members that aren't in the record.
    """

    def __init__(self) -> None:
        self.dates: dict[str, When] = {}
        self.undatable: set[str] = set()
        self.inside: list[Located] = []
        self.missing: list[Masked] = []


def panels_of(record: PatientRecord, zone: tzinfo, own: frozenset[str]) -> Panels:
    """Go through panels and reports, outer ones first, and note what they say of members."""
    panels = Panels()
    pending = [
        *record.resources.get("DiagnosticReport", ()),
        *record.resources.get("Observation", ()),
    ]
    pending = [located for located in pending if _members(located)]
    # A panel without a time takes that of the panel it is in: go on until nothing is new.
    seen: set[tuple[str, When | None]] = set()
    while pending:
        holder = pending.pop(0)
        when, unreadable = _holder_time(holder, panels, zone)
        if (holder.reference, when) in seen:
            continue
        seen.add((holder.reference, when))
        for member in _members(holder):
            found = _note(member, holder, when, unreadable, record, panels, own)
            if found is not None and _members(found):
                pending.append(found)
    return panels


def _members(located: Located) -> tuple[Reference, ...]:
    resource = located.resource
    if isinstance(resource, DiagnosticReport):
        members = resource.result
    elif isinstance(resource, Observation):
        members = resource.has_member
    else:
        return ()
    return () if resource.status in ("entered-in-error", "cancelled") else members


def _holder_time(holder: Located, panels: Panels, zone: tzinfo) -> tuple[When | None, bool]:
    """Give a panel's time, its own or its panel's, and whether its own can't be read."""
    assert isinstance(holder.resource, Observation | DiagnosticReport)
    try:
        return time_of(holder.resource, zone) or panels.dates.get(holder.reference), False
    except BadDate:
        return None, True


def _note(
    member: Reference,
    holder: Located,
    when: When | None,
    unreadable: bool,
    record: PatientRecord,
    panels: Panels,
    own: frozenset[str],
) -> Located | None:
    """Note what a panel says of a member; give the member if it is there."""
    found = record.resolver.resolve(member, holder)
    if found is None:
        written = member.reference or ""
        there = written.startswith("#") or record.resolver.is_rejected(written)
        if there or (_is_result(member) and record.reading("Observation").assumed):
            # In files and Bundles a member that isn't there is a result that is lost; a
            # server's search leaves out members of codes that were not asked for.
            problem = "a panel member is not in the record"
            panels.missing.append(
                Masked("Observation", holder.reference, problem, begin=when, when=when)
            )
        return None
    if not isinstance(found.resource, Observation):
        return None
    if "#" in found.reference:
        subject = found.resource.subject
        if subject is not None and record.resolver.owner(subject) not in own:
            return None
        if found.reference not in {known.reference for known in panels.inside}:
            panels.inside.append(found)
    if when is not None:
        panels.dates.setdefault(found.reference, when)
    elif unreadable:
        panels.undatable.add(found.reference)
    return found


def _is_result(member: Reference) -> bool:
    """Members may be other things than results (a QuestionnaireResponse)."""
    kind = member.type or _type_named(member.reference or "")
    return kind in (None, "Observation")


def _type_named(reference: str) -> str | None:
    """Give the resource type that a reference names, if it is written in it."""
    parts = reference.split("/_history/", maxsplit=1)[0].split("/")
    named = parts[-2] if len(parts) > 1 else ""
    return named if named[:1].isupper() else None


def require_own_time(located: Located, zone: tzinfo) -> None:
    """Raise BadDate for a member without a time whose panel's time can't be read."""
    assert isinstance(located.resource, Observation)
    if time_of(located.resource, zone) is None:
        raise BadDate("the panel's date is not a FHIR date")


def time_of(resource: Observation | DiagnosticReport, zone: tzinfo) -> When | None:
    """Give an observation's own time, without that of issue (semantics 1.2); raises BadDate."""
    when = read(resource.effective_date_time, zone, "effectiveDateTime")
    if when is None and isinstance(resource, Observation):
        when = read(resource.effective_instant, zone, "effectiveInstant")
    if when is None:
        when = period_end(resource.effective_period, zone, "effectivePeriod")
    if when is None and isinstance(resource, Observation) and resource.effective_timing:
        events = [
            event
            for text in resource.effective_timing.event
            if (event := read(text, zone, "effectiveTiming.event")) is not None
        ]
        when = max(events, key=lambda event: (event.end, event.start), default=None)
    return when


def observation_facts(
    located: Located,
    terms: Terms,
    zone: tzinfo,
    record: PatientRecord,
    own: frozenset[str],
    panel: When | None,
) -> Iterator[ObservationFact | Masked]:
    """Yield the facts of one Observation: itself and each component that a set knows.

    An Observation that no set knows yields nothing. Raises BadDate if a date of a
    relevant one is malformed.
    """
    resource = located.resource
    assert isinstance(resource, Observation)
    if resource.status not in _COUNTED:
        return
    concept = terms.concept(resource.code)
    components: list[tuple[ObservationComponent, Concept]] = []
    for component in resource.component:
        found = terms.concept(component.code)
        if found.roles:
            components.append((component, found))
    if not concept.roles and not concept.masked and not components:
        return
    focus = _someone_else(located, record, own) if resource.focus else False
    if focus:
        return
    when = time_of(resource, zone) or panel
    issued = when is None
    if when is None:
        when = read(resource.issued, zone, "issued")
    undatable = when is None and not record.reading("DiagnosticReport").complete
    if focus is None or undatable:
        # Whom it is about, or when it was made, may be said by what isn't here.
        problem = "its focus is not known" if focus is None else "its report may give it a time"
        whole = None if concept.masked or components else concept
        yield Masked("Observation", located.reference, problem, whole, when, when)
        return
    if concept.masked:
        yield Masked(
            "Observation", located.reference, "neither code nor text", begin=when, when=when
        )
    if concept.roles:
        yield _fact(located, resource, resource, concept, when, issued, terms)
    for component, found in components:
        yield _fact(located, resource, component, found, when, issued, terms)


def _someone_else(located: Located, record: PatientRecord, own: frozenset[str]) -> bool | None:
    """Tell whether a focus is another person than the patient (1.3); None if not known."""
    assert isinstance(located.resource, Observation)
    answers = {_is_other_person(focus, located, record, own) for focus in located.resource.focus}
    return True if True in answers else None if None in answers else False


def _is_other_person(
    focus: Reference, located: Located, record: PatientRecord, own: frozenset[str]
) -> bool | None:
    reference = focus.reference or ""
    if record.resolver.owner(focus) in own:
        return False
    if reference.startswith("#"):
        kind = contained_type(located, reference[1:])
    else:
        found = record.resolver.resolve(focus, located)
        kind = type(found.resource).__name__ if found is not None else None
    kind = kind or focus.type or _type_named(reference)
    return None if kind is None else kind in _PERSONS


def _fact(
    located: Located,
    resource: Observation,
    part: Observation | ObservationComponent,
    concept: Concept,
    when: When | None,
    issued: bool,
    terms: Terms,
) -> ObservationFact:
    quantity = part.value_quantity
    if quantity is not None and quantity.value is None:
        quantity = None
    coded = terms.concept(part.value_codeable_concept) if part.value_codeable_concept else None
    if coded is not None and coded.masked:
        coded = None
    text = part.value_string if part.value_string and part.value_string.strip() else None
    return ObservationFact(
        reference=located.reference,
        version=located.version,
        concept=concept,
        status=resource.status or "",
        when=when,
        issued=issued and when is not None,
        quantity=quantity,
        coded=coded,
        text=text,
        integer=part.value_integer,
        range=part.value_range,
        other_value=_OTHER_VALUES(part).count(None) < _OTHER_FORMS,
        interpretation=(
            tuple(terms.concept(entry) for entry in part.interpretation)
            if part.interpretation
            else ()
        ),
        ranges=part.reference_range,
        method=terms.concept(resource.method) if resource.method else None,
        modified=bool(part.modifier_extension or resource.modifier_extension),
        conflicting=located.conflicting,
        focus=(
            tuple(focus.reference for focus in resource.focus if focus.reference)
            if resource.focus
            else ()
        ),
    )
