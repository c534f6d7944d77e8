"""The baseline: everything is parsed with fhir.resources (pydantic models of R4B)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fhir.resources.R4B import get_fhir_model_class


def parse_bundle(text: str) -> object:
    """Parse a Bundle with all its resources."""
    return get_fhir_model_class("Bundle").model_validate_json(text)


def parse_lines(lines: Iterable[bytes]) -> int:
    """Parse NDJSON line by line; give the bytes parsed."""
    size = 0
    for line in lines:
        kind: str = json.loads(line)["resourceType"]
        get_fhir_model_class(kind).model_validate_json(line)
        size += len(line)
    return size


def sample(folder: Path, limit: int) -> list[bytes]:
    """Take lines of each file of an export, in proportion, about so many bytes in all."""
    total = sum(path.stat().st_size for path in folder.iterdir())
    lines: list[bytes] = []
    for path in sorted(folder.iterdir()):
        share = max(2_000, limit * path.stat().st_size // total)
        with path.open("rb") as file:
            while share > 0 and (line := file.readline()):
                lines.append(line)
                share -= len(line)
    return lines


def of_json(resource: dict[str, Any]) -> str:
    """Write a resource as compact JSON."""
    return json.dumps(resource, separators=(",", ":"))
