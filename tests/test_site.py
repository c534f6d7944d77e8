"""The site file: what it sets, and how its mistakes are told."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from service.errors import MappingError
from service.site import Site, load_site, zone_of
from service.terms import LocalCode, SiteLimit, load_terms
from service.values.quantities import Unit
from tests.cases import ROOT

FULL = """\
time_zone: Asia/Shanghai
local_codes:
  - system: urn:oid:1.2.3.4
    code: CREA
    standard: {system: http://loinc.org, code: 2160-0}
    note: creatinine in serum
  - {system: urn:oid:1.2.3.4, code: FMC63, set: anti-fmc63-antibody}
unit_spellings:
  mg pro dL: mg/dL
upper_limits:
  - {analyte: creatinine, sex: female, limit: 0.95, unit: mg/dL}
  - {analyte: alt, limit: 40, unit: U/L}
not_offered:
  ResearchSubject: none-kept
  Consent: unknown
harmless_outcomes: ["4101"]
search:
  category_required:
    Observation: [laboratory, vital-signs]
  use_post: true
  extra_parameters:
    Condition: {clinical-status: active}
  codes_per_search: 20
  page_size: 100
  results_in_components: false
"""


def written(folder: Path, text: str) -> Path:
    """Write a site file."""
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_a_site_file_can_set_is_read(tmp_path: Path) -> None:
    """Zone, codes, units, limits, types not offered, search."""
    site = load_site(written(tmp_path, FULL))
    assert site.zone == ZoneInfo("Asia/Shanghai")
    assert site.local_codes == (
        LocalCode("urn:oid:1.2.3.4", "CREA", ("http://loinc.org", "2160-0"), None, "site.yaml", 3),
        LocalCode("urn:oid:1.2.3.4", "FMC63", None, "anti-fmc63-antibody", "site.yaml", 7),
    )
    assert site.spellings == {"mg pro dL": "mg/dL"}
    assert site.ulns == (
        SiteLimit("creatinine", "female", "0.95", "mg/dL", 18, None, "site.yaml", 11),
        SiteLimit("alt", "any", "40", "U/L", 18, None, "site.yaml", 12),
    )
    assert site.search.not_offered == {"ResearchSubject": "none-kept", "Consent": "unknown"}
    assert site.search.harmless_outcomes == {"4101"}
    assert site.search.category_required == {"Observation": ("laboratory", "vital-signs")}
    assert site.search.extra_parameters == {"Condition": {"clinical-status": "active"}}
    assert (site.search.codes_per_search, site.search.page_size) == (20, 100)
    assert site.search.use_post is True
    assert site.search.results_in_components is False


def test_a_site_of_which_nothing_is_said_is_the_default(tmp_path: Path) -> None:
    """UTC, nothing mapped, nothing harmless."""
    assert load_site(written(tmp_path, "time_zone: UTC\n")) == Site()


def test_what_a_site_adds_is_understood_by_the_terms(tmp_path: Path) -> None:
    """Its codes are in the sets, its spellings are units, its limits replace those shipped."""
    site = load_site(written(tmp_path, FULL))
    terms = load_terms(
        ROOT / "mappings", local_codes=site.local_codes, spellings=site.spellings, ulns=site.ulns
    )
    assert terms.unit("mg pro dL") == terms.unit("mg/dL") != Unit("mg/dL")
    limits = {(u.analyte, u.sex): u.limit for u in terms.ulns if u.analyte in ("creatinine", "alt")}
    assert set(limits) == {("creatinine", "female"), ("creatinine", "male"), ("alt", "any")}


MISTAKES = {
    "no such time zone": ("time_zone: Europe/Berlinn\n", 1, "Berlinn"),
    "a zone that is a path": ("time_zone: ../../etc/passwd\n", 1, "time zone"),
    "unknown key": ("time_zone: UTC\ntimezone: UTC\n", 2, "timezone"),
    "unknown key of a local code": (
        "local_codes:\n  - {system: a, code: b, set: alt, sets: alt}\n",
        2,
        "sets",
    ),
    "local code that stands for nothing": (
        "local_codes:\n  - system: a\n    code: b\n",
        2,
        "standard",
    ),
    "local code without code": ("local_codes:\n  - {system: a, set: alt}\n", 2, "code"),
    "code that is a number": ("local_codes:\n  - {system: a, code: 17, set: alt}\n", 2, "quotes"),
    "limit without number": ("upper_limits:\n  - {analyte: alt, unit: U/L}\n", 2, "limit"),
    "limit that is no number": (
        "upper_limits:\n  - {analyte: alt, limit: much, unit: U/L}\n",
        2,
        "number",
    ),
    "unknown meaning": ("not_offered:\n  Consent: never\n", 2, "none-kept"),
    "unknown search setting": ("search:\n  page_sise: 3\n", 2, "page_sise"),
    "size that is no number": ("search:\n  page_size: many\n", 2, "whole number"),
    "list that is none": ("local_codes: {system: a}\n", 1, "list"),
    "mapping that is none": ("search: [a]\n", 1, "mapping"),
    "key given twice": ("time_zone: UTC\ntime_zone: UTC\n", 2, "time_zone"),
    "no mapping": ("- a\n", 1, "mapping"),
    "not YAML": ("time_zone: [\n", None, "YAML"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_told_by_file_and_line(tmp_path: Path, mistake: str) -> None:
    """Before the service starts."""
    text, line, words = MISTAKES[mistake]
    with pytest.raises(MappingError) as caught:
        load_site(written(tmp_path, text))
    assert caught.value.file == "site.yaml"
    assert words in caught.value.problem
    if line is not None:
        assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("local_codes: [{system: a, code: b, set: creatinin}]\n", "creatinin"),
        ("unit_spellings: {mgdl: mg/dl.}\n", "mg/dl."),
        ("upper_limits: [{analyte: alt, limit: 40, unit: units}]\n", "alt"),
        ("upper_limits: [{analyte: creatinin, limit: 1, unit: mg/dL}]\n", "creatinin"),
        ("upper_limits: [{analyte: creatinine, limit: 1, unit: U/L}]\n", "U/L"),
        (
            "local_codes: [{system: a, code: b, standard: {system: http://loinc.org, code: x}}]\n",
            "holds the standard code",
        ),
    ],
)
def test_what_the_code_sets_and_units_do_not_know_is_told_when_they_are_loaded(
    tmp_path: Path, text: str, words: str
) -> None:
    """A set or unit that isn't there."""
    site = load_site(written(tmp_path, text))
    with pytest.raises(MappingError, match=words):
        load_terms(
            ROOT / "mappings",
            local_codes=site.local_codes,
            spellings=site.spellings,
            ulns=site.ulns,
        )


def test_a_zone_is_named_as_everywhere() -> None:
    """By its IANA name; anything else is refused."""
    assert zone_of("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    for name in ("", "CEST", "UTC+2", "/etc/localtime", "Europe"):
        with pytest.raises(ValueError, match="no time zone"):
            zone_of(name)


@pytest.mark.parametrize(
    "text",
    [
        "upper_limits: [{analyte: alt, limit: -1, unit: U/L}]\n",
        "upper_limits: [{analyte: alt, limit: 0, unit: U/L}]\n",
        "upper_limits: [{analyte: alt, limit: 40, unit: U/L, sex: woman}]\n",
        "upper_limits: [{analyte: alt, limit: 40, unit: U/L, age_from: 20, age_to: 18}]\n",
        "upper_limits: [{analyte: a, limit: 4, unit: U/L}, {analyte: a, limit: 5, unit: U/L}]\n",
        "not_offered: {Observations: none-kept}\n",
        "search: {page_size: 0}\n",
        "search: {codes_per_search: -3}\n",
    ],
)
def test_a_value_that_makes_no_sense_stops_the_start(tmp_path: Path, text: str) -> None:
    """With file and line."""
    with pytest.raises(MappingError, match=r"site\.yaml:1: "):
        load_site(written(tmp_path, text))
