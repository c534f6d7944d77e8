"""Flags that several subcommands share; those of settings come from the table of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from service.config import SETTINGS, Setting
from service.errors import ConfigurationError
from service.wiring import data_dir

_F = TypeVar("_F", bound=Callable[..., Any])

# What reading a source needs; `serve` takes all settings.
SOURCE_SETTINGS: tuple[str, ...] = (
    "source",
    "site",
    "mappings",
    *(setting.field for setting in SETTINGS if setting.field.startswith("source_")),
)

# What fetching an export needs.
BULK_SETTINGS: tuple[str, ...] = tuple(
    setting.field for setting in SETTINGS if setting.field.startswith("bulk_")
)


def settings_options(*names: str) -> Callable[[_F], _F]:
    """Add a flag per setting; a flag that isn't given leaves the environment in force."""
    table = {setting.field: setting for setting in SETTINGS}

    def add(function: _F) -> _F:
        for name in reversed(names):
            function = _option(table[name])(function)
        return function

    return add


def _option(setting: Setting) -> Callable[[_F], _F]:
    meaning = setting.meaning
    if setting.secret:
        meaning += "; others on this machine can see flags, so rather use the variable or a file"
    default = setting.default_text()
    shown = f"[{setting.variable}; {default}]" if default else f"[{setting.variable}]"
    return click.option(
        setting.flag,
        setting.field,
        metavar=_metavar(setting),
        type=_SettingType(setting),
        help=f"{meaning[0].upper()}{meaning[1:]}.  {shown}",
    )


def _metavar(setting: Setting) -> str:
    if setting.field == "source":
        return "URL|DIR|FILE"
    if setting.field.endswith("_file") or setting.field in ("site", "searches"):
        return "FILE"
    return setting.field.rsplit("_", 1)[-1].upper()


class _SettingType(click.ParamType[str]):
    """Leaves the reading of a value to the settings; completes files' names."""

    name = "text"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete names of files and folders."""
        if self._setting.field in ("source", "mappings"):
            return [CompletionItem(incomplete, type="file")]
        if _metavar(self._setting) == "FILE":
            return [CompletionItem(incomplete, type="file")]
        return []


def complete_trial(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the ids of the shipped trials."""
    try:
        folder = data_dir() / "mappings" / "trials"
        found = sorted(path.stem for path in folder.glob("*.yaml"))
    except (ConfigurationError, OSError):
        return []
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


trial_argument = click.argument("trial", metavar="TRIAL", shell_complete=complete_trial)
