"""The file system behind a URI, and what its errors mean. Credentials come from the environment.

S3: AWS_ACCESS_KEY_ID and others (common/s3.py). Hub: HF_TOKEN, HF_ENDPOINT; its package is slow to import, and is when
it is used.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from fsspec.implementations.local import LocalFileSystem

from crescendo.common.errors import ConfigError, CrescendoError, DiskFullError, EnvironmentProblem
from crescendo.common.s3 import DENIED, NO_BUCKET, s3_filesystem
from crescendo.controller.fetch.uri import Source

_MISSING: Final = (*NO_BUCKET, "NO_SUCH_KEY", "NoSuchKey", "does not exist", "404")


class SourceUnavailable(EnvironmentProblem):
    """The place that an input comes from does not answer, or not well: try again."""

    retryable = True


def open_source(source: Source, field: str) -> tuple[Any, str]:
    """The fsspec file system of a source and the path in it. Raises ConfigError for a claim, which is none here."""
    if source.scheme == "file":
        return LocalFileSystem(), source.path
    if source.scheme == "s3":
        return s3_filesystem(os.environ, anonymous=True), "/".join(filter(None, (source.owner, source.path)))
    if source.scheme == "hf":
        return _hub(), "/".join(filter(None, (source.owner, source.path)))
    raise ConfigError(
        f"{field} is {source.uri!r}: a claim is mounted by the operator, not by this command.",
        field=field,
        fix="Give the folder where the claim is mounted, as file:///path.",
    )


def _hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(skip_instance_cache=True)


@contextmanager
def explained(source: Source, field: str) -> Iterator[None]:
    """Turns what a file system raises into an error that names field, URI and fix."""
    try:
        yield
    except (CrescendoError, TypeError, AttributeError, NameError):
        raise  # told already, or a bug of ours
    except Exception as error:
        raise _explain(error, source, field) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: fsspec's hub says that a file is missing where the repository is gated."""
    while error is not None:
        yield error
        error = error.__cause__


def nothing_there(source: Source, field: str) -> ConfigError:
    """The error for a URI that names nothing."""
    private = " A private repository needs a secretRef with HF_TOKEN." if source.scheme == "hf" else ""
    return ConfigError(
        f"{field} is {source.uri!r}: there is nothing there.",
        field=field,
        fix=f"Correct the URI; mind its spelling.{private}",
    )


def _explain(error: Exception, source: Source, field: str) -> CrescendoError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFullError(f"{field}: the volume is full.", field=field, fix="Raise spec.storage.size, or make room.")
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    kinds = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    if kinds & {"GatedRepoError", "PermissionError"} or any(sign in text for sign in DENIED):
        keys = "HF_TOKEN" if source.scheme == "hf" else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        fix = "Make the files readable for user 1000." if source.scheme == "file" else ""
        return ConfigError(
            f"{field} is {source.uri!r}: reading it is refused ({text}).",
            field=field,
            fix=fix or f"Name a Secret in the secretRef beside it, with {keys} that may read it.",
        )
    if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "FileNotFoundError"}:
        return nothing_there(source, field)
    if any(sign in text for sign in _MISSING):
        return nothing_there(source, field)
    return SourceUnavailable(
        f"{field} is {source.uri!r}: {urlsplit(source.uri).scheme} did not answer well ({text}).",
        field=field,
        fix="It is tried again. If it stays, check the endpoint, the network policy and the proxy.",
    )
