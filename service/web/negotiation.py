"""Media types: what a caller may send and what it accepts.

Source: FHIR R4 RESTful API, content negotiation (3.1.0.1.11).
"""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Response, g, request
from werkzeug.http import parse_options_header

from service.errors import RequestError

FHIR_JSON = "application/fhir+json"
_JSON = "application/json"
_FORMATS = {"json": FHIR_JSON, _JSON: _JSON, FHIR_JSON: FHIR_JSON}
_RANGES = {"*/*": FHIR_JSON, "application/*": FHIR_JSON, _JSON: _JSON, FHIR_JSON: FHIR_JSON}
_VERSIONS = (None, "4.0", "4.3")


def check_accept() -> None:
    """Choose the media type of the answer; raises RequestError (406) if none fits.

    ``_format`` comes before the Accept header.
    """
    wanted = request.args.get("_format")
    if wanted is not None:
        # A plus sign in a query string is a blank.
        found = _FORMATS.get(parse_options_header(wanted.replace(" ", "+"))[0])
    else:
        found = _accepted(request.headers.get("Accept", "*/*"))
    if found is None:
        raise RequestError(f"only {FHIR_JSON} is offered", status=406, code="not-supported")
    g.media_type = found


def _accepted(header: str) -> str | None:
    best: tuple[float, str] | None = None
    for part in header.split(","):
        name, options = parse_options_header(part.strip())
        found = _RANGES.get(name.lower())
        if found is None or _version(options) not in _VERSIONS:
            continue
        quality = _quality(options.get("q", "1"))
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, found)
    return best[1] if best else None


def _version(options: dict[str, str]) -> str | None:
    return next((value for name, value in options.items() if name.lower() == "fhirversion"), None)


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def check_body_type() -> None:
    """Refuse a body of another media type; raises RequestError (415)."""
    name, options = parse_options_header(request.headers.get("Content-Type", ""))
    charset = options.get("charset", "utf-8").lower()
    if name.lower() not in (FHIR_JSON, _JSON) or charset not in ("utf-8", "utf8"):
        raise RequestError(
            f"the body must be {FHIR_JSON} in UTF-8", status=415, code="not-supported"
        )
    if _version(options) not in _VERSIONS:
        raise RequestError("only FHIR R4 is read", status=415, code="not-supported")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError("the body must not be compressed", status=415, code="not-supported")


def answer(resource: dict[str, Any], status: int = 200) -> Response:
    """Write a resource as the answer, in the media type that was chosen."""
    media_type = g.get("media_type", FHIR_JSON)
    if media_type == FHIR_JSON:
        media_type = f"{FHIR_JSON}; fhirVersion=4.0; charset=utf-8"
    return Response(msgspec.json.encode(resource), status, content_type=media_type)
