"""Brings a Group or List of ours up to date where others may have changed it too.

A three-way merge: what nobody else changed since our last writing becomes ours; what
somebody changed stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]

# What the server writes, or what makes the resource ours.
_NOT_MERGED = frozenset({"resourceType", "id", "meta", "identifier"})


def _member(one: Json) -> str:
    return str(one.get("entity", {}).get("reference"))


def _entry(one: Json) -> str:
    return str(one.get("item", {}).get("reference"))


def _contained(one: Json) -> str:
    return f"#{one.get('id')}"


_LISTS: dict[str, Callable[[Json], str]] = {
    "member": _member,
    "entry": _entry,
    "contained": _contained,
}


def withdrawn(base: Json, theirs: Json) -> bool:
    """Tell whether a person has taken the Group or List out of use since."""
    return any(theirs.get(name) != base.get(name) for name in ("status", "active"))


def landed(pending: Json, base: Json, theirs: Json) -> bool:
    """Tell whether what was about to be written over ``base`` is what the server has."""
    derived = ("quantity", "text", "emptyReason")
    names = [one for one in pending if one not in (*_NOT_MERGED, *_LISTS, *derived)]
    if any(theirs.get(name) != pending[name] for name in names):
        return False
    for name, key_of in _LISTS.items():
        before, wanted, there = (
            {key_of(one) for one in each.get(name, ())} for each in (base, pending, theirs)
        )
        if not (wanted - before) <= there or (before - wanted) & there:
            return False
    return True


def merge(base: Json, theirs: Json, ours: Json) -> Json:
    """Merge what is on the server with what is to be there.

    ``base``: what the server showed after our last writing.
    """
    merged = dict(theirs)
    for name in dict.fromkeys((*ours, *base)):
        if name in _NOT_MERGED or name in _LISTS:
            continue
        if theirs.get(name) == base.get(name):
            _put(merged, name, ours.get(name))
    # What somebody changed stays, with what refers to it.
    held = {
        key
        for name, key_of in _LISTS.items()
        for key in _changed(base.get(name, ()), theirs.get(name, ()), key_of)
    }
    for name, key_of in _LISTS.items():
        if any(name in one for one in (base, theirs, ours)):
            parts = (base.get(name, ()), theirs.get(name, ()), ours.get(name, ()))
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
