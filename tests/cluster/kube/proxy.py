"""A proxy before the API server that loses, delays and refuses: 409, 410, 429, 500, cut watches, slow answers.

Plain HTTP on loopback towards the operator, the admin's certificate towards the API server. `faults` decides for each
request; what it did is counted.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

SKIPPED = {"host", "transfer-encoding", "content-length", "connection", "content-encoding"}


@dataclass(frozen=True)
class Fault:
    """status: answer with it instead of asking; after: ask, then lose the answer; delay_s: before anything;
    cut_s: end a stream after so long."""

    status: int = 0
    after: bool = False
    delay_s: float = 0.0
    cut_s: float = 0.0


Decide = Callable[[web.Request], Fault | None]


class Proxy:
    """Runs between `start` and `stop`. url: what a kubeconfig points to."""

    def __init__(self, server: str, pki: Path) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self.decide: Decide = lambda _: None
        self.seen: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.url = ""

    async def start(self) -> None:
        """Listens on a free port."""
        self._session = ClientSession(
            connector=TCPConnector(ssl=self._tls, limit=0), timeout=ClientTimeout(total=None), auto_decompress=False
        )
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        """Ends connections."""
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        watching = request.query.get("watch") in ("true", "1")
        self.seen["WATCH" if watching else request.method] += 1
        fault = self.decide(request) or Fault()
        if fault.delay_s:
            self.injected["slow"] += 1
            await asyncio.sleep(fault.delay_s)
        if fault.status and not fault.after:
            self.injected[str(fault.status)] += 1
            return _refusal(fault.status)
        headers = {key: value for key, value in request.headers.items() if key.lower() not in SKIPPED}
        body = await request.read()
        async with self._session.request(
            request.method, f"{self._server}{request.rel_url}", headers=headers, data=body
        ) as answer:
            if fault.after:
                self.injected[f"lost {fault.status}"] += 1
                return _refusal(fault.status)
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for key, value in answer.headers.items():
                if key.lower() not in SKIPPED - {"content-encoding"}:
                    response.headers[key] = value
            await response.prepare(request)
            try:
                async with asyncio.timeout(fault.cut_s or None):
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
            except TimeoutError:
                self.injected["cut"] += 1
                if request.transport is not None:
                    request.transport.abort()
            return response


def _refusal(status: int) -> web.Response:
    headers = {"Retry-After": "1"} if status == 429 else {}
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "injected", "code": status}
    return web.json_response(body, status=status, headers=headers)
