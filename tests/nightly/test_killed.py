"""A night cut short at any of its steps, by whatever, and taken up, ends as an undisturbed one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fhir.bulkserver import BulkServer, bulk_server
from tests.nightly.killing import KILLED, Commands, Ended, outputs, screening, wait_for
from tests.nightly.making import hospital, write_types
from tests.storage.conftest import PostgresServer

RESOURCES = list(hospital(9, 9))
KILLS = 4
SWEPT = 20
INCOMPLETE = 3
FAILED = 1


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Give what runs commands."""
    with Commands(tmp_path_factory.mktemp("commands")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an export with one bad line."""
    made = write_types(tmp_path_factory.mktemp("in") / "export", RESOURCES)
    with (made / "Observation.ndjson").open("ab") as file:
        file.write(b"cut off\n")
    return made


@pytest.fixture(scope="module")
def undisturbed(
    folder: Path, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """Give the outputs of a search that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert commands.screen(folder, output, "--workers", 2).code == INCOMPLETE
    return outputs(output)


@pytest.fixture
def server() -> Iterator[BulkServer]:
    """Run a server that exports at once."""
    with bulk_server() as running:
        running.hold(RESOURCES, each=7)
        running.pending = 0
        yield running


def killed_on(
    commands: Commands, arguments: tuple[object, ...], steps: int, seed: int, kills: int = KILLS
) -> Ended:
    """Run a command, killed at random steps, until it comes to its end."""
    chance = random.Random(seed)  # noqa: S311 - which moment, nothing secret
    killed = 0
    while killed < kills:
        step = chance.randint(1, steps)
        found = commands.run(*arguments, step=step, group=chance.random() < 0.5)
        if found.code != KILLED:
            # It was done before that step: what it has to do becomes less.
            return found
        killed += 1
    return commands.run(*arguments)


def test_a_directory_searched_and_killed_ends_the_same(
    commands: Commands, folder: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    whole = commands.screen(folder, tmp_path / "whole", "--workers", 2)
    for seed in range(2):
        output = tmp_path / f"out-{seed}"
        arguments = (*screening(folder, output), "--workers", 1 + seed % 2)
        found = killed_on(commands, arguments, whole.steps, seed)
        assert found.code == INCOMPLETE, found.said
        assert outputs(output) == undisturbed


def test_killed_while_it_writes_and_tidies_it_leaves_nothing_behind(
    commands: Commands, folder: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """Parts of files are left then, and parts of the steps that are done."""
    arguments = (*screening(folder, tmp_path / "out"), "--workers", 1)
    for name in ("verdicts.ndjson", "candidates.csv", "report.html", "run.json"):
        found = commands.run(*arguments, "--fresh", naming=f"out/{name}")
        assert found.code == KILLED, found.said
    steps = commands.screen(folder, tmp_path / "whole", "--workers", 1).steps
    for step in (steps - 40, steps - 20, steps - 3):
        assert commands.run(*arguments, "--fresh", step=step).code == KILLED
        found = commands.run(*arguments)
        assert found.code == INCOMPLETE, found.said
        assert outputs(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_search_with_a_store_killed_ends_the_same_in_the_store_too(
    commands: Commands,
    folder: Path,
    undisturbed: dict[str, object],
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    store = str(tmp_path / "store.db")
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        store = server.fresh()
    arguments = (*screening(folder, tmp_path / "out"), "--store", store, "--workers", 1)
    steps = commands.run(
        *screening(folder, tmp_path / "o"), "--store", f"{tmp_path / 's.db'}"
    ).steps
    found = killed_on(commands, arguments, steps, seed=len(kind))
    assert found.code == INCOMPLETE, found.said
    assert outputs(tmp_path / "out") == undisturbed
    again = commands.run(*arguments, "--fresh")
    assert again.code == INCOMPLETE, again.said
    assert outputs(tmp_path / "out") == undisturbed
    runs = commands.run("runs", "--store", store, "--format", "json")
    # One that is killed while it tidies has finished, and the same command begins another.
    assert runs.said.count('"status":"incomplete"') >= 2, runs.said
    different = commands.run("diff", 1, 2, "--store", store)
    assert "no differences" in different.said, different.said


def test_an_export_killed_ends_the_same(
    commands: Commands, server: BulkServer, tmp_path: Path
) -> None:
    bulk = ("--bulk", "system")
    whole = commands.screen(server.base, tmp_path / "whole", *bulk)
    assert whole.code == 0, whole.said
    for seed in range(2):
        output = tmp_path / f"out-{seed}"
        found = killed_on(
            commands, (*screening(server.base, output), *bulk), whole.steps, seed + 10
        )
        assert found.code == 0, found.said
        assert outputs(output) == outputs(tmp_path / "whole")


@pytest.mark.parametrize("largest", [100, 5_000])
@pytest.mark.parametrize("store", [True, False])
def test_a_full_disk_is_a_failure_that_the_next_try_goes_on_from(
    commands: Commands,
    folder: Path,
    undisturbed: dict[str, object],
    tmp_path: Path,
    largest: int,
    store: bool,
) -> None:
    arguments = screening(folder, tmp_path / "out")
    if store:
        arguments = (*arguments, "--store", tmp_path / "store.db")
        # A store that is there already, as on most nights.
        first = (*screening(folder, tmp_path / "first"), "--store", tmp_path / "store.db")
        assert commands.run(*first).code == INCOMPLETE
    found = commands.run(*arguments, largest=largest)
    assert found.code == FAILED, found.said
    assert "Error: " in found.said
    assert "Traceback" not in found.said
    assert not (tmp_path / "out" / "run.json").exists()
    assert commands.run(*arguments).code == INCOMPLETE
    assert outputs(tmp_path / "out") == undisturbed


def test_a_full_disk_while_files_are_fetched_is_taken_up(
    commands: Commands, server: BulkServer, tmp_path: Path
) -> None:
    server.hold(RESOURCES, each=len(RESOURCES))
    arguments = (*screening(server.base, tmp_path / "out"), "--bulk", "system")
    found = commands.run(*arguments, largest=4_000)
    assert found.code == FAILED, found.said
    assert "the export can't be written to disk" in found.said
    assert server.asked("DELETE", "/status") == []
    assert commands.run(*arguments).code == 0
    assert len(server.jobs) == 1
    commands.screen(server.base, tmp_path / "whole", "--bulk", "system")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("share", [0.7])
def test_a_database_lost_on_the_way_is_taken_up_when_it_is_back(
    commands: Commands,
    folder: Path,
    undisturbed: dict[str, object],
    tmp_path: Path,
    postgres: PostgresServer,
    share: float,
) -> None:
    store = postgres.fresh()
    arguments = (*screening(folder, tmp_path / "out"), "--workers", 1, "--store", store)
    other = (*screening(folder, tmp_path / "o"), "--workers", 1, "--store", postgres.fresh())
    wait = tmp_path / "wait"
    commands.begin(*arguments, step=int(commands.run(*other).steps * share), wait=wait)
    wait_for(tmp_path / "wait.here")
    postgres.stop("immediate")
    try:
        (tmp_path / "wait.on").touch()
        found = commands.end()
    finally:
        postgres.start()
    assert found.code == FAILED, found.said
    assert "the store failed" in found.said
    assert "Traceback" not in found.said
    found = commands.run(*arguments)
    assert found.code == INCOMPLETE, found.said
    assert outputs(tmp_path / "out") == undisturbed
    runs = commands.run("runs", "--store", store, "--format", "json")
    assert runs.said.count('"status":"incomplete"') == 1, runs.said


def test_a_second_search_on_one_store_says_so_and_leaves(
    commands: Commands,
    folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = tmp_path / "store.db"
    with Commands(tmp_path_factory.mktemp("second")) as second:
        wait = tmp_path / "wait"
        whole = second.screen(folder, tmp_path / "whole", "--store", tmp_path / "whole.db")
        arguments = (*screening(folder, tmp_path / "one"), "--store", store)
        commands.begin(*arguments, step=3 * whole.steps // 4, wait=wait)
        wait_for(wait.with_name("wait.here"))
        found = second.screen(folder, tmp_path / "two", "--store", store)
        assert found.code == FAILED, found.said
        assert "another run" in found.said
        assert not (tmp_path / "two" / "verdicts.ndjson").exists()
        wait.with_name("wait.on").touch()
    assert commands.end().code == INCOMPLETE


@pytest.mark.integration
@pytest.mark.parametrize("group", [True, False], ids=["all", "the first"])
@pytest.mark.parametrize("way", ["directory", "store", "export"])
def test_killed_at_any_of_its_steps_it_ends_the_same(
    commands: Commands, folder: Path, server: BulkServer, tmp_path: Path, way: str, group: bool
) -> None:
    source: object = server.base if way == "export" else folder

    def arguments(name: str) -> tuple[object, ...]:
        more: tuple[object, ...] = ("--workers", 1 + group)
        if way == "store":
            more = (*more, "--store", tmp_path / f"{name}.db")
        if way == "export":
            more = (*more, "--bulk", "system")
        return (*screening(source, tmp_path / name), *more)

    whole = commands.run(*arguments("whole"))
    known = outputs(tmp_path / "whole")
    # Each of them takes very long; chosen by chance over the whole search, they differ by way.
    chance = random.Random(f"{way} {group}")  # noqa: S311 - which moments, nothing secret
    for step in sorted(chance.sample(range(1, whole.steps + 1), min(SWEPT, whole.steps))):
        name = f"out-{step}"
        found = commands.run(*arguments(name), step=step, group=group)
        if found.code != KILLED:
            continue  # The steps are not quite as many in each run.
        found = commands.run(*arguments(name))
        assert found.code == whole.code, (step, found.said)
        assert outputs(tmp_path / name) == known, step
