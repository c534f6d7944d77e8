"""What to ask a server for, to find the patients who may be in a trial's population."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from service.criteria.trial import Trial
from service.fhir.cohort import Sought
from service.fhir.resources import NO_CODE_SYSTEMS
from service.nightly.population import Interest, interest_of
from service.terms import Role, Row, Terms

_DIGITS = "0123456789"
_NO_RAW = msgspec.Raw()


class _Fields(msgspec.Struct, gc=False):
    code: msgspec.Raw = _NO_RAW
    extension: msgspec.Raw = _NO_RAW


_FIELDS = msgspec.json.Decoder(_Fields)


def sought_of(trials: Sequence[Trial], terms: Terms) -> tuple[Sought, ...]:
    """Say by type what bears on the trials' diagnoses; nothing: every patient may be in."""
    interest = interest_of(trials, terms)
    return tuple(_sought(interest, kind, sets) for kind, sets in interest.sets.items())


def _sought(interest: Interest, kind: str, sets: tuple[str, ...]) -> Sought:
    terms = interest.terms
    codes = frozenset(_codes(terms, sets))
    if kind != "Condition":
        # Whatever has such a code anywhere in it; of results nothing is told by texts.
        return Sought(kind, codes)
    texts = _beginnings(word for name in sets for word in terms.sets[name].keywords)
    return Sought(kind, codes, tuple(sorted(NO_CODE_SYSTEMS)), texts, _bearing(interest, kind))


def _bearing(interest: Interest, kind: str) -> Callable[[bytes], bool]:
    def bears(raw: bytes) -> bool:
        try:
            fields = _FIELDS.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return True
        return interest.named(fields.code, fields.extension, kind)

    return bears


def _codes(terms: Terms, sets: Iterable[str]) -> Iterator[tuple[str, str]]:
    wanted = set(sets)
    for name in sets:
        for row in terms.sets[name].rows:
            if row.role is not Role.EXCLUDE:
                yield from _written(terms, row)
    for local in terms.local_codes:
        roles = {} if local.standard is None else terms.roles_of(*local.standard)
        standard = {name for name, role in roles.items() if role is not Role.EXCLUDE}
        if local.set in wanted or standard & wanted:
            yield local.system, local.code


def _written(terms: Terms, row: Row) -> Iterator[tuple[str, str]]:
    """Write a row's codes as records may hold them: a search knows neither prefix nor form."""
    codes = [row.code]
    if row.match == "range":
        low, high = (int(end) for end in row.code.split("-"))
        codes = [str(number) for number in range(low, high + 1)]
    elif row.match == "prefix":
        # A fourth or fifth character, as ICD-10-CM has it, and the dash of ICD-10-GM.
        codes += [f"{row.code}{mark}" for mark in f"{_DIGITS}-"]
    for code in codes:
        yield row.system, code
        if terms.aliases.get(row.system, "").startswith("icd"):
            # Compared without dots and case (semantics 1.5), but searched for as written.
            plain = code.replace(".", "")
            yield from ((row.system, form) for form in (plain, code.lower(), plain.lower()))


def _beginnings(words: Iterable[str]) -> tuple[str, ...]:
    """Leave out words that begin with another: whatever finds that finds them too."""
    plain = sorted({word.removeprefix("~").strip() for word in words})
    kept: list[str] = []
    for word in plain:
        if not kept or not word.startswith(kept[-1]):
            kept.append(word)
    return tuple(kept)
