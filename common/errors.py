"""Every error that Crescendo raises on purpose.

    CrescendoError
    ├── ConfigError            bad run file                                   exit 2
    ├── DataError              bad data set, prompt or row                    exit 2
    ├── RunFolderError         run folder of another version, or in use       exit 2
    ├── EnvironmentProblem     machine lacks something: port, memory, disk    exit 3
    │   ├── DiskFullError      no room for a file of the run: retry when there is
    │   └── StoreUnavailableError  the checkpoint store does not answer, or not well: retry
    ├── StaleFenceError        a newer controller took over                   fatal for the caller
    ├── WeightMismatchError    an engine does not serve what it should
    ├── CheckpointError        a manifest or file is missing or damaged
    ├── BufferStateError       the buffer refused or is not fit
    │   └── BufferRefusedError a write was refused (memory, disk, replicas): retry when that has passed
    ├── WorkerError            a service process failed
    │   ├── WorkerLostError    it died, hung or is unreachable: retryable
    │   └── WorkerStartError   it never became ready
    ├── DeadlineError          a wait passed its limit: retryable
    ├── OverloadError          a service is full: retry after a delay
    ├── RequestError           a request that can't be right, whoever sends it again
    └── InternalError          a bug, or something nobody foresaw

`retryable` is in the type. Errors cross gRPC by name (rpc/status.py), so each is made of plain text.
"""

TEMPORARY = 75
"""Exit code of a run that ended for a reason that may pass by itself (EX_TEMPFAIL): resume it."""


class CrescendoError(Exception):
    """Root of the tree.

    message: what is wrong, with field, value and rule; fix: what to do about it.
    """

    retryable = False
    exit_code = 1

    def __init__(self, message: str, *, field: str = "", fix: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.fix = fix
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} Fix: {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.field, self.fix, self.retry_after_s))


class ConfigError(CrescendoError):
    """A run file that cannot run."""

    exit_code = 2


class DataError(CrescendoError):
    """A data set, prompt or row that cannot be used."""

    exit_code = 2


class RunFolderError(CrescendoError):
    """A run folder that is damaged, in use, or of another version."""

    exit_code = 2


class EnvironmentProblem(CrescendoError):
    """The machine lacks something that the run needs."""

    exit_code = 3


class DiskFullError(EnvironmentProblem):
    """A file of the run could not be written for want of room."""

    retryable = True


class StoreUnavailableError(EnvironmentProblem):
    """The object storage of the run's checkpoints does not answer, or not well."""

    retryable = True


class StaleFenceError(CrescendoError):
    """The caller's fencing token is older than one already seen."""


class WeightMismatchError(CrescendoError):
    """An engine's attestation differs from what was published."""

    retryable = True


class CheckpointError(CrescendoError):
    """A checkpoint is incomplete or damaged."""


class BufferStateError(CrescendoError):
    """The buffer is not fit for the run, or refused a transition."""


class BufferRefusedError(BufferStateError):
    """The buffer's server takes no writes for now: memory or disk is full, it loads, fails over or lacks replicas.

    Nothing was written and nothing is lost; the same call succeeds when the cause has gone.
    """

    retryable = True


class WorkerError(CrescendoError):
    """A service process failed."""


class WorkerLostError(WorkerError):
    """A service died, hangs or cannot be reached."""

    retryable = True


class WorkerStartError(WorkerError):
    """A service never became ready."""


class DeadlineError(CrescendoError):
    """A wait passed its limit."""

    retryable = True


class OverloadError(CrescendoError):
    """A service takes no more work for now."""

    retryable = True


class RequestError(CrescendoError):
    """A request that no service would accept."""


class InternalError(CrescendoError):
    """Something that should not happen; the message carries the original error."""


def _subclasses(root: type[CrescendoError]) -> dict[str, type[CrescendoError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _subclasses(child)
    return found


def error_types() -> dict[str, type[CrescendoError]]:
    """Error classes by name."""
    return _subclasses(CrescendoError)


def _rebuild(kind: type[CrescendoError], message: str, field: str, fix: str, retry_after_s: float) -> CrescendoError:
    return kind(message, field=field, fix=fix, retry_after_s=retry_after_s)
