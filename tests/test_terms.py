"""Code sets and units: how a coding is classified, and how mistakes in the tables are told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import MappingError
from service.fhir.resources import CodeableConcept, Coding, Quantity
from service.terms import LocalCode, Match, Role, Row, Terms, load_terms
from service.values.quantities import Interval, Unit, convert
from tests.cases import ROOT, terms_with

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
UCUM = "http://unitsofmeasure.org"
TERMS = terms_with()
ROWS = [row for code_set in TERMS.sets.values() for row in code_set.rows]


def concept(*codings: tuple[str | None, str | None], text: str | None = None) -> CodeableConcept:
    """Make a CodeableConcept of codings."""
    return CodeableConcept(tuple(Coding(system, code) for system, code in codings), text)


def match(
    *codings: tuple[str | None, str | None], of: str, text: str | None = None
) -> Match | None:
    """Tell how codings relate to a set."""
    return TERMS.concept(concept(*codings, text=text)).match((of,))


# --- codes


def test_every_exact_code_is_found_under_its_set() -> None:
    """Unless a longer or stronger row of the set decides otherwise."""
    for row in ROWS:
        if row.match == "exact":
            assert row.set in TERMS.roles_of(row.system, row.code), row


@given(st.sampled_from(ROWS), st.sampled_from((str.lower, str.upper, str.title)), st.booleans())
def test_icd_codes_match_without_regard_to_dots_and_case(
    row: Row, change: Callable[[str], str], dotless: bool
) -> None:
    """Other systems' codes are case-sensitive."""
    if row.match == "range" or not TERMS.aliases[row.system].startswith("icd"):
        return
    code = change(row.code.replace(".", "") if dotless else row.code)
    assert TERMS.roles_of(row.system, code) == TERMS.roles_of(row.system, row.code)


def test_the_longest_prefix_decides_and_exclude_beats_include(tmp_path: Path) -> None:
    """At equal length (1.5)."""
    terms = small_terms(
        tmp_path,
        "thing,include,prefix,icd10cm,A1,,x\n"
        "thing,exclude,prefix,icd10cm,A12,,x\n"
        "thing,judgement,exact,icd10cm,A12.3,,x\n"
        "thing,include,prefix,icd10cm,B1,,x\n"
        "thing,exclude,exact,icd10cm,B1,,x\n"
        "thing,include,range,cpt,100-200,,x\n"
        "thing,exclude,exact,cpt,150,,x\n",
    )

    def role(code: str, system: str = ICD10CM) -> Role | None:
        return terms.roles_of(system, code).get("thing")

    assert role("A11.9") is Role.INCLUDE
    assert role("A12.9") is Role.EXCLUDE
    assert role("A12.3") is Role.JUDGEMENT
    assert role("B1") is Role.EXCLUDE
    assert role("B12") is Role.INCLUDE
    assert role("C1") is None
    cpt = next(uri for uri, alias in terms.aliases.items() if alias == "cpt")
    assert role("100", cpt) is role("200", cpt) is Role.INCLUDE
    assert role("150", cpt) is Role.EXCLUDE
    assert role("99", cpt) is role("201", cpt) is role("15x", cpt) is None


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("urn:oid:2.16.840.1.113883.6.96", SNOMED),
        ("urn:oid:2.16.840.1.113883.6.1", LOINC),
        ("http://loinc.org/", LOINC),
        (" http://loinc.org ", LOINC),
        ("HTTP://LOINC.ORG", LOINC),
        ("urn:oid:2.16.840.1.113883.6.90", ICD10CM),
        ("https://example.org/own", "https://example.org/own"),
    ],
)
def test_a_system_is_known_by_its_uri_and_its_oid(name: str, uri: str) -> None:
    """The same system, however it is named (1.5)."""
    assert TERMS.system(name) == uri


def test_any_coding_of_a_concept_matches_and_the_system_counts() -> None:
    """A code matches on system and code, on any coding (1.3)."""
    assert match((LOINC, "2160-0"), of="creatinine") is Match.INCLUDE
    assert match(("urn:own", "x"), (LOINC, "2160-0"), of="creatinine") is Match.INCLUDE
    assert match(("urn:own", "2160-0"), of="creatinine") is None
    assert match((None, "2160-0"), of="creatinine") is None
    assert match((LOINC, "9999-9"), of="creatinine") is None


def test_an_included_and_an_excluded_coding_conflict() -> None:
    """On one resource (1.5)."""
    include = next(r for r in ROWS if r.set == "stroke" and r.role is Role.INCLUDE)
    exclude = next(r for r in ROWS if r.set == "stroke" and r.role is Role.EXCLUDE)
    one, other = ((row.system, row.code) for row in (include, exclude))
    assert match(one, of="stroke") is Match.INCLUDE
    assert match(other, of="stroke") is Match.EXCLUDE
    assert match(one, other, of="stroke") is match(other, one, of="stroke") is Match.CONFLICT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ischaemic stroke", Match.UNMAPPED),
        ("STROKE, left hemisphere", Match.UNMAPPED),
        ("family history of stroke", None),
        ("heat stroke", None),
        ("family history of stroke; acute stroke", Match.UNMAPPED),
        ("fracture", None),
        ("", None),
    ],
)
def test_a_text_that_names_a_class_is_unmapped(text: str, expected: Match | None) -> None:
    """Part by part between punctuation marks, without phrases that say something else."""
    assert match(of="stroke", text=text) is expected
    assert TERMS.concept(CodeableConcept((Coding("urn:own", "1", text),))).match(("stroke",)) is (
        expected
    )


def test_a_code_in_a_set_decides_over_its_text() -> None:
    """The text is only asked where no coding is in the set."""
    exclude = next(r for r in ROWS if r.set == "stroke" and r.role is Role.EXCLUDE)
    assert match((exclude.system, exclude.code), of="stroke", text="stroke") is Match.EXCLUDE


@pytest.mark.parametrize(
    ("given_concept", "masked"),
    [
        (None, True),
        (concept(), True),
        (concept(text=" "), True),
        (concept((SNOMED, None)), True),
        (concept((SNOMED, " ")), True),
        (concept(("http://terminology.hl7.org/CodeSystem/data-absent-reason", "masked")), True),
        (concept(("http://terminology.hl7.org/CodeSystem/v3-NullFlavor", "UNK")), True),
        (concept(("urn:own", "1")), False),
        (concept(text="something"), False),
    ],
)
def test_a_concept_without_code_and_text_may_be_anything(
    given_concept: CodeableConcept | None, masked: bool
) -> None:
    """It is masked, and so relevant to every rule of its type (1.5)."""
    found = TERMS.concept(given_concept)
    assert found.masked is masked
    assert found.relevant or not masked


@given(
    st.builds(
        CodeableConcept,
        st.lists(
            st.builds(
                Coding,
                st.none() | st.text(max_size=8) | st.sampled_from((SNOMED, ICD10CM)),
                st.none() | st.text(max_size=8),
                st.none() | st.text(max_size=20),
            ),
            max_size=3,
        ).map(tuple),
        st.none() | st.text(max_size=40),
    )
)
def test_any_concept_is_classified(found: CodeableConcept) -> None:
    """No text or code makes it fail, and the second answer is the first."""
    first = TERMS.concept(found)
    assert TERMS.concept(found) is first
    assert first.masked is not bool(first.codings or first.texts)


def test_local_codes_stand_for_standard_ones_or_belong_to_a_set() -> None:
    """As the site file says; they don't hide what the code means by itself."""
    terms = terms_with(
        (
            LocalCode("urn:lab", "CREA", (LOINC, "2160-0"), None),
            LocalCode("urn:lab", "FMC", None, "anti-fmc63-antibody"),
            LocalCode("urn:oid:2.16.840.1.113883.6.1", "99999-0", (LOINC, "1742-6"), None),
        )
    )
    for code, name in (("CREA", "creatinine"), ("FMC", "anti-fmc63-antibody")):
        assert terms.concept(concept(("urn:lab", code))).match((name,)) is Match.INCLUDE
    assert terms.concept(concept((LOINC, "99999-0"))).match(("alt",)) is Match.INCLUDE
    assert TERMS.concept(concept(("urn:lab", "CREA"))).match(("creatinine",)) is None


# --- units


@pytest.mark.parametrize(
    ("spelling", "code"),
    [
        ("mg/dL", "mg/dL"),
        ("mg/dl", "mg/dL"),
        ("MG/DL", "mg/dL"),
        ("umol/l", "umol/L"),
        ("\u00b5mol/L", "umol/L"),
        ("\u03bcmol/L", "umol/L"),
        ("IU/L", "[IU]/L"),
        ("U/l", "U/L"),
        ("%", "%"),
        (" mg/dL ", "mg/dL"),
        ("%{blasts}", "%"),
        ("{ratio}", "1"),
    ],
)
def test_common_spellings_are_units(spelling: str, code: str) -> None:
    """By a table, as they stand; annotations in braces are dropped."""
    found = TERMS.unit(spelling)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize(
    ("quantity", "code"),
    [
        (Quantity(Decimal(1), None, "mg/dL", UCUM, "mg/dL"), "mg/dL"),
        # The UCUM code decides, not the text.
        (Quantity(Decimal(1), None, "mg/dL", UCUM, "umol/L"), "umol/L"),
        (Quantity(Decimal(1), None, "mg/dl", None, None), "mg/dL"),
        (Quantity(Decimal(1), None, "mg/dl", "urn:own", "17"), "mg/dL"),
        (Quantity(Decimal(1), None, None, "urn:own", "mg/dL"), "mg/dL"),
        (Quantity(Decimal(1), None, "furlong", None, None), "furlong"),
        (Quantity(Decimal(1), None, None, None, None), None),
        (Quantity(Decimal(1), None, " ", None, ""), None),
    ],
)
def test_the_unit_of_a_quantity_is_its_code_else_its_text(
    quantity: Quantity, code: str | None
) -> None:
    """An unknown unit is comparable only with itself; none is none."""
    found = TERMS.unit_of(quantity)
    assert (found.code if found is not None else None) == code
    if code == "furlong":
        assert found == Unit("furlong")
        assert found.dimension is None


def test_all_spellings_of_a_code_are_one_unit() -> None:
    """So that a value and a range spelled differently compare."""
    by_code: dict[str, Unit] = {}
    for spelling, unit in TERMS.units.items():
        assert by_code.setdefault(unit.code, unit) == unit, spelling


@given(st.sampled_from(sorted(TERMS.units)), st.sampled_from(sorted(TERMS.units)))
def test_units_of_one_dimension_convert_there_and_back(first: str, second: str) -> None:
    """Exactly, and units of two only by molar mass."""
    one, other = TERMS.units[first], TERMS.units[second]
    number = Interval(Fraction("1.37"), Fraction("1.37"))
    there = convert(number, one, other, None)
    assert (there is not None) is (one.dimension == other.dimension)
    if there is not None:
        assert convert(there, other, one, None) == number


def test_known_factors_are_exact() -> None:
    """An enzyme's katal, a percentage, micromoles of creatinine."""

    def one(unit: str, target: str, analyte: str | None = None) -> Fraction | None:
        mass = TERMS.molar_masses[analyte] if analyte else None
        found = convert(
            Interval(Fraction(1), Fraction(1)), TERMS.units[unit], TERMS.units[target], mass
        )
        return found.exact if found is not None else None

    assert one("ukat/L", "U/L") == 60
    assert one("1", "%") == 100
    assert one("IU/L", "U/L") == 1
    assert one("umol/L", "mg/dL", "creatinine") == Fraction("0.0113118")
    assert one("umol/L", "mg/dL", "bilirubin") == Fraction("0.058466")
    assert one("umol/L", "mg/dL") is None


# --- the shipped tables


def test_no_fallback_limit_overlaps_another() -> None:
    """For one analyte, sex and age in whole years there is one row at most."""
    for age in range(121):
        for analyte in {uln.analyte for uln in TERMS.ulns}:
            for sex in ("male", "female"):
                fitting = [
                    uln
                    for uln in TERMS.ulns
                    if uln.analyte == analyte
                    and uln.sex in (sex, "any")
                    and (uln.age_low is None or uln.age_low[1] != "y" or uln.age_low[0] <= age)
                    and (uln.age_high is None or uln.age_high[1] != "y" or age <= uln.age_high[0])
                ]
                assert len(fitting) <= 1, (analyte, sex, age)


def test_every_row_says_where_it_comes_from() -> None:
    """Facts come from outside, and the tables say from where."""
    assert [row for row in ROWS if not row.source] == []


def test_keywords_are_in_the_form_they_are_compared_in() -> None:
    """Lower case, without the punctuation that texts are cut at."""
    for code_set in TERMS.sets.values():
        for word in (*code_set.keywords, *code_set.not_keywords):
            assert word == word.lower()
            assert not re.search(r"[;,.()\[\]|]", word), (code_set.name, word)


# --- mistakes

HEADER = "set,role,match,system,code,display,source\n"


def copied(folder: Path) -> Path:
    """Copy the shipped mappings, to be changed."""
    target = folder / "mappings"
    shutil.copytree(ROOT / "mappings", target)
    return target


def small_terms(folder: Path, rows: str) -> Terms:
    """Load the shipped tables with one more set, `thing`."""
    target = copied(folder)
    (target / "codes" / "thing.csv").write_text(HEADER + rows, encoding="utf-8")
    with (target / "sets.yaml").open("a", encoding="utf-8") as file:
        file.write("  thing:\n    title: A thing\n")
    return load_terms(target)


@pytest.mark.parametrize(
    ("rows", "line", "words"),
    [
        ("thing,include,exact,icd11,A1,,x\n", 2, "icd11"),
        ("# note\n\nthing,includes,exact,icd10cm,A1,,x\n", 4, "role"),
        ("thing,include,begins,icd10cm,A1,,x\n", 2, "match"),
        ("thing,include,exact,icd10cm,,,x\n", 2, "code"),
        (",include,exact,icd10cm,A1,,x\n", 2, "set"),
        ("thing,include,exact,icd10cm,A1,x\n", 2, "6 cells"),
        ("thing,include,range,cpt,10-,,x\n", 2, "range"),
        ("thing,include,exact,icd10cm,A1,,x\nthings,include,exact,icd10cm,A1,,x\n", 3, "things"),
        ('thing,include,exact,icd10cm,"A1,,x\n', None, "CSV"),
    ],
)
def test_a_mistake_in_a_code_table_is_told_by_file_and_line(
    tmp_path: Path, rows: str, line: int | None, words: str
) -> None:
    """System, role, match, code, set, cells."""
    with pytest.raises(MappingError) as caught:
        small_terms(tmp_path, rows)
    assert caught.value.file == "thing.csv"
    assert caught.value.line == line
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("unit,mg/dL,mg/dL,mass-concentration,0.01,,,,,,,,x,", "twice"),
        ("unit,new/L,new/L,mass-concentration,0,,,,,,,,x,", "factor"),
        ("unit,new/L,new/L,mass-concentration,much,,,,,,,,x,", "factor"),
        ("unit,new/L,new/L,,1,,,,,,,,x,", "dimension"),
        ("analyte,,,,,sodium,-3,,,,,,x,", "molar mass"),
        ("uln,,,,,alt,,woman,,,40,U/L,x,", "limit"),
        ("uln,,,,,alt,,any,,,40,units,x,", "limit"),
        ("uln,,,,,alt,,any,18,,40,U/L,x,", "age"),
        ("units,,,,,,,,,,,,x,", "kind"),
    ],
)
def test_a_mistake_in_the_table_of_units_is_told_by_file_and_line(
    tmp_path: Path, row: str, words: str
) -> None:
    """Spelling, factor, dimension, mass, limit, age."""
    path = copied(tmp_path) / "units.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, row]) + "\n", encoding="utf-8")
    with pytest.raises(MappingError, match=words) as caught:
        load_terms(tmp_path / "mappings")
    assert (caught.value.file, caught.value.line) == ("units.csv", len(lines) + 1)


def test_wrong_columns_and_missing_tables_are_told(tmp_path: Path) -> None:
    """A table of another form is not read as if it were right."""
    target = copied(tmp_path)
    systems = target / "systems.csv"
    right = systems.read_text(encoding="utf-8")
    systems.write_text(right.replace("alias,uri", "uri,alias"), encoding="utf-8")
    with pytest.raises(MappingError, match="columns") as caught:
        load_terms(target)
    assert caught.value.line == 1
    systems.write_text(f"{right}again,http://loinc.org,,LOINC\n", encoding="utf-8")
    with pytest.raises(MappingError, match="twice"):
        load_terms(target)
    systems.unlink()
    with pytest.raises(MappingError, match=r"systems\.csv"):
        load_terms(target)
