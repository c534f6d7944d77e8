"""Serves the application with gunicorn."""

from __future__ import annotations

import gc
import logging.config
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from service.config import Settings
from service.errors import EligibilityError
from service.web import create_app
from service.web.logs import logging_config

_GRACE_SECONDS = 30
_MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
_MEMORY = Path("/dev/shm")  # noqa: S108 - gunicorn's own heartbeat files, made safely


_COLLECT_AFTER = 50_000


class _Server(BaseApplication):
    """Hands gunicorn an application and options that are ready."""

    def __init__(self, app: Flask, options: dict[str, Any]) -> None:
        self._app = app
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options."""
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Give the application."""
        return self._app


class _Logger(Logger):
    """Writes no access log: its lines hold paths and queries, which name patients.

    With a configuration of logging gunicorn always writes it; no option turns it off.
    """

    def access(self, resp: object, req: object, environ: object, request_time: object) -> None:
        """Leave the request to the application, which logs it by its route."""


def serve(settings: Settings) -> None:
    """Serve until told to stop.

    The application is built before gunicorn forks: a wrong setting or mapping stops the
    start, and the processes share the tables. Raises ConfigurationError, MappingError.
    """
    logging.config.dictConfig(logging_config(settings.log_level))
    # The metrics of several processes meet in files; their library looks when imported.
    folder = tempfile.mkdtemp(prefix="eligibility-metrics-")
    os.environ[_MULTIPROC] = folder
    try:
        app = create_app(settings)
    except EligibilityError:
        os.environ.pop(_MULTIPROC, None)
        shutil.rmtree(folder, ignore_errors=True)
        raise

    settle_memory()

    def tidy(server: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    # Only gunicorn's first process calls on_exit; the others leave the folder alone.
    _Server(app, options(settings) | {"on_exit": tidy}).run()


def settle_memory() -> None:
    """Spare the collector what it need not look at, once everything is loaded.

    What stays for good is frozen: no collection visits it and no fork copies it. A request
    makes thousands of objects that reference counting frees; collecting more rarely
    finds the few cycles all the same.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


def options(settings: Settings) -> dict[str, Any]:
    """Give gunicorn's options."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {
        "bind": f"{host}:{settings.port}",
        "workers": settings.workers,
        "threads": settings.threads,
        "worker_class": "gthread",
        "preload_app": True,
        # A request ends by its own limit long before; this is for a process that hangs.
        "timeout": settings.time_limit + _GRACE_SECONDS,
        "graceful_timeout": _GRACE_SECONDS,
        "keepalive": 5,
        "errorlog": "-",
        "logger_class": _Logger,
        "logconfig_dict": logging_config(settings.log_level),
        "worker_tmp_dir": str(_MEMORY) if os.access(_MEMORY, os.W_OK) else None,
        "control_socket_disable": True,
        "child_exit": _forget,
    }


def _forget(server: object, worker: Worker) -> None:
    """Take a process that ended out of the gauges."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
