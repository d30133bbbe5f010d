"""S3 by pyarrow's client, from settings that are named as the AWS tools name them.

AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL[_S3]. pyarrow is slow to
import, and is when a client is made. Used by the fetch step (controller/fetch) and by object_store.py.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

CONNECT_S: Final = 10.0
ANSWER_S: Final = 30.0
ATTEMPTS: Final = 5
KEY: Final = "AWS_ACCESS_KEY_ID"
DENIED: Final = (
    "ACCESS_DENIED",
    "AccessDenied",
    "INVALID_ACCESS_KEY",
    "InvalidAccessKey",
    "SIGNATURE",
    " 401",
    " 403",
)
"""What an error says that credentials are to blame for."""
NO_BUCKET: Final = ("NO_SUCH_BUCKET", "NoSuchBucket")
"""What an error says when there is no such bucket."""


def s3_filesystem(
    settings: Mapping[str, str],
    *,
    anonymous: bool,
    connect_s: float = CONNECT_S,
    answer_s: float = ANSWER_S,
    attempts: int = ATTEMPTS,
    threads: bool = True,
) -> Any:
    """An fsspec file system; paths in it are bucket/key. Talks to nobody yet.

    anonymous: without a key in settings, ask without one; otherwise the AWS default chain looks for one (a web
    identity, say). threads: upload parts of a file side by side, in threads of pyarrow's.
    """
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    endpoint = urlsplit(settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL") or "")
    login: dict[str, Any] = {"anonymous": anonymous}
    if KEY in settings:
        login = {"access_key": settings[KEY], "secret_key": settings.get("AWS_SECRET_ACCESS_KEY", "")}
        login["session_token"] = settings.get("AWS_SESSION_TOKEN")
    client = S3FileSystem(
        endpoint_override=endpoint.netloc or None,
        scheme=endpoint.scheme or "https",
        region=settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION") or "us-east-1",
        connect_timeout=connect_s,
        request_timeout=answer_s,
        background_writes=threads,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=attempts),
        **login,
    )
    return ArrowFSWrapper(client, skip_instance_cache=True)
