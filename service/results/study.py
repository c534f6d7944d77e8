"""A trial and its code sets as FHIR resources, and what the service says of itself.

R4 has no resource for eligibility criteria with logic: the criteria are a Group
(``ResearchStudy.enrollment``), and a PlanDefinition (``ResearchStudy.protocol``) with
canonical URL and version, which GuidanceResponse names as its module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from service import __version__
from service.criteria.trial import Criterion, Trial
from service.results.fhirtypes import string
from service.terms import CodeSet, Role, Row

Json = dict[str, Any]

OPERATION = "evaluate-eligibility"
SCREEN = "screen"
# Of the definitions this version of the program publishes.
DEFINED = "2026-11-22"
_REGISTRY = re.compile(r"NCT\d{8}")
_COPYRIGHT = {
    "http://loinc.org": "LOINC codes: copyright Regenstrief Institute, https://loinc.org/license",
    "http://snomed.info/sct": "SNOMED CT codes: copyright SNOMED International; a licence is "
    "needed to use them",
    "http://www.ama-assn.org/go/cpt": "CPT codes: copyright American Medical Association; the "
    "labels are not its descriptors",
}


def research_study(trial: Trial) -> Json:
    """Write a trial as ResearchStudy; its criteria are in the Group and PlanDefinition."""
    study: Json = {
        "resourceType": "ResearchStudy",
        "id": trial.id,
        "identifier": [_identifier(value) for value in trial.identifiers],
        "title": trial.title,
        "protocol": [{"reference": f"PlanDefinition/{trial.id}"}],
        "status": trial.status,
        "enrollment": [{"reference": f"Group/{trial.id}"}],
    }
    if trial.phase:
        study["phase"] = {"text": trial.phase}
    if trial.conditions:
        study["condition"] = [{"text": condition} for condition in trial.conditions]
    if trial.sponsor:
        study["sponsor"] = {"display": trial.sponsor}
    return study


def _identifier(value: str) -> Json:
    if _REGISTRY.fullmatch(value):
        return {"system": "https://clinicaltrials.gov", "value": value}
    return {"value": value}


def group(trial: Trial, base: str) -> Json:
    """Write a trial's criteria as a Group: who is wanted, and who is excluded."""
    return {
        "resourceType": "Group",
        "id": trial.id,
        "active": True,
        "type": "person",
        "actual": False,
        "name": f"Eligible for {trial.name}",
        "characteristic": [
            {
                "code": _criterion_code(criterion, base),
                "valueBoolean": True,
                "exclude": criterion.kind == "exclusion",
            }
            for criterion in trial.criteria
        ],
    }


def _criterion_code(criterion: Criterion, base: str) -> Json:
    coding = {"system": f"{base}/CodeSystem/criteria", "code": criterion.id}
    return {"coding": [coding], "text": string(criterion.text)}


def plan_definition(trial: Trial, base: str) -> Json:
    """Write a trial's criteria with their parts as PlanDefinition, the evaluation's module."""
    return {
        "resourceType": "PlanDefinition",
        "id": trial.id,
        "url": f"{base}/PlanDefinition/{trial.id}",
        "version": trial.version,
        "name": _computer_name(trial.id),
        "title": f"Eligibility criteria of {trial.name}",
        "status": "active",
        "description": trial.title,
        "action": [_action(criterion, base) for criterion in trial.criteria],
    }


_COMPUTED = {
    "computed": "computed from the record",
    "partly": "partly computed from the record",
    "attested": "settled by attestation only",
}


def _action(criterion: Criterion, base: str) -> Json:
    action: Json = {
        "prefix": criterion.id,
        "title": f"{criterion.kind} criterion {criterion.id}",
        "description": string(criterion.text),
        "textEquivalent": _COMPUTED.get(criterion.computed, criterion.computed),
        "code": [{"coding": [{"system": f"{base}/CodeSystem/criteria", "code": criterion.id}]}],
    }
    if criterion.parts:
        action["action"] = [_action(part, base) for part in criterion.parts]
    return action


def value_set(code_set: CodeSet, base: str, *, summary: bool = False) -> Json:
    """Write a code set as ValueSet; codes that only call for judgement are marked."""
    written: Json = {
        "resourceType": "ValueSet",
        "id": code_set.name,
        "url": f"{base}/ValueSet/{code_set.name}",
        "version": __version__,
        "name": _computer_name(code_set.name),
        "title": code_set.title,
        "status": "active",
    }
    notices = {_COPYRIGHT[row.system] for row in code_set.rows if row.system in _COPYRIGHT}
    if notices:
        written["copyright"] = "; ".join(sorted(notices))
    if summary:
        written["meta"] = {"tag": [_SUBSETTED]}
        return written
    included = list(_compose([row for row in code_set.rows if row.role is not Role.EXCLUDE], base))
    excluded = list(_compose([row for row in code_set.rows if row.role is Role.EXCLUDE], base))
    if included:
        # Without anything included there is nothing to exclude from.
        written["compose"] = {"include": included} | ({"exclude": excluded} if excluded else {})
    return written


_SUBSETTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "SUBSETTED",
}


def _compose(rows: list[Row], base: str) -> Iterator[Json]:
    for system in dict.fromkeys(row.system for row in rows):
        exact = [row for row in rows if row.system == system and row.match == "exact"]
        if exact:
            yield {"system": system, "concept": [_concept(row, base) for row in exact]}
    for row in rows:
        if row.match == "prefix":
            yield _filtered(row, "concept", "is-a", row.code, base)
        elif row.match == "range":
            low, _, high = row.code.partition("-")
            yield _filtered(row, "code", "regex", digits_between(low, high), base)


def _concept(row: Row, base: str) -> Json:
    concept: Json = {"code": row.code}
    if display := string(row.display):
        concept["display"] = display
    return concept | _mark(row, base)


def _filtered(row: Row, name: str, operator: str, value: str, base: str) -> Json:
    condition = {"property": name, "op": operator, "value": value}
    return {"system": row.system, "filter": [condition]} | _mark(row, base)


def _mark(row: Row, base: str) -> Json:
    if row.role is not Role.JUDGEMENT:
        return {}
    url = f"{base}/StructureDefinition/calls-for-judgement"
    return {"extension": [{"url": url, "valueBoolean": True}]}


def digits_between(low: str, high: str) -> str:
    """Write a regular expression for the numbers from ``low`` to ``high``, of equal length."""
    if low == high:
        return low
    if low[0] == high[0]:
        rest = digits_between(low[1:], high[1:])
        return low[0] + (f"({rest})" if "|" in rest else rest)
    if len(low) == 1:
        return f"[{low}-{high}]"
    size = len(low) - 1
    first, last = low[0], high[0]
    parts = [f"{first}({digits_between(low[1:], '9' * size)})"]
    if int(last) - int(first) > 1:
        parts.append(f"[{int(first) + 1}-{int(last) - 1}][0-9]{{{size}}}")
    parts.append(f"{last}({digits_between('0' * size, high[1:])})")
    return "|".join(parts)


def _computer_name(text: str) -> str:
    joined = "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", text))
    return joined if joined[:1].isalpha() else f"Set{joined}"


def operation_definition(base: str) -> Json:
    """Write what the operation takes and returns."""
    return {
        "resourceType": "OperationDefinition",
        "id": OPERATION,
        "url": f"{base}/OperationDefinition/{OPERATION}",
        "version": __version__,
        "name": "EvaluateEligibility",
        "title": "Evaluate a patient's eligibility for a trial",
        "status": "active",
        "kind": "operation",
        "date": DEFINED,
        "description": (
            "Evaluates a patient's record against the trial's criteria. A criterion fails only "
            "if the record proves it, passes only if the record supports it, and is unknown "
            "otherwise. Nothing is stored. POST only: the input is not primitive."
        ),
        "affectsState": False,
        "code": OPERATION,
        "resource": ["ResearchStudy"],
        "system": False,
        "type": False,
        "instance": True,
        "parameter": [
            _parameter("subject", "Reference", "The Patient; may be left out if data holds "
                       "exactly one"),
            _parameter("asOf", "date", "The day the patient is evaluated as of; by default "
                       "today at the site"),
            _parameter("data", "Resource", "The patient's record or a part of it: a Bundle or "
                       "one resource. By itself it is taken as complete for every type"),
            _parameter("useServerData", "boolean", "Whether the service's source is read; by "
                       "default only if data is missing. With both, the records are merged"),
            _parameter("completeTypes", "code", "A resource type for which data is complete; "
                       "then it is not complete for any other", maximum="*"),
            _parameter("return", "GuidanceResponse", "The verdict and its explanation",
                       use="out", minimum=1),
        ],
    }  # fmt: skip


def screen_definition(base: str) -> Json:
    """Write what the search for candidates takes and returns."""
    return {
        "resourceType": "OperationDefinition",
        "id": SCREEN,
        "url": f"{base}/OperationDefinition/{SCREEN}",
        "version": __version__,
        "name": "ScreenPatients",
        "title": "Search the source's patients for candidates of a trial",
        "status": "active",
        "kind": "operation",
        "date": DEFINED,
        "description": (
            "Evaluates all patients of the source who may be in the trial's population, keeps "
            "the verdicts, and gives the candidates. Only asynchronously (Prefer: "
            "respond-async): the answer's Content-Location is to be asked for the result."
        ),
        "affectsState": True,
        "code": SCREEN,
        "resource": ["ResearchStudy"],
        "system": False,
        "type": False,
        "instance": True,
        "parameter": [
            _parameter("asOf", "date", "The day the patients are evaluated as of; by default "
                       "today at the site"),
            _parameter("bulk", "string", "Read the records by a Bulk Data export of this: "
                       "system, patient or group/ID"),
            _parameter("cohort", "Reference", "Search only these patients: a Group or List of "
                       "the source; not with bulk"),
            _parameter("fresh", "boolean", "Take up nothing of an earlier search"),
            _parameter("return", "Bundle", "Group and List of the candidates, and a Parameters "
                       "that states how complete the search was", use="out", minimum=1),
        ],
    }  # fmt: skip


def _parameter(
    name: str, kind: str, text: str, *, use: str = "in", minimum: int = 0, maximum: str = "1"
) -> Json:
    return {
        "name": name,
        "use": use,
        "min": minimum,
        "max": maximum,
        "documentation": text,
        "type": kind,
    }


def capability_statement(base: str, url: str, *, secured: bool, searches: bool = False) -> Json:
    """Write what the service offers; ``url`` is its own base URL.

    ``searches``: whether it can be asked to search for candidates.
    """
    study = _offered("ResearchStudy", ("_id", "token"), ("identifier", "token"))
    names = (OPERATION, SCREEN) if searches else (OPERATION,)
    study["operation"] = [
        {"name": name, "definition": f"{base}/OperationDefinition/{name}"} for name in names
    ]
    rest: Json = {
        "mode": "server",
        "resource": [
            _offered("Group", ("_id", "token"), also=("vread",)),
            _offered("List", ("_id", "token"), also=("vread",)),
            _offered("OperationDefinition", ("_id", "token"), ("url", "uri")),
            _offered("PlanDefinition", ("_id", "token"), ("url", "uri")),
            study,
            _subject(base),
            _offered("ValueSet", ("_id", "token"), ("url", "uri")),
        ],
    }
    if secured:
        rest["security"] = {"description": "A bearer token is needed for all but this statement"}
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": DEFINED,
        "kind": "instance",
        "software": {"name": "trial-eligibility", "version": __version__},
        "implementation": {"description": "Eligibility for clinical trials", "url": url},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [rest],
    }


def _subject(base: str) -> Json:
    offered = _offered(
        "ResearchSubject",
        ("_id", "token"),
        ("identifier", "token"),
        ("individual", "reference"),
        ("patient", "reference"),
        ("status", "token"),
        ("study", "reference"),
    )
    own = {
        "name": "run",
        "definition": f"{base}/SearchParameter/run",
        "type": "number",
        "documentation": "The search (run) whose results are shown; by default each trial's latest",
    }
    offered["searchParam"].append(own)
    return offered


def _offered(kind: str, *searches: tuple[str, str], also: Iterable[str] = ()) -> Json:
    return {
        "type": kind,
        "interaction": [{"code": code} for code in ("read", *also, "search-type")],
        "searchParam": [{"name": name, "type": of} for name, of in searches],
    }


def searchset(resources: Iterable[Json], self_url: str, base_url: str) -> Json:
    """Write resources as the answer to a search."""
    entries = [
        {
            "fullUrl": f"{base_url}/{resource['resourceType']}/{resource['id']}",
            "resource": resource,
            "search": {"mode": "match"},
        }
        for resource in resources
    ]
    bundle: Json = {
        "resourceType": "Bundle",
        "type": "searchset",
        "total": len(entries),
        "link": [{"relation": "self", "url": self_url}],
    }
    return bundle | ({"entry": entries} if entries else {})
