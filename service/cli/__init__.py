"""The command line: assembles the subcommands, one short file each.

Exit codes: 0 all done; 1 something could not be done, or a check found something; 2 wrong
usage or configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

from service import __version__
from service.errors import EligibilityError

_COMMANDS: Mapping[str, str] = {
    "evaluate": "Evaluate patients for a trial.",
    "screen": "Search many patients for candidates.",
    "runs": "List the runs of a store.",
    "diff": "Tell what is different between two runs.",
    "candidates": "List the candidates of a run.",
    "replay": "Give a stored verdict again, with the versions then used.",
    "publish": "Write a run's candidates to the FHIR server they were found on.",
    "digest": "Send what changed by mail or webhook.",
    "purge": "Remove patients' data of old runs.",
    "serve": "Serve the HTTP API.",
    "worker": "Run the searches that callers and the schedule ask for.",
    "demo": "Try the service on the shipped, invented patients.",
    "explain": "Print what a trial's criteria look for, in words.",
    "check": "Check the mapping files.",
    "coverage": "Tell how well a source's codes, units and ranges are mapped.",
    "load": "Put the shipped patients on a FHIR server.",
}


class Failed(click.ClickException):
    """Something could not be done: a message and exit code 1."""


class Misused(click.ClickException):
    """Wrong usage or configuration: a message and exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Imports a subcommand only when it runs, so that help and completion answer at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the subcommands in the order of the help text."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand by its name."""
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"service.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run a subcommand; an error of the service becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except EligibilityError as error:
            kind = Misused if error.exit_code == Misused.exit_code else Failed
            raise kind(error.message) from error


_EPILOG = """\
\b
Try it without any server:
  eligibility demo
\b
Shell completion (bash; zsh and fish likewise):
  eval "$(_ELIGIBILITY_COMPLETE=bash_source eligibility)"
\b
Exit codes: 0 done, 1 something could not be done, 2 wrong usage.
"""


@click.command(
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="eligibility")
def main() -> None:
    """Evaluate patients' FHIR R4 records against the criteria of a clinical trial.

    A criterion fails only if the record proves it, passes only if the record supports it,
    and is unknown otherwise; the result says what would settle it.
    """
