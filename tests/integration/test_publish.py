"""Writing candidates back to a FHIR server that nobody here wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from service.config import Settings
from service.nightly.model import Outcome
from service.nightly.publish import publish
from service.storage.store import Run, Store
from tests.integration.conftest import Sekmet
from tests.results.shapes import check_r4b
from tests.storage.making import MATERIALS, TRIAL, invented, outcomes, spec_of, statement_of


def found(server: Sekmet, kind: str) -> dict[str, Any]:
    """Read our one resource of a type."""
    query = f"identifier=https://eligibility.example.org/fhir/candidates|{TRIAL}-candidates"
    bundle = requests.get(f"{server.base}/{kind}?{query}", timeout=10).json()
    (entry,) = bundle["entry"]
    resource: dict[str, Any] = entry["resource"]
    return resource


def finished(store: Store, server: Sekmet, key: str, given: tuple[Outcome, ...]) -> Run:
    with store.locked() as writer:
        opened = writer.begin(spec_of(source=server.base), key=key, materials=MATERIALS)
        opened.add(given)
        return opened.finish(statement_of(opened.run))


def test_written_twice_changed_by_a_person_and_read_back(sekmet: Sekmet, tmp_path: Path) -> None:
    """This server offers Groups, but neither Lists nor ResearchSubjects."""
    settings = Settings(source=sekmet.base)
    everyone = outcomes()
    names = sorted(one.patient for one in everyone if one.code != "ineligible")
    headers = {"Content-Type": "application/fhir+json"}

    def members() -> list[str]:
        group = found(sekmet, "Group")
        check_r4b(group)
        return sorted(one["entity"]["reference"] for one in group.get("member", ()))

    with Store.open(str(tmp_path / "store.db")) as store:
        run = finished(store, sekmet, "a", everyone)
        first = publish(settings, store, run, TRIAL)
        assert (first.created, first.problems, first.kept) == (1, (), ())
        assert first.absent == ("ResearchSubject", "List")
        assert members() == names
        group = found(sekmet, "Group")
        url = f"{sekmet.base}/Group/{group['id']}"

        again = publish(settings, store, run, TRIAL)
        assert (again.created, again.updated, again.unchanged) == (0, 0, 1)
        assert found(sekmet, "Group") == group

        # A person takes one out, and marks another.
        left = [{**group["member"][1], "inactive": True}, *group["member"][2:]]
        assert requests.put(url, json={**group, "member": left}, headers=headers, timeout=10).ok
        extra = (*everyone, invented("baseline-extra", {"I1": ("unknown", "no-data")}))
        later = publish(settings, store, finished(store, sekmet, "b", extra), TRIAL)
        assert (later.updated, later.problems) == (1, ())
        assert members() == sorted([*names[1:], "Patient/baseline-extra"])
        assert found(sekmet, "Group")["member"][0]["inactive"] is True

        closed = {**found(sekmet, "Group"), "active": False}
        assert requests.put(url, json=closed, headers=headers, timeout=10).ok
        kept = publish(settings, store, finished(store, sekmet, "c", everyone), TRIAL)
        assert len(kept.kept) == 1
        assert found(sekmet, "Group")["active"] is False
