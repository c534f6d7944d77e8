"""The manifest of a Bulk Data export: which types it holds, and which files are missing.

Source: FHIR Bulk Data Access 3.0, "Response - Complete Status"; semantics 1.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from service.fhir.bundles import RECORD_TYPES, Reply
from service.fhir.contents import plain_name
from service.fhir.resources import READ_TYPES
from service.fhir.source import NOT_OFFERED, SiteSearch

# Where a manifest that this service writes names the types that the server lacks.
NOT_OFFERED_BY = "eligibilityNotOffered"


class _Output(msgspec.Struct, frozen=True):
    type: str | None = None
    url: str | None = None
    count: int | None = None


class _Link(msgspec.Struct, frozen=True):
    relation: str | None = None


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    transaction_time: str
    output: tuple[_Output, ...]
    request: str | None = None
    error: tuple[_Output, ...] = ()
    outcome: tuple[_Output, ...] = ()
    link: tuple[_Link, ...] = ()
    deleted: Any = None
    extension: Any = None


class Output(NamedTuple):
    """A file that the manifest names: type, the file's name, how many resources it holds."""

    type: str | None
    name: str
    expected: int | None


class Manifest(NamedTuple):
    """What a manifest says, and where it is.

    ``types``: what the request's ``_type`` names, None if it names none. ``narrowed``: per
    type, or None for all, what else in the request left resources out. ``partial``: there
    is a further manifest. ``base``: the server's base URL. ``not_offered``: types that the
    server lacks, as whoever fetched the export noted.
    """

    place: str
    types: frozenset[str] | None
    narrowed: tuple[tuple[str | None, str], ...]
    outputs: tuple[Output, ...]
    errors: tuple[Output, ...]
    partial: bool
    base: str | None
    not_offered: frozenset[str] = frozenset()


_DECODER = msgspec.json.Decoder(_Manifest)


def read_manifest(raw: bytes, place: str) -> Manifest | None:
    """Read a manifest; None if the document isn't one."""
    try:
        found = _DECODER.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    types, narrowed, base = _request(found.request or "")
    return Manifest(
        place,
        types,
        narrowed,
        tuple(_outputs(found.output)),
        tuple(_outputs((*found.error, *found.outcome))),
        any(link.relation == "next" for link in found.link),
        base,
        _not_offered(found.extension),
    )


def _not_offered(extension: object) -> frozenset[str]:
    # A server's own extensions may be of any form; version 4 has a list of them.
    listed = extension.get(NOT_OFFERED_BY) if isinstance(extension, dict) else None
    names = listed if isinstance(listed, list) else ()
    return frozenset(name for name in names if isinstance(name, str))


def _outputs(listed: Iterable[_Output]) -> Iterator[Output]:
    for output in listed:
        try:
            path = unquote(urlsplit(output.url or "").path)
        except ValueError:
            path = ""
        yield Output(output.type, PurePosixPath(path).name, output.count)


_Narrowed = tuple[tuple[str | None, str], ...]


def _request(url: str) -> tuple[frozenset[str] | None, _Narrowed, str | None]:
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query)
    except ValueError:
        return None, (), None
    types: set[str] = set()
    narrowed: list[tuple[str | None, str]] = []
    for name, value in query:
        if name == "_type":
            types.update(kind.strip() for kind in value.split(",") if kind.strip())
        elif name in ("_since", "_until", "_elements"):
            narrowed.append((None, f"the export was narrowed by {name}"))
        elif name == "_typeFilter":
            kinds = {part.split("?", 1)[0] for part in value.split(",") if "?" in part}
            narrowed.extend((kind, "the export was narrowed by _typeFilter") for kind in kinds)
    base = _base(parts.scheme, parts.netloc, parts.path)
    return (frozenset(types) or None), tuple(narrowed), base


def _base(scheme: str, netloc: str, path: str) -> str | None:
    """Find the server's base URL in that of an export of the system, patients or a group."""
    if not scheme or not netloc or not path.endswith("/$export"):
        return None
    steps = path.removesuffix("/$export").split("/")
    if steps[-1] == "Patient":
        steps = steps[:-1]
    elif len(steps) > 1 and steps[-2] == "Group":
        steps = steps[:-2]
    return f"{scheme}://{netloc}{'/'.join(steps)}"


def judge(
    manifests: Iterable[Manifest],
    files: Mapping[str, Mapping[str, int]],
    site: SiteSearch | None = None,
) -> list[Reply]:
    """Tell what the exports leave out.

    ``files``: per file on disk (its name without folder and ``.gz``) how many resources of
    each type it holds. A type counts as asked for if any manifest's request names it. One
    that the server lacks is judged as in a live search: ``site`` says what that means.
    """
    listed = list(manifests)
    problems: list[Reply] = []
    restricted = [manifest.types for manifest in listed if manifest.types is not None]
    absent = frozenset(RECORD_TYPES).difference(*restricted) if restricted else frozenset()
    if len(restricted) < len(listed):
        # One that names no types may hold any, unless its server lacks the type.
        absent = frozenset(RECORD_TYPES)
    lacking = absent.intersection(*(manifest.not_offered for manifest in listed))
    held = {kind for counts in files.values() for kind, count in counts.items() if count}
    for kind in sorted(lacking - held) if listed else ():
        none_kept = site is not None and site.none_kept(kind)
        problem = None if none_kept else NOT_OFFERED
        problems.append(Reply(types=frozenset((kind,)), problem=problem, not_offered=True))
    if restricted and len(restricted) == len(listed):
        left_out = absent - (lacking - held)
        if left_out:
            problems.append(
                Reply(types=left_out, problem="not in the export's _type", place=listed[0].place)
            )
    for manifest in listed:
        problems.extend(_problems(manifest, files))
    return problems


def _problems(manifest: Manifest, files: Mapping[str, Mapping[str, int]]) -> Iterator[Reply]:
    def reply(kind: str | None, problem: str) -> Reply:
        types = None if kind is None else frozenset((kind,))
        return Reply(types=types, problem=problem, place=manifest.place)

    for kind, problem in manifest.narrowed:
        yield reply(kind, problem)
    if manifest.partial:
        yield reply(None, "the manifest is one of several, and the next is missing")
    for error in manifest.errors:
        # An error file that is here is judged by the OperationOutcomes in it.
        if error.expected != 0 and plain_name(error.name) not in files:
            yield reply(None, "the export reports errors")
    for named in sorted({output.type or "" for output in manifest.outputs}):
        wanted = [output for output in manifest.outputs if (output.type or "") == named]
        missing = _missing(named, wanted, files)
        if missing is not None and (not named or named in READ_TYPES):
            yield reply(named or None, missing)


def _missing(
    kind: str, outputs: list[Output], files: Mapping[str, Mapping[str, int]]
) -> str | None:
    """Tell whether files or resources of one type are missing; they may have been renamed."""
    outputs = [output for output in outputs if output.expected != 0]
    named = {plain_name(output.name) for output in outputs} & files.keys()
    lost = [output for output in outputs if plain_name(output.name) not in named]
    renamed = [
        name
        for name, counts in files.items()
        if name not in named and (kind in counts if kind else counts)
    ]
    if len(lost) > len(renamed):
        return "a file that the manifest names is missing"
    if kind:
        expected = sum(output.expected or 0 for output in outputs)
        if expected > sum(counts.get(kind, 0) for counts in files.values()):
            return "the export holds fewer resources than its manifest counts"
    return None
