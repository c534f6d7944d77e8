"""Progress of long work: a bar on the error stream, and only where a person looks at it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import click

_T = TypeVar("_T")


def tracked(items: Sequence[_T], label: str) -> Iterator[_T]:
    """Go through items, drawing a bar if the error stream is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    bar: Iterable[_T]
    with click.progressbar(items, label=label, file=sys.stderr) as bar:
        yield from bar
