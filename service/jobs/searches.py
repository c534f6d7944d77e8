"""The file of searches that are run at their times, read and checked once.

``docs/worker.md`` shows and explains every key.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cronsim import CronSim, CronSimError

from service.config import Settings
from service.errors import ConfigurationError
from service.nightly.after import read_wanted
from service.site import zone_of
from service.yamlfile import Node, load_yaml

__all__ = ["Search", "check_bulk", "check_cohort", "load_searches"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID = r"[A-Za-z0-9.-]{1,64}"
_BULK = re.compile(rf"system|patient|group/{_ID}")
_COHORT = re.compile(rf"(Group|List)/{_ID}")
_FIELDS = 5
_AFTER = ("publish", "digest")


@dataclass(frozen=True, slots=True)
class Search:
    """A search and its times.

    ``at``: a cron expression of five fields, in the time of ``zone``. ``after``: the
    mappings ``publish`` and ``digest`` as plain data, for what follows a search.
    """

    name: str
    trials: tuple[str, ...]
    at: str
    zone: tzinfo
    output: Path
    bulk: str | None = None
    cohort: str | None = None
    fresh: bool = False
    after: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def config(self) -> dict[str, Any]:
        """Give the search's entry as plain data, for what follows a search."""
        return {"name": self.name, "trials": list(self.trials), **self.after}


def check_bulk(text: str) -> bool:
    """Tell whether a text names what a Bulk Data export is of."""
    return _BULK.fullmatch(text) is not None


def check_cohort(text: str) -> bool:
    """Tell whether a text names a Group or List of the source."""
    return _COHORT.fullmatch(text) is not None


def load_searches(
    path: Path, zone: tzinfo, trials: Collection[str] | None = None
) -> tuple[Search, ...]:
    """Read the file of searches; raises MappingError with file and line.

    ``zone`` is the site's, for searches that name none; ``trials`` are those that there are,
    None: any.
    """
    top = load_yaml(path)
    found: list[Search] = []
    for node in top.mappings("searches"):
        search = _search(node, zone, path.parent)
        for other in found:
            if other.name == search.name:
                raise node.error(f"a second search is called {search.name}", "name")
            if other.output.absolute() == search.output.absolute():
                raise node.error(f"{other.name} writes to the same folder", "output")
        if trials is not None:
            for trial in search.trials:
                if trial not in trials:
                    raise node.error(f"there is no trial {trial[:64]}", "trials")
        found.append(search)
    if not found:
        raise top.error("the file holds no searches", "searches")
    top.done()
    return tuple(found)


def _search(node: Node, zone: tzinfo, folder: Path) -> Search:
    name = node.text("name")
    if not _NAME.fullmatch(name):
        raise node.error("name must be letters, digits, dots, hyphens and underscores", "name")
    trials = node.texts("trials")
    if not trials or len(set(trials)) < len(trials):
        raise node.error("trials must name one or more trials, each once", "trials")
    own = zone_named(node) if "zone" in node else zone
    bulk = node.text("bulk", "") or None
    cohort = node.text("cohort", "") or None
    if bulk and cohort:
        raise node.error("give bulk or cohort, not both", "cohort")
    if bulk and not check_bulk(bulk):
        raise node.error("bulk must be system, patient or group/ID", "bulk")
    if cohort and not check_cohort(cohort):
        file = folder / cohort
        if not file.is_file():
            raise node.error("cohort must be Group/ID, List/ID or a file", "cohort")
        cohort = str(file)
    search = Search(
        name=name,
        trials=trials,
        at=_at(node, own),
        zone=own,
        # As all paths of this file, from where the file is.
        output=folder / node.text("output"),
        bulk=bulk,
        cohort=cohort,
        fresh=node.flag("fresh"),
        after=MappingProxyType({key: _after(node, key) for key in _AFTER if key in node}),
    )
    node.done()
    return search


def _after(node: Node, key: str) -> Any:
    """Read what follows a search; raises MappingError for what could not be meant."""
    found = node.mapping(key).content
    try:
        read_wanted(Settings(), {key: found})
    except ConfigurationError as error:
        raise node.error(error.message, key) from error
    return found


def zone_named(node: Node) -> tzinfo:
    """Read a time zone by its IANA name; raises MappingError."""
    try:
        return zone_of(node.text("zone"))
    except ValueError as error:
        raise node.error(str(error), "zone") from error


def _at(node: Node, zone: tzinfo) -> str:
    text = node.text("at")
    if len(text.split()) != _FIELDS:
        raise node.error(
            "at must be a cron expression of five fields: minute hour day month weekday", "at"
        )
    try:
        next(CronSim(text, datetime.now(UTC).astimezone(zone)))
    except CronSimError as error:
        raise node.error(f"at is no cron expression: {str(error).lower()}", "at") from error
    except StopIteration:
        raise node.error("at names a time that never comes", "at") from None
    return text


def search_named(searches: Collection[Search], name: str) -> Search:
    """Find a search by its name; raises ConfigurationError."""
    for search in searches:
        if search.name == name:
            return search
    raise ConfigurationError(f"no search is called {name}")
