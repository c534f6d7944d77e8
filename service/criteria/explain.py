"""Says what a trial's criteria look for, in words: the page that physicians review.

Markdown, the same on the command line and under docs/criteria.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.criteria.trial import Criterion, Trial
from service.terms import CodeSet, Role, Row, Terms
from service.values.logic import Reason

# So many codes of a set are listed; the rest is counted, and is in the table of codes.
_LISTED = 12

_COMPUTED = {
    "computed": "decided from the record",
    "partly": "decided from the record in part; the rest is for a person to judge",
    "attested": "never decided from the record: a person attests it",
}

_UNKNOWN: dict[str, str] = {
    Reason.NO_DATA: "there is no such record or result",
    Reason.STALE_DATA: "the latest result is older than the window",
    Reason.INCOMPARABLE_UNIT: "value or limit has no unit, or one that can't be converted",
    Reason.UNREADABLE_VALUE: "the result can't be read as the number or answer it should be",
    Reason.NO_REFERENCE_RANGE: "no limit of normal fits the patient",
    Reason.AMBIGUOUS_REFERENCE_RANGE: "several limits of normal fit, and they decide differently",
    Reason.INDETERMINATE_DATE: "a date is missing or too imprecise to tell inside from outside",
    Reason.INDETERMINATE_VALUE: "the value is an interval that holds the limit (as `< 6 %`)",
    Reason.METHOD_MISMATCH: "the result was obtained by another method than the one asked for",
    Reason.CONFLICTING_DATA: "records of equal standing contradict each other",
    Reason.UNCONFIRMED: "the record is a suspicion, an order or of unknown status",
    Reason.STATUS_NOT_RECORDED: "the record does not say whether the condition is active",
    Reason.UNMAPPED_CODE: "a text names it, but its code is in no code set",
    Reason.SOURCE_UNAVAILABLE: "a resource type was not read completely, so absence is unproven",
    Reason.JUDGEMENT_REQUIRED: "a person has to judge",
}


def explain(trial: Trial, terms: Terms, *, all_codes: bool = False) -> str:
    """Write the page of a trial: each criterion, then the code sets they use."""
    lines = [*_head(trial), *_overview(trial)]
    for criterion in trial.criteria:
        lines += _criterion(criterion, terms, 2)
    lines += ["", "## Reasons for unknown", ""]
    lines += [f"- `{reason}`: {meaning}" for reason, meaning in _UNKNOWN.items()]
    lines += ["", "## Code sets", ""]
    lines += _legend()
    for name in sorted(trial.sets()):
        lines += _code_set(terms.sets[name], terms, all_codes)
    return "\n".join(lines) + "\n"


def _head(trial: Trial) -> Iterator[str]:
    yield f"# {trial.name} ({trial.id}): the criteria in words"
    yield ""
    yield f"{trial.title}. Criteria version {trial.version}."
    yield ""
    yield (
        "`pass` means that a criterion does not stand in the way of enrolment: an inclusion "
        "criterion that is met, an exclusion criterion that is absent. A criterion fails only if "
        "the record proves it and passes only if the record supports it; otherwise it is unknown."
    )
    yield ""
    yield (
        f"This page is made from `mappings/trials/{trial.file}` "
        f"by `eligibility explain {trial.id}`; change the file, not the page."
    )


def _overview(trial: Trial) -> Iterator[str]:
    yield ""
    yield "| criterion | from the record | the protocol's sentence |"
    yield "| --- | --- | --- |"
    for criterion in trial.criteria:
        yield f"| {criterion.id} | {criterion.computed} | {_cell(criterion.text)} |"
    for name, meaning in _COMPUTED.items():
        yield ""
        yield f"*{name}*: {meaning}."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _criterion(criterion: Criterion, terms: Terms, level: int) -> Iterator[str]:
    yield ""
    yield f"{'#' * min(level, 6)} {criterion.id}"
    yield ""
    yield f"> {' '.join(criterion.text.split())}"
    yield ""
    yield f"{criterion.kind.capitalize()}, {_COMPUTED[criterion.computed]}."
    if criterion.note:
        yield ""
        yield f"Note: {' '.join(criterion.note.split())}"
    if criterion.rule is not None:
        yield ""
        yield f"- Rule: {criterion.rule.words()}."
        yield from _reads(criterion, terms)
        yield from _unknowns(criterion.rule.unknowns())
    else:
        parts = ", ".join(part.id for part in criterion.parts)
        yield ""
        yield f"- {'All' if criterion.combine == 'all' else 'Any'} of {parts}."
    for part in criterion.parts:
        yield from _criterion(part, terms, level + 1)


def _reads(criterion: Criterion, terms: Terms) -> Iterator[str]:
    assert criterion.rule is not None
    types: dict[str, dict[str, None]] = {}
    for reads in criterion.rule.reads():
        types.setdefault(reads.type, {}).update(dict.fromkeys(reads.sets))
    for kind, names in types.items():
        if names:
            sets = ", ".join(f"[{name}](#{name}) ({_title(terms.sets[name])})" for name in names)
            yield f"- Reads {kind}: {sets}."
        else:
            yield f"- Reads {kind}."


def _title(code_set: CodeSet) -> str:
    return code_set.title.rstrip(".")


def _unknowns(reasons: tuple[str, ...]) -> Iterator[str]:
    if reasons:
        listed = ", ".join(f"`{reason}`" for reason in reasons)
        yield f"- Unknown with {listed} ([what they mean](#reasons-for-unknown))."


def _legend() -> Iterator[str]:
    yield (
        "*Looked for*: codes that count. *Judged*: found, a person has to judge. *Not taken for "
        "it*: look-alikes, which say nothing. `C91.0*` stands for a code and all below it; the "
        "longest match decides. Longer sets show their first codes; all are in "
        "`mappings/codes/`, and `eligibility explain --all-codes` prints them. A text that holds "
        "one of the words, without a code that is known, makes the criterion unknown."
    )


_ROLES = {
    Role.INCLUDE: "Looked for",
    Role.JUDGEMENT: "Judged",
    Role.EXCLUDE: "Not taken for it",
}


def _code_set(code_set: CodeSet, terms: Terms, all_codes: bool) -> Iterator[str]:
    yield ""
    yield f"### {code_set.name}"
    yield ""
    yield f"{_title(code_set)}."
    yield ""
    if not code_set.rows:
        yield "- No public code: each site maps its own (`local_codes` of the site file)."
    for role, heading in _ROLES.items():
        rows = [row for row in code_set.rows if row.role is role]
        if rows:
            yield f"- {heading}: {_listed(rows, terms, all_codes)}"
    if code_set.keywords:
        words = ", ".join(word.lstrip("~") for word in code_set.keywords)
        yield f"- Words: {words}"


def _listed(rows: list[Row], terms: Terms, all_codes: bool) -> str:
    shown = rows if all_codes else rows[:_LISTED]
    text = "; ".join(_row(row, terms) for row in shown)
    more = len(rows) - len(shown)
    return f"{text}; and {more} more" if more else text


def _row(row: Row, terms: Terms) -> str:
    star = "*" if row.match == "prefix" else ""
    system = terms.aliases.get(row.system, row.system)
    return f"`{system} {row.code}{star}` {row.display}".strip()
