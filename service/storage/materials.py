"""The files that verdicts rest on, kept with a run so that it can be replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from service.errors import ConfigurationError

SITE = "site"
ATTESTATIONS = "attestations"
MAPPINGS = "mappings/"
# What the loaders of trials and terms read.
_PATTERNS = ("*.yaml", "*.csv", "codes/*.csv", "trials/*.yaml")
_NOT_READ = ("site.example.yaml",)


def materials_of(
    mappings: Path, site: Path | None = None, attestations: Path | None = None
) -> dict[str, bytes]:
    """Read the files that verdicts rest on, by name; raises ConfigurationError."""
    files = {
        MAPPINGS + path.relative_to(mappings).as_posix(): path
        for pattern in _PATTERNS
        for path in sorted(mappings.glob(pattern))
        if path.name not in _NOT_READ
    }
    files |= {SITE: site} if site else {}
    files |= {ATTESTATIONS: attestations} if attestations else {}
    try:
        return {name: path.read_bytes() for name, path in files.items()}
    except OSError as error:
        raise ConfigurationError(f"a mapping file can't be read ({error.strerror})") from error


def digest_of(materials: Mapping[str, bytes]) -> str:
    """Give one digest of files by name and content, to be shown as their version."""
    digest = hashlib.sha256()
    for name, body in sorted(materials.items()):
        digest.update(f"{hashlib.sha256(body).hexdigest()}  {name}\n".encode())
    return f"sha256:{digest.hexdigest()[:16]}"
