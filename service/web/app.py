"""Assembles Flask's application from blueprints, a file each."""

from __future__ import annotations

import time
import uuid
from http import HTTPStatus

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from service.config import Settings
from service.errors import EligibilityError, Overloaded
from service.fhir.source import Source
from service.results.outcome import issue, of_error, operation_outcome
from service.screening import Screening
from service.web import definitions, health, operation, results, screen
from service.web.callers import NotAuthenticated, build_callers
from service.web.logs import LOGGER, error_fields
from service.web.negotiation import answer, check_accept
from service.web.state import REQUEST_ID, build_state, state
from service.wiring import build_screening, build_source

_STATUS_CODES = {
    400: "invalid", 404: "not-found", 405: "not-supported", 408: "timeout", 413: "too-costly",
    414: "too-long", 415: "not-supported", 431: "too-long",
}  # fmt: skip
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def build_app(settings: Settings, screening: Screening | None, source: Source | None) -> Flask:
    """Make the application; raises ConfigurationError or MappingError."""
    callers = build_callers(settings)
    screening = screening or build_screening(settings)
    source = source or build_source(settings, screening.site)
    app = Flask(__name__, static_folder=None)
    app.extensions["eligibility"] = build_state(settings, screening, source, callers)
    # Werkzeug refuses a larger body, with or without Content-Length.
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.register_blueprint(operation.blueprint)
    app.register_blueprint(screen.blueprint)
    name, shelf = results.put_up(settings)
    app.extensions[name] = shelf
    app.register_blueprint(definitions.blueprint)
    app.register_blueprint(results.blueprint)
    app.register_blueprint(health.blueprint)
    app.before_request(_begin)
    app.after_request(_end)
    app.register_error_handler(EligibilityError, _refused)
    app.register_error_handler(HTTPException, _not_served)
    app.register_error_handler(Exception, _broken)
    if settings.trusted_proxies:
        count = settings.trusted_proxies
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=count, x_proto=count, x_host=count
        )
    return app


def _begin() -> None:
    """Name the request, find out who calls, and hold callers to their rate."""
    g.started = time.perf_counter()
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
    if request.endpoint in health.OPEN:
        return
    current = state()
    address = f"address {request.remote_addr}"
    try:
        scope = current.settings.screen_scope if request.blueprint == "screen" else None
        g.caller = current.callers.identify(request.headers.get("Authorization"), scope)
    except NotAuthenticated:
        # Guessing is slowed down too.
        current.rate.take(address)
        raise
    current.rate.take(address if g.caller is None else f"caller {g.caller}")
    check_accept()


def _end(response: Response) -> Response:
    """Add what every answer carries, and log and count the request."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    if request.is_secure:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    request_id = g.get("request_id", "")
    response.headers["X-Request-Id"] = request_id
    seconds = time.perf_counter() - g.get("started", time.perf_counter())
    route = request.url_rule.rule if request.url_rule else "(none)"
    current = state()
    current.metrics.requests.labels(route, request.method, str(response.status_code)).inc()
    current.metrics.seconds.labels(route).observe(seconds)
    if request.endpoint not in health.QUIET:
        fields = {
            "request": request_id,
            "method": request.method,
            "route": route,
            "status": response.status_code,
            "ms": round(seconds * 1000, 1),
            "caller": g.get("caller"),
        }
        LOGGER.info("request", extra={"fields": fields})
    return response


def _refused(error: EligibilityError) -> Response:
    """Answer with the error's own status and OperationOutcome."""
    response = answer(of_error(error), error.status)
    if isinstance(error, Overloaded):
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="eligibility"'
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        fields = {"request": g.get("request_id"), "status": error.status}
        LOGGER.warning(type(error).__name__, extra={"fields": fields})
    return response


def _not_served(error: HTTPException) -> Response:
    """Answer what Flask itself refuses: unknown paths, methods, bodies too large."""
    status = error.code or 500
    text = HTTPStatus(status).phrase
    response = answer(
        operation_outcome(issue("error", _STATUS_CODES.get(status, "processing"), text)), status
    )
    for name, value in error.get_headers():
        if name in ("Allow", "Location", "Retry-After"):
            response.headers[name] = value
    return response


def _broken(error: Exception) -> Response:
    """Answer a fault of ours without a word of what was in the request."""
    fields = {"request": g.get("request_id"), **error_fields(error)}
    LOGGER.error("unexpected error", extra={"fields": fields})
    text = f"unexpected error; request {g.get('request_id')}"
    return answer(operation_outcome(issue("fatal", "exception", text)), 500)
