"""The candidates of a search as FHIR: a Group of Patients, a List of ResearchSubjects.

The service may only propose (``potential-candidate``); whoever sets another status is a
person. Source: FHIR R4 Group, List (4.2), ResearchSubject.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from service.results.candidates import Candidate
from service.results.fhir import CANONICAL_BASE
from service.results.fhirtypes import date_time, is_id, reference, string

Json = dict[str, Any]

STATUS = "potential-candidate"
# Of R4's research-subject-status the one for "registration was not completed"; that someone
# is ineligible is for a person to say.
DROPPED = "not-registered"
_LONGEST_ID = 64
_EMPTY_REASON = "http://terminology.hl7.org/CodeSystem/list-empty-reason"
_INCOMPLETE = "The search was not complete: patients may be missing."


@dataclass(frozen=True, slots=True)
class Study:
    """The trial that candidates are for, as of a day; ``complete`` if the search was.

    ``key``: the secret that candidates' ids are made with.
    """

    id: str
    name: str
    as_of: str
    complete: bool = True
    base: str = CANONICAL_BASE
    key: bytes = b""


def group_json(studies: Sequence[Study], listed: Callable[[], Iterable[Candidate]]) -> _Bytes:
    """Write the Group of the candidates; for several trials a collection of Groups.

    ``listed`` gives the candidates of all trials, each time it is asked.
    """
    return _joined([_group(study, listed()) for study in studies])


def list_json(studies: Sequence[Study], listed: Callable[[], Iterable[Candidate]]) -> _Bytes:
    """Write the List of the candidates as ResearchSubjects; for several trials a collection."""
    return _joined([_list(study, listed) for study in studies])


_Bytes = Iterator[bytes]


def _joined(resources: list[_Bytes]) -> _Bytes:
    if len(resources) == 1:
        yield from resources[0]
    else:
        yield b'{"resourceType":"Bundle","type":"collection"'
        for number, resource in enumerate(resources):
            yield b',"entry":[{"resource":' if number == 0 else b',{"resource":'
            yield from resource
            yield b"}"
        yield b"]}" if resources else b"}"
    yield b"\n"


def group_id(study: str) -> str:
    """Give the id of a trial's Group or List of candidates."""
    return f"{study[: _LONGEST_ID - 11]}-candidates"


def subject_id(study: str, patient: str, key: bytes = b"") -> str:
    """Give the id of a candidate's ResearchSubject: the same in every search with this key.

    Without the key nobody can tell from an id whose it is, even with all patients' ids in
    hand (an HMAC, of which 128 bits are kept).
    """
    return hmac.new(key, f"{study} {patient}".encode(), "sha256").hexdigest()[:32]


def research_subject(
    study: str, patient: str, base: str = CANONICAL_BASE, *, key: bytes = b""
) -> Json:
    """Write a patient as potential candidate for a trial."""
    return subject_json(subject_id(study, patient, key), study, patient, base)


def subject_json(
    name: str, study: str, patient: str, base: str = CANONICAL_BASE, status: str = STATUS
) -> Json:
    """Write a patient under an id as candidate for a trial, or as one who no longer is."""
    return {
        "resourceType": "ResearchSubject",
        "id": name,
        "identifier": [{"system": f"{base}/research-subject", "value": name}],
        "status": status,
        "study": _study(study),
        "individual": reference(patient),
    }


def _study(study: str) -> Json:
    return reference(f"ResearchStudy/{study}") if is_id(study) else {"display": string(study)}


def _group(study: Study, listed: Iterable[Candidate]) -> _Bytes:
    head: Json = {
        "resourceType": "Group",
        "id": group_id(study.id),
        "active": True,
        "type": "person",
        "actual": True,
        "code": {"text": "potential candidates for a clinical trial"},
        "name": string(f"Candidates for {study.name}, as of {study.as_of}"),
        "characteristic": [_characteristic(study)],
    }
    if not study.complete:
        head["text"] = {
            "status": "additional",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{_INCOMPLETE}</div>',
        }
    yield _open(head)
    count = 0
    for candidate in _of(study, listed):
        yield b',"member":[' if count == 0 else b","
        yield msgspec.json.encode({"entity": reference(candidate.patient)})
        count += 1
    yield b'%s,"quantity":%d}' % (b"]" if count else b"", count)


def _characteristic(study: Study) -> Json:
    coding = {"system": f"{study.base}/CodeSystem/group", "code": "candidate-for"}
    found: Json = {
        "code": {"coding": [coding], "text": "may be eligible for"},
        "valueReference": _study(study.id),
        "exclude": False,
    }
    day = date_time(study.as_of)
    return found | ({"period": {"start": day, "end": day}} if day else {})


def _list(study: Study, listed: Callable[[], Iterable[Candidate]]) -> _Bytes:
    head: Json = {
        "resourceType": "List",
        "id": group_id(study.id),
        "status": "current",
        "mode": "snapshot",
        "title": string(f"Candidates for {study.name}"),
        "source": {"display": "trial-eligibility"},
    }
    if (day := date_time(study.as_of)) is not None:
        head["date"] = day
    if not study.complete:
        head["note"] = [{"text": _INCOMPLETE}]
    yield _open(head)
    empty = True
    for candidate in _of(study, listed()):
        yield b',"contained":[' if empty else b","
        yield msgspec.json.encode(
            research_subject(study.id, candidate.patient, study.base, key=study.key)
        )
        empty = False
    if empty:
        yield b',"emptyReason":' + msgspec.json.encode(_empty_reason(study)) + b"}"
        return
    for number, candidate in enumerate(_of(study, listed())):
        yield b'],"entry":[' if number == 0 else b","
        target = {"reference": f"#{subject_id(study.id, candidate.patient, study.key)}"}
        yield msgspec.json.encode({"flag": {"text": candidate.code}, "item": target})
    yield b"]}"


def _empty_reason(study: Study) -> Json:
    if study.complete:
        return {"text": "the search found no candidates"}
    coding = {"system": _EMPTY_REASON, "code": "unavailable", "display": "Unavailable"}
    return {"coding": [coding], "text": _INCOMPLETE}


def _of(study: Study, listed: Iterable[Candidate]) -> Iterator[Candidate]:
    return (candidate for candidate in listed if candidate.trial == study.id)


def _open(head: Json) -> bytes:
    """Write an object without its last brace, since members follow."""
    return msgspec.json.encode(head)[:-1]
