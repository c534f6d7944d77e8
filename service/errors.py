"""The one tree of exceptions; each way out of the service turns them into its own form.

Missing or unusable clinical data is never an exception: it is an outcome with a reason
(semantics 1.1). Exceptions are for a broken request, mapping, configuration or source.
No text of an exception may hold a patient's data or a token.
"""

from __future__ import annotations


class EligibilityError(Exception):
    """Base of every error this service raises on purpose.

    ``status`` is the HTTP status, ``code`` the OperationOutcome issue type
    (http://hl7.org/fhir/issue-type) and ``exit_code`` that of the command line.
    """

    status = 500
    code = "exception"
    exit_code = 1

    def __init__(self, message: str, *, expression: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.expression = expression


class UsageError(EligibilityError):
    """A command or its options make no sense."""

    status = 400
    code = "invalid"
    exit_code = 2


class ConfigurationError(EligibilityError):
    """A setting is wrong; the service must not start with it."""

    code = "invalid"
    exit_code = 2


class MappingError(EligibilityError):
    """A mapping file is wrong; carries file and line."""

    code = "invalid"

    def __init__(self, message: str, *, file: str, line: int | None = None) -> None:
        place = file if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {message}")
        self.file = file
        self.line = line
        self.problem = message


class RequestError(EligibilityError):
    """A caller's request can't be answered as it stands."""

    status = 400
    code = "invalid"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        expression: str | None = None,
    ) -> None:
        super().__init__(message, expression=expression)
        if status is not None:
            self.status = status
        if code is not None:
            self.code = code


class UnknownTrial(EligibilityError):
    """No trial file has this id."""

    status = 404
    code = "not-found"
    exit_code = 2


class UnknownPatient(EligibilityError):
    """The source has no such patient."""

    status = 404
    code = "not-found"


class SourceError(EligibilityError):
    """The source can't be read at all (unreachable, refusing, not FHIR R4).

    ``status`` is 502, or 504 when it did not answer in time.
    """

    status = 502
    code = "transient"


class SourceTimeout(SourceError):
    """The source did not answer in time."""

    status = 504
    code = "timeout"


class PatientUnreadable(SourceError):
    """The Patient resource itself could not be read: no verdict is given on such a record."""

    code = "incomplete"


class PatientRefused(SourceError):
    """The source may not, or will not, give the Patient to whom the service asks as."""

    code = "forbidden"


class Overloaded(EligibilityError):
    """Too much work at once; ``retry_after`` is in seconds."""

    status = 503
    code = "throttled"

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreError(EligibilityError):
    """The store can't be used (unreachable, full, of another version).

    ``status`` is 503, never 500: to who polls a job that would mean that the job failed.
    """

    status = 503
    code = "no-store"


class StoreBusy(StoreError):
    """Another run holds the store."""

    status = 409
    code = "lock-error"


class NotReplayable(EligibilityError):
    """A stored verdict can't be given again: some version or fact of then is missing."""

    code = "not-found"
