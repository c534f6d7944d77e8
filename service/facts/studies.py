"""Participation in studies and consents as facts (semantics part 2, I12, E7)."""

from __future__ import annotations

import re
from datetime import tzinfo

from service.facts.conditions import status_code
from service.facts.dates import read, read_period
from service.facts.model import ConsentFact, ParticipationFact
from service.fhir.record import Located, PatientRecord
from service.fhir.resources import (
    CodeableConcept,
    Consent,
    Reference,
    ResearchStudy,
    ResearchSubject,
)

_TAG = re.compile(r"<[^>]*>")


def participation_fact(located: Located, record: PatientRecord, zone: tzinfo) -> ParticipationFact:
    """Read a ResearchSubject and what can be told of its study. Raises BadDate."""
    resource = located.resource
    assert isinstance(resource, ResearchSubject)
    identifiers: tuple[str, ...] | None = None
    text = ""
    study = resource.study
    if study is not None:
        text = study.display or ""
        found = record.resolver.resolve(study, located)
        if found is not None and isinstance(found.resource, ResearchStudy):
            named = tuple(entry.value for entry in found.resource.identifier if entry.value)
            identifiers = named or None
            text = found.resource.title or text
        elif study.identifier is not None and study.identifier.value:
            identifiers = (study.identifier.value,)
    period = read_period(resource.period, zone, "period")
    return ParticipationFact(
        reference=located.reference,
        version=located.version,
        status=resource.status,
        period=period,
        end=read(resource.period.end, zone, "period.end") if resource.period else None,
        open_end=resource.period is None or resource.period.end is None,
        study_identifiers=identifiers,
        study_text=" ".join((text, _written(study))),
        modified=bool(resource.modifier_extension),
        conflicting=located.conflicting,
    )


def _written(reference: Reference | None) -> str:
    return (reference.reference or "") if reference is not None else ""


def consent_fact(located: Located, record: PatientRecord, zone: tzinfo) -> ConsentFact | None:
    """Read a Consent and everything in it that may name a study. Raises BadDate."""
    resource = located.resource
    assert isinstance(resource, Consent)
    if resource.status == "entered-in-error":
        return None
    concepts = [
        entry for entry in (resource.scope, *resource.category, resource.policy_rule) if entry
    ]
    names = [entry.value for entry in resource.identifier if entry.value]
    names += [entry.uri for entry in resource.policy if entry.uri]
    names += [text for entry in concepts for text in _texts(entry)]
    if resource.text and resource.text.div:
        names.append(_TAG.sub(" ", resource.text.div))
    if resource.source_attachment:
        attachment = resource.source_attachment
        names += [text for text in (attachment.title, attachment.url) if text]
    if resource.source_reference:
        source = resource.source_reference
        names += [text for text in (source.display, source.reference) if text]
        if source.identifier and source.identifier.value:
            names.append(source.identifier.value)
        found = record.resolver.resolve(source, located)
        if found is not None and isinstance(found.resource, ResearchStudy):
            names += [entry.value for entry in found.resource.identifier if entry.value]
    provision = resource.provision
    period = provision.period if provision is not None else None
    read_period(period, zone, "provision.period")
    permit: bool | None = None
    if provision is not None and provision.type in ("permit", "deny"):
        permit = provision.type == "permit"
    return ConsentFact(
        reference=located.reference,
        version=located.version,
        status=resource.status,
        research=status_code(resource.scope) == "research"
        or any("research" in text.lower() for entry in resource.category for text in _texts(entry)),
        names=tuple(names),
        when=read(resource.date_time, zone, "dateTime"),
        period_start=read(period.start, zone, "provision.period.start") if period else None,
        period_end=read(period.end, zone, "provision.period.end") if period else None,
        permit=permit,
        modified=bool(resource.modifier_extension),
        conflicting=located.conflicting,
    )


def _texts(concept: CodeableConcept) -> list[str]:
    found = [concept.text] if concept.text else []
    for coding in concept.coding:
        found += [text for text in (coding.code, coding.display) if text]
    return found
