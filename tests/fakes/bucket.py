"""An S3 bucket that can be written to: objects, uploads in parts, deletions; as much as pyarrow's client uses.

`hold` answers nothing until it is set (a store that hangs); `refuse_writes` is answered to every PUT.
"""

import io
import re
import threading
from dataclasses import dataclass, field
from typing import IO, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.object_store import ObjectStore, _Handler


class _WritingHandler(_Handler):
    shop: "Bucket"

    def do_GET(self) -> None:
        self.shop.go.wait()
        super().do_GET()

    def do_PUT(self) -> None:
        self.shop.go.wait()
        body = self._body()
        url = urlsplit(self.path)
        name, query = unquote(url.path).lstrip("/"), parse_qs(url.query)
        self.shop.requests.append(f"PUT {self.path}")
        if self._is_stranger():
            return self._refuse(name)
        if self.shop.refuse_writes:
            code = {403: "AccessDenied", 404: "NoSuchBucket"}.get(self.shop.refuse_writes, "InternalError")
            text = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
            return self._send(self.shop.refuse_writes, text.encode())
        if "uploadId" in query:
            self.shop.parts.setdefault(query["uploadId"][0], {})[int(query["partNumber"][0])] = body
        else:
            self.shop.files[name] = body
        return self._send(200, b"", {"ETag": '"0"'})

    def do_POST(self) -> None:
        self.shop.go.wait()
        body = self._body()
        url = urlsplit(self.path)
        name, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        self.shop.requests.append(f"POST {self.path}")
        if self._is_stranger():
            return self._refuse(name)
        if "delete" in query:
            for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.shop.files.pop(f"{name}/{key}", None)
            return self._send(200, b"<DeleteResult></DeleteResult>", {"Content-Type": "application/xml"})
        bucket, _, key = name.partition("/")
        about = f"<Bucket>{bucket}</Bucket><Key>{key}</Key>"
        if "uploads" in query:
            self.shop.uploads += 1
            about += f"<UploadId>u{self.shop.uploads}</UploadId>"
            text = f"<InitiateMultipartUploadResult>{about}</InitiateMultipartUploadResult>"
        else:
            parts = self.shop.parts.pop(query["uploadId"][0], {})
            self.shop.files[name] = b"".join(parts[number] for number in sorted(parts))
            text = f"<CompleteMultipartUploadResult>{about}<ETag>0</ETag></CompleteMultipartUploadResult>"
        return self._send(200, text.encode(), {"Content-Type": "application/xml"})

    def do_DELETE(self) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        if self._is_stranger():
            return self._refuse(name)
        self.shop.files.pop(name, None)
        return self._send(204, b"")

    def _body(self) -> bytes:
        """What was sent, out of HTTP's chunks and, within them, those of S3, which carry a checksum at their end."""
        if self.headers.get("transfer-encoding") == "chunked":
            found = _unchunked(self.rfile)
        else:
            found = self.rfile.read(int(self.headers.get("content-length", 0)))
        return _unchunked(io.BytesIO(found)) if self.headers.get("content-encoding") == "aws-chunked" else found


def _unchunked(stream: IO[bytes]) -> bytes:
    found = b""
    while size := int(stream.readline().split(b";")[0], 16):
        found += stream.read(size)
        stream.readline()
    while stream.readline().strip():  # trailing headers
        pass
    return found


@dataclass
class Bucket(ObjectStore):
    """files: by `bucket/key`. go: cleared, it answers nothing; refuse_writes: status for every PUT, 0: none."""

    handler: ClassVar[type[_Handler]] = _WritingHandler
    go: threading.Event = field(default_factory=threading.Event)
    refuse_writes: int = 0
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    uploads: int = 0

    def __post_init__(self) -> None:
        self.go.set()
        super().__post_init__()

    def close(self) -> None:
        self.go.set()
        super().close()
