"""Reads the operation's Parameters once, each parameter with an error text of its own.

Source: FHIR R4 Parameters; the OperationDefinition this service publishes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import msgspec

from service.errors import RequestError
from service.fhir.bundles import Limits, deeper_than
from service.fhir.record import CLINICAL_TYPES
from service.fhir.resources import Identifier, Reference

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_ONCE = ("subject", "asOf", "data", "useServerData")
_KNOWN = (*_ONCE, "completeTypes")
# The types a record is read of; a misspelt one must not pass for a word on completeness.
READ_TYPES = (*CLINICAL_TYPES, "Patient", "Medication", "ResearchStudy")
_TOO_LARGE = 413


class Parameter(msgspec.Struct, frozen=True, rename="camel"):
    """A parameter, with the values that the operations take."""

    name: str
    value_reference: Reference | None = None
    value_date: str | None = None
    value_boolean: bool | None = None
    value_code: str | None = None
    value_string: str | None = None
    resource: msgspec.Raw = msgspec.Raw()


class _Parameters(msgspec.Struct, frozen=True, rename="camel"):
    resource_type: str
    parameter: tuple[Parameter, ...] = ()


_DECODER = msgspec.json.Decoder(_Parameters)


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller asks: of whom, as of when, on which records.

    ``reference`` and ``identifier`` name the patient; ``data`` is the JSON of the resource
    or Bundle handed in; ``complete_types`` None: the caller says nothing about it.
    """

    reference: str | None = None
    identifier: Identifier | None = None
    as_of: date | None = None
    data: bytes | None = None
    use_server: bool = True
    complete_types: frozenset[str] | None = None


def read_parameters(body: bytes, limits: Limits) -> Question:
    """Read the body of the operation; raises RequestError naming what is wrong with it."""
    return _question(named_parameters(body, limits, _KNOWN, _ONCE))


def named_parameters(
    body: bytes, limits: Limits, known: Sequence[str], once: Sequence[str]
) -> dict[str, list[tuple[int, Parameter]]]:
    """Read a Parameters resource: by name, each with its place.

    Raises RequestError for one that is not known, or given twice though it may be but once.
    """
    found = _decode(body)
    if deeper_than(body, limits.depth):
        raise RequestError(
            f"the body is nested deeper than {limits.depth} levels",
            status=_TOO_LARGE,
            code="too-costly",
        )
    by_name: dict[str, list[tuple[int, Parameter]]] = {}
    for index, parameter in enumerate(found.parameter):
        if parameter.name not in known:
            raise RequestError(
                f"there is no such parameter; there are {', '.join(known)}",
                code="not-supported",
                expression=at(index, "name"),
            )
        by_name.setdefault(parameter.name, []).append((index, parameter))
    for name in once:
        if len(by_name.get(name, ())) > 1:
            second = by_name[name][1][0]
            raise RequestError(f"{name} is given more than once", expression=at(second))
    return by_name


def _question(by_name: dict[str, list[tuple[int, Parameter]]]) -> Question:
    subject = one(by_name, "subject")
    as_of = one(by_name, "asOf")
    data = one(by_name, "data")
    use_server = one(by_name, "useServerData")
    handed_in = None if data is None else _data(*data)
    reference = None if subject is None else _subject(*subject)
    if "completeTypes" in by_name and handed_in is None:
        raise RequestError("completeTypes says what data is complete for, and data is missing")
    return Question(
        reference=reference.reference if reference else None,
        identifier=reference.identifier if reference else None,
        as_of=None if as_of is None else day_of(*as_of),
        data=handed_in,
        use_server=handed_in is None if use_server is None else flag_of(*use_server),
        complete_types=_types(by_name["completeTypes"]) if "completeTypes" in by_name else None,
    )


def one(by_name: dict[str, list[tuple[int, Parameter]]], name: str) -> tuple[int, Parameter] | None:
    """Give the parameter of a name with its place, if there is one."""
    found = by_name.get(name)
    return found[0] if found else None


def _decode(body: bytes) -> _Parameters:
    try:
        found = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        place = re.search(r" - at `\$([^`]*)`", str(error))
        path = re.sub(r"\[\.\.\.\]", "", place[1]) if place else ""
        raise RequestError(
            "the body is not a valid Parameters resource",
            code="structure",
            expression=f"Parameters{path}",
        ) from error
    except RecursionError as error:
        raise RequestError(
            "the body is nested too deep", status=_TOO_LARGE, code="too-costly"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError("the body is not JSON", code="structure") from error
    if found.resource_type != "Parameters":
        raise RequestError("the body must be a Parameters resource", code="invalid")
    return found


def _subject(index: int, parameter: Parameter) -> Reference:
    found = parameter.value_reference
    if found is None or not (found.reference or (found.identifier and found.identifier.value)):
        raise RequestError(
            "subject needs a valueReference with a reference to the Patient, as Patient/123",
            code="required",
            expression=at(index, "value"),
        )
    return found


def day_of(index: int, parameter: Parameter) -> date:
    """Read a whole day; raises RequestError."""
    text = parameter.value_date or ""
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise RequestError(
        "asOf needs a valueDate that is a whole day, as 2026-11-01",
        code="value",
        expression=at(index, "value"),
    )


def _data(index: int, parameter: Parameter) -> bytes:
    raw = bytes(parameter.resource)
    if not raw.startswith(b"{"):
        raise RequestError(
            "data needs a resource: a Bundle or a single one",
            code="required",
            expression=at(index, "resource"),
        )
    return raw


def flag_of(index: int, parameter: Parameter) -> bool:
    """Read true or false; raises RequestError."""
    if parameter.value_boolean is None:
        raise RequestError(
            f"{parameter.name} needs a valueBoolean", code="value", expression=at(index, "value")
        )
    return parameter.value_boolean


def _types(found: list[tuple[int, Parameter]]) -> frozenset[str]:
    for index, parameter in found:
        if parameter.value_code not in READ_TYPES:
            raise RequestError(
                f"completeTypes needs a valueCode that is one of {', '.join(READ_TYPES)}",
                code="value",
                expression=at(index, "value"),
            )
    return frozenset(parameter.value_code or "" for _, parameter in found)


def at(index: int, name: str | None = None) -> str:
    """Name the place of a parameter, for an error."""
    return f"Parameters.parameter[{index}]" + (f".{name}" if name else "")
