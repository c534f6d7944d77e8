"""The OpenAPI document of the HTTP API."""

from __future__ import annotations

from typing import Any

from service import __version__
from service.config import Settings
from service.results.study import OPERATION, SCREEN
from service.web.parameters import READ_TYPES
from service.web.state import offers_searches

Json = dict[str, Any]

_FHIR = "application/fhir+json"
_DEFINITIONS = ("ResearchStudy", "Group", "PlanDefinition", "ValueSet", "OperationDefinition")
_RESULTS = ("List", "ResearchSubject")
_ERRORS = {
    "400": "the request can't be understood",
    "401": "the caller did not show who it is",
    "403": "the caller may not do this",
    "404": "there is no such trial or patient",
    "406": "another media type is asked for than the service has",
    "410": "the results of this run were purged",
    "413": "the body is too large or nested too deep",
    "415": "the body is of another media type",
    "422": "the request names a patient that can't be evaluated",
    "429": "too many requests of one caller",
    "500": "unexpected error",
    "502": "the hospital's server refuses, fails or is no FHIR R4 server",
    "503": "too many evaluations at once, or the callers' issuer or the store can't be reached",
    "504": "the hospital's server, or the evaluation, did not end in time",
}
_READ_ERRORS = ("400", "401", "403", "404", "406", "410", "429", "500", "503")
_BULK = "^(system|patient|group/[A-Za-z0-9.-]{1,64})$"
_COHORT = "^(Group|List)/[A-Za-z0-9.-]{1,64}$"
_PROGRESS = ("X-Progress", "Retry-After")
_JOB_ERRORS = ("401", "403", "404", "406", "429", "500", "503")


def openapi(trials: list[str], settings: Settings) -> Json:
    """Write the document; ``trials`` are the ids that can be evaluated."""
    paths: Json = {
        f"/fhir/ResearchStudy/{{trial}}/${OPERATION}": {"post": _operation(trials)},
        "/fhir/metadata": {"get": _get("CapabilityStatement", "What the service offers")},
        "/healthz": {"get": _plain("Tell that the process answers", "200")},
        "/readyz": {"get": _plain("Tell whether it is ready", "200", "503")},
        "/metrics": {"get": _plain("Metrics for Prometheus", "200", media="text/plain")},
        "/openapi.json": {"get": _plain("This document", "200")},
    }
    if offers_searches(settings):
        paths[f"/fhir/ResearchStudy/{{trial}}/${SCREEN}"] = {"post": _screen(trials)}
        paths["/fhir/jobs/{job}"] = {
            "get": _poll(),
            "delete": _cancel(),
            "parameters": [_path_parameter("job")],
        }
    for kind in _DEFINITIONS:
        paths[f"/fhir/{kind}"] = {"get": _get("Bundle", f"Search {kind}", "_id")}
        paths[f"/fhir/{kind}/{{id}}"] = {"get": _get(kind, f"Read one {kind}")}
        paths[f"/fhir/{kind}/{{id}}"]["parameters"] = [_path_parameter("id")]
    paths |= _results()
    document: Json = {
        "openapi": "3.0.3",
        "info": {
            "title": "Trial eligibility",
            "version": __version__,
            "description": "Evaluates a patient's FHIR R4 record against the criteria of a trial.",
            "license": {"name": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if settings.caller_auth != "none":
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
        for path in ("/fhir/metadata", "/healthz", "/readyz", "/metrics", "/openapi.json"):
            paths[path]["get"]["security"] = []
    return document


def _results() -> Json:
    """Describe what searches found; Group itself is among the definitions too."""
    paths: Json = {
        "/fhir/List": {"get": _get("Bundle", "Search List", "_id")},
        "/fhir/ResearchSubject": {
            "get": _get(
                "Bundle", "Search the candidates", "study", "status", "patient", "individual",
                "_id", "identifier", "run", "_count",
            )
        },
    }  # fmt: skip
    for kind in ("List", "ResearchSubject"):
        paths[f"/fhir/{kind}/{{id}}"] = {
            "get": _get(kind, f"Read one {kind}"),
            "parameters": [_path_parameter("id")],
        }
    for kind in ("Group", "List"):
        paths[f"/fhir/{kind}/{{id}}/_history/{{run}}"] = {
            "get": _get(kind, f"Read a {kind} of candidates as a run left it"),
            "parameters": [_path_parameter("id"), _path_parameter("run")],
        }
    return paths


def _operation(trials: list[str]) -> Json:
    return {
        "operationId": "evaluateEligibility",
        "summary": "Evaluate a patient for a trial",
        "parameters": [_path_parameter("trial", trials)],
        "requestBody": {
            "required": True,
            "content": {_FHIR: {"schema": _ref("Parameters")}},
        },
        "responses": {
            "200": _fhir_answer("the verdict and its explanation", "GuidanceResponse"),
            **_errors(tuple(one for one in _ERRORS if one != "410")),
        },
    }


def _screen(trials: list[str]) -> Json:
    preference = {
        "name": "Prefer",
        "in": "header",
        "required": True,
        "schema": {"type": "string", "enum": ["respond-async"]},
    }
    refused = ("400", "401", "403", "404", "406", "413", "415", "429", "500", "503")
    return {
        "operationId": "screen",
        "summary": "Ask for a search for candidates of a trial",
        "parameters": [_path_parameter("trial", trials), preference],
        "requestBody": {
            "required": True,
            "content": {_FHIR: {"schema": _ref("ScreenParameters")}},
        },
        "responses": {
            "202": _accepted("the search is taken up", "Content-Location", *_PROGRESS),
            **_errors(refused),
        },
    }


def _poll() -> Json:
    return {
        "operationId": "pollSearch",
        "summary": "Ask how far a search is, or for its result",
        "responses": {
            "200": _fhir_answer("Group and List of the candidates, and the statement", "Bundle"),
            "202": _accepted("the search is not done", *_PROGRESS),
            **_errors(_JOB_ERRORS),
        },
    }


def _cancel() -> Json:
    return {
        "operationId": "cancelSearch",
        "summary": "Cancel a search, or give up its result",
        "responses": {
            "202": _accepted("the search is cancelled"),
            **_errors(_JOB_ERRORS),
        },
    }


def _accepted(text: str, *headers: str) -> Json:
    described = {name: {"schema": {"type": "string"}} for name in headers}
    return _fhir_answer(text, "OperationOutcome") | ({"headers": described} if headers else {})


def _get(kind: str, summary: str, *query: str) -> Json:
    return {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "string"}} for name in query
        ],
        "responses": {"200": _fhir_answer(kind, kind), **_errors(_READ_ERRORS)},
    }


def _plain(summary: str, *statuses: str, media: str = "application/json") -> Json:
    content = {media: {"schema": {"type": "object" if media.endswith("json") else "string"}}}
    return {
        "summary": summary,
        "responses": {
            **{status: {"description": summary, "content": content} for status in statuses},
            "500": _fhir_answer(_ERRORS["500"], "OperationOutcome"),
        },
    }


def _path_parameter(name: str, values: list[str] | None = None) -> Json:
    schema: Json = {"type": "string", "pattern": "^[A-Za-z0-9.-]{1,64}$"}
    if values:
        schema["example"] = values[0]
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _fhir_answer(text: str, kind: str) -> Json:
    return {"description": text, "content": {_FHIR: {"schema": _ref(kind)}}}


def _errors(statuses: tuple[str, ...]) -> Json:
    return {status: _fhir_answer(_ERRORS[status], "OperationOutcome") for status in statuses}


def _ref(kind: str) -> Json:
    return {"$ref": f"#/components/schemas/{kind}"}


def _resource(kind: str, **properties: Json) -> Json:
    return {
        "type": "object",
        "required": ["resourceType", *properties],
        "properties": {"resourceType": {"type": "string", "enum": [kind]}, **properties},
    }


def _schemas() -> Json:
    text = {"type": "string", "minLength": 1}
    types = {"type": "string", "enum": list(READ_TYPES)}
    reference = {
        "type": "object",
        "required": ["reference"],
        "properties": {"reference": {"type": "string", "example": "Patient/123"}},
    }
    cohort = {
        "type": "object",
        "required": ["reference"],
        "properties": {"reference": {"type": "string", "pattern": _COHORT}},
    }
    anything = {
        "type": "object",
        "required": ["resourceType"],
        "properties": {"resourceType": text},
        "additionalProperties": True,
    }
    issue = {
        "type": "object",
        "required": ["severity", "code"],
        "properties": {
            "severity": {"type": "string", "enum": ["fatal", "error", "warning", "information"]},
            "code": text,
            "diagnostics": text,
            "expression": {"type": "array", "items": text},
        },
    }
    return {
        "Parameters": {
            "type": "object",
            "required": ["resourceType", "parameter"],
            "properties": {
                "resourceType": {"type": "string", "enum": ["Parameters"]},
                "parameter": {
                    "type": "array",
                    "items": {
                        "oneOf": [
                            _named("subject", "valueReference", reference),
                            _named("asOf", "valueDate", {"type": "string", "format": "date"}),
                            _named("data", "resource", anything),
                            _named("useServerData", "valueBoolean", {"type": "boolean"}),
                            _named("completeTypes", "valueCode", types),
                        ]
                    },
                },
            },
        },
        "ScreenParameters": {
            "type": "object",
            "required": ["resourceType"],
            "properties": {
                "resourceType": {"type": "string", "enum": ["Parameters"]},
                "parameter": {
                    "type": "array",
                    "items": {
                        "oneOf": [
                            _named("asOf", "valueDate", {"type": "string", "format": "date"}),
                            _named("bulk", "valueString", {"type": "string", "pattern": _BULK}),
                            _named("cohort", "valueReference", cohort),
                            _named("fresh", "valueBoolean", {"type": "boolean"}),
                        ]
                    },
                },
            },
        },
        "GuidanceResponse": _resource(
            "GuidanceResponse",
            status={"type": "string", "enum": ["success", "data-requested", "data-required"]},
            moduleCanonical=text,
            subject={"type": "object"},
            occurrenceDateTime=text,
            outputParameters=reference,
            contained={"type": "array", "items": anything},
        ),
        "OperationOutcome": _resource(
            "OperationOutcome", issue={"type": "array", "minItems": 1, "items": issue}
        ),
        "Bundle": _resource("Bundle", type=text),
        **{kind: _resource(kind) for kind in ("CapabilityStatement", *_DEFINITIONS, *_RESULTS)},
    }


def _named(name: str, member: str, schema: Json) -> Json:
    return {
        "type": "object",
        "required": ["name", member],
        "properties": {"name": {"type": "string", "enum": [name]}, member: schema},
    }
