"""Runs all measures and prints them, with the project's targets that are missed."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

from tests.benchmarks import nightly

# Modules of this package, each with ``run(brief=...)``, which gives the targets missed.
MEASURES = (
    "evaluation",
    "extraction",
    "inline",
    "memory",
    "server",
    "nightly",
    "livesearch",
    "incremental",
)


def main() -> int:
    """Run the measures; ``--brief`` takes fewer repetitions."""
    here = [name for name in MEASURES if importlib.util.find_spec(f"tests.benchmarks.{name}")]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--brief", action="store_true", help="fewer repetitions, about a minute")
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 if a target of the project is missed"
    )
    parser.add_argument("only", nargs="*", metavar="MEASURE", help=", ".join(here))
    search = parser.add_argument_group("nightly", "what the nightly search is measured with")
    search.add_argument("--size", metavar="300MB", help="of the export  [1GB, 60MB if brief]")
    search.add_argument("--source", type=Path, metavar="DIR", help="an export that is there")
    search.add_argument(
        "--scattered", action="store_true", help="each patient's results in all files"
    )
    search.add_argument("--rounds", type=int, metavar="N", help="repetitions  [5, 1 if brief]")
    search.add_argument("--memory-only", action="store_true", help="measure memory, no rates")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - set(here)
    if unknown:
        parser.error(f"there is no measure {', '.join(sorted(unknown))}")
    options = nightly.Options(
        arguments.size,
        arguments.source,
        arguments.scattered,
        arguments.rounds,
        memory_only=arguments.memory_only,
    )
    missed: list[str] = []
    for name in arguments.only or here:
        print(f"\n{name}", flush=True)
        if name == "nightly":
            missed.extend(nightly.run(brief=arguments.brief, options=options))
        else:
            module = importlib.import_module(f"tests.benchmarks.{name}")
            missed.extend(module.run(brief=arguments.brief))
    for target in missed:
        print(f"MISSED: {target}")
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
