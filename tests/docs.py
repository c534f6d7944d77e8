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
from service.web import create_app
from service.wiring import build_screening

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
_TABLE = re.compile(r"(<!-- settings -->\n).*?(<!-- /settings -->)", re.DOTALL)
_ANSWER = re.compile(r"(<!-- answer -->\n```json\n).*?(\n```)", re.DOTALL)
_REQUEST = re.compile(r"<!-- request -->\n```\n(.*?)\n```", re.DOTALL)
_SHOWN_CRITERION = "I7.creatinine"
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


def answer_part(readme: str) -> str:
    """Put the example's answer in its place."""
    text = json.dumps(shortened(answer_to(*request_in(readme))), indent=2, ensure_ascii=False)
    return _ANSWER.sub(lambda found: f"{found[1]}{text}{found[2]}", readme)


def criteria_pages() -> dict[Path, str]:
    """Give the page of each trial's criteria."""
    screening = build_screening(Settings())
    return {
        ROOT / "docs" / "criteria" / f"{trial.id}.md": explain(trial, screening.terms)
        for trial in screening.trials.values()
    }


def generated_files() -> dict[Path, str]:
    """Give all files that are generated as a whole."""
    schema = trial_schema()
    return {
        **criteria_pages(),
        ROOT / "docs" / "rules.md": rules_page(schema),
        ROOT / "mappings" / "trial.schema.json": json.dumps(schema, indent=1) + "\n",
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
