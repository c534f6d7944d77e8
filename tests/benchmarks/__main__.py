"""Runs all measures and prints them, with the project's targets that are missed."""

from __future__ import annotations

import argparse
import sys

from tests.benchmarks import evaluation, extraction, inline, memory, server


def main() -> int:
    """Run the measures; ``--brief`` takes fewer repetitions."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--brief", action="store_true", help="fewer repetitions, about a minute")
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 if a target of the project is missed"
    )
    parser.add_argument(
        "only", nargs="*", metavar="MEASURE", help="evaluation, extraction, inline, memory, server"
    )
    arguments = parser.parse_args()
    measures = {
        "evaluation": evaluation.run,
        "extraction": extraction.run,
        "inline": inline.run,
        "memory": memory.run,
        "server": server.run,
    }
    missed: list[str] = []
    for name in arguments.only or measures:
        print(f"\n{name}", flush=True)
        missed.extend(measures[name](brief=arguments.brief))
    for target in missed:
        print(f"MISSED: {target}")
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
