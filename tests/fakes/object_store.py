"""An S3 bucket and a Hugging Face hub over HTTP: as much of both as their clients use to read.

Threads of this process, on loopback unless `host` says otherwise; `fail` holds statuses to answer with before serving
again, `cut` stops bodies short.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class ObjectStore:
    """files: bytes by `bucket/key` or `owner/name/path`; key_id: the access key or hub token asked for."""

    handler: ClassVar["type[_Handler]"]
    files: dict[str, bytes] = field(default_factory=dict)
    key_id: str = ""
    fail: list[int] = field(default_factory=list)
    cut: int = 0
    requests: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        store = self

        class Handler(self.handler):  # type: ignore[name-defined,misc]
            shop = store

        self._server = ThreadingHTTPServer((self.host, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://{self.host}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    shop: ObjectStore
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: tests read `requests`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        wanted = parse_qs(self.rfile.read(int(self.headers.get("content-length", 0))).decode()).get("paths", [])
        self._hub_paths(urlsplit(self.path).path, wanted)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        self.shop.requests.append(f"{self.command} {self.path}")
        if self.shop.fail:
            return self._send(self.shop.fail.pop(0), b"later")
        if self._is_stranger():
            return self._refuse(path)
        if path.startswith("api/"):
            return self._hub_api(path)
        if "list-type" in query:
            return self._list(path, query)
        if "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            return self._file(f"{repository.removeprefix('datasets/')}/{rest.partition('/')[2]}")
        return self._file(path)

    def _is_stranger(self) -> bool:
        return bool(self.shop.key_id) and self.shop.key_id not in self.headers.get("authorization", "")

    def _refuse(self, path: str) -> None:
        if path.startswith("api/"):
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        else:
            self._send(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")

    def _file(self, name: str) -> None:
        content = self.shop.files.get(name)
        if content is None:
            return self._send(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        status, span = 200, self.headers.get("range", "")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) if last else len(content) - 1, len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            content, status = content[int(first) : end + 1], 206
        return self._send(status, content, headers)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        keys, folders = [], set()
        for name, content in sorted(self.shop.files.items()):
            owner, _, key = name.partition("/")
            if owner != bucket or not key.startswith(prefix):
                continue
            below = key[len(prefix) :]
            if delimiter and delimiter in below:
                folders.add(prefix + below.partition(delimiter)[0] + delimiter)
            else:
                keys.append(f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size></Contents>")
        shown = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        about = f"<IsTruncated>false</IsTruncated><KeyCount>{len(keys) + len(folders)}</KeyCount>"
        body = f"<ListBucketResult>{about}{''.join(keys)}{shown}</ListBucketResult>"
        self._send(200, body.encode(), {"Content-Type": "application/xml"})

    def _hub_api(self, path: str) -> None:
        """api/models|datasets/OWNER/NAME[/revision/REV | /tree/REV[/FOLDER]]"""
        repository, rest = "/".join(path.split("/")[2:4]), path.split("/")[4:]
        known = {name[len(repository) + 1 :] for name in self.shop.files if name.startswith(f"{repository}/")}
        if not known:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            entries = [self._entry(repository, name) for name in sorted(known) if name.startswith(folder)]
            return self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        siblings = [{"rfilename": name} for name in sorted(known)]
        info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
        return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _hub_paths(self, path: str, wanted: list[str]) -> None:
        """api/models|datasets/OWNER/NAME/paths-info/REV"""
        repository = "/".join(path.strip("/").split("/")[2:4])
        entries = [self._entry(repository, name) for name in wanted if f"{repository}/{name}" in self.shop.files]
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _entry(self, repository: str, name: str) -> dict[str, object]:
        content = self.shop.files[f"{repository}/{name}"]
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": "a" * 40}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) - self.shop.cut] if status in (200, 206) and self.shop.cut else body)
            self.close_connection = bool(self.shop.cut)


ObjectStore.handler = _Handler
