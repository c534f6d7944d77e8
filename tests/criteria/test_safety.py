"""The safety property: what is lost on the way never helps a patient in, and never proves a lack.

Over all fixture patients every part of the source fails in turn. Compared with the undisturbed
result no criterion or part may move to pass, none may fail by absence, absence that rests on what
was lost is unknown, and what was found still counts (semantics 1.3, 1.5, 1.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from service.criteria.evaluate import evaluate
from service.criteria.model import Result, Verdict, VerdictCode
from service.facts.build import facts_of
from service.facts.model import MEDICINE_TYPES
from service.fhir.record import CLINICAL_TYPES, Item, Pool, Reading
from service.fhir.source import from_pool
from service.site import Site
from service.values.dates import parse
from service.values.logic import Outcome, Reason
from tests.cases import (
    ASSUMED,
    Case,
    PatientCase,
    by_id,
    criterion_cases,
    patient_cases,
    terms_with,
    trial_with,
)
from tests.criteria.small import (
    CLINICAL_STATUS,
    ICD10CM,
    LOINC,
    REFUSED,
    SNOMED,
    SUBJECT,
    VERIFICATION,
    Record,
    coded,
    condition,
    event,
    measured,
    normal,
    of_trial,
    result,
    said,
)

CASES = patient_cases()
CRITERION_CASES = criterion_cases()
EACH_PATIENT = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

NOT_OFFERED = Reading(complete=False, problem="not offered by the server", not_offered=True)

# The sources whose completeness a pass, or a fail by absence, of a criterion rests on
# (semantics 1.5, and the sources listed at the head of part 2).
ABSENCE_NEEDS: dict[str, tuple[str, ...]] = {
    "I2.diagnosis": ("Condition",),
    "I2.d": ("Procedure", "Condition"),
    "I2.extramedullary": ("Condition",),
    "I10": ("Condition",),
    "E1.cns": ("Condition", "Observation"),
    "E1.epilepsy": ("Condition",),
    "E1.cerebrovascular": ("Condition",),
    "E2.pregnancy": ("Condition", "Observation"),
    "E2.lactation": ("Condition", "Observation"),
    "E3": ("Condition",),
    "E4.immunodeficiency": ("Condition",),
    "E4.autoimmune": ("Condition",),
    "E5.cell_therapy": ("Procedure", "Condition", *MEDICINE_TYPES),
    "E5.dli": ("Procedure", "Condition", *MEDICINE_TYPES),
    "E7": ("ResearchSubject", "Condition", "Procedure"),
    "E8.heart_failure": ("Condition",),
    "E8.unstable_angina": ("Condition",),
    "E8.arrhythmia": ("Condition",),
    "E8.infection": ("Condition",),
    "E9": ("Condition",),
    "E10": ("Condition",),
    "E11": ("Procedure", "Condition"),
    "E12": ("AllergyIntolerance",),
}
# A pass by value that rests on the absence of other records too.
VALUE_NEEDS: dict[str, tuple[str, ...]] = {
    "I3": ("Procedure", "Condition", *MEDICINE_TYPES),
    "E2.pregnancy": ("Condition",),
    "E8.hiv": ("Condition",),
    "E8.hbv": ("Condition",),
    "E8.hcv": ("Condition",),
}
# A fail that the record proves only together with the absence of other records: a B-lineage code
# beside the T-lineage one, an earlier remission, a hysterectomy, a later consent. A fail by a
# result needs the latest, which is why Observations are not listed (1.3).
PROOF_NEEDS: dict[str, tuple[str, ...]] = {
    "I2.diagnosis": ("Condition",),
    "I2.b": ("Condition", "Procedure", "Observation"),
    "I8.pregnancy_test": ("Condition", "Procedure"),
    "I12": ("Consent",),
    "E13": ("Consent",),
    # What tells the study of a participation from this one.
    "E7": ("ResearchStudy",),
}


@dataclass(frozen=True)
class Disturbance:
    """A record after something was lost: what it is called, and what the loss touches.

    ``types`` are the resource types that are no longer known completely (of an unreadable
    resource whose code is known, only records of that code). ``reference`` is the resource
    that was lost, ``*`` any number of them.
    """

    name: str
    items: Sequence[Item]
    readings: dict[str, Reading]
    types: tuple[str, ...]
    reference: str | None = None


def complete() -> dict[str, Reading]:
    """Everything read, as of a Bundle handed in."""
    return dict.fromkeys(CLINICAL_TYPES, ASSUMED)


def without(kinds: Sequence[str], how: Reading = REFUSED) -> dict[str, Reading]:
    """Everything read but some types."""
    return complete() | dict.fromkeys(kinds, how)


@cache
def undisturbed(name: str) -> tuple[str, dict[str, Result], Verdict]:
    """The key of the patient, the results by id, and the verdict, before anything is lost."""
    case = next(case for case in CASES if case.name == name)
    verdict = case.evaluate()
    return next(iter(Pool(case.items()).patients)), by_id(verdict), verdict


def evaluated(case: PatientCase, disturbance: Disturbance) -> Verdict:
    """The verdict on the disturbed record."""
    key, _, _ = undisturbed(case.name)
    record = from_pool(Pool(disturbance.items), key, disturbance.readings)
    return evaluate(trial_with(), facts_of(record, terms_with(), Site()), case.as_of)


def violations(case: PatientCase, disturbance: Disturbance) -> Iterator[str]:
    """Say what the disturbance must not have brought about."""
    _, before, verdict = undisturbed(case.name)
    disturbed = evaluated(case, disturbance)
    after = by_id(disturbed)
    for name, was in before.items():
        found = after[name]
        change = (
            f"{disturbance.name}: {name} was {was.outcome} {was.reason}, "
            f"is {found.outcome} {found.reason}"
        )
        if found.outcome is Outcome.PASS and was.outcome is not Outcome.PASS:
            yield f"moved to pass: {change}"
        absent = (Outcome.FAIL, Reason.RECORD_ABSENT)
        if (found.outcome, found.reason) == absent != (was.outcome, was.reason):
            yield f"fails by absence: {change}"
        lost = was.outcome is Outcome.FAIL and found.outcome is not Outcome.FAIL
        if lost and not was.parts and not may_be_lost(was, disturbance):
            yield f"no longer counts what was found: {change}"
    if verdict.code is VerdictCode.INELIGIBLE and disturbed.code is VerdictCode.ELIGIBLE:
        yield f"{disturbance.name}: became eligible"


def may_be_lost(was: Result, disturbance: Disturbance) -> bool:
    """Tell whether a fail may become unknown: its proof was touched, or rests on absence."""
    if was.reason is Reason.RECORD_ABSENT:
        return True
    shown = {entry.reference for entry in was.evidence}
    if disturbance.reference in shown or disturbance.reference == "*":
        return True
    needed = PROOF_NEEDS.get(was.id, ())
    if any(reference.startswith("Observation/") for reference in shown):
        needed += ("Observation",)
    return any(kind in needed for kind in disturbance.types)


# --- what is lost


def owned(case: PatientCase) -> list[tuple[int, dict[str, Any]]]:
    """List the resources of the record but the Patient's own, by their place."""
    listed = ((place, msgspec.json.decode(item.raw)) for place, item in enumerate(case.items()))
    return [(place, content) for place, content in listed if content["resourceType"] != "Patient"]


def reference_of(content: dict[str, Any]) -> str:
    """Give ``Type/id``."""
    return f"{content['resourceType']}/{content.get('id')}"


def replaced(case: PatientCase, place: int, raw: bytes | None) -> list[Item]:
    """Give the record with one resource's text replaced, or the resource left out."""
    items = case.items()
    changed = [] if raw is None else [items[place]._replace(raw=raw)]
    return [*items[:place], *changed, *items[place + 1 :]]


def types_incomplete(case: PatientCase) -> Iterator[Disturbance]:
    """Each type refused, each type not offered, and all of them at once."""
    for kind in CLINICAL_TYPES:
        for how in (REFUSED, NOT_OFFERED):
            name = f"{kind} {how.problem}"
            yield Disturbance(name, case.items(), without([kind], how), (kind,))
    kinds = CLINICAL_TYPES
    yield Disturbance("nothing complete", case.items(), without(kinds), kinds)
    patient = [item for item in case.items() if b'"Patient"' in item.raw][:1]
    yield Disturbance("only the Patient", patient, without(kinds), kinds, "*")


def resources_lost(case: PatientCase) -> Iterator[Disturbance]:
    """Each resource on a page that was lost: it is missing and its type is incomplete."""
    for place, content in owned(case):
        kind, reference = content["resourceType"], reference_of(content)
        readings = without([kind]) if kind in CLINICAL_TYPES else complete()
        yield Disturbance(
            f"without {reference}", replaced(case, place, None), readings, (kind,), reference
        )


def resources_truncated(case: PatientCase) -> Iterator[Disturbance]:
    """Each resource cut in the middle: not even its type is known."""
    for place, content in owned(case):
        raw = case.items()[place].raw
        reference = reference_of(content)
        yield Disturbance(
            f"{reference} cut",
            replaced(case, place, bytes(raw)[: len(raw) // 2]),
            complete(),
            (*CLINICAL_TYPES, content["resourceType"]),
            reference,
        )


def resources_unreadable(case: PatientCase) -> Iterator[Disturbance]:
    """Each resource malformed in a field: its type is known, and its code or not."""
    for place, content in owned(case):
        kind, reference = content["resourceType"], reference_of(content)
        broken = content | {"meta": "none"}
        coded = {key: value for key, value in broken.items() if key not in CODE_FIELDS}
        for name, changed in (("malformed", broken), ("malformed and without code", coded)):
            yield Disturbance(
                f"{reference} {name}",
                replaced(case, place, msgspec.json.encode(changed)),
                complete(),
                (kind,),
                reference,
            )


CODE_FIELDS = ("code", "medicationCodeableConcept", "vaccineCode", "event")
MASKED = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/data-absent-reason",
            "code": "masked",
        }
    ]
}


def resources_masked(case: PatientCase) -> Iterator[Disturbance]:
    """Each coded resource readable, but its code masked."""
    for place, content in owned(case):
        field = next((field for field in CODE_FIELDS if field in content), None)
        if field is None:
            continue
        kind, reference = content["resourceType"], reference_of(content)
        raw = msgspec.json.encode(content | {field: MASKED, "category": []})
        if kind == "Procedure":
            changed = {key: value for key, value in content.items() if key != "category"}
            raw = msgspec.json.encode(changed | {field: MASKED})
        yield Disturbance(
            f"{reference} masked", replaced(case, place, raw), complete(), (kind,), reference
        )


def older_results_lost(case: PatientCase) -> Iterator[Disturbance]:
    """Replies sorted newest first, cut off before each day: what is older wasn't read."""
    results = [
        (place, content)
        for place, content in owned(case)
        if content["resourceType"] == "Observation" and "effectiveDateTime" in content
    ]
    times = {place: parse(content["effectiveDateTime"], UTC).start for place, content in results}
    undated = {
        place
        for place, content in owned(case)
        if content["resourceType"] == "Observation" and place not in times
    }
    for instant in sorted(set(times.values())):
        gone = {place for place, start in times.items() if start < instant} | undated
        kept = [item for place, item in enumerate(case.items()) if place not in gone]
        reached = Reading(complete=False, problem="cut short", reached=instant)
        yield Disturbance(
            f"results before {instant} lost",
            kept,
            without(["Observation"], reached),
            ("Observation",),
            "*",
        )


@EACH_PATIENT
def test_a_type_that_was_not_read_helps_nobody_and_proves_nothing(case: PatientCase) -> None:
    """A search refused, or a type that the server does not have."""
    assert [found for each in types_incomplete(case) for found in violations(case, each)] == []


@EACH_PATIENT
def test_a_resource_on_a_lost_page_helps_nobody_and_proves_nothing(case: PatientCase) -> None:
    """Each resource missing in a type that was not read to the end."""
    assert [found for each in resources_lost(case) for found in violations(case, each)] == []


@EACH_PATIENT
def test_a_truncated_resource_helps_nobody_and_proves_nothing(case: PatientCase) -> None:
    """Each resource cut in the middle, in a record that is complete otherwise."""
    assert [found for each in resources_truncated(case) for found in violations(case, each)] == []


@EACH_PATIENT
def test_an_unreadable_resource_helps_nobody_and_proves_nothing(case: PatientCase) -> None:
    """Each resource malformed, in a record that is complete otherwise."""
    assert [found for each in resources_unreadable(case) for found in violations(case, each)] == []


@EACH_PATIENT
def test_a_masked_resource_helps_nobody_and_proves_nothing(case: PatientCase) -> None:
    """Each resource without its code, in a record that is complete otherwise."""
    assert [found for each in resources_masked(case) for found in violations(case, each)] == []


@EACH_PATIENT
def test_older_results_that_were_not_reached_help_nobody(case: PatientCase) -> None:
    """Results sorted newest first and cut off: the latest is known, what is older is not."""
    assert [found for each in older_results_lost(case) for found in violations(case, each)] == []


@EACH_PATIENT
def test_absence_is_not_concluded_from_a_source_that_was_not_read(case: PatientCase) -> None:
    """What rests on the absence of records of a type is unknown if the type was not read."""
    found: list[str] = []
    for kind in CLINICAL_TYPES:
        refused = Disturbance(f"{kind} refused", case.items(), without([kind]), (kind,))
        found += concluded(case, refused)
    assert found == []


@EACH_PATIENT
def test_absence_is_not_concluded_beside_a_resource_that_may_be_anything(
    case: PatientCase,
) -> None:
    """One that is cut may be of any type, one that has lost its code any of its type (1.8)."""
    found: list[str] = []
    for kind in CLINICAL_TYPES:
        for name, raw, kinds in (
            (f"a {kind} cut", f'{{"resourceType": "{kind}", "id": "lost", "co', CLINICAL_TYPES),
            (f"a {kind} malformed", f'{{"resourceType": "{kind}", "meta": "none"}}', (kind,)),
        ):
            items = [*case.items(), Item(raw.encode())]
            found += concluded(case, Disturbance(name, items, complete(), kinds))
    assert found == []


def concluded(case: PatientCase, disturbance: Disturbance) -> Iterator[str]:
    """Say what was concluded although a type that it needs is not known completely."""
    _, before, _ = undisturbed(case.name)
    after = by_id(evaluated(case, disturbance))
    for name, was in before.items():
        needed = {
            Reason.RECORD_ABSENT: ABSENCE_NEEDS,
            Reason.VALUE_MEETS: VALUE_NEEDS,
        }.get(was.reason, {}).get(name, ())
        if not set(needed) & set(disturbance.types):
            continue
        found = after[name]
        # Disease in the marrow is not extramedullary only, whatever else was not read.
        settled = name == "I2.extramedullary" and after["I4"].outcome is Outcome.PASS
        if found.outcome is not Outcome.UNKNOWN and not (
            settled and found.reason is Reason.VALUE_MEETS
        ):
            yield f"{disturbance.name}: {name} is still {found.outcome} {found.reason}"


@EACH_PATIENT
def test_a_latest_result_is_not_known_if_results_were_not_read(case: PatientCase) -> None:
    """Without the Observations no criterion is met or failed by a value.

    But any result after a transplantation shows the relapse, the latest or not (I2.d).
    """
    disturbance = Disturbance("refused", case.items(), without(["Observation"]), ("Observation",))
    by_value = [
        f"{name} {result.outcome} {result.reason}"
        for name, result in by_id(evaluated(case, disturbance)).items()
        if not result.parts
        and name != "I2.d"
        and result.reason in (Reason.VALUE_MEETS, Reason.VALUE_VIOLATES)
        and any(entry.reference.startswith("Observation/") for entry in result.evidence)
    ]
    assert by_value == []


@EACH_PATIENT
def test_medicine_types_that_a_server_does_not_have_leave_absence_to_the_orders(
    case: PatientCase,
) -> None:
    """Administrations, statements and dispenses are needed only where offered (1.5)."""
    kinds = [kind for kind in MEDICINE_TYPES if kind != "MedicationRequest"]
    kept = [
        item for item in case.items() if msgspec.json.decode(item.raw)["resourceType"] not in kinds
    ]
    offered = Disturbance("none on record", kept, complete(), ())
    lacking = Disturbance("not offered", kept, without(kinds, NOT_OFFERED), ())
    first, second = (
        {name: (result.outcome, result.reason) for name, result in by_id(verdict).items()}
        for verdict in (evaluated(case, offered), evaluated(case, lacking))
    )
    assert first == second


@pytest.mark.parametrize("case", CRITERION_CASES, ids=lambda case: case.name)
def test_the_criterions_own_cases_are_safe_too(case: Case) -> None:
    """Each resource of a criterion's case lost, cut or malformed, and each of its types refused.

    Only the criterion of the case is compared: these are small records of its rarest paths.
    """
    criterion = str(case.get("criterion"))
    was = of_criterion(case, case.items(), case.readings(), criterion)
    found: list[str] = []
    for disturbance in small_disturbances(case):
        after = of_criterion(case, disturbance.items, disturbance.readings, criterion)
        absent = (Outcome.FAIL, Reason.RECORD_ABSENT)
        helped = after.outcome is Outcome.PASS and was.outcome is not Outcome.PASS
        lacks = (after.outcome, after.reason) == absent != (was.outcome, was.reason)
        if helped or lacks:
            found.append(
                f"{disturbance.name}: {criterion} was {was.outcome} {was.reason}, "
                f"is {after.outcome} {after.reason}"
            )
    assert found == []


def small_disturbances(case: Case) -> Iterator[Disturbance]:
    """Disturb the small record of a criterion's case, its Patient excepted."""
    items, readings = case.items(), case.readings()
    kinds = {kind: None for kind in map(kind_of, items) if kind in CLINICAL_TYPES}
    for kind in kinds:
        yield Disturbance(f"{kind} refused", items, readings | {kind: REFUSED}, (kind,))
    for place, item in enumerate(items):
        kind = kind_of(item)
        if kind is None or kind == "Patient":
            continue
        before, after = items[:place], items[place + 1 :]
        if kind == "Medication":
            # A source that can't read one marks the type that refers to it.
            missing = readings | dict.fromkeys(MEDICINE_TYPES, REFUSED)
        elif kind == "DiagnosticReport":
            # What a report contains beside the server's own results is lost with it.
            missing = readings | dict.fromkeys((kind, "Observation"), REFUSED)
        else:
            missing = readings | ({kind: REFUSED} if kind in CLINICAL_TYPES else {})
        yield Disturbance(f"{kind} {place} lost", [*before, *after], missing, (kind,))
        cut = item._replace(raw=item.raw[: len(item.raw) // 2])
        yield Disturbance(f"{kind} {place} cut", [*before, cut, *after], readings, CLINICAL_TYPES)
        content = msgspec.json.decode(item.raw) | {"meta": "none"}
        malformed = item._replace(raw=msgspec.json.encode(content))
        yield Disturbance(
            f"{kind} {place} malformed", [*before, malformed, *after], readings, (kind,)
        )


def kind_of(item: Item) -> str | None:
    """Give a resource's type, if it has one."""
    content = msgspec.json.decode(item.raw)
    kind = content.get("resourceType") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None


def of_criterion(
    case: Case, items: Sequence[Item], readings: dict[str, Reading], criterion: str
) -> Result:
    """Evaluate one criterion of a case's record."""
    record = from_pool(Pool(items), "Patient/p1", readings)
    zone = ZoneInfo(str(case.get("time_zone", "UTC")))
    facts = facts_of(record, terms_with(case.local), Site(zone=zone))
    trial = trial_with(case.local)
    alone = replace(trial, criteria=(trial.by_id[criterion],))
    return evaluate(alone, facts, case.as_of).criteria[0]


def test_the_property_is_tested_over_many_patients_and_resources() -> None:
    """The fixtures are many and hold every kind of record a rule rests on."""
    kinds = {content["resourceType"] for case in CASES for _, content in owned(case)}
    assert len(CASES) >= 30
    assert sum(len(owned(case)) for case in CASES) >= 1_000
    assert {"Observation", "Condition", "Procedure", "AllergyIntolerance"} <= kinds
    assert set(ABSENCE_NEEDS) | set(VALUE_NEEDS) | set(PROOF_NEEDS) <= set(trial_with().by_id)


# --- what takes more with it than itself

ULN = [normal("1.0", "mg/dL")]
# An older result that is fine, and a newer one that is not, met in every way a record holds one.
OLDER = measured("older", "2160-0", "0.8", "mg/dL", "2026-10-10", referenceRange=ULN)
NEWER = {
    key: value
    for key, value in measured("newer", "2160-0", "9", "mg/dL", None, referenceRange=ULN).items()
    if key != "subject"
}
PANEL_CODE = coded(LOINC, "24323-8")
COMPONENTS = result(
    "panel",
    "24323-8",
    {},
    "2026-10-20",
    component=[{key: NEWER[key] for key in ("code", "valueQuantity", "referenceRange")}],
)
REPORT: Record = {
    "resourceType": "DiagnosticReport",
    "id": "report",
    "status": "final",
    "subject": SUBJECT,
    "code": PANEL_CODE,
    "effectiveDateTime": "2026-10-20",
}
CONTAINING = {**REPORT, "contained": [NEWER], "result": [{"reference": "#newer"}]}
DATING = {**REPORT, "result": [{"reference": "Observation/newer"}]}
READ_BY_SEARCH = dict.fromkeys(CLINICAL_TYPES, Reading())


def malformed(resource: Record) -> Record:
    """Break a field that says nothing of what the resource is."""
    return {**resource, "meta": "none"}


def test_the_newer_result_decides_wherever_it_is_held() -> None:
    """In a component, contained in a report, or dated by one: all are read while sound."""
    for records in (
        [OLDER, COMPONENTS],
        [OLDER, CONTAINING],
        [OLDER, {**NEWER, "subject": SUBJECT}, DATING],
    ):
        assert said(of_trial("I7.creatinine", records)) == "fail value-violates"


def test_an_unreadable_panel_may_hold_the_latest_result() -> None:
    """Its code does not show it irrelevant: any result may sit in a component (1.3, 1.8)."""
    found = of_trial("I7.creatinine", [OLDER, malformed(COMPONENTS)])
    assert said(found) == "unknown source-unavailable"


def test_an_unreadable_report_may_hold_or_date_the_latest_result() -> None:
    """What it contains is lost with it, and what it dates is undated."""
    for records in (
        [OLDER, malformed(CONTAINING)],
        [OLDER, {**NEWER, "subject": SUBJECT}, malformed(DATING)],
    ):
        assert said(of_trial("I7.creatinine", records)) == "unknown source-unavailable"


@pytest.mark.parametrize("readings", [{}, READ_BY_SEARCH], ids=["bundle", "server"])
def test_an_unreadable_result_inside_a_report_may_be_the_latest(
    readings: dict[str, Reading],
) -> None:
    """A contained resource can be nowhere else, whether the source is a Bundle or a server."""
    broken = {**CONTAINING, "contained": [malformed(NEWER)]}
    found = of_trial("I7.creatinine", [OLDER, broken], readings=readings)
    assert said(found) == "unknown source-unavailable"


def test_an_unreadable_procedure_may_be_surgery_by_its_category() -> None:
    """A local code doesn't show it irrelevant: its category says what it is (E11)."""
    surgery = event(
        "Procedure",
        "op",
        coded("urn:local", "OP-1"),
        "2026-10-20",
        category=coded(SNOMED, "387713003"),
    )
    assert said(of_trial("E11", [surgery])) == "unknown judgement-required"
    assert said(of_trial("E11", [malformed(surgery)])) == "unknown source-unavailable"


def test_an_unreadable_allergy_may_name_an_ingredient_in_its_reaction() -> None:
    """The code of a reaction doesn't show it irrelevant: its substance is what counts (E12)."""
    allergy: Record = {
        "resourceType": "AllergyIntolerance",
        "id": "a",
        "patient": SUBJECT,
        "clinicalStatus": coded(CLINICAL_STATUS, "active"),
        "verificationStatus": coded(VERIFICATION, "confirmed"),
        "code": {"text": "reaction to an infusion"},
        "reaction": [{"substance": {"text": "dimethyl sulfoxide"}}],
    }
    assert of_trial("E12", [allergy]).outcome is not Outcome.PASS
    assert said(of_trial("E12", [malformed(allergy)])) == "unknown source-unavailable"


def test_a_fail_does_not_rest_on_a_leukaemia_that_was_not_read() -> None:
    """A metastasis needs a judgement with ALL on record; whether it is, isn't known (E3)."""
    metastasis = condition("m", coded(ICD10CM, "C78.00"))
    leukaemia = condition("all", coded(ICD10CM, "C91.00"))
    assert said(of_trial("E3", [metastasis, leukaemia])) == "unknown judgement-required"
    assert said(of_trial("E3", [metastasis])) == "fail record-present"
    assert of_trial("E3", [metastasis], incomplete=["Condition"]).outcome is Outcome.UNKNOWN


def test_a_code_for_a_positive_test_that_was_not_read_may_be_the_latest_test() -> None:
    """Z32.01 states a test as a Condition: the latest test needs both types (I8, E2)."""
    negative = result("t", "2106-3", {"valueString": "negative"}, "2026-10-10")
    positive = condition("z", coded(ICD10CM, "Z32.01"), "2026-10-20")
    for criterion in ("I8.pregnancy_test", "E2.pregnancy"):
        assert said(of_trial(criterion, [negative, positive])) == "fail value-violates"
        for records, incomplete in (
            ([negative], ["Condition"]),
            ([negative, malformed(positive)], []),
        ):
            found = of_trial(criterion, records, incomplete=incomplete)
            assert said(found) == "unknown source-unavailable"


def test_a_type_the_server_does_not_have_may_still_be_handed_in() -> None:
    """An administration handed in whose medicine can't be told leaves absence unproven (E5)."""
    given = event("MedicationAdministration", "a", {}, "2026-10-20")
    given["medicationReference"] = {"reference": "Medication/elsewhere"}
    del given["medicationCodeableConcept"]
    readings = {"MedicationAdministration": NOT_OFFERED}
    assert said(of_trial("E5.dli", [given], readings=readings)) == "unknown source-unavailable"
    assert said(of_trial("E5.dli", [], readings=readings)) == "pass record-absent"


def test_a_reply_sorted_newest_first_counts_if_it_reached_the_result() -> None:
    """The latest isn't known unless the reply was sorted newest first and reached it (1.3)."""
    instant = measured("i", "11150-0", "38", "%", "2026-10-20T10:00:00Z")
    whole_day = measured("d", "11150-0", "3", "%", "2026-10-20")
    assert said(of_trial("I4", [instant, whole_day])) == "unknown conflicting-data"

    def cut(until: str) -> dict[str, Reading]:
        reached = parse(until, UTC).start
        return {"Observation": Reading(complete=False, problem="cut short", reached=reached)}

    reached = of_trial("I4", [instant], readings=cut("2026-10-20T10:00:00Z"))
    assert said(reached) == "pass value-meets"
    short = of_trial("I4", [instant], readings=cut("2026-10-21T10:00:00Z"))
    assert said(short) == "unknown source-unavailable"
    before = of_trial("I4", [instant], readings=cut("2026-10-19T23:00:00Z"))
    assert said(before) == "pass value-meets"
