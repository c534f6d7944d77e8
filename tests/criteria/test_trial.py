"""Trial files: a second trial is one YAML file; every mistake is told by file and line."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.criteria.evaluate import evaluate
from service.criteria.model import VerdictCode
from service.criteria.trial import load_trial, reads_of, trial_schema
from service.errors import MappingError
from service.yamlfile import load_yaml
from tests.cases import ROOT, by_id, terms_with, trial_with
from tests.criteria.small import (
    AS_OF,
    ICD10CM,
    LOINC,
    MAN,
    WOMAN,
    Record,
    coded,
    condition,
    evaluated,
    facts,
    measured,
    normal,
    of_rule,
    result,
    said,
    trial_file,
)

SHIPPED = ROOT / "mappings" / "trials" / "NCT06056752.yaml"

# An invented trial of another disease, made of the shipped code sets alone.
HEART_TRIAL = """\
id: HF-001
version: 0.1.0
name: Invented
title: A medicine for heart failure with reduced ejection fraction
sponsor: Nobody
phase: phase-2
conditions: [Heart failure]
identifiers: [HF-001]
index: [heart-failure]
source: https://trials.example.org/HF-001

criteria:
  - id: P1
    kind: general
    text: The patient is alive.
    rule: {kind: alive}
  - id: I1
    kind: inclusion
    text: Aged 18 to 85 years
    rule: {kind: age, at_least: 18, at_most: 85}
  - id: I2
    kind: inclusion
    text: Heart failure with an ejection fraction of 40 % or less
    combine: all
    parts:
      - id: I2.diagnosis
        text: heart failure
        rule:
          kind: records
          absent: fail
          find:
            - {resource: Condition, codes: [heart-failure], when: active, then: pass}
      - id: I2.lvef
        text: ejection fraction of 40 % or less
        rule:
          kind: observation
          codes: [lvef-echo, lvef-method-unstated]
          unit: "%"
          at_most: 40
          within: 6 months
  - id: I3
    kind: inclusion
    text: Alanine aminotransferase at most 3 x ULN, creatinine below 2.5 mg/dL
    rule:
      kind: all
      rules:
        - {kind: observation, codes: [alt], unit: U/L, at_most: 3, times: ULN, analyte: alt}
        - kind: observation
          codes: [creatinine]
          unit: mg/dL
          analyte: creatinine
          below: 2.5
          within: 28 days
  - id: I4
    kind: inclusion
    text: Gives informed consent
    computed: partly
    rule: {kind: consent, question: Has the patient signed?}
  - id: E1
    kind: exclusion
    text: Unstable angina, or stroke within 3 months
    rule:
      kind: all
      rules:
        - kind: records
          find:
            - {resource: Condition, codes: [unstable-angina], when: active, then: fail}
        - kind: records
          find:
            - {resource: Condition, codes: [stroke], within: 3 months, then: fail}
  - id: E2
    kind: exclusion
    text: Pregnant women
    rule:
      kind: records
      not_applicable_if_male: true
      find:
        - {resource: Condition, codes: [pregnancy], when: active, then: fail}
"""


@pytest.fixture
def heart_trial(tmp_path: Path) -> Path:
    """The invented trial's file."""
    path = tmp_path / "HF-001.yaml"
    path.write_text(HEART_TRIAL, encoding="utf-8")
    return path


def heart_patient(**changes: Record | None) -> list[Record]:
    """A patient whom the invented trial would take, with some records changed or left out."""
    records: dict[str, Record | None] = {
        "failure": condition("failure", coded(ICD10CM, "I50.22"), "2024-02-10"),
        "lvef": measured("lvef", "10230-1", "35", "%", "2026-09-01"),
        "alt": measured("alt", "1742-6", "40", "U/L", referenceRange=[normal("45", "U/L")]),
        "creatinine": measured("creatinine", "2160-0", "1.2", "mg/dL"),
        "consent": {
            "resourceType": "Consent",
            "id": "consent",
            "status": "active",
            "patient": {"reference": "Patient/p1"},
            "scope": coded("http://terminology.hl7.org/CodeSystem/consentscope", "research"),
            "identifier": [{"value": "HF-001"}],
            "dateTime": "2026-10-01",
            "provision": {"type": "permit"},
        },
    }
    return [record for record in (records | changes).values() if record is not None]


def test_a_second_trial_is_one_file(heart_trial: Path) -> None:
    """No code, no further code set: the file is loaded and a patient evaluated."""
    trial = load_trial(heart_trial, terms_with())
    verdict = evaluated(trial, heart_patient())
    assert {name: said(found) for name, found in by_id(verdict).items()} == {
        "P1": "pass record-absent",
        "I1": "pass value-meets",
        "I2": "pass record-present",
        "I2.diagnosis": "pass record-present",
        "I2.lvef": "pass value-meets",
        "I3": "pass value-meets",
        "I4": "pass record-present",
        "E1": "pass record-absent",
        "E2": "pass record-absent",
    }
    assert (verdict.code, verdict.trial) == (VerdictCode.ELIGIBLE, "HF-001")
    assert verdict.valid_until == "2026-11-17"


@pytest.mark.parametrize(
    ("changes", "criterion", "expected", "code"),
    [
        ({"failure": None}, "I2.diagnosis", "fail record-absent", "ineligible"),
        ({"lvef": None}, "I2.lvef", "unknown no-data", "potentially-eligible"),
        (
            {"lvef": measured("lvef", "10230-1", "41", "%", "2026-09-01")},
            "I2.lvef",
            "fail value-violates",
            "ineligible",
        ),
        (
            {"lvef": measured("lvef", "10230-1", "35", "%", "2026-03-01")},
            "I2.lvef",
            "unknown stale-data",
            "potentially-eligible",
        ),
        (
            {"creatinine": measured("creatinine", "2160-0", "221", "umol/L")},
            "I3",
            "pass value-meets",
            "eligible",
        ),
        (
            {"creatinine": measured("creatinine", "2160-0", "222", "umol/L")},
            "I3",
            "fail value-violates",
            "ineligible",
        ),
        (
            {"angina": condition("angina", coded(ICD10CM, "I20.0"))},
            "E1",
            "fail record-present",
            "ineligible",
        ),
        (
            {"stroke": condition("stroke", coded(ICD10CM, "I63.9"), "2026-09-01", "resolved")},
            "E1",
            "fail record-present",
            "ineligible",
        ),
        (
            {"pregnant": condition("pregnant", coded(ICD10CM, "Z33.1"))},
            "E2",
            "fail record-present",
            "ineligible",
        ),
    ],
)
def test_a_patient_of_the_second_trial_is_judged_by_its_own_criteria(
    heart_trial: Path, changes: dict[str, Any], criterion: str, expected: str, code: str
) -> None:
    """The same records mean something else here than in the first trial."""
    verdict = evaluated(load_trial(heart_trial, terms_with()), heart_patient(**changes))
    assert said(by_id(verdict)[criterion]) == expected
    assert verdict.code == code


def test_two_trials_judge_one_patient_independently(heart_trial: Path) -> None:
    """Heart failure is asked for by the one and excludes from the other."""
    known = facts(heart_patient(), patient=MAN)
    second = by_id(evaluate(load_trial(heart_trial, terms_with()), known, AS_OF))
    first = by_id(evaluate(trial_with(), known, AS_OF))
    assert said(second["I2.diagnosis"]) == "pass record-present"
    assert said(second["E2"]) == "pass not-applicable"
    assert said(first["E8.heart_failure"]) == "fail record-present"
    assert said(first["I2.diagnosis"]) == "fail record-absent"
    # A consent to the one is none to the other.
    assert said(second["I4"]) == "pass record-present"
    assert said(first["I12"]) == "unknown judgement-required"


def test_a_trial_asks_a_source_for_what_its_criteria_read(heart_trial: Path) -> None:
    """Types, and of Observations the codes; nothing that only another trial reads."""
    trial = load_trial(heart_trial, terms_with())
    assert {"Condition", "Observation", "DiagnosticReport"} <= set(trial.wanted.codes)
    assert "Procedure" not in trial.wanted.codes
    codes = trial.wanted.codes["Observation"]
    assert codes is not None
    assert (LOINC, "2160-0") in codes
    assert (LOINC, "11150-0") not in codes
    assert trial.wanted.codes["Condition"] is None
    read = {criterion.id for criterion, _ in reads_of(trial)}
    assert {"I2.lvef", "I3", "E1"} <= read


def test_the_forms_schema_accepts_what_the_service_loads(heart_trial: Path) -> None:
    """Editors complete by it, so it must not refuse a good file nor accept an unknown kind."""
    validator = Draft202012Validator(trial_schema())
    for path in (heart_trial, SHIPPED):
        numbers = _as_json(load_yaml(path).content)
        assert [error.message for error in validator.iter_errors(numbers)] == []
    broken = _as_json(load_yaml(heart_trial).content)
    broken["criteria"][1]["rule"]["kind"] = "agee"
    assert list(validator.iter_errors(broken))


def _as_json(value: Any) -> Any:
    """Give the numbers that JSON has for decimals."""
    if isinstance(value, dict):
        return {key: _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_json(entry) for entry in value]
    return value if isinstance(value, str | int | bool | None) else float(value)


def test_the_shipped_trial_holds_every_criterion_with_its_own_sentence() -> None:
    """P1, I1 to I12, E1 to E14, in the protocol's order."""
    trial = trial_with()
    wanted = ["P1", *(f"I{n}" for n in range(1, 13)), *(f"E{n}" for n in range(1, 15))]
    assert [criterion.id for criterion in trial.criteria] == wanted
    for criterion in trial.by_id.values():
        assert criterion.text
        assert (
            criterion.kind == {"P": "general", "I": "inclusion", "E": "exclusion"}[criterion.id[0]]
        )
        if criterion.rule is not None:
            assert criterion.rule.words()


# --- mistakes

# What is wrong: the YAML of a criterion's rule (or of whole criteria), and what the message must
# hold. The line that must be named is marked `# here`; without a mark it is that of the id.
ONE = "- id: X1\n  kind: inclusion\n  text: A rule.\n"
MISTAKES = {
    "unknown set": (
        """
        rule:
          kind: observation
          codes: [creatinin]  # here
          unit: mg/dL
          at_most: 1
    """,
        "creatinin",
    ),
    "unknown set in a nested rule": (
        """
        rule:
          kind: all
          rules:
            - {kind: age, at_least: 18}
            - kind: not
              rule:
                kind: records
                find:
                  - {resource: Condition, codes: [hart-failure], then: fail}  # here
    """,
        "hart-failure",
    ),
    "unknown set in a finder's exceptions": (
        """
        rule:
          kind: records
          find:
            - resource: Condition
              codes: [heart-failure]
              not_if_in: [heart-failur]  # here
              then: fail
    """,
        "heart-failur",
    ),
    "unknown set of answers": (
        """
        rule:
          kind: coded-result
          codes: [hiv-screen]
          answers:
            never-seen: pass  # here
    """,
        "never-seen",
    ),
    "duplicate id": (
        """
        - id: X1
          kind: inclusion
          text: A rule.
          rule: {kind: age, at_least: 18}
        - id: X1  # here
          kind: inclusion
          text: Another rule.
          rule: {kind: age, at_most: 65}
    """,
        "X1",
    ),
    "duplicate id of a part": (
        """
        combine: all
        parts:
          - {id: X1.a, rule: {kind: alive}}
          - {id: X1.a, rule: {kind: alive}}  # here
    """,
        "X1.a",
    ),
    "impossible range of ages": (
        """
        rule: {kind: age, at_least: 65, at_most: 18}
    """,
        "65",
    ),
    "impossible range of numbers": (
        """
        rule: {kind: observation, codes: [creatinine], unit: mg/dL, at_least: 2, at_most: 1}
    """,
        "no number",
    ),
    "empty range of numbers": (
        """
        rule: {kind: observation, codes: [creatinine], unit: mg/dL, above: 1, at_most: 1}
    """,
        "no number",
    ),
    "two lower ends": (
        """
        rule: {kind: observation, codes: [creatinine], unit: mg/dL, above: 1, at_least: 2}
    """,
        "one lower",
    ),
    "negative limit": (
        """
        rule: {kind: observation, codes: [creatinine], unit: mg/dL, at_least: -2}
    """,
        "negative",
    ),
    "no limit at all": (
        """
        rule: {kind: observation, codes: [creatinine], unit: mg/dL}
    """,
        "at_least",
    ),
    "age without limit": (
        """
        rule: {kind: age}
    """,
        "at_least",
    ),
    "impossible range of scores": (
        """
        rule: {kind: ordinal, codes: [ecog], grades: {"0": ecog-0}, at_least: 3, at_most: 2}
    """,
        "no score",
    ),
    "impossible range inside a nested rule": (
        """
        rule: {kind: not, rule: {kind: any, rules: [{kind: age, at_least: 65, at_most: 18}]}}
    """,
        "65",
    ),
    "too many of too few": (
        """
        rule: {kind: at-least, count: 3, rules: [{kind: alive}, {kind: age, at_least: 18}]}
    """,
        "at least 3 of 2",
    ),
    "window without unit": (
        """
        rule:
          kind: observation
          codes: [creatinine]
          unit: mg/dL
          at_most: 1
          within: 28  # here
    """,
        "within",
    ),
    "window of an unknown unit": (
        """
        rule:
          kind: observation
          codes: [creatinine]
          unit: mg/dL
          at_most: 1
          within: 28 hours  # here
    """,
        "within",
    ),
    "window without number": (
        """
        rule:
          kind: records
          find:
            - resource: Condition
              codes: [stroke]
              then: fail
              within: months  # here
    """,
        "within",
    ),
    "unknown kind of rule": (
        """
        rule:
          kind: observations  # here
          codes: [creatinine]
    """,
        "observations",
    ),
    "unknown key of a rule": (
        """
        rule:  # here
          kind: age
          at_leest: 18
    """,
        "at_leest",
    ),
    "unknown key of a criterion": (
        """
        rules: {kind: age, at_least: 18}
    """,
        "rules",
    ),
    "unknown kind of criterion": (
        """
        - id: X1
          kind: inclusive  # here
          text: A rule.
          rule: {kind: alive}
    """,
        "inclusive",
    ),
    "missing parameter": (
        """
        rule:  # here
          kind: observation
          codes: [creatinine]
          at_most: 1
    """,
        "unit",
    ),
    "empty list of sets": (
        """
        rule: {kind: observation, codes: [], unit: mg/dL, at_most: 1}  # here
    """,
        "codes",
    ),
    "number that is none": (
        """
        rule: {kind: observation, codes: [creatinine], unit: mg/dL, at_most: one}  # here
    """,
        "at_most",
    ),
    "unknown sex": (
        """
        rule: {kind: sex, allowed: [woman]}
    """,
        "woman",
    ),
    "unknown resource": (
        """
        rule:
          kind: records
          find:
            - {resource: Conditions, codes: [stroke], then: fail}  # here
    """,
        "Conditions",
    ),
    "a procedure that is active": (
        """
        rule:
          kind: records
          find:
            - {resource: Procedure, codes: [surgery], when: active, then: fail}
    """,
        "active",
    ),
    "in use without window": (
        """
        rule:
          kind: records
          find:
            - {resource: Medication, codes: [immunosuppressant], when: in-use, then: fail}
    """,
        "window",
    ),
    "neither rule nor parts": ("", "either a rule or parts"),
    "both rule and parts": (
        """
        rule: {kind: alive}
        combine: all
        parts: [{id: X1.a, rule: {kind: alive}}]
    """,
        "either a rule or parts",
    ),
    "parts without combine": (
        """
        parts: [{id: X1.a, rule: {kind: alive}}]
    """,
        "combine",
    ),
    "no sentence": (
        """
        - id: X1
          kind: inclusion
          rule: {kind: alive}
    """,
        "text",
    ),
    "attested with no criterion": (
        """
        attested_with: X9
        rule: {kind: judgement, question: Well?}
    """,
        "X9",
    ),
    "no rules in a combination": (
        """
        rule: {kind: any, rules: []}  # here
    """,
        "rules",
    ),
    "key given twice": (
        """
        text: Again.  # here
        rule: {kind: alive}
    """,
        "text",
    ),
    "cleared by no kind of test": (
        """
        rule:
          kind: viral-infection
          conditions: [hiv-infection]
          within: 12 months
          question: Is there an infection?
          tests:
            - name: screen
              codes: [hiv-screen]
              positive: fail
              negative: pass
              cleared_by: {rna: judgement}
    """,
        "rna",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_told_by_file_and_line(tmp_path: Path, mistake: str) -> None:
    """Before it meets a patient."""
    stated, words = MISTAKES[mistake]
    text = dedent(stated).strip("\n")
    if not text.startswith("- id"):
        text = ONE + indent(text, "  ")
    path = trial_file(tmp_path, text)
    lines = path.read_text(encoding="utf-8").splitlines()
    line = next((n for n, each in enumerate(lines, 1) if each.endswith("# here")), 8)
    with pytest.raises(MappingError) as caught:
        load_trial(path, terms_with())
    error = caught.value
    assert error.file == "trial.yaml"
    assert words in error.problem
    assert error.line == line
    assert str(error).startswith(f"trial.yaml:{line}: ")


HEADS = {
    "version": ("version: 1.0.0", "version: 1.0", "version"),
    "no identifiers": ("identifiers: [TEST-1]", "identifiers: []", "identifiers"),
    "no index": ("index: [heart-failure]", "index: []", "index"),
    "unknown index": ("index: [heart-failure]", "index: [hart]", "hart"),
    "unknown key": ("name: Test", "nam: Test", "nam"),
    "no title": ("title: A trial of a test", 'title: ""', "title"),
}


@pytest.mark.parametrize("mistake", HEADS)
def test_mistakes_of_the_head_are_told_too(tmp_path: Path, mistake: str) -> None:
    """Version, identifiers, index."""
    right, wrong, words = HEADS[mistake]
    path = trial_file(tmp_path, ONE + "  rule: {kind: alive}")
    path.write_text(path.read_text(encoding="utf-8").replace(right, wrong), encoding="utf-8")
    with pytest.raises(MappingError, match=words) as caught:
        load_trial(path, terms_with())
    assert caught.value.line is not None


@pytest.mark.parametrize("text", ["", "- a\n", "id: [\n", "id: a\nid: b\n", "\t: x\n", "\x00"])
def test_a_file_that_is_no_mapping_is_told(tmp_path: Path, text: str) -> None:
    """Not YAML, empty, a list, a key given twice."""
    path = tmp_path / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MappingError) as caught:
        load_trial(path, terms_with())
    assert caught.value.file == "trial.yaml"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Without a line, since there is none."""
    with pytest.raises(MappingError, match=r"trial\.yaml: "):
        load_trial(tmp_path / "trial.yaml", terms_with())


def test_a_rule_that_asks_for_itself_is_a_mistake(tmp_path: Path) -> None:
    """A criterion whose rule rests on its own result can never be answered."""
    rule = """\
        kind: disease-site
        elsewhere: [extramedullary-leukaemia]
        site: X1
        question: Is it only there?
    """
    with pytest.raises(MappingError, match="X1"):
        of_rule(tmp_path, rule)


def test_decimals_of_a_trial_file_are_exact(tmp_path: Path) -> None:
    """1.1 is 11/10, not the nearest binary float."""
    text = ONE + "  rule: {kind: observation, codes: [creatinine], unit: mg/dL, at_most: 1.1}"
    trial = load_trial(trial_file(tmp_path, text), terms_with())
    for value, expected in (
        ("1.1", "pass value-meets"),
        ("1.1000000000000001", "fail value-violates"),
    ):
        found = evaluated(trial, [measured("o", "2160-0", value, "mg/dL")], patient=WOMAN)
        assert said(by_id(found)["X1"]) == expected
    assert said(by_id(evaluated(trial, [result("o", "2160-0", {})]))["X1"]) == "unknown no-data"


@pytest.mark.parametrize("status", ["draft", "recruiting", "Active"])
def test_a_status_that_is_none_of_a_research_study_is_refused(tmp_path: Path, status: str) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(HEART_TRIAL.replace("sponsor: Nobody", f"status: {status}"), encoding="utf-8")
    with pytest.raises(MappingError) as caught:
        load_trial(path, terms_with())
    assert "status" in str(caught.value)


def test_an_unknown_that_rests_on_one_record_asks_for_the_rules_codes(tmp_path: Path) -> None:
    rule = "kind: observation\ncodes: [lvef-echo]\nat_least: 45\nunit: '%'\nwithin: 28 days"
    record = result("o1", "8806-2", {"valueString": "many"}, "2026-10-30")
    (wanted,) = by_id(evaluated(of_rule(tmp_path, rule), [record]))["X1"].settled_by
    assert wanted.type == "Observation"
    assert wanted.sets == ("lvef-echo",)
    assert (wanted.first_day, wanted.last_day) == ("2026-10-04", "2026-11-01")


def test_each_type_is_asked_for_in_the_sets_that_are_read_of_it() -> None:
    kinds = ("ResearchSubject", "Consent", "Condition", "Procedure")
    found = evaluate(trial_with(), facts([], incomplete=kinds), AS_OF)
    wanted = [settles for one in by_id(found).values() for settles in one.settled_by]
    assert {settles.type for settles in wanted} >= {"ResearchSubject", "Condition", "Procedure"}
    assert not any(
        settles.sets for settles in wanted if settles.type in ("ResearchSubject", "Consent")
    )
    assert all(settles.sets for settles in wanted if settles.type in ("Condition", "Procedure"))
