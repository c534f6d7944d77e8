"""Progress of long work: a line on the error stream, and only where a person looks at it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

import click

_T = TypeVar("_T")
_CLEAR = "\r\x1b[K"


def tracked(items: Sequence[_T], label: str) -> Iterator[_T]:
    """Go through items, counting on one line if the error stream is a terminal."""
    try:
        for number, item in enumerate(items, 1):
            if sys.stderr.isatty():
                click.echo(f"{_CLEAR}{label} {number} of {len(items)}", nl=False, err=True)
            yield item
    finally:
        clear_line()


def clear_line() -> None:
    """Take the line of progress away, so that a result or message stands alone."""
    if sys.stderr.isatty():
        click.echo(_CLEAR, nl=False, err=True)
