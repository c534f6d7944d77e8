"""``eligibility worker``: runs the searches that callers and the schedule ask for."""

from __future__ import annotations

import logging.config
import signal
from types import FrameType

import click

from service.cli.options import SOURCE_SETTINGS, settings_options
from service.cli.screen import processors
from service.config import load_settings
from service.errors import UsageError
from service.jobs.runner import Worker
from service.jobs.searches import Search, load_searches
from service.nightly.after import check_wanted
from service.nightly.model import Exit
from service.storage.store import Store
from service.web.logs import logging_config
from service.wiring import build_screening

_EPILOG = """\
\b
Examples:
  eligibility worker --store nights.db --source https://fhir.hospital.example/r4
  eligibility worker --schedule --searches searches.yaml --store nights.db --source export/
  eligibility worker --once --store nights.db --source export/
\b
SIGTERM and Ctrl-C end it politely: the search that runs is taken up by the next worker. A
second signal ends it at once, from which the next worker recovers too.
\b
Exit codes: 0 told to stop; with --once as screen: 0 all complete, 3 a search is not complete,
1 one failed. 2 wrong usage.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--schedule", is_flag=True, help="Run the searches of the file of searches at their times."
)
@click.option("--once", is_flag=True, help="Run what is to be done now, then end.")
@click.option(
    "--workers",
    "processes",
    metavar="N",
    type=click.IntRange(1, 256),
    default=None,
    help="Processes that a search uses at the same time.  [one per processor]",
)
@settings_options(
    *SOURCE_SETTINGS,
    "attestations",
    "store",
    "data",
    "job_days",
    "searches",
    "canonical_base",
    "log_level",
)
def command(schedule: bool, once: bool, processes: int | None, **flags: str | None) -> None:
    """Run searches: those that callers asked the service for, and those of the schedule."""
    settings = load_settings(flags=flags)
    if settings.store is None:
        raise UsageError("say where the store is with --store FILE|URL")
    if settings.source is None:
        raise UsageError("say where the records are with --source URL|DIR|FILE")
    if schedule and settings.searches is None:
        raise UsageError("--schedule needs a file of searches: --searches FILE")
    logging.config.dictConfig(logging_config(settings.log_level))
    screening = build_screening(settings)
    zone = screening.site.zone
    searches: tuple[Search, ...] = ()
    if settings.searches is not None:
        searches = load_searches(settings.searches, zone, screening.trials)
        for search in searches:
            check_wanted(settings, search.config())
    with Store.open(settings.store) as store:
        worker = Worker(
            settings,
            store,
            searches=searches,
            zone=zone,
            processes=processes or processors(),
        )
        _on_signals(worker)
        worst = worker.run(schedule=schedule, once=once)
    if worst is not Exit.COMPLETE:
        raise click.exceptions.Exit(worst)


def _on_signals(worker: Worker) -> None:
    """Stop politely at the first signal, at once at the second."""

    def stop(number: int, frame: FrameType | None) -> None:
        worker.stop()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
