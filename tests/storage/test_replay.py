"""A replay gives the stored verdict again from what the store kept, or says what is missing."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from service.config import Settings
from service.errors import NotReplayable, UsageError
from service.nightly.model import Outcome
from service.nightly.partition import encode_record
from service.results.json import verdict_line
from service.storage import replay as replaying
from service.storage.materials import digest_of, materials_of
from service.storage.models import MaterialRow, RunMaterialRow
from service.storage.replay import differences, replay
from service.storage.store import Run, Store, environment
from service.wiring import build_screening, data_dir, screening_of
from tests.storage.making import (
    DAY,
    MATERIALS,
    TRIAL,
    invented,
    kept,
    outcomes,
    shipped,
    spec_of,
    statement_of,
)


def test_every_shipped_patient_is_replayed_byte_for_byte(store: Store) -> None:
    run = kept(store, "a", outcomes())
    screening = build_screening(Settings())
    for one in outcomes():
        (found,) = replay(store, run.id, one.patient, lambda *_: screening)
        assert found.same
        assert found.line == one.line


def kept_with(store: Store, patient: str, mappings: Path, *others: Path) -> tuple[Run, bytes]:
    """Make a run of one patient with given files; give it and the verdict's line."""
    screening = screening_of(mappings, *others)
    verdict = screening.evaluate_fetched(
        screening.trial(TRIAL), shipped()[patient], date.fromisoformat(DAY)
    )
    line = verdict_line(verdict).encode()
    record = encode_record(shipped()[patient])
    with store.locked() as writer:
        run = writer.begin(spec_of(), key="a", materials=materials_of(mappings, *others))
        run.add([Outcome(verdict.patient, TRIAL, line, verdict.code.value, None, record)])
        return run.finish(statement_of(run.run)), line


def candidate() -> Outcome:
    """Give a patient about whom attestations and limits make a difference."""
    return next(one for one in outcomes() if one.code == "potentially-eligible")


def test_the_mappings_of_then_are_used_whatever_they_are_now(store: Store, tmp_path: Path) -> None:
    """A limit that the trial file had then decides, not today's."""
    mappings = tmp_path / "mappings"
    shutil.copytree(data_dir() / "mappings", mappings)
    path = mappings / "trials" / f"{TRIAL}.yaml"
    text = path.read_text(encoding="utf-8")
    changed = re.sub(r"(kind: age\b[^}]*?: )14\b", r"\g<1>120", text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    one = candidate()
    run, line = kept_with(store, one.patient.removeprefix("Patient/"), mappings)
    assert b'"verdict":"ineligible"' in line
    shutil.rmtree(mappings)
    (found,) = replay(store, run.id, one.patient, screening_of)
    assert found.same


def test_site_and_attestations_of_then_are_used(store: Store, tmp_path: Path) -> None:
    one = candidate()
    patient = one.patient.removeprefix("Patient/")
    site, attested = tmp_path / "site.yaml", tmp_path / "attested.yaml"
    site.write_text("time_zone: Europe/Berlin\n", encoding="utf-8")
    attested.write_text(
        f"attestations:\n  - {{trial: {TRIAL}, patient: {patient}, criterion: I1, outcome: fail,"
        " by: Dr Example, when: 2026-10-01, why: as told}\n",
        encoding="utf-8",
    )
    run, line = kept_with(store, patient, data_dir() / "mappings", site, attested)
    assert b"as told" in line
    site.unlink()
    attested.unlink()
    (found,) = replay(store, run.id, patient, screening_of)
    assert found.same


def test_a_missing_version_of_the_service_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(store, "a", outcomes()[:1])
    monkeypatch.setattr(replaying, "__version__", "99.0.0")
    with pytest.raises(NotReplayable, match=r"version .* of the service is missing"):
        replay(store, run.id, outcomes()[0].patient, screening_of)


def test_a_missing_file_is_named(store: Store) -> None:
    run = kept(store, "a", outcomes()[:1])
    digest = store.materials(run.id)["mappings/sets.yaml"][0]
    with store.database.writing() as connection:
        connection.execute(delete(MaterialRow).where(MaterialRow.digest == digest))
    with pytest.raises(NotReplayable, match=f"mappings/sets.yaml .*{digest[:16]}"):
        replay(store, run.id, outcomes()[0].patient, screening_of)


def test_missing_facts_patients_and_mappings_are_said(store: Store) -> None:
    bare = replace(outcomes()[0], record=None)
    run = kept(store, "a", (bare,))
    with pytest.raises(NotReplayable, match="no facts"):
        replay(store, run.id, bare.patient, screening_of)
    with pytest.raises(NotReplayable, match="no verdict"):
        replay(store, run.id, "nobody", screening_of)
    with pytest.raises(UsageError):
        replay(store, 99, bare.patient, screening_of)
    with store.locked() as writer:
        other = writer.begin(spec_of(), key="b")
        other.add(outcomes()[:1])
        other.finish(statement_of(other.run))
    with pytest.raises(NotReplayable, match="no mappings"):
        replay(store, other.id, bare.patient, screening_of)


def test_a_trial_whose_file_was_not_kept_is_said(store: Store) -> None:
    run = kept(store, "a", (invented("p", {}, trial="NCT00000000", record=outcomes()[0].record),))
    with pytest.raises(NotReplayable, match="NCT00000000 is missing"):
        replay(store, run.id, "p", screening_of)


def test_a_verdict_that_comes_out_otherwise_is_shown_as_such(store: Store) -> None:
    one = outcomes()[0]
    run = kept(store, "a", (replace(one, line=one.line.replace(b'"message":"', b'"message":"x')),))
    (found,) = replay(store, run.id, one.patient, screening_of)
    assert not found.same
    assert found.line == one.line


def test_a_name_that_leads_out_of_the_folder_is_refused(store: Store) -> None:
    run = kept(store, "a", outcomes()[:1])
    with store.database.writing() as connection:
        connection.execute(
            update(RunMaterialRow)
            .where(RunMaterialRow.name == "mappings/sets.yaml")
            .values(name="mappings/../../sets.yaml")
        )
    with pytest.raises(NotReplayable, match="outside"):
        replay(store, run.id, outcomes()[0].patient, screening_of)


def test_other_versions_of_libraries_are_named(store: Store) -> None:
    run = kept(store, "a", outcomes()[:1])
    assert differences(run, environment()) == []
    assert differences(run, {**environment(), "tzdata": "1900.1"})[0].startswith("tzdata ")


def test_kept_files_are_enough_to_evaluate_with(tmp_path: Path) -> None:
    for name, body in MATERIALS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    screening = screening_of(tmp_path / "mappings")
    assert TRIAL in screening.trials
    assert digest_of(materials_of(tmp_path / "mappings")) == digest_of(MATERIALS)
    shutil.copy(tmp_path / "mappings" / "units.csv", tmp_path / "mappings" / "other.csv")
    assert digest_of(materials_of(tmp_path / "mappings")) != digest_of(MATERIALS)
