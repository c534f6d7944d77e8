"""The documentation says what is true: commands, settings, rules, the example's answer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from service.cli import main
from service.config import SETTINGS, Setting
from service.criteria.check import check_files
from service.criteria.trial import trial_schema
from tests import docs

ROOT = docs.ROOT
GUIDE = (ROOT / "docs" / "adding-a-trial.md").read_text(encoding="utf-8")
README = docs.README.read_text(encoding="utf-8")
PAGES = [docs.README, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
TWO_COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/eligibility demo",
    "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest",
)
STALE = "run `python -m tests.docs`"


def commands() -> dict[str, click.Command]:
    """List the subcommands."""
    assert isinstance(main, click.Group)
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize("command", TWO_COMMANDS)
def test_the_readme_has_the_two_commands_on_a_line_of_their_own(command: str) -> None:
    assert command in README.splitlines()


@pytest.mark.parametrize("name", commands())
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"eligibility {name}" in README
    assert f"| `{name}` |" in README


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    command = commands()[name]
    assert command.help
    assert f"eligibility {name}" in (command.epilog or "")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)
def test_every_setting_is_a_flag_of_serve(setting: Setting) -> None:
    flags = {flag for parameter in commands()["serve"].params for flag in parameter.opts}
    assert setting.flag in flags


def test_the_table_of_settings_is_that_of_the_program() -> None:
    assert docs.settings_part(README) == README, STALE


def test_the_answer_in_the_readme_is_the_one_the_service_gives() -> None:
    assert docs.answer_part(README) == README, STALE


@pytest.mark.parametrize("path", docs.generated_files(), ids=lambda path: path.name)
def test_generated_files_are_those_of_the_program(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == docs.generated_files()[path], STALE


def test_trial_files_follow_their_published_schema() -> None:
    schema = json.loads((ROOT / "mappings" / "trial.schema.json").read_text(encoding="utf-8"))
    checker = jsonschema.Draft202012Validator(schema)
    for path in sorted((ROOT / "mappings" / "trials").glob("*.yaml")):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        mistakes = [f"{error.json_path}: {error.message}" for error in checker.iter_errors(content)]
        assert not mistakes


def test_there_is_a_page_for_each_trial_file_and_no_other() -> None:
    trials = {path.stem for path in (ROOT / "mappings" / "trials").glob("*.yaml")}
    assert {path.stem for path in (ROOT / "docs" / "criteria").glob("*.md")} == trials


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_code_marks_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`((?:mappings|fixtures|docs|service|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def rule_kinds() -> list[str]:
    """List the kinds of rule that a trial file may name."""
    found = trial_schema()["$defs"].values()
    kinds = [entry["properties"].get("kind", {}).get("enum", []) for entry in found]
    return [kind[0] for kind in kinds if len(kind) == 1]


@pytest.mark.parametrize("kind", rule_kinds())
def test_the_guide_says_what_every_kind_of_rule_is_for(kind: str) -> None:
    table = GUIDE.split("## 3. Choose a rule")[1].split("\n## ")[0]
    assert re.search(rf"^\| .* \|.*`{kind}`", table, re.MULTILINE)


def test_the_trial_of_the_guide_works_without_a_change_of_code(tmp_path: Path) -> None:
    example = GUIDE.split("<!-- example -->\n```yaml\n")[1].split("```")[0]
    mappings = tmp_path / "mappings"
    shutil.copytree(ROOT / "mappings", mappings)
    path = mappings / "trials" / "NCT01234567.yaml"
    path.write_text(example, encoding="utf-8")
    assert check_files([path], mappings) == []
    source = ROOT / "fixtures" / "patients" / "near-miss-heart-failure.json"
    options = ["--source", source, "--mappings", mappings, "--as-of", "2026-11-01"]
    done = CliRunner().invoke(
        main,
        ["evaluate", "NCT01234567", "--all", "--format", "json", *(str(one) for one in options)],
    )
    assert done.exit_code == 0, done.output
    verdict = json.loads(done.stdout)
    outcomes = {one["id"]: (one["outcome"], one["reason"]) for one in verdict["criteria"]}
    assert outcomes["I1"] == ("pass", "value-meets")
    assert outcomes["I2"] == ("fail", "value-violates")
    assert outcomes["E1"] == ("pass", "value-meets")
    assert outcomes["E2"] == ("pass", "record-absent")
    assert outcomes["E3"] == ("unknown", "judgement-required")
