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

from service.fhir.source import SiteSearch
from service.terms import LocalCode
from service.yamlfile import Node, load_yaml


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital's settings; the default is a site about which nothing is known.

    ``spellings``: unit spellings to UCUM codes. ``ulns``: the laboratory's own fallback
    limits as (analyte, sex, limit, unit). ``not_offered``: resource types the hospital
    does not have on its server, with what that means: ``none-kept`` (the hospital keeps no
    such records: absence is certain) or ``unknown``.
    """

    zone: tzinfo = field(default_factory=lambda: ZoneInfo("UTC"))
    local_codes: tuple[LocalCode, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ulns: tuple[tuple[str, str, str, str], ...] = ()
    search: SiteSearch = field(default_factory=SiteSearch)


def zone_of(name: str, node: Node | None = None) -> tzinfo:
    """Find a time zone by its IANA name; raises ValueError or the node's MappingError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = f"no time zone {name!r}"
        raise (node.error(message, "time_zone") if node else ValueError(message)) from error


_MEANINGS = ("none-kept", "unknown")


def load_site(path: Path) -> Site:
    """Read a site file; raises MappingError with file and line for anything wrong in it."""
    top = load_yaml(path)
    zone = zone_of(top.text("time_zone", "UTC"), top)
    local = tuple(_local_code(entry) for entry in top.mappings("local_codes"))
    units = top.mapping("unit_spellings")
    spellings = {name: units.text(name) for name in units}
    ulns = []
    for entry in top.mappings("upper_limits"):
        number = entry.decimal("limit")
        if number is None:
            raise entry.error("limit is missing")
        ulns.append(
            (entry.text("analyte"), entry.text("sex", "any"), str(number), entry.text("unit"))
        )
        entry.done()
    offered = top.mapping("not_offered")
    not_offered = {}
    for kind in offered:
        meaning = offered.text(kind)
        if meaning not in _MEANINGS:
            raise offered.error(f"must be one of {', '.join(_MEANINGS)}", kind)
        not_offered[kind] = meaning
    site = Site(zone, local, spellings, tuple(ulns), _search(top, not_offered))
    top.done()
    return site


def _local_code(entry: Node) -> LocalCode:
    standard = entry.mapping("standard")
    to = (standard.text("system"), standard.text("code")) if "standard" in entry else None
    name = entry.text("set", "") or None
    if to is None and name is None:
        raise entry.error("a local code needs `standard` (system and code) or `set`")
    local = LocalCode(entry.text("system"), entry.text("code"), to, name)
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
        codes_per_search=node.whole("codes_per_search", 40) or 40,
        page_size=node.whole("page_size", 200) or 200,
        results_in_components=node.flag("results_in_components", True),
    )
    node.done()
    return search
