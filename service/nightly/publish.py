"""Writes a run's candidates back to the FHIR server that they were found on.

What is written: a ResearchSubject per candidate, and a Group and a List of them. What
another author has changed is never overwritten: the store keeps what was written last, and
an update names the version it replaces. Written twice, the second time nothing happens; cut
short anywhere, the same again ends the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from service.config import Settings, is_server
from service.errors import SourceError, UsageError
from service.fhir.http import Client, Transport, base_of
from service.fhir.writing import Refused, Stored, Unavailable, Writing, decoded, encoded
from service.nightly.model import Exit
from service.nightly.screen import described
from service.results.candidates import Candidate
from service.results.group import (
    DROPPED,
    STATUS,
    Study,
    group_id,
    group_json,
    list_json,
    subject_id,
    subject_json,
)
from service.results.merging import merge, presumed, rebased, withdrawn
from service.storage.sent import Mark, Marks
from service.storage.store import Run, Store
from service.storage.subjects import Filter, Shown, last_runs, subjects
from service.wiring import build_auth, limits_of

__all__ = ["Published", "publish"]

Json = dict[str, Any]

_SUBJECT = "ResearchSubject"
_WRITTEN = (_SUBJECT, "Group", "List")
_PATIENT = re.compile(r"Patient/[A-Za-z0-9.-]{1,64}")
_REGISTRY = re.compile(r"NCT\d{8}")
_ATTEMPTS = 4
_IDS = 400
_NEEDED = frozenset({"create", "read", "update", "search-type"})
# Answers by which a server says that it has no such type of resource, or no such search.
_NOT_TAKEN = frozenset({400, 404, 405, 410, 501})
_WHAT_TO_DO = {
    400: "the server's rules refuse it",
    401: "the server wants other credentials",
    403: "this client may not write here: give it the scopes of ELIGIBILITY_PUBLISH_SCOPE",
    404: "the server does not take this type of resource",
    405: "the server does not take this type of resource",
    409: "it conflicts with another record: look for one with the same identifier",
    412: "several resources carry our identifier, or others changed it again and again",
    422: "the server's rules or profiles refuse it",
}


@dataclass(frozen=True, slots=True)
class Published:
    """What was written, or (rehearsed) would be; nothing here names a patient.

    ``kept``: resources left as another author made them, and why; ``problems``: those that
    could not be written, and what to change. Each names a resource by our own id.
    ``absent``: types that the server does not offer to create, update and search.
    """

    trial: str
    run: int
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    kept: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def exit(self) -> Exit:
        """Give the exit code: not complete if anything could not be written."""
        return Exit.INCOMPLETE if self.problems else Exit.COMPLETE


def publish(
    settings: Settings,
    store: Store,
    run: Run,
    trial: str,
    *,
    rehearse: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Published:
    """Write the candidates of a finished run to the server it read from.

    ``rehearse``: read, and say what would be written. Raises UsageError for a run that must
    not be written there, SourceError if the server can't be used at all, StoreError.
    """
    _check(settings, run, trial)
    assert settings.source is not None
    marks = Marks(store, base_of(settings.source), trial, run.id)
    newest = marks.newest_run()
    if newest is not None and newest > run.id:
        raise UsageError(
            f"run {newest} has been written already, which is newer than run {run.id}: "
            "an older one would undo it"
        )
    scoped = replace(settings, source_scope=settings.publish_scope)
    limits = limits_of(settings)
    writing = Writing(Client(settings.source, build_auth(scoped), Transport(limits)))
    try:
        work = _Work(settings, store, run, trial, marks, writing, rehearse=rehearse, pause=pause)
        return work.publish()
    finally:
        writing.close()


def _check(settings: Settings, run: Run, trial: str) -> None:
    """Refuse a run that must not be written to the source; raises UsageError."""
    if settings.source is None or not is_server(settings.source):
        raise UsageError("results are written to the FHIR server they come from: name it as source")
    if run.status != "finished" or run.purged is not None:
        raise UsageError(f"run {run.id} is not finished, or was purged")
    if trial not in run.spec.trials:
        raise UsageError(f"run {run.id} is not of trial {trial[:64]!r}")
    if run.spec.source != described(settings.source):
        raise UsageError(
            f"run {run.id} read its records elsewhere: its patients' ids may mean others there"
        )


class _Who(NamedTuple):
    """A patient to be listed; ``code`` None: not evaluated by this run."""

    patient: str
    code: str | None


@dataclass
class _Tally:
    """What was done so far."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)


class _GiveUp(Exception):
    """A resource stays as it is on the server; the text says why."""


class _Work:
    """One writing of one trial's results."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        run: Run,
        trial: str,
        marks: Marks,
        writing: Writing,
        *,
        rehearse: bool,
        pause: Callable[[float], None],
    ) -> None:
        self._base = settings.canonical_base
        self._store = store
        self._run = run
        self._trial = trial
        self._marks = marks
        self._writing = writing
        self._rehearse = rehearse
        self._pause = pause
        self._key = store.subject_key()
        self._tally = _Tally()
        self._study: Json = {}
        self._studies: frozenset[str] = frozenset()

    def publish(self) -> Published:
        """Write ResearchSubjects, then the Group and the List that refers to them."""
        offered = self._writing.offered()
        absent = tuple(kind for kind in _WRITTEN if not _offers(offered, kind))
        if absent == _WRITTEN:
            raise SourceError(
                "the FHIR server does not offer to create, update and search any of "
                "Group, List or ResearchSubject"
            )
        self._find_study()
        marks = self._marks.of(_SUBJECT)
        listed, dropped = self._sorted_out(marks)
        ids: dict[str, str] | None = None
        if _SUBJECT not in absent:
            ids = {}
            for who in listed:
                found = self._subject(who.patient, STATUS, marks.get(who.patient))
                if found is not None:
                    ids[who.patient] = found
            for patient in dropped:
                self._subject(patient, DROPPED, marks.get(patient))
            if not self._rehearse:
                self._marks.confirm(_SUBJECT, (who.patient for who in listed if who.code))
        for kind in ("Group", "List"):
            if kind not in absent:
                self._collection(kind, self._made(kind, listed, ids))
        tally = self._tally
        return Published(
            self._trial, self._run.id, tally.created, tally.updated, tally.unchanged,
            tuple(tally.kept), tuple(tally.problems), tuple(tally.done), absent,
        )  # fmt: skip

    def _find_study(self) -> None:
        """Find the trial's ResearchStudy on the server; else it is named by its number."""
        system = (
            {"system": "https://clinicaltrials.gov"} if _REGISTRY.fullmatch(self._trial) else {}
        )
        self._study = {
            "type": "ResearchStudy",
            "identifier": {**system, "value": self._trial},
            "display": self._trial,
        }
        try:
            found = self._writing.search("ResearchStudy", identifier=self._trial)
        except Refused as error:
            if error.answered in _NOT_TAKEN:
                return
            # Not to know it would be not to know who has a ResearchSubject of the trial.
            advice = _WHAT_TO_DO.get(error.answered, "the server refuses it")
            raise SourceError(f"{error.message}: {advice}") from error
        self._studies = frozenset(f"ResearchStudy/{one.id}" for one in found)
        if len(found) == 1:
            self._study = {"reference": f"ResearchStudy/{found[0].id}"}

    def _sorted_out(self, marks: dict[str, Mark]) -> tuple[list[_Who], list[str]]:
        """Say who is to be listed, and who was written as candidate and proves to be none."""
        listed: list[_Who] = []
        odd = 0
        for verdict in self._store.verdicts(self._run.id, trial=self._trial, candidates=True):
            if _PATIENT.fullmatch(verdict.patient):
                listed.append(_Who(verdict.patient, verdict.code))
            else:
                odd += 1
        if odd:
            self._tally.problems.append(f"{odd} candidates have no id on the server")
        now = {who.patient for who in listed}
        # Without ResearchSubjects on the server, the Group holds who was written before.
        before = set(marks) | self._members()
        gone = sorted(patient for patient in before - now if _PATIENT.fullmatch(patient))
        statuses = self._statuses(gone)
        dropped = [patient for patient in gone if statuses.get(patient) == DROPPED]
        # Nothing is known of the rest: they stay listed.
        unknown = [
            patient for patient in gone
            if statuses.get(patient) == STATUS and _written_status(marks.get(patient)) != DROPPED
        ]  # fmt: skip
        listed += [_Who(patient, None) for patient in unknown]
        return sorted(listed), [patient for patient in dropped if patient in marks]

    def _members(self) -> set[str]:
        mark = self._marks.one("Group", "")
        if mark is None or mark.sent is None:
            return set()
        group = decoded(mark.sent)
        return {str(one["entity"]["reference"]) for one in group.get("member", ())}

    def _statuses(self, patients: list[str]) -> dict[str, str]:
        """Say what the run says of patients that it does not list as candidates."""
        found: dict[str, str] = {}
        for start in range(0, len(patients), _IDS):
            some = patients[start : start + _IDS]
            runs = last_runs(self._store.database, self._trial, some, self._run.id)
            for comparable in (True, False):
                these = [one for one in some if self._is_comparable(runs.get(one)) == comparable]
                shown = Shown(self._trial, self._run.id, comparable)
                wanted = Filter(patients=these)
                for one in subjects(self._store.database, [shown], wanted):
                    found[one.patient] = one.status
        return found

    def _is_comparable(self, before: int | None) -> bool:
        """Tell whether absence from this run means anything for who was in another run.

        Only if this one was complete, and looked where that one did.
        """
        if before is None or not self._run.complete:
            return False
        spec = self._store.run(before).spec
        return (spec.source, spec.bulk, spec.cohort) == (
            self._run.spec.source, self._run.spec.bulk, self._run.spec.cohort
        )  # fmt: skip

    # --- ResearchSubject

    def _subject(self, patient: str, status: str, mark: Mark | None) -> str | None:
        """Bring one ResearchSubject to a status; give its id on the server, if it has one."""
        name = subject_id(self._trial, patient, self._key)
        if mark is not None and mark.pending is None and _written_status(mark) == status:
            self._tally.unchanged += 1
            return mark.resource_id
        ours = self._research_subject(name, patient, status)
        found = _Known(None if mark is None else mark.resource_id)

        def attempt() -> None:
            # An earlier attempt may have noted something.
            mark = self._marks.one(_SUBJECT, patient)
            theirs = self._existing_subject(name, patient, mark, found)
            if theirs is None:
                if status == DROPPED:
                    raise _GiveUp("was not found on the server")
                self._create(patient, ours, name, found)
                return
            self._advance_subject(theirs, patient, ours, mark)

        self._bounded(f"{_SUBJECT} {name}", attempt)
        return found.id

    def _research_subject(self, name: str, patient: str, status: str) -> Json:
        written = subject_json(name, self._trial, patient, self._base, status)
        written.pop("id")
        return written | {"meta": {"tag": [self._tag()]}, "study": self._study}

    def _tag(self) -> Json:
        return {"system": f"{self._base}/CodeSystem/tag", "code": "trial-eligibility"}

    def _existing_subject(
        self, name: str, patient: str, mark: Mark | None, found: _Known
    ) -> Stored | None:
        """Find the patient's ResearchSubject of this trial, whoever made it."""
        if mark is not None and mark.resource_id is not None:
            there = self._writing.read(_SUBJECT, mark.resource_id)
            if there is None:
                raise _GiveUp("was removed from the server by others; it is not made again")
            return there
        system = f"{self._base}/research-subject"
        try:
            there_now = self._writing.search(_SUBJECT, individual=patient)
        except Refused:
            there_now = self._writing.search(_SUBJECT, identifier=f"{system}|{name}")
        mine = [one for one in there_now if _has_identifier(one.resource, system, name)]
        others = [one for one in there_now if one not in mine and self._same_study(one.resource)]
        if not mine and others:
            found.id = others[0].id
            raise _GiveUp("the patient has a ResearchSubject of this trial by another author")
        if mine:
            found.id = mine[0].id
        return mine[0] if mine else None

    def _same_study(self, resource: Json) -> bool:
        study = resource.get("study")
        if not isinstance(study, dict):
            return False
        literal = str(study.get("reference", ""))
        if any(literal == one or literal.endswith(f"/{one}") for one in self._studies):
            return True
        identifier = study.get("identifier")
        if isinstance(identifier, dict) and identifier.get("value") == self._trial:
            return True
        return literal.rsplit("/", 1)[-1] == self._trial

    def _advance_subject(self, theirs: Stored, patient: str, ours: Json, mark: Mark | None) -> None:
        """Set our status if the one that is there is ours."""
        pending = None if mark is None or mark.pending is None else decoded(mark.pending)
        status = theirs.resource.get("status")
        arrived = pending is not None and status == pending["status"]
        if arrived and status == ours["status"]:
            # Written before, and cut short before it was noted.
            self._note(_SUBJECT, patient, theirs, ours)
            self._tally.unchanged += 1
            return
        if not arrived and not _is_untouched(theirs, mark):
            if not self._rehearse:
                self._marks.record(
                    _SUBJECT, patient, resource_id=theirs.id,
                    version=mark.version if mark else None,
                    sent=mark.sent if mark else None, seen=mark.seen if mark else None,
                )  # fmt: skip
            if status == ours["status"]:
                self._tally.unchanged += 1
                return
            raise _GiveUp("others have changed it since; their status stays")
        if theirs.version is None:
            raise _GiveUp("the server names no version, so it can't be changed safely")
        self._update(_SUBJECT, patient, theirs, {**theirs.resource, "status": ours["status"]}, ours)

    # --- Group and List

    def _made(self, kind: str, listed: list[_Who], ids: dict[str, str] | None) -> Json:
        """Write the Group or List as it is to be on the server."""
        statement = self._run.statement
        names = {one.trial: one.name for one in statement.trials} if statement else {}
        study = Study(
            self._trial, names.get(self._trial, self._trial), self._run.spec.as_of,
            bool(self._run.complete), self._base, self._key,
        )  # fmt: skip
        written = group_json if kind == "Group" else list_json
        made: Json = msgspec.json.decode(
            b"".join(written([study], lambda: map(self._candidate, listed)))
        )
        made.pop("id")
        name = {"system": f"{self._base}/candidates", "value": group_id(self._trial)}
        made |= {"identifier": [name], "meta": {"tag": [self._tag()]}}
        if kind == "Group":
            made["characteristic"][0]["valueReference"] = self._study
        elif ids is None:
            # The server has no ResearchSubjects: the List holds them itself.
            for one in made.get("contained", ()):
                one["study"] = self._study
        elif "entry" in made:
            made.pop("contained", None)
            pairs = zip(listed, made["entry"], strict=True)
            made["entry"] = [
                {**entry, "item": {"reference": f"{_SUBJECT}/{ids[who.patient]}"}}
                for who, entry in pairs
                if who.patient in ids
            ]
            if not made["entry"]:
                del made["entry"]
        return made

    def _candidate(self, who: _Who) -> Candidate:
        code = who.code or "not evaluated in this search"
        return Candidate(
            who.patient, self._trial, code, self._run.spec.as_of, None, 0, (), (), (), (), ()
        )

    def _collection(self, kind: str, ours: Json) -> None:
        """Bring the Group or List up to date."""
        mark = self._marks.one(kind, "")
        if mark is not None and mark.pending is None and mark.sent == encoded(ours):
            self._tally.unchanged += 1
            return
        (identifier,) = ours["identifier"]
        name = identifier["value"]
        found = _Known(None if mark is None else mark.resource_id)

        def attempt() -> None:
            if found.id is not None:
                theirs = self._writing.read(kind, found.id)
                if theirs is None:
                    raise _GiveUp("was removed from the server by others; it is not made again")
            else:
                query = f"{identifier['system']}|{name}"
                there = self._writing.search(kind, identifier=query)
                if len(there) > 1:
                    raise Refused("found more than once", 412)
                if not there:
                    self._create("", ours, name, found)
                    return
                (theirs,) = there
            self._advance_collection(kind, theirs, ours, self._marks.one(kind, ""))

        self._bounded(kind, attempt)

    def _advance_collection(self, kind: str, theirs: Stored, ours: Json, mark: Mark | None) -> None:
        pending = None if mark is None or mark.pending is None else decoded(mark.pending)
        seen = {} if mark is None or mark.seen is None else decoded(mark.seen)
        moved = mark is not None and mark.version != theirs.version
        if moved and pending is not None:
            # Perhaps written before, and cut short before it was noted.
            base = presumed(seen, pending, theirs.resource)
        elif seen:
            base = seen
        else:
            # Ours by its identifier, from a store that is lost: only its use is a person's.
            use = {one: ours[one] for one in ("status", "active") if one in ours}
            base = theirs.resource | use
        if withdrawn(base, theirs.resource):
            raise _GiveUp("others have taken it out of use; it stays so")
        merged = merge(base, theirs.resource, ours)

        def kept(stored: Stored) -> Json:
            return rebased(base, theirs.resource, ours, stored.resource)

        if merged == theirs.resource:
            self._note(kind, "", theirs, ours, kept(theirs))
            self._tally.unchanged += 1
            return
        if theirs.version is None:
            raise _GiveUp("the server names no version, so it can't be changed safely")
        self._update(kind, "", theirs, merged, ours, kept)

    # --- writing

    def _create(self, name: str, ours: Json, value: str, found: _Known) -> None:
        kind = ours["resourceType"]
        if self._rehearse:
            self._tally.created += 1
            self._tally.done.append(f"would create {kind} {value}")
            found.id = value
            return
        self._marks.intend(kind, name, encoded(ours))
        system = ours["identifier"][0]["system"]
        stored = self._writing.create(ours, f"identifier={system}|{value}")
        found.id = stored.id
        if stored.resource.get("status") != ours.get("status"):
            # The server had one after all, which its search did not show.
            raise _GiveUp("others have changed it since; their status stays")
        self._note(kind, name, stored, ours)
        self._tally.created += 1
        self._tally.done.append(f"created {kind} {value}")

    def _update(
        self,
        kind: str,
        name: str,
        theirs: Stored,
        new: Json,
        ours: Json,
        kept: Callable[[Stored], Json] | None = None,
    ) -> None:
        """Replace a version; ``kept`` says what to remember of what the server has then."""
        assert theirs.version is not None
        value = ours["identifier"][0]["value"]
        if self._rehearse:
            self._tally.updated += 1
            self._tally.done.append(f"would update {kind} {value}")
            return
        self._marks.intend(kind, name, encoded(ours))
        stored = self._writing.update(kind, theirs.id, theirs.version, new)
        self._note(kind, name, stored, ours, None if kept is None else kept(stored))
        self._tally.updated += 1
        self._tally.done.append(f"updated {kind} {value}")

    def _note(
        self, kind: str, name: str, stored: Stored, ours: Json, seen: Json | None = None
    ) -> None:
        if self._rehearse:
            return
        self._marks.record(
            kind,
            name,
            resource_id=stored.id,
            version=stored.version,
            sent=encoded(ours),
            seen=encoded(stored.resource if seen is None else seen),
        )

    def _bounded(self, what: str, attempt: Callable[[], None]) -> None:
        """Try; read and decide anew when another author was quicker, but not without end."""
        for left in reversed(range(_ATTEMPTS)):
            wait = 0.0
            try:
                attempt()
                return
            except _GiveUp as reason:
                self._tally.kept.append(f"{what}: {reason}")
                return
            except Refused as error:
                if error.answered != 412 or not left:
                    advice = _WHAT_TO_DO.get(error.answered, "the server refuses it")
                    self._tally.problems.append(f"{what}: {error.message}: {advice}")
                    return
            except Unavailable as error:
                wait = error.wait
                if not left:
                    self._tally.problems.append(f"{what}: {error.message}")
                    return
            except SourceError as error:
                # Whether a lost request did its work, the next attempt finds out.
                if not left:
                    self._tally.problems.append(f"{what}: {error.message}")
                    return
            self._pause(wait)


@dataclass
class _Known:
    """The id of a resource on the server, as soon as it is known."""

    id: str | None


def _offers(offered: Mapping[str, frozenset[str] | None], kind: str) -> bool:
    """Tell whether a server takes a type; one that lists nothing is taken to."""
    if not offered:
        return True
    codes = offered.get(kind, frozenset())
    return codes is None or codes >= _NEEDED


def _written_status(mark: Mark | None) -> str | None:
    if mark is None or mark.sent is None:
        return None
    status = decoded(mark.sent).get("status")
    return status if isinstance(status, str) else None


def _is_untouched(theirs: Stored, mark: Mark | None) -> bool:
    """Tell whether nobody has changed a resource since we wrote it."""
    if mark is None or mark.sent is None:
        return False
    if theirs.version is not None and mark.version is not None:
        return theirs.version == mark.version
    return theirs.resource.get("status") == _written_status(mark)


def _has_identifier(resource: Json, system: str, value: str) -> bool:
    found: Iterable[Any] = resource.get("identifier") or ()
    return any(
        isinstance(one, dict) and (one.get("system"), one.get("value")) == (system, value)
        for one in found
    )
