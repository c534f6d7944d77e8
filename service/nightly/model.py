"""What a search of many patients is made of: what is asked, what comes out, what is said of it.

Everything here is plain data, so that it can be written, compared and sent to other processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from service.errors import EligibilityError

__all__ = [
    "CriterionCount",
    "Exit",
    "Failure",
    "Missing",
    "Night",
    "Outcome",
    "Reject",
    "RunSpec",
    "SearchFailed",
    "Statement",
    "TrialCount",
    "TypeCount",
]


class SearchFailed(EligibilityError):
    """A search could not be finished; the same command takes it up again."""


class Exit(IntEnum):
    """Exit codes of a search."""

    COMPLETE = 0
    FAILED = 1
    MISUSED = 2
    INCOMPLETE = 3


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What is asked for.

    ``trials``: ids in the order asked. ``source``: URL, directory or file. ``as_of``: ISO
    date. ``bulk``: ``system``, ``patient`` or ``group/ID``. ``cohort``: ``Group/ID``,
    ``List/ID`` or a file. ``versions``: of ``service``, and per trial and mapping file
    (``trial:ID``, ``mappings``).
    """

    trials: tuple[str, ...]
    source: str
    as_of: str
    bulk: str | None = None
    cohort: str | None = None
    workers: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """Input that could not be used; holds no text of it.

    ``file`` is relative to the source, ``line`` counts from 1, ``type`` is the resource
    type if known, ``reference`` as ``Observation/123``; ``patient`` the patient concerned,
    if known.
    """

    file: str | None
    line: int | None
    type: str | None
    reference: str | None
    problem: str
    patient: str | None = None


@dataclass(frozen=True, slots=True)
class TypeCount:
    """What was read of one resource type.

    ``lines``: of NDJSON (a resource in a Bundle counts as one); ``read``: resources that
    were decoded, since they are, or may be, of a patient of the population; ``skipped``:
    the others, by reason (``other-patient``, ``type-not-needed``, ``unreadable``...).
    ``requests``: sent to a server for it.
    """

    files: int = 0
    bytes: int = 0
    lines: int = 0
    read: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One patient's verdict for one trial.

    ``line`` is the verdict as one line of JSON without its end; ``code`` the verdict's
    code; ``valid_until`` an ISO date or None; ``record`` the facts as they were read (a
    line of a partition, ``service.nightly.partition``), for a replay, if kept, and ``names``
    what changes of it are told by (``service.nightly.names``). ``steady_until``: the last
    day (ISO) on which the same record gives the same line but for its day, or None.
    """

    patient: str
    trial: str
    line: bytes
    code: str
    valid_until: str | None = None
    record: bytes | None = None
    steady_until: str | None = None
    names: bytes | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A patient without a verdict, and why (no patient data beyond the id)."""

    patient: str
    trial: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class CriterionCount:
    """How one criterion came out over the population.

    ``alone``: patients whom it alone stands in the way of, as the only criterion that
    fails; ``alone_open``: as the only one that does not pass (fails or is unknown).
    ``text`` is the protocol's sentence, for people.
    """

    id: str
    kind: str
    passed: int = 0
    failed: int = 0
    unknown: int = 0
    alone: int = 0
    alone_open: int = 0
    text: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Missing:
    """Data or a judgement that would settle something for a number of patients.

    Counted over patients who are not ineligible. ``type`` is the resource type wanted, None
    for a question to the investigator; ``sets`` are code sets; ``criteria`` the ids it
    would settle.
    """

    text: str
    type: str | None
    sets: tuple[str, ...]
    criteria: tuple[str, ...]
    patients: int


@dataclass(frozen=True, slots=True)
class TrialCount:
    """What came out for one trial.

    ``verdicts``: patients by the verdict's code; ``attrition``: per criterion, in the
    protocol's order (top level only); ``missing``: most patients first.
    """

    trial: str
    version: str
    name: str
    population: int
    evaluated: int
    failed: int
    verdicts: Mapping[str, int]
    attrition: tuple[CriterionCount, ...] = ()
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True, slots=True)
class Night:
    """How the source was read, and how much had to be evaluated.

    ``since``: the instant from which changes were read, of an incremental search; None: all
    was read. ``why``: why so, for a search that could have read changes only. ``base``: the
    number of the run whose verdicts were taken over. ``evaluated``: records that were
    evaluated, also of patients who then proved not to be in the population; ``touched``
    among them those of patients whose record changed, ``joined`` those read anew (who may
    have joined the population, or were merged or failed before), ``lapsed`` those whose
    verdict would read otherwise on this day. ``carried``: patients whose verdict was taken
    over. ``unseen``: types of which the server does not tell what was deleted.
    """

    since: str | None = None
    why: str | None = None
    base: int | None = None
    evaluated: int = 0
    touched: int = 0
    joined: int = 0
    lapsed: int = 0
    carried: int = 0
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """Everything that ``run.json`` says.

    ``source`` names the source without secrets; ``versions`` as in ``RunSpec``; ``types``
    by resource type; ``patients_seen`` counts Patients of the source (those merged away
    left out), ``in_population`` those of any trial's population, ``evaluated`` and
    ``failed`` among these. ``rejects`` counts the lines of ``rejects.ndjson``;
    ``problems`` say, without patient data, why the search is not complete. ``started`` and
    ``finished`` are instants in ISO form, ``seconds`` what all attempts took together;
    ``rates`` by name (``bytesPerSecond``, ``patientsPerSecond``); ``resumed`` how often
    the run was taken up again. ``notes``: what the search could not look at by its nature, and
    what the source can't give or did otherwise than asked, without anything being lost (a type
    it does not have). ``night`` says how the source was read; of an incremental search
    ``types``, ``rates`` are of what it read, and ``patients_seen`` is that of the last search
    that read all.
    """

    source: str
    trials: tuple[TrialCount, ...]
    versions: Mapping[str, str]
    as_of: str
    types: Mapping[str, TypeCount]
    patients_seen: int
    in_population: int
    evaluated: int
    failed: int
    failures: tuple[Failure, ...]
    rejects: int
    problems: tuple[str, ...]
    started: str
    finished: str
    seconds: float
    rates: Mapping[str, float]
    complete: bool
    bulk: str | None = None
    cohort: str | None = None
    resumed: int = 0
    notes: tuple[str, ...] = ()
    night: Night = Night()

    @property
    def exit(self) -> Exit:
        """Give the exit code that the search ends with."""
        return Exit.COMPLETE if self.complete else Exit.INCOMPLETE
