"""Who may look and act: a one-time token, a session cookie, and checks of Host and Origin.

The link with the token works once and becomes a cookie that scripts cannot read and other sites cannot send.
Host is checked against DNS rebinding, Origin against forms on other sites. Every answer carries a content
security policy under which only this server's own files run.
"""

import hmac
import secrets
from collections.abc import Sequence

from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_SESSIONS = 64
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, forms of the page itself would send Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NEW_LINK = "Get a new link with: crescendo console RUN\n"


def with_headers(send: Send, *, cache: str = "no-store") -> Send:
    """`send` that puts the security headers on every answer. cache: Cache-Control of answers that name none."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", cache)
        await send(message)

    return send_with_headers


class Access:
    """The token and the sessions of one console. hosts: what the Host header may say, with the port."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = tuple(hosts)
        self.token = secrets.token_urlsafe(32)
        # Cookies ignore ports: consoles of two runs on one machine need two names.
        self.cookie = f"crescendo_{hosts[0].rpartition(':')[2]}"
        self._redeemed = False
        self._sessions: list[str] = []

    @property
    def link(self) -> str:
        """The address that opens the console, once."""
        return f"http://{self.hosts[0]}/?token={self.token}"

    def redeem(self, token: str) -> str | None:
        """A new session for the token, the first time; None otherwise."""
        if self._redeemed or not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        self._redeemed = True
        self._sessions = [*self._sessions, secrets.token_urlsafe(32)][-MAX_SESSIONS:]
        return self._sessions[-1]

    def knows(self, session: str) -> bool:
        """Whether a session cookie is one of ours."""
        return any(hmac.compare_digest(session.encode(), known.encode()) for known in self._sessions)


class Guard:
    """ASGI middleware: lets a request through to the app, or answers it itself."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks an HTTP request; everything else but the app's life cycle is refused."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        refusal = self._judge(Request(scope))
        await (refusal or self._app)(scope, receive, with_headers(send))

    def _judge(self, request: Request) -> Response | None:
        if request.headers.get("host", "") not in self._access.hosts:
            return PlainTextResponse("This console does not serve that host name.\n", 400)
        if request.method not in ("GET", "HEAD") and not self._same_origin(request.headers):
            return PlainTextResponse("The request comes from another site.\n", 403)
        token = request.query_params.get("token")
        if token is not None:
            return self._redeem(token, request.url)
        if not self._access.knows(request.cookies.get(self._access.cookie, "")):
            return PlainTextResponse(f"The console needs a session. {NEW_LINK}", 403)
        return None

    def _same_origin(self, headers: Headers) -> bool:
        return headers.get("origin") == f"http://{headers['host']}"

    def _redeem(self, token: str, url: URL) -> Response:
        session = self._access.redeem(token)
        if session is None:
            return PlainTextResponse(f"The token is wrong or was used already. {NEW_LINK}", 403)
        response = RedirectResponse(url.path, 303)
        response.set_cookie(self._access.cookie, session, httponly=True, samesite="strict", path="/")
        return response
