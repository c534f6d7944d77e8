"""What differs between hospitals: read from the site file, once, at start.

The shipped ``mappings/site.example.yaml`` shows and explains every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from types import MappingProxyType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from service.fhir.record import CLINICAL_TYPES
from service.fhir.source import SiteSearch
from service.terms import LocalCode, SiteLimit
from service.yamlfile import Node, load_yaml


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital's settings; the default is a site about which nothing is known.

    ``spellings``: unit spellings to UCUM codes. ``ulns``: the laboratory's own fallback
    limits. ``not_offered``: resource types the hospital
    does not have on its server, with what that means: ``none-kept`` (the hospital keeps no
    such records: absence is certain) or ``unknown``.
    """

    zone: tzinfo = field(default_factory=lambda: ZoneInfo("UTC"))
    local_codes: tuple[LocalCode, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ulns: tuple[SiteLimit, ...] = ()
    search: SiteSearch = field(default_factory=SiteSearch)


def zone_of(name: str, node: Node | None = None) -> tzinfo:
    """Find a time zone by its IANA name; raises ValueError or the node's MappingError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = f"no time zone {name!r}"
        raise (node.error(message, "time_zone") if node else ValueError(message)) from error


# Without an age a limit is an adult's: children's limits are lower (semantics 1.4).
_ADULT = 18
_MEANINGS = ("none-kept", "unknown")


def load_site(path: Path) -> Site:
    """Read a site file; raises MappingError with file and line for anything wrong in it."""
    top = load_yaml(path)
    zone = zone_of(top.text("time_zone", "UTC"), top)
    local = tuple(_local_code(entry) for entry in top.mappings("local_codes"))
    units = top.mapping("unit_spellings")
    spellings = {name: units.text(name) for name in units}
    ulns = _upper_limits(top)
    offered = top.mapping("not_offered")
    not_offered = {}
    for kind in offered:
        meaning = offered.text(kind)
        if kind not in CLINICAL_TYPES:
            raise offered.error(f"{kind} is no type that records are read from", kind)
        if meaning not in _MEANINGS:
            raise offered.error(f"must be one of {', '.join(_MEANINGS)}", kind)
        not_offered[kind] = meaning
    site = Site(zone, local, spellings, ulns, _search(top, not_offered))
    top.done()
    return site


def _upper_limits(top: Node) -> tuple[SiteLimit, ...]:
    """Read the laboratory's own limits: a positive number each, one per analyte, sex and age."""
    limits: list[SiteLimit] = []
    for entry in top.mappings("upper_limits"):
        number = entry.decimal("limit")
        if number is None:
            raise entry.error("limit is missing")
        if number <= 0:
            raise entry.error("limit must be a number above 0", "limit")
        low, high = entry.whole("age_from"), entry.whole("age_to")
        if low is not None and high is not None and low > high:
            raise entry.error("no age is at least age_from and at most age_to", "age_from")
        sex = entry.text("sex", "any")
        if sex not in ("male", "female", "any"):
            raise entry.error("sex must be male, female or any", "sex")
        limit = SiteLimit(
            entry.text("analyte"),
            sex,
            str(number),
            entry.text("unit"),
            low if low is not None else _ADULT,
            high,
            top.file,
            entry.start,
        )
        if any(_overlap(limit, other) for other in limits):
            raise entry.error(f"a second limit of {limit.analyte} for the same sex and age")
        limits.append(limit)
        entry.done()
    return tuple(limits)


def _overlap(one: SiteLimit, other: SiteLimit) -> bool:
    if one.analyte != other.analyte or one.sex != other.sex:
        return False
    first, second = sorted((one, other), key=lambda limit: limit.age_from)
    return first.age_to is None or first.age_to >= second.age_from


def _local_code(entry: Node) -> LocalCode:
    standard = entry.mapping("standard")
    to = (standard.text("system"), standard.text("code")) if "standard" in entry else None
    name = entry.text("set", "") or None
    if to is None and name is None:
        raise entry.error("a local code needs `standard` (system and code) or `set`")
    local = LocalCode(entry.text("system"), entry.text("code"), to, name, entry.file, entry.start)
    entry.raw("note")
    entry.done()
    return local


def _search(top: Node, not_offered: Mapping[str, str]) -> SiteSearch:
    node = top.mapping("search")
    categories = node.mapping("category_required")
    extra = node.mapping("extra_parameters")
    post = node.flag("use_post") if "use_post" in node else None
    search = SiteSearch(
        harmless_outcomes=frozenset(top.texts("harmless_outcomes")),
        not_offered=not_offered,
        category_required={kind: categories.texts(kind) for kind in categories},
        use_post=post,
        extra_parameters={
            kind: {name: extra.mapping(kind).text(name) for name in extra.mapping(kind)}
            for kind in extra
        },
        codes_per_search=_positive(node, "codes_per_search", 40),
        page_size=_positive(node, "page_size", 200),
        results_in_components=node.flag("results_in_components", True),
    )
    node.done()
    return search


def _positive(node: Node, key: str, default: int) -> int:
    value = node.whole(key, default)
    if value is None or value < 1:
        raise node.error(f"{key} must be 1 or more", key)
    return value
