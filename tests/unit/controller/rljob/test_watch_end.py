"""A watch that ends badly is started again: real kopf against a server that plays an API server at its worst."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from crescendo.controller.operator.crd import GROUP, PLURAL, VERSION
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.watch import Watch

SPACES = tuple(f"team-{number}" for number in range(6))
JOB = {"metadata": {"uid": "1", "name": "math", "namespace": SPACES[0], "generation": 1, "resourceVersion": "5"}}
KINDS = {
    f"/apis/{GROUP}/{VERSION}": [PLURAL],
    "/apis/ray.io/v1": ["rayjobs", "rayclusters"],
    "/apis/apiextensions.k8s.io/v1": ["customresourcedefinitions"],
    "/api/v1": ["namespaces"],
}
ERROR = {"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd is away"}}


class Worst(BaseHTTPRequestHandler):
    """Lists one job. Its watches fail within the stream until `well`; all others are refused until then."""

    well = False
    refused = 0

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        jobs = f"/namespaces/{SPACES[0]}/{PLURAL}" in url.path
        if "watch=true" not in url.query:
            self._answer(self._listed(url.path, jobs))
        elif Worst.well:
            self._answer({})
        elif jobs:
            self._answer(ERROR)
        else:
            Worst.refused += 1
            self._answer({"kind": "Status", "code": 503}, 503)

    def _listed(self, path: str, jobs: bool) -> dict[str, Any]:
        if path == "/api":
            return {"versions": ["v1"]}
        if path == "/apis":
            return {"groups": [_group(*kind.split("/")[2:]) for kind in KINDS if kind.startswith("/apis")]}
        if path in KINDS:
            return {"resources": [_kind(name) for name in KINDS[path]]}
        return {"metadata": {"resourceVersion": "5"}, "items": [JOB] if jobs else []}

    def _answer(self, body: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(body).encode() + b"\n" if body else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _group(name: str, version: str) -> dict[str, Any]:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [served], "preferredVersion": served}


def _kind(plural: str) -> dict[str, Any]:
    return {"name": plural, "singularName": plural[:-1], "kind": plural[:-1].title(), "namespaced": True,
            "verbs": ["list", "watch", "patch"]}  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Worst]]:
    Worst.well, Worst.refused = False, 0
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Worst)
    serving.daemon_threads = True
    monkeypatch.setattr(serving, "handle_error", lambda *_: None)  # kopf leaves in the middle of an answer
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{serving.server_port}"}}],
        "users": [{"name": "me", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield Worst
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.mark.slow
def test_a_watch_comes_back_after_kopf_left_its_streams_behind(server: type[Worst]) -> None:
    """One stream fails, which ends kopf; the others wait between two attempts and find their connection closed."""
    seen = threading.Semaphore(0)
    watch = Watch(Options(watch_namespaces=SPACES, health_port=0), lambda *_: seen.release())
    watch.start()
    try:
        assert seen.acquire(timeout=60)  # the job is listed
        assert seen.acquire(timeout=120)  # and again by the next watch
        assert server.refused > 0
    finally:
        server.well = True
        watch.stop()
        watch._thread.join(60)  # the second may be ending badly just now, too
    assert not watch._thread.is_alive()
