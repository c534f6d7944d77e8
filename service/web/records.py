"""Gathers the record that a question is about: from the source, the data handed in, or both.

Source: semantics 1.5 (a Bundle handed in) and 1.8 (whose records).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from service.errors import RequestError
from service.fhir.bundles import (
    NO_REPLY,
    RECORD_TYPES,
    Limits,
    NotABundle,
    Taken,
    problems_of,
    readings_of,
    take_apart,
    whole,
)
from service.fhir.record import Reading
from service.fhir.source import Fetched, Source, Wanted, merged
from service.web.parameters import Question

_LOCAL = re.compile(
    r"(?:(?P<base>https?://.+)/)?Patient/(?P<id>[A-Za-z0-9.-]{1,64})(?:/_history/.+)?"
)
_UNPROCESSABLE = 422
_DATA = "Parameters.parameter.where(name='data')"
_SUBJECT = "Parameters.parameter.where(name='subject')"


def gather(
    question: Question,
    source: Source,
    wanted: Wanted,
    limits: Limits,
    harmless: frozenset[str] = frozenset(),
) -> Fetched:
    """Read what the question is about.

    Raises RequestError when it names nobody or somebody who isn't in the data, and what
    the source raises.
    """
    if question.data is None:
        if not question.use_server:
            raise RequestError("useServerData is false and data is missing", code="required")
        return source.fetch(_server_id(question, source), wanted)
    taken = _take(question.data, limits, harmless)
    key = _key_in(taken, question)
    if not question.use_server:
        if key is None:
            raise RequestError(
                "data does not hold the Patient that subject names",
                status=_UNPROCESSABLE,
                code="not-found",
                expression=_DATA,
            )
        return _handed_in(taken, key, question)
    asked = _server_id(question, source) if question.reference else _id_of(key)
    server = source.fetch(asked, wanted)
    return merged(server, _handed_in(taken, key or server.patient, question))


def _take(data: bytes, limits: Limits, harmless: frozenset[str]) -> Taken:
    try:
        return take_apart(data, limits=limits, harmless=harmless)
    except NotABundle as error:
        raise RequestError(str(error), code="structure", expression=_DATA) from error


def _key_in(taken: Taken, question: Question) -> str | None:
    """Find the Patient of the data; raises RequestError if it isn't clear which one."""
    if question.reference is not None:
        return taken.patient_key(question.reference)
    if question.identifier is not None and question.identifier.value:
        found = taken.identified(question.identifier.system, question.identifier.value)
        if found is not None:
            return found
        raise RequestError(
            "no Patient in data has the identifier that subject names",
            status=_UNPROCESSABLE,
            code="not-found",
            expression=_SUBJECT,
        )
    if len(taken.patients) == 1:
        return taken.patients[0].key
    problem = "more than one Patient" if taken.patients else "no Patient"
    raise RequestError(
        f"subject is needed: data holds {problem}",
        status=_UNPROCESSABLE if taken.patients else 400,
        code="multiple-matches" if taken.patients else "required",
        expression=_SUBJECT,
    )


def _server_id(question: Question, source: Source) -> str:
    """Give the id to ask the source for; raises RequestError if subject can't be one."""
    if question.reference is None:
        if question.identifier is not None:
            raise RequestError(
                "the source can't be asked by identifier: name the Patient by its id",
                status=_UNPROCESSABLE,
                code="not-supported",
                expression=_SUBJECT,
            )
        raise RequestError("subject is missing", code="required", expression=_SUBJECT)
    found = _LOCAL.fullmatch(question.reference)
    if found is None:
        raise RequestError(
            "subject must refer to a Patient of the source, as Patient/123",
            status=_UNPROCESSABLE,
            code="value",
            expression=_SUBJECT,
        )
    own: str | None = getattr(source, "base_url", None)
    if found["base"] is not None and (own is None or found["base"] != own.rstrip("/")):
        raise RequestError(
            "subject is on another server than the source",
            status=_UNPROCESSABLE,
            code="not-supported",
            expression=_SUBJECT,
        )
    return found["id"]


def _id_of(key: str | None) -> str:
    if key is None or not key.startswith("Patient/"):
        raise RequestError(
            "the Patient in data has no id to ask the source for",
            status=_UNPROCESSABLE,
            code="required",
            expression=_DATA,
        )
    return key.removeprefix("Patient/")


def _handed_in(taken: Taken, key: str, question: Question) -> Fetched:
    """Judge how complete the data is.

    By itself it is complete (an assumption) unless a search reply in it is not or the
    caller says for which types it is. Beside the server's it may be a mere addition, so
    that only the caller's word makes it complete: it must not hide what the server
    refused.
    """
    replies = whole(taken.replies)
    keys = taken.group(key)
    judged = readings_of(replies, keys)
    if question.complete_types is not None:
        readings = _claimed(judged, question.complete_types)
    elif question.use_server:
        readings = {}
    else:
        readings = judged
    return Fetched(
        patient=key,
        items=taken.items,
        readings=readings,
        messages=tuple(problems_of(replies, keys)),
    )


def _claimed(judged: Mapping[str, Reading], types: frozenset[str]) -> dict[str, Reading]:
    """Take the caller's word for some types; a search reply that was cut short stays so."""
    readings = {}
    for kind in RECORD_TYPES:
        if kind not in types:
            readings[kind] = Reading(complete=False, problem="not among completeTypes")
        elif judged[kind].complete or judged[kind].problem == NO_REPLY:
            readings[kind] = Reading()
        else:
            readings[kind] = judged[kind]
    return readings
