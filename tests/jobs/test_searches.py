"""The file of searches: what is wrong in it is named with file and line."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from service.errors import ConfigurationError, MappingError
from service.jobs.searches import load_searches, search_named
from tests.jobs.making import TRIAL

UTC = ZoneInfo("UTC")
GOOD = f"""\
searches:
  - name: night
    trials: [{TRIAL}]
    bulk: system
    at: "30 2 * * *"
    zone: Europe/Berlin
    output: night
    publish:
      enabled: true
    digest: {{to: mail, days: 3}}
  - name: noon
    trials: {TRIAL}
    cohort: Group/7
    at: 0 12 * * 1-5
    output: noon
    fresh: true
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "searches.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    night, noon = load_searches(written(tmp_path, GOOD), UTC, {TRIAL})
    assert (night.name, night.trials, night.bulk, night.cohort) == (
        "night", (TRIAL,), "system", None,
    )  # fmt: skip
    assert night.output == tmp_path / "night"
    assert str(night.zone) == "Europe/Berlin"
    assert night.config() == {
        "name": "night",
        "trials": [TRIAL],
        "publish": {"enabled": True},
        "digest": {"to": "mail", "days": 3},
    }
    assert (noon.zone, noon.cohort, noon.fresh, dict(noon.after)) == (UTC, "Group/7", True, {})
    assert search_named((night, noon), "noon") is noon
    with pytest.raises(ConfigurationError):
        search_named((night,), "noon")


def test_a_cohort_may_be_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "clinic.txt").write_text("1\n", encoding="utf-8")
    path = written(tmp_path, GOOD.replace("Group/7", "clinic.txt"))
    assert load_searches(path, UTC)[1].cohort == str(tmp_path / "clinic.txt")


@pytest.mark.parametrize(
    ("right", "wrong", "line", "says"),
    [
        ("name: night", "name: a b", 2, "name"),
        ("name: noon", "name: night", 11, "second"),
        ("output: noon", "output: night", 15, "same folder"),
        (f"trials: [{TRIAL}]", "trials: []", 3, "trials"),
        (f"trials: [{TRIAL}]", f"trials: [{TRIAL}, {TRIAL}]", 3, "once"),
        (f"trials: [{TRIAL}]", "trials: [NONE]", 3, "no trial NONE"),
        ("bulk: system", "bulk: everything", 4, "bulk"),
        ("bulk: system", "bulk: system\n    cohort: Group/1", 5, "not both"),
        ("cohort: Group/7", "cohort: Patient/7", 13, "cohort"),
        ('at: "30 2 * * *"', 'at: "30 25 * * *"', 5, "bad hour"),
        ('at: "30 2 * * *"', 'at: "30 2 * *"', 5, "five fields"),
        ('at: "30 2 * * *"', 'at: "0 30 2 * * *"', 5, "five fields"),
        ('at: "30 2 * * *"', 'at: "0 0 30 2 *"', 5, "bad day"),
        ("zone: Europe/Berlin", "zone: Europe/Atlantis", 6, "Atlantis"),
        ("output: night", "put: night", 2, "output"),
        ("fresh: true", "fresh: often", 16, "true or false"),
        ("fresh: true", "repeat: true", 16, "unknown key"),
        ("searches:", "search:", 1, "no searches"),
        ("enabled: true", "enable: true", 8, "no key 'enable'"),
        ("to: mail", "to: pigeon", 10, "digest.to"),
        ("days: 3", "days: often", 10, "digest.days"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, right: str, wrong: str, line: int, says: str
) -> None:
    assert right in GOOD
    path = written(tmp_path, GOOD.replace(right, wrong, 1))
    with pytest.raises(MappingError) as caught:
        load_searches(path, UTC, {TRIAL})
    assert (caught.value.file, caught.value.line) == ("searches.yaml", line)
    assert says in caught.value.problem
