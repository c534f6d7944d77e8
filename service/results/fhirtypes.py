"""What FHIR's primitive types allow, so that no recorded text makes a result invalid.

Source: FHIR R4 section 2.24.0.1.
"""

from __future__ import annotations

import re
from datetime import UTC

from service.values.dates import parse

# FHIR strings allow no control characters but tab, carriage return and line feed;
# other characters that print nothing could hide what a person reads.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_DATE_TIME = re.compile(
    r"\d{4}(?:-\d\d(?:-\d\d(?:T\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d))?)?)?"
)
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_LITERAL = re.compile(r"[A-Z][A-Za-z]{1,63}/[A-Za-z0-9.-]{1,64}")
_URI = re.compile(r"(?:https?://|urn:)[^\s\"<>\\^`{|}]{1,2000}")
_LONGEST = 4_000


def string(text: str | None) -> str | None:
    """Make a FHIR string of any text; None if nothing of it is left."""
    if text is None:
        return None
    clean = _CONTROL.sub("\ufffd", text).strip()
    if len(clean) > _LONGEST:
        clean = clean[: _LONGEST - 1] + "\u2026"
    return clean or None


def date_time(text: str | None) -> str | None:
    """Give the text back if it is a valid FHIR dateTime, else None."""
    if text is None or not _DATE_TIME.fullmatch(text):
        return None
    try:
        parse(text, UTC)
    except ValueError:
        return None
    return text if text[:4] != "0000" else None


def is_id(text: str) -> bool:
    """Tell whether the text is a valid FHIR id."""
    return _ID.fullmatch(text) is not None


def reference(target: str, version: str | None = None) -> dict[str, str]:
    """Write a Reference to ``Type/id``, version-specific if the version is known.

    What has neither id nor URL is named in ``display``. Of a contained resource only the
    one that holds it can be referred to from outside.
    """
    literal, _, contained = target.partition("#")
    if _LITERAL.fullmatch(literal):
        versioned = version is not None and is_id(version)
        found = {"reference": f"{literal}/_history/{version}" if versioned else literal}
        if contained and (display := string(f"contained #{contained}")):
            found["display"] = display
        return found
    if _URI.fullmatch(target):
        return {"reference": target}
    return {"display": string(target) or "a record without id"}
