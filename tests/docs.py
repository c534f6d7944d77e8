"""Makes the generated parts of the documentation: ``python -m tests.docs`` writes them.

The settings' table and the example's answer in the README, the criteria in words
(docs/criteria/*.md), the kinds of rule (docs/rules.md), the JSON Schema of trial files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from service.config import Settings, load_settings, settings_table
from service.criteria.explain import explain
from service.criteria.trial import trial_schema
from service.web import create_app
from service.wiring import build_screening

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
_TABLE = re.compile(r"(<!-- settings -->\n).*?(<!-- /settings -->)", re.DOTALL)
_ANSWER = re.compile(r"(<!-- answer -->\n```json\n).*?(\n```)", re.DOTALL)
_REQUEST = re.compile(r"<!-- request -->\n```\n(.*?)\n```", re.DOTALL)
_SHOWN_CRITERION = "I7.creatinine"
_WIDTH = 98
_HEAD = ("resourceType", "moduleCanonical", "subject", "occurrenceDateTime", "status")


def settings_part(readme: str) -> str:
    """Put the table of settings in its place."""
    return _TABLE.sub(lambda found: f"{found[1]}{settings_table()}\n{found[2]}", readme)


def request_in(readme: str) -> tuple[str, dict[str, Any]]:
    """Give path and body of the README's request."""
    found = _REQUEST.search(readme)
    assert found is not None
    path = re.search(r"127\.0\.0\.1:8080([^']+)'", found[1])
    body = re.search(r"-d '(.*)'", found[1], re.DOTALL)
    assert path is not None
    assert body is not None
    return path[1], json.loads(body[1])


def answer_to(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask the service, on the shipped patients, as the README's request does."""
    client = create_app(load_settings({})).test_client()
    reply = client.post(path, data=json.dumps(body), content_type="application/fhir+json")
    assert reply.status_code == 200, reply.get_data(as_text=True)
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


def shortened(answer: dict[str, Any]) -> dict[str, Any]:
    """Keep of an answer what the README shows: the verdict and one criterion."""
    contained = next(one for one in answer["contained"] if one["resourceType"] == "Parameters")
    parameters = [
        parameter
        for parameter in contained["parameter"]
        if parameter["name"] in ("verdict", "validUntil")
        or {"name": "id", "valueCode": _SHOWN_CRITERION} in parameter.get("part", [])
        or {"name": "id", "valueString": _SHOWN_CRITERION} in parameter.get("part", [])
    ]
    return {
        **{name: answer[name] for name in _HEAD},
        "contained": [{**contained, "parameter": parameters}],
        "outputParameters": answer["outputParameters"],
    }


def short_json(node: object, indent: int = 0, used: int = 0) -> str:
    """Write JSON with an object or a list on one line where it fits; ``used``: before it."""
    flat = json.dumps(node, ensure_ascii=False)
    if not isinstance(node, dict | list) or indent + used + len(flat) < _WIDTH:
        return flat
    inner = indent + 2
    if isinstance(node, dict):
        heads = [json.dumps(key) + ": " for key in node]
        values: list[object] = list(node.values())
    else:
        heads, values = [""] * len(node), node
    lines = [
        " " * inner + head + short_json(value, inner, len(head))
        for head, value in zip(heads, values, strict=True)
    ]
    left, right = ("{", "}") if isinstance(node, dict) else ("[", "]")
    return "\n".join([left, ",\n".join(lines), " " * indent + right])


def answer_part(readme: str) -> str:
    """Put the example's answer in its place."""
    text = short_json(shortened(answer_to(*request_in(readme))))
    return _ANSWER.sub(lambda found: f"{found[1]}{text}{found[2]}", readme)


def criteria_pages() -> dict[Path, str]:
    """Give the page of each trial's criteria."""
    screening = build_screening(Settings())
    return {
        ROOT / "docs" / "criteria" / f"{trial.id}.md": explain(trial, screening.terms)
        for trial in screening.trials.values()
    }


_RULES_HEAD = """\
# Kinds of rule

A criterion's `rule` names its `kind` and gives its parameters. This page is made from the
program (`python -m tests.docs`); [adding a trial](adding-a-trial.md) tells how to use it. Code
sets are named as in `mappings/sets.yaml`. A window is a number and a unit: `28 days`,
`6 weeks`, `10 months`, `2 years`.
"""


def rules_page(schema: dict[str, Any]) -> str:
    """Write what each kind of rule does and its parameters, from the schema of trial files."""
    found = schema["$defs"]
    kinds = {
        name: entry
        for name, entry in found.items()
        if "kind" in entry["properties"] and name != "CriterionFile"
    }
    lines = [_RULES_HEAD]
    for entry in kinds.values():
        (kind,) = entry["properties"]["kind"]["enum"]
        lines += [f"## {kind}\n", *_described(entry, found)]
    parts = [name for name in found if name not in (*kinds, "TrialFile", "CriterionFile")]
    lines.append("## Parts that several rules share\n")
    for name in parts:
        lines += [f"### {name}\n", *_described(found[name], found)]
    return "\n".join(lines)


def _described(entry: dict[str, Any], found: dict[str, Any]) -> list[str]:
    text = re.sub(r"\s*\n\s*", " ", entry.get("description", "")).replace("``", "`")
    rows = [
        f"| `{name}` | {_form(form, found)} | {_default(form, name in entry.get('required', ()))} |"
        for name, form in entry["properties"].items()
        if name != "kind"
    ]
    if rows:
        rows = ["| parameter | form | if missing |", "| --- | --- | --- |", *rows, ""]
    return [f"{text}\n", *rows]


def _form(form: dict[str, Any], found: dict[str, Any]) -> str:
    """Say in words what a parameter may hold."""
    if "anyOf" in form:
        forms = [_form(one, found) for one in form["anyOf"] if one.get("type") != "null"]
        return "a rule" if len(forms) > 2 else " or ".join(forms)
    if "$ref" in form:
        name = form["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in form:
        return ", ".join(f"`{value}`" for value in form["enum"])
    if form.get("type") == "array":
        return f"list of {_form(form['items'], found)}"
    if form.get("type") == "object":
        return f"names, each with {_form(form.get('additionalProperties', {}), found)}"
    if "pattern" in form:
        return "window"
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "yes or no",
    }
    return names.get(form.get("type", ""), "anything")


def _default(form: dict[str, Any], required: bool) -> str:
    if required:
        return "needed"
    default = form.get("default")
    if default in (None, [], {}):
        return ""
    return f"`{json.dumps(default)}`"


def generated_files() -> dict[Path, str]:
    """Give all files that are generated as a whole."""
    schema = trial_schema()
    return {
        **criteria_pages(),
        ROOT / "docs" / "rules.md": rules_page(schema),
        ROOT / "mappings" / "trial.schema.json": short_json(schema) + "\n",
    }


def main() -> None:
    """Write all generated parts."""
    readme = README.read_text(encoding="utf-8")
    README.write_text(answer_part(settings_part(readme)), encoding="utf-8")
    for path, text in generated_files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
