"""Each mistake in a mapping file is found, with file and line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.criteria.check import Finding, check_files

SHIPPED = Path(__file__).parents[2] / "mappings"
TRIAL = "trials/NCT06056752.yaml"


@pytest.fixture
def mappings(tmp_path: Path) -> Path:
    """Give a copy of the shipped mappings to spoil."""
    return shutil.copytree(SHIPPED, tmp_path / "mappings")


def spoil(path: Path, right: str, wrong: str) -> int:
    """Replace a text once; give its line."""
    text = path.read_text(encoding="utf-8")
    assert right in text, right
    path.write_text(text.replace(right, wrong, 1), encoding="utf-8")
    return text[: text.index(right)].count("\n") + 1


def found(mappings: Path, name: str = TRIAL) -> list[Finding]:
    """Check one file of a folder of mappings."""
    return check_files([mappings / name], mappings)


def test_the_shipped_trial_and_the_shipped_example_of_a_site_are_in_order() -> None:
    assert found(SHIPPED) == []
    assert found(SHIPPED, "site.example.yaml") == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("codes: [marrow-blasts]", "codes: [marow-blasts]", "no code set 'marow-blasts'"),
        ("index: [b-all,", "index: [b-al,", "no code set 'b-al'"),
        ("codes: [marrow-blasts]", "codes: []", "length >= 1"),
        ("within: 90 days", "within: 90", "a window needs a number and its unit"),
        ("within: 90 days", 'within: "90"', "a window needs a number and its unit"),
        ("within: 90 days", "within: 90 fortnights", "a window needs a number and its unit"),
        ("kind: ordinal", "kind: ordnal", "ordnal"),
        ("at_most: 2\n      within", "at_mst: 2\n      within", "at_mst"),
        ("  - id: I5", "  - id: I4", "the id I4 is used twice"),
        ("  - id: I5", "  - id: I50", "no criterion covers the protocol's sentence I5"),
        ("unit: U/L", "unit: U/Litre", "no unit 'U/Litre'"),
        ("analyte: bilirubin", "analyte: bilirubine", "no analyte 'bilirubine'"),
        ("at_least: 14}", "at_least: 14, at_most: 13}", "no age is at least 14 and at most 13"),
        ("confirmed_by: I3", "confirmed_by: I33", "I33"),
        ('"1": ecog-1', '"1": ecog-0', "several grades have the one code set 'ecog-0'"),
        ("kind: inclusion", "kind: inclusive", "inclusive"),
        ("kind: inclusion", "kind: exclusion", "the id says inclusion, the kind says exclusion"),
        ("kind: exclusion", "kind: inclusion", "the id says exclusion, the kind says inclusion"),
        ("at_least: 50\n", "at_most: 150\n", "I7.lvef: at_most is 150, more than 100 %"),
        (
            "[epilepsy], when: ever, then: fail}",
            "[epilepsy], when: ever, then: pass}",
            "E1.epilepsy: no record can ever make this exclusion fail or need a judgement",
        ),
        (
            "then: judgement}\n\n  - id: I11",
            "then: judgement}\n      absent: fail\n\n  - id: I11",
            "I10: no record can ever make this inclusion pass",
        ),
        (
            "computed: attested\n    rule:\n      kind: judgement",
            "computed: computed\n    rule:\n      kind: judgement",
            "a judgement is attested, not computed",
        ),
    ],
)
def test_a_mistake_in_a_trial_file_is_named(
    mappings: Path, right: str, wrong: str, said: str
) -> None:
    path = mappings / TRIAL
    line = spoil(path, right, wrong)
    findings = found(mappings)
    assert findings
    assert all(finding.file == str(path) for finding in findings)
    assert any(said in finding.message for finding in findings), findings
    assert any(finding.line is not None for finding in findings)
    if "sentence" not in said and "used twice" not in said:
        assert any(abs((finding.line or 0) - line) <= 8 for finding in findings), (line, findings)


def test_a_trial_in_a_file_of_another_name_is_named(mappings: Path) -> None:
    path = (mappings / TRIAL).rename(mappings / "trials" / "other.yaml")
    (finding,) = check_files([path], mappings)
    assert "has another name" in finding.message
    assert (
        finding.line
        == path.read_text("utf-8")[: path.read_text("utf-8").index("\nid:")].count("\n") + 2
    )


def test_a_mistake_in_a_table_is_placed_in_the_table_whatever_is_checked(
    mappings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = mappings / "codes" / "mine.csv"
    table.write_text("a,b\n", encoding="utf-8")
    for name in (".", TRIAL, "sets.yaml", "codes/performance.csv", "codes/mine.csv"):
        assert [Path(finding.file) for finding in found(mappings, name)] == [table], name
    monkeypatch.chdir(mappings.parent)
    (finding,) = check_files([Path("mappings")], SHIPPED)
    assert finding.file == "mappings/codes/mine.csv"
    (finding,) = check_files([Path("mappings/codes/mine.csv")], SHIPPED)
    assert finding.file == "mappings/codes/mine.csv"


def test_a_table_is_checked_by_a_relative_name_too(
    mappings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = mappings / "codes" / "performance.csv"
    row = next(line for line in codes.read_text("utf-8").splitlines() if line.startswith("ecog-0,"))
    with codes.open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    monkeypatch.chdir(mappings.parent)
    (finding,) = check_files([Path("mappings/codes/performance.csv")], SHIPPED)
    assert finding.file == "mappings/codes/performance.csv"
    assert "listed twice" in finding.message


def test_every_place_of_an_unknown_set_is_named(mappings: Path) -> None:
    path = mappings / TRIAL
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("marrow-blasts", "no-such-set"), encoding="utf-8")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if "marrow-blasts" in line]
    assert [finding.line for finding in found(mappings)] == lines


def test_a_range_that_no_number_is_in_is_named(mappings: Path) -> None:
    spoil(mappings / TRIAL, "at_least: 50\n", "at_least: 50\n          at_most: 40\n")
    (finding,) = found(mappings)
    assert "I7.lvef: no number is" in finding.message


def test_a_code_in_two_sets_that_contradict_each_other_is_named(mappings: Path) -> None:
    codes = mappings / "codes" / "performance.csv"
    row = next(line for line in codes.read_text("utf-8").splitlines() if line.startswith("ecog-0,"))
    with codes.open("a", encoding="utf-8") as file:
        file.write(row.replace("ecog-0,", "ecog-3,", 1) + "\n")
    findings = found(mappings)
    assert any("'ecog-0' and 'ecog-3', which are opposites" in one.message for one in findings)


@pytest.mark.parametrize(
    ("role", "said"), [("include", "listed twice"), ("exclude", "both include and exclude")]
)
def test_a_code_listed_twice_in_a_set_is_named(mappings: Path, role: str, said: str) -> None:
    codes = mappings / "codes" / "performance.csv"
    lines = codes.read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("ecog-0,include,exact,"))
    lines.append(row.replace(",include,", f",{role},", 1))
    codes.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (finding,) = found(mappings, "codes/performance.csv")
    assert (finding.file, finding.line) == (str(codes), len(lines))
    assert said in finding.message


def test_an_empty_set_and_an_unused_one_are_named(mappings: Path) -> None:
    sets = mappings / "sets.yaml"
    with sets.open("a", encoding="utf-8") as file:
        file.write("  brand-new:\n    title: A set without codes\n")
    number = len(sets.read_text(encoding="utf-8").splitlines()) - 1
    assert found(mappings, "sets.yaml") == [
        Finding(str(sets), number, "the code set 'brand-new' has no codes")
    ]
    codes = mappings / "codes" / "performance.csv"
    with codes.open("a", encoding="utf-8") as file:
        file.write("brand-new,include,exact,loinc,89247-1,ECOG,a test\n")
    messages = [finding.message for finding in check_files([mappings], mappings)]
    assert "no trial uses the code set 'brand-new'" in messages


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time_zone: Mars/Olympus", "Mars/Olympus"),
        ("not_offered: {Consent: maybe}", "none-kept"),
        ("local_codes: [{system: x, code: y}]", "standard"),
        ("local_codes: [{system: x, code: y, set: no-such-set}]", "no-such-set"),
        ("unit_spellings: {mg%%: no-such-unit}", "no-such-unit"),
        ("upper_limits: [{analyte: creatinine, unit: mg/dL}]", "limit is missing"),
        ("timezone: UTC", "unknown key"),
        ("a: 1\na: 2", "a"),
        ("[]", "mapping"),
    ],
)
def test_a_mistake_in_a_site_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text, encoding="utf-8")
    (finding,) = check_files([path], SHIPPED)
    assert said in finding.message


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("", encoding="utf-8")
    (finding,) = check_files([path], SHIPPED)
    assert finding.file == str(path)
