"""What a job is: what was asked, by whom, how far it is, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from service.errors import Overloaded

__all__ = ["OPEN", "Asked", "Job", "State", "TooManyJobs", "folder_of", "jobs_folder"]


class TooManyJobs(Overloaded):
    """A caller has too many searches that are not finished."""

    status = 429


class State(StrEnum):
    """Where a job is. ``EXPIRED``: it was done, and its result is no longer given."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN = (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a search is asked for: as ``service.nightly.screen.Request``.

    ``as_of`` is an ISO date; ``output`` a folder, None for one of the job's own. The source
    is the worker's.
    """

    trials: tuple[str, ...]
    as_of: str
    bulk: str | None = None
    cohort: str | None = None
    fresh: bool = False
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store knows it; the meaning of each is in ``storage.models.JobRow``.

    Instants are in ISO form (UTC). ``complete``: of a job that is done, whether its search
    was. ``code`` (an issue type) and ``problem`` say why it failed, or what went wrong after
    its search; neither holds patient data.
    """

    number: int
    key: str
    state: State
    asked: Asked
    requester: str | None
    search: str | None
    slot: str | None
    attempt: int
    setbacks: int
    worker: str | None
    created: str
    due: str
    started: str | None
    touched: str | None
    finished: str | None
    stage: str
    done: int
    total: int
    run_id: int | None
    complete: bool | None
    code: str | None
    problem: str | None

    @property
    def is_open(self) -> bool:
        """Tell whether the job has not ended."""
        return self.state in OPEN

    def progress(self) -> str:
        """Say how far the job is: under 100 characters, without patient data."""
        if self.state is State.QUEUED:
            return "waiting to go on" if self.attempt else "waiting"
        if self.state is not State.RUNNING:
            return self.state.value
        text = "".join(letter if " " <= letter <= "~" else "?" for letter in self.stage)[:80]
        if self.total > 0:
            return f"{text}: {min(100, 100 * self.done // self.total)} %"
        return text or "beginning"


def jobs_folder(data: Path) -> Path:
    """Give the folder that holds the folders of jobs."""
    return data / "jobs"


def folder_of(data: Path, job: Job) -> Path:
    """Give the folder that a job's search writes to, the same each time it is taken up."""
    return Path(job.asked.output) if job.asked.output else jobs_folder(data) / job.key
