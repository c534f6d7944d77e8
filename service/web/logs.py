"""Structured logs: a JSON object per line, without patients' data.

A request is logged by its route, never by its URL; an error by its type and place, never by
its text, which might quote a record.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger("eligibility")
_PACKAGE = Path(__file__).resolve().parent.parent.parent
# gunicorn's messages on a request hold its URL or what was wrong in it.
_WITH_REQUEST = ("Error handling request", "Invalid request", "Ignoring")


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record; fields come from ``extra={"fields": {...}}``."""
        message = record.getMessage()
        begun = (start for start in _WITH_REQUEST if message.startswith(start))
        text = next(begun, message)
        written: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": text,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            written |= fields
        if record.exc_info and record.exc_info[1] is not None:
            written |= error_fields(record.exc_info[1])
        return json.dumps(written, ensure_ascii=True, default=str)


def error_fields(error: BaseException) -> dict[str, Any]:
    """Describe an error by type and place only: its text might hold a patient's data."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "trace": [f"{_shown(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _shown(filename: str) -> str:
    path = Path(filename)
    if path.is_relative_to(_PACKAGE):
        return path.relative_to(_PACKAGE).as_posix()
    return "/".join(path.parts[-2:])


def logging_config(level: str) -> dict[str, Any]:
    """Give the configuration of logging for this process and for gunicorn.

    gunicorn's access log is off: it would write paths and queries, which name patients. The
    application logs each request itself, by its route. For the same reason gunicorn's own
    debugging, which names each path, stays off at every level.
    """
    handled = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "json",
            }
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "eligibility": handled,
            "gunicorn.error": handled | ({"level": "INFO"} if level.upper() == "DEBUG" else {}),
            "gunicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }
