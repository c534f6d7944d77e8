"""What the service evaluates, as FHIR resources: studies, criteria, code sets, itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from service.errors import RequestError
from service.results.study import (
    OPERATION,
    SCREEN,
    capability_statement,
    group,
    operation_definition,
    plan_definition,
    research_study,
    screen_definition,
    searchset,
    value_set,
)
from service.web.negotiation import answer, check_accept
from service.web.state import State, base_url, offers_searches, state

blueprint = Blueprint("definitions", __name__, url_prefix="/fhir")

Json = dict[str, Any]


def _studies(current: State) -> Iterator[tuple[str, Callable[[], Json]]]:
    for trial in current.screening.trials.values():
        yield trial.id, partial(research_study, trial)


def _groups(current: State) -> Iterator[tuple[str, Callable[[], Json]]]:
    base = current.settings.canonical_base
    for trial in current.screening.trials.values():
        yield trial.id, partial(group, trial, base)


def _plans(current: State) -> Iterator[tuple[str, Callable[[], Json]]]:
    base = current.settings.canonical_base
    for trial in current.screening.trials.values():
        yield trial.id, partial(plan_definition, trial, base)


def _value_sets(current: State) -> Iterator[tuple[str, Callable[[], Json]]]:
    base = current.settings.canonical_base
    for code_set in current.screening.terms.sets.values():
        yield code_set.name, partial(value_set, code_set, base)


def _operations(current: State) -> Iterator[tuple[str, Callable[[], Json]]]:
    yield OPERATION, partial(operation_definition, current.settings.canonical_base)
    if offers_searches(current.settings):
        yield SCREEN, partial(screen_definition, current.settings.canonical_base)


_OFFERED: Mapping[str, Callable[[State], Iterator[tuple[str, Callable[[], Json]]]]] = {
    "ResearchStudy": _studies,
    "Group": _groups,
    "PlanDefinition": _plans,
    "ValueSet": _value_sets,
    "OperationDefinition": _operations,
}


@blueprint.get("/metadata")
def metadata() -> Response:
    """Tell what the service offers; open to everyone."""
    check_accept()
    settings = state().settings
    secured = settings.caller_auth != "none"
    searches = offers_searches(settings)
    return answer(
        capability_statement(
            settings.canonical_base, base_url(), secured=secured, searches=searches
        )
    )


@blueprint.get(f"/<any({','.join(_OFFERED)}):kind>")
def search(kind: str) -> Response:
    """Search the resources of a type by id, identifier or canonical URL."""
    current = state()
    resources = matching(kind)
    if kind == "ValueSet" and len(resources) > 1:
        # The whole of all code sets is rarely wanted; each can be read by its id.
        base = current.settings.canonical_base
        sets = current.screening.terms.sets
        resources = [value_set(sets[one["id"]], base, summary=True) for one in resources]
    used = {name: request.args[name] for name in _SEARCHES if name in request.args}
    self_url = f"{base_url()}/{kind}" + (f"?{urlencode(used)}" if used else "")
    return answer(searchset(resources, self_url, base_url()))


def matching(kind: str) -> list[Json]:
    """List the resources of a type that the request's parameters select."""
    found = (make() for name, make in _OFFERED[kind](state()) if _wanted_id(name))
    return [resource for resource in found if _matches(resource)]


@blueprint.get(f"/<any({','.join(_OFFERED)}):kind>/<name>")
def read(kind: str, name: str) -> Response:
    """Read one resource."""
    for found, make in _OFFERED[kind](state()):
        if found == name:
            return answer(make())
    raise RequestError(f"there is no such {kind}", status=404, code="not-found")


_SEARCHES = ("_id", "identifier", "url")


def _wanted_id(name: str) -> bool:
    wanted = request.args.get("_id")
    return wanted is None or name in wanted.split(",")


def _matches(resource: Json) -> bool:
    identifier = request.args.get("identifier")
    if identifier is not None and "identifier" in resource:
        value = identifier.rpartition("|")[2]
        if all(entry.get("value") != value for entry in resource["identifier"]):
            return False
    url = request.args.get("url")
    return url is None or "url" not in resource or resource["url"] == url
