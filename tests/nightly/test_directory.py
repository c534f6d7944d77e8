"""Files in units: every line is read once, wherever units, chunks and files are cut."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.errors import SourceError
from service.fhir.bundles import Head
from service.nightly import directory
from service.nightly.directory import Line, Place, Reader, Run, listing, units_of


class Seen(Reader[Line]):
    """Notes all that comes by."""

    line_type = Line

    def __init__(self, root: Path) -> None:
        super().__init__(root, listing(root), frozenset())
        self.resources: list[tuple[str, int, int]] = []
        self.losses: list[tuple[str, str | None, int | None]] = []
        self.lines = 0

    def quick(self, found: Sequence[Line], run: Run) -> None:
        """Note a run."""
        assert len(found) == len(run.lines)
        assert sum(map(len, run.lines)) == run.size
        for index, each in enumerate(found):
            assert run.kind in (None, each.resource_type)
            if each.resource_type == "Bundle":
                self.any_line(run.text(index), run.line + index)
            else:
                key = json.loads(run.text(index))["id"]
                self.resources.append((key, self.unit, run.line + index))

    def resource(
        self, kind: str, head: Head | None, raw: bytes, place: Place, full_url: str | None
    ) -> None:
        """Note a resource."""
        self.resources.append((head.id or "" if head else "", self.unit, place.line))

    def lost(self, problem: str, place: Place | None, kind: str | None) -> None:
        """Note a loss."""
        self.losses.append((problem, kind, place.line if place else None))

    def lines_read(self, count: int) -> None:
        """Note lines."""
        self.lines += count

    def all(self) -> list[str]:
        """Read all units; give the ids in order."""
        for unit in units_of(self.entries):
            self.read(unit)
        return [key for key, _, _ in self.resources]


def line(key: str, size: int = 0) -> bytes:
    """Give a line of NDJSON."""
    resource = {"resourceType": "Observation", "id": key, "note": "x" * size}
    return json.dumps(resource).encode() + b"\n"


@pytest.mark.parametrize("unit", [1, 7, 60, 61, 62, 63, 64, 100, 1000, 10**6])
@pytest.mark.parametrize("chunk", [1, 16, 61, 62, 63, 500, 10**5])
def test_every_line_is_read_once_whatever_the_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int, chunk: int
) -> None:
    monkeypatch.setattr(directory, "UNIT", unit)
    monkeypatch.setattr(directory, "CHUNK", chunk)
    keys = [f"k{number}" for number in range(40)]
    raw = b"".join(line(key, number * 7 % 90) for number, key in enumerate(keys))
    (tmp_path / "a.ndjson").write_bytes(raw)
    (tmp_path / "b.ndjson").write_bytes(raw.rstrip(b"\n"))
    (tmp_path / "c.ndjson.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "d.ndjson").write_bytes(b"")
    seen = Seen(tmp_path)
    assert seen.all() == 3 * keys
    assert seen.losses == []
    assert seen.lines == 3 * len(keys)


def test_lines_of_a_stretch_are_counted_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "UNIT", 500)
    (tmp_path / "a.ndjson").write_bytes(b"".join(line(f"k{number}") for number in range(50)))
    seen = Seen(tmp_path)
    seen.all()
    units = {unit for _, unit, _ in seen.resources}
    assert len(units) > 3
    for unit in units:
        lines = [line for _, of, line in seen.resources if of == unit]
        assert lines == list(range(1, len(lines) + 1))


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b'{"resourceType":"Condition","id":"cut"', "Condition"),
        (b"not JSON at all", "Observation"),
        (b'{"id":"nothing"}', "Observation"),
        (b'["resourceType"]', "Observation"),
        (b'{"resourceType":"Observation","id":"x"} trailing', "Observation"),
        (b'{"resourceType":"Observation","id":"x"}{"resourceType":"Patient"}', "Observation"),
        (b"\x00\x01\xff", "Observation"),
        (b"[" * 5000, "Observation"),
    ],
)
def test_a_bad_line_is_lost_alone_and_its_number_is_known(
    tmp_path: Path, bad: bytes, kind: str
) -> None:
    good = [line(f"k{number}") for number in range(6)]
    lines = [*good[:3], bad + b"\n", b"\n", *good[3:]]
    (tmp_path / "Observation.ndjson").write_bytes(b"".join(lines))
    seen = Seen(tmp_path)
    assert seen.all() == [f"k{number}" for number in range(6)]
    assert [(kind_, number) for _, kind_, number in seen.losses] == [(kind, 4)]


def test_line_ends_of_windows_a_mark_and_spaces_are_no_harm(tmp_path: Path) -> None:
    raw = line("a") + b"  " + line("b") + line("c").replace(b"\n", b"\r\n") + b"\r\n \n"
    (tmp_path / "Observation.ndjson").write_bytes(b"\xef\xbb\xbf" + raw)
    seen = Seen(tmp_path)
    assert seen.all() == ["a", "b", "c"]
    assert seen.losses == []


def test_a_line_that_is_too_long_is_lost_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_LINE_LIMIT", 2000)
    monkeypatch.setattr(directory, "CHUNK", 256)
    raw = line("a") + line("b", 5000) + line("c") + line("d", 3000)
    (tmp_path / "Observation.ndjson").write_bytes(raw)
    (tmp_path / "Observation.2.ndjson.gz").write_bytes(gzip.compress(raw))
    seen = Seen(tmp_path)
    assert seen.all() == ["a", "c", "a", "c"]
    assert [number for _, _, number in seen.losses] == [2, 4, 2, 4]


def test_a_damaged_gzip_gives_what_came_before_the_damage(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(line(f"k{number}", 50) for number in range(2000)))
    (tmp_path / "Observation.ndjson.gz").write_bytes(packed[: len(packed) // 2])
    seen = Seen(tmp_path)
    keys = seen.all()
    assert keys == [f"k{number}" for number in range(len(keys))]
    assert any("gzip" in problem for problem, _, _ in seen.losses)


def test_bundles_and_single_resources_are_taken_apart(tmp_path: Path) -> None:
    entries = [{"resource": {"resourceType": "Patient", "id": key}} for key in "ab"]
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": entries}
    (tmp_path / "1.json").write_text(json.dumps(bundle, indent=2))
    (tmp_path / "2.json").write_text(json.dumps(entries[0]["resource"] | {"id": "c"}))
    (tmp_path / "3.ndjson").write_text(json.dumps(bundle) + "\n")
    (tmp_path / "4.json").write_bytes(line("d") + line("e"))
    (tmp_path / "5.json").write_text("<html>")
    seen = Seen(tmp_path)
    assert seen.all() == ["a", "b", "c", "a", "b", "d", "e"]
    assert [problem for problem, _, _ in seen.losses] == ["the file is not a FHIR resource"]


def test_a_folder_without_fhir_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden.ndjson").write_bytes(line("a"))
    with pytest.raises(SourceError):
        listing(tmp_path)
    with pytest.raises(SourceError):
        listing(tmp_path / "none")
