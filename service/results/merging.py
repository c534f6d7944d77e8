"""Brings a Group or List of ours up to date where others may have changed it too.

A three-way merge: what nobody else changed since our last writing becomes ours; what
somebody changed stays as it is, then and at every later writing (``rebased``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]

# What the server writes, or what makes the resource ours.
_NOT_MERGED = frozenset({"resourceType", "id", "meta", "identifier"})
_NOBODY = "None"


def _member(one: Json) -> str:
    return _reference(one, "entity")


def _entry(one: Json) -> str:
    return _reference(one, "item")


def _contained(one: Json) -> str:
    return f"#{one.get('id')}" if isinstance(one, dict) else _NOBODY


def _reference(one: Json, name: str) -> str:
    """Give whom a part refers to; what others wrote may be of any form."""
    found = one.get(name) if isinstance(one, dict) else None
    return str(found.get("reference")) if isinstance(found, dict) else _NOBODY


def _parts(resource: Json, name: str) -> list[Json]:
    found = resource.get(name)
    return found if isinstance(found, list) else []


# Made of the rest.
_DERIVED = ("quantity", "emptyReason")
_LISTS: dict[str, Callable[[Json], str]] = {
    "member": _member,
    "entry": _entry,
    "contained": _contained,
}


def withdrawn(base: Json, theirs: Json) -> bool:
    """Tell whether a person has taken the Group or List out of use since."""
    return any(theirs.get(name) != base.get(name) for name in ("status", "active"))


def presumed(base: Json, pending: Json, theirs: Json) -> Json:
    """Give the base if ``pending`` may have been written over it, which was never confirmed.

    What is on the server as it was to be written is ours; so is what is gone that was to go.
    """
    names = dict.fromkeys((*base, *pending))
    found = {name: base[name] for name in base if name in _NOT_MERGED}
    for name in names:
        if name in _NOT_MERGED or name in _LISTS:
            continue
        as_wanted = theirs.get(name) == pending.get(name)
        _put(found, name, (theirs if as_wanted else base).get(name))
    for name, key_of in _LISTS.items():
        before, wanted, there = (
            {key_of(one): one for one in _parts(each, name)} for each in (base, pending, theirs)
        )
        parts = [
            wanted[key] if key in wanted and wanted[key] == there.get(key) else one
            for key, one in before.items()
            if key in wanted or key in there
        ]
        parts += [one for key, one in wanted.items() if key in there and key not in before]
        _put(found, name, parts)
    return found


def rebased(base: Json, theirs: Json, ours: Json, stored: Json) -> Json:
    """Give the base of the next merge, when ``stored`` is what came of this one.

    What is ours is as the server shows it; what somebody has changed, added or taken out
    stays so in the base, too, or the next writing would take it for ours and undo it.
    """
    found = {name: stored[name] for name in stored if name in _NOT_MERGED}
    for name in dict.fromkeys((*ours, *base)):
        if name in _NOT_MERGED or name in _LISTS:
            continue
        mine = theirs.get(name) == base.get(name) or name in _DERIVED
        _put(found, name, (stored if mine else base).get(name))
    held = _held(base, theirs)
    for name, key_of in _LISTS.items():
        before, there, mine_now, now = (
            {key_of(one): one for one in _parts(each, name)}
            for each in (base, theirs, ours, stored)
        )
        parts = [one for key, one in before.items() if key in held or key not in there]
        parts += [
            one
            for key, one in now.items()
            if key in mine_now and key not in held and (key in before or key not in there)
        ]
        _put(found, name, list({key_of(one): one for one in parts}.values()))
    return found


def merge(base: Json, theirs: Json, ours: Json) -> Json:
    """Merge what is on the server with what is to be there.

    ``base``: what of it was ours after our last writing.
    """
    merged = dict(theirs)
    for name in dict.fromkeys((*ours, *base)):
        if name in _NOT_MERGED or name in _LISTS:
            continue
        if theirs.get(name) == base.get(name):
            _put(merged, name, ours.get(name))
    held = _held(base, theirs)
    for name, key_of in _LISTS.items():
        if any(name in one for one in (base, theirs, ours)):
            parts = (_parts(base, name), _parts(theirs, name), _parts(ours, name))
            _put(merged, name, _merged(*parts, key_of, held))
    if merged.get("resourceType") == "Group" and "quantity" in ours:
        merged["quantity"] = len(merged.get("member", ()))
    if "entry" in merged:
        # A List is empty for a reason, or it is not empty (lst-1).
        merged.pop("emptyReason", None)
    return merged


def _put(merged: Json, name: str, value: Any) -> None:
    if value is None or value == []:
        merged.pop(name, None)
    else:
        merged[name] = value


def _held(base: Json, theirs: Json) -> set[str]:
    """Name what somebody has changed: it stays, with what refers to it."""
    return {
        key
        for name, key_of in _LISTS.items()
        for key in _changed(_parts(base, name), _parts(theirs, name), key_of)
    }


def _changed(
    base: Sequence[Json], theirs: Sequence[Json], key_of: Callable[[Json], str]
) -> set[str]:
    known = {key_of(one): one for one in base}
    return {key_of(one) for one in theirs if key_of(one) in known and known[key_of(one)] != one}


def _merged(
    base: Sequence[Json],
    theirs: Sequence[Json],
    ours: Sequence[Json],
    key_of: Callable[[Json], str],
    held: set[str],
) -> list[Json]:
    known = {key_of(one) for one in base}
    mine = {key_of(one): one for one in ours}
    there = {key_of(one) for one in theirs}
    found: list[Json] = []
    for one in theirs:
        key = key_of(one)
        if key in held or key not in known:
            found.append(one)
        elif key in mine:
            found.append(mine[key])
    # Who was there and isn't any more was taken out by a person.
    return found + [one for key, one in mine.items() if key not in known and key not in there]
