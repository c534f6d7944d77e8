"""Observations, their components and panel members as facts (semantics 1.2, 1.3)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo
from operator import attrgetter

from service.facts.dates import BadDate, period_end, read
from service.facts.model import Masked, ObservationFact
from service.fhir.record import Located, PatientRecord
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
    """The dates that panels and reports give to their members, and members held inside."""

    def __init__(self) -> None:
        self.dates: dict[str, When] = {}
        self.inside: list[tuple[Located, When | None]] = []
        self.missing: list[Masked] = []


def panels_of(record: PatientRecord, zone: tzinfo) -> Panels:
    """Go through panels and reports and note what they say of their members."""
    panels = Panels()
    holders = (
        *record.resources.get("DiagnosticReport", ()),
        *record.resources.get("Observation", ()),
    )
    for located in holders:
        resource = located.resource
        if isinstance(resource, DiagnosticReport):
            members = resource.result
        elif isinstance(resource, Observation):
            members = resource.has_member
        else:
            continue
        if not members or resource.status in ("entered-in-error", "cancelled"):
            continue
        try:
            when = time_of(resource, zone)
        except BadDate:
            when = None
        for member in members:
            _note(member, located, when, record, panels)
    return panels


def _note(
    member: Reference,
    holder: Located,
    when: When | None,
    record: PatientRecord,
    panels: Panels,
) -> None:
    found = record.resolver.resolve(member, holder)
    if found is None:
        if record.reading("Observation").assumed:
            # In files and Bundles a member that isn't there is a result that is lost; a
            # server's search leaves out members of codes that were not asked for.
            panels.missing.append(
                Masked(
                    "Observation",
                    holder.reference,
                    "a panel member is not in the record",
                    begin=when,
                    when=when,
                )
            )
        return
    if "#" in found.reference and isinstance(found.resource, Observation):
        panels.inside.append((found, when))
    elif when is not None:
        panels.dates.setdefault(found.reference, when)


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
    own_references: frozenset[str],
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
    if resource.focus and _someone_else(resource, own_references):
        return
    when = time_of(resource, zone) or panel
    issued = when is None
    if when is None:
        when = read(resource.issued, zone, "issued")
    if concept.masked:
        yield Masked(
            "Observation", located.reference, "neither code nor text", begin=when, when=when
        )
    if concept.roles:
        yield _fact(located, resource, resource, concept, when, issued, terms)
    for component, found in components:
        yield _fact(located, resource, component, found, when, issued, terms)


def _someone_else(resource: Observation, own: frozenset[str]) -> bool:
    for focus in resource.focus:
        reference = focus.reference or ""
        kind = focus.type or next(
            (part for part in reference.split("/")[:-1][::-1] if part[:1].isupper()), None
        )
        if reference in own:
            continue
        if kind is None or kind in _PERSONS:
            return True
    return False


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
