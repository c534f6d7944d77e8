"""The direction of imports: values, terms, fhir, facts, criteria, results, then web and cli.

What is further in knows nothing of what is further out, and the core reads neither clock nor
environment and speaks no HTTP: a verdict is a function of its arguments.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "service"

# From the inside out. A module may import from its own layer and those before it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("service", "service.errors", "service.yamlfile"),
    ("service.values",),
    # The resources' form is shared by code sets (which classify codings) and records.
    ("service.fhir.resources",),
    ("service.terms",),
    ("service.fhir",),
    ("service.site",),
    ("service.facts",),
    ("service.criteria",),
    ("service.screening", "service.coverage"),
    # What came out of a search, as plain data, is what is written of it.
    ("service.nightly.model",),
    ("service.results",),
    # What is asked of a search and comes out of it is kept by the store, which it writes to.
    ("service.nightly", "service.storage"),
    ("service.config", "service.wiring"),
    # The use case itself is started from the command line, the web and the worker.
    (
        "service.nightly.screen",
        "service.nightly.approach",
        "service.nightly.bulk",
        "service.nightly.publish",
        "service.nightly.digest",
    ),
    ("service.nightly.after",),
    ("service.jobs",),
    ("service.web", "service.cli", "service.__main__"),
)
# What evaluates a patient, and what is written of it.
CORE = (
    "service.values",
    "service.terms",
    "service.facts",
    "service.criteria",
    "service.results",
    "service.fhir.record",
    "service.fhir.resources",
    "service.fhir.source",
    "service.screening",
    "service.site",
    "service.yamlfile",
    "service.errors",
)
FOREIGN = {
    "flask",
    "werkzeug",
    "requests",
    "click",
    "gunicorn",
    "jwt",
    "prometheus_client",
    "http",
    "socket",
    "urllib",
    "subprocess",
    "threading",
    "logging",
    "random",
    "time",
}
# Calls and names by which code would depend on more than its arguments.
IMPURE = {
    "os.environ",
    "os.getenv",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "time.time",
}


def module_of(path: Path) -> str:
    """Give a file's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SERVICE.rglob("*.py"))}
CORE_MODULES = [
    name for name in MODULES if any(name == each or name.startswith(f"{each}.") for each in CORE)
]


def layer_of(module: str) -> int:
    """Give a module's place: that of the longest name that it lies in."""
    fitting = [
        (len(name), place)
        for place, names in enumerate(LAYERS)
        for name in names
        if module == name or (module.startswith(f"{name}.") and name != "service")
    ]
    assert fitting, f"{module} has no layer"
    return max(fitting)[1]


def imported(tree: ast.AST) -> Iterator[str]:
    """List the modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def parsed(module: str) -> ast.Module:
    """Parse a module."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_layer_or_further_in(module: str) -> None:
    """values < terms < fhir < facts < criteria < results < web and cli."""
    outward = [
        name
        for name in imported(parsed(module))
        if name in MODULES and layer_of(name) > layer_of(module)
    ]
    assert outward == []


@pytest.mark.parametrize("module", CORE_MODULES)
def test_the_core_knows_nothing_of_web_command_line_or_network(module: str) -> None:
    """No Flask, requests, click, sockets, threads, logging."""
    assert {name.split(".")[0] for name in imported(parsed(module))} & FOREIGN == set()


@pytest.mark.parametrize("module", CORE_MODULES)
def test_the_core_asks_neither_clock_nor_environment(module: str) -> None:
    """The day of evaluation, and every setting, is handed in."""
    tree = parsed(module)
    named = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in named if any(name.endswith(each) for each in IMPURE)} == set()
    assert "os" not in {name.split(".")[0] for name in imported(tree)}


# What reads files, once, at start: everything else works on what it is handed.
READERS = {
    "service.terms",
    "service.yamlfile",
    "service.site",
    "service.criteria.trial",
    "service.criteria.check",
    "service.criteria.attestation",
}


@pytest.mark.parametrize("module", sorted(set(CORE_MODULES) - READERS))
def test_only_loaders_open_files(module: str) -> None:
    """Evaluating a patient touches no file."""
    opened = {
        ast.unparse(node.func) for node in ast.walk(parsed(module)) if isinstance(node, ast.Call)
    }
    touching = ("open", ".read_text", ".read_bytes", ".write_text", ".glob", ".iterdir")
    assert {name for name in opened if name == "open" or name.endswith(touching[1:])} == set()


@pytest.mark.parametrize("module", CORE_MODULES)
def test_the_core_has_no_binary_floats(module: str) -> None:
    """Clinical comparison is exact (semantics 1.4)."""
    tree = parsed(module)
    written = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, float)
    ]
    made = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "float"
    ]
    assert written == []
    assert made == []


def test_every_module_has_its_layer() -> None:
    """A new module must be given its place."""
    assert all(layer_of(module) >= 0 for module in MODULES)
    assert len(CORE_MODULES) >= 30


def test_loading_the_core_loads_neither_web_nor_network() -> None:
    """Not by a detour either."""
    program = (
        "import sys; import service.screening, service.results.json, service.results.fhir; "
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"flask", "werkzeug", "requests", "click", "rich", "gunicorn", "jwt"} == set()
