"""A proxy before the API server that loses, delays and refuses: 409, 410, 429, 500, cut watches, slow answers.

Plain HTTP on loopback towards the client; towards the API server the client's own bearer token, or else the admin's
certificate. `decide` says for each request what becomes of it; what was seen and injected is counted. Runs in a thread.
"""

import asyncio
import contextlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector, web

SKIPPED = {"host", "transfer-encoding", "content-length", "connection", "content-encoding"}


@dataclass(frozen=True)
class Fault:
    """status: answer with it instead of asking; after: ask, then lose the answer; delay_s: before anything;
    cut_s: end a stream after so long; in_stream: a watch is taken, then ends with an ERROR event of this status;
    then: called when the API server has answered and the client has not heard of it."""

    status: int = 0
    after: bool = False
    delay_s: float = 0.0
    cut_s: float = 0.0
    in_stream: int = 0
    then: Callable[[], None] | None = None


@dataclass(frozen=True)
class Request:
    """What `decide` sees. resource: plural, with the subresource; body: parsed JSON, None without one."""

    verb: str
    resource: str
    name: str
    body: object

    @property
    def writes(self) -> bool:
        """Whether it may change something."""
        return self.verb not in ("get", "list", "watch")


Decide = Callable[[Request], Fault | None]


class Proxy:
    """Runs between `start` and `stop`. url: what a kubeconfig points to; seen: by (verb, resource)."""

    def __init__(self, server: str, pki: Path) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._anonymous = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.decide: Decide = lambda _: None
        self.seen: Counter[tuple[str, str]] = Counter()
        self.injected: Counter[str] = Counter()
        self.url = ""

    def start(self) -> None:
        """Listens on a free port."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    def stop(self) -> None:
        """Ends connections."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._session = ClientSession(
            connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None), auto_decompress=False
        )
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.1)  # aborted transports close in the next rounds of the loop

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        found = read(request, body)
        self.seen[found.verb, found.resource] += 1
        fault = self.decide(found) or Fault()
        if fault.delay_s:
            self.injected["slow"] += 1
            await asyncio.sleep(fault.delay_s)
        if fault.in_stream:
            self.injected[f"in stream {fault.in_stream}"] += 1
            event = {"type": "ERROR", "object": _status(fault.in_stream)}
            return web.Response(body=json.dumps(event).encode() + b"\n", content_type="application/json")
        if fault.status and not fault.after:
            self.injected[str(fault.status)] += 1
            return _refusal(fault.status)
        return await self._forward(request, body, fault)

    async def _forward(self, request: web.Request, body: bytes, fault: Fault) -> web.StreamResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in SKIPPED}
        tls = self._anonymous if "Authorization" in headers else self._tls
        url = f"{self._server}{request.rel_url}"
        # No body at all rather than an empty one, which would get a content type that the API server refuses.
        async with self._session.request(request.method, url, headers=headers, data=body or None, ssl=tls) as answer:
            if fault.then is not None:
                self.injected["then"] += 1
                fault.then()
            if fault.after:
                self.injected[f"lost {fault.status}"] += 1
                return _refusal(fault.status)
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for key, value in answer.headers.items():
                if key.lower() not in SKIPPED - {"content-encoding"}:
                    response.headers[key] = value
            with contextlib.suppress(ConnectionResetError):  # the client went away
                await self._stream(request, answer, response, fault)
            return response

    async def _stream(
        self, request: web.Request, answer: ClientResponse, response: web.StreamResponse, fault: Fault
    ) -> None:
        await response.prepare(request)
        try:
            async with asyncio.timeout(fault.cut_s or None):
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
        except TimeoutError:
            self.injected["cut"] += 1
            if request.transport is not None:
                request.transport.abort()


def read(request: web.Request, body: bytes) -> Request:
    """Verb, resource and name of a request, as the API server's authorization sees them."""
    parts = request.path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    resource = "/".join(rest[:1] + rest[2:3]) or request.path
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(request.method, "get")
    if verb == "get" and rest and not name:
        verb = "watch" if request.query.get("watch") in ("true", "1") else "list"
    try:
        parsed = json.loads(body) if body else None
    except ValueError:
        parsed = None
    return Request(verb, resource, name, parsed)


def _status(code: int) -> dict[str, object]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "injected", "code": code}


def _refusal(code: int) -> web.Response:
    headers = {"Retry-After": "1"} if code == 429 else {}
    # Exactly the API server's media type, without a charset: clients look at it.
    body = json.dumps(_status(code)).encode()
    return web.Response(body=body, status=code, headers=headers, content_type="application/json")
