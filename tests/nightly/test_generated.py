"""The exports that speed is measured with: the same from the same seed, searched completely."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.generate import generate, size_of
from tests.nightly.making import one_by_one, search, verdicts


def files_of(folder: Path) -> dict[str, bytes]:
    """Read all files."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("scattered", [False, True])
def test_a_generated_export_is_the_same_again_and_searched_completely(
    tmp_path: Path, scattered: bool
) -> None:
    made = generate(tmp_path / "in", 700_000, scattered=scattered)
    generate(tmp_path / "again", 700_000, scattered=scattered)
    generate(tmp_path / "other", 700_000, seed=2, scattered=scattered)
    assert files_of(tmp_path / "in") == files_of(tmp_path / "again")
    assert files_of(tmp_path / "in") != files_of(tmp_path / "other")
    assert made.size == sum(map(len, files_of(tmp_path / "in").values()))
    assert 500_000 < made.size < 1_500_000
    statement = search(tmp_path / "in", tmp_path / "out")
    assert statement.complete
    assert statement.patients_seen == made.patients
    assert statement.types["Observation"].bytes / statement.types["Observation"].lines > 1_200
    assert verdicts(tmp_path / "out") == one_by_one(tmp_path / "in")
    assert 1 <= len(verdicts(tmp_path / "out")) <= made.ill


def test_sizes_are_read_with_their_unit() -> None:
    assert [size_of(text) for text in ("5", "3kB", "1.5MB", "2GB")] == [
        5,
        3_000,
        1_500_000,
        2_000_000_000,
    ]
