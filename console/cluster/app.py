"""The cluster's console: a list of jobs, a page a job, and, where the chart allows it, three verbs.

Rendered on the server, works without JavaScript. A page reloads itself every ten seconds unless it is paused.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import ChainableUndefined, Environment, PackageLoader

from crescendo.console.access import HEADERS
from crescendo.console.cluster.reader import ClusterRefusal, Doorkeeper, JobReader, Manifest, Person
from crescendo.console.cluster.sessions import COOKIE, LIFETIME_S, Sessions

STATIC: Final = Path(__file__).parent.parent / "static"
VERBS: Final = ("suspend", "resume", "promote")
REFRESH_S: Final = 10
MAX_FORM_BYTES: Final = 16384
_SAY: Final = {
    401: "Your session has ended: sign in again.",
    403: "You may not see this. Ask for a role that reads rljobs in the namespace.",
    404: "There is no such job, or the RLJob definition is not installed in this cluster.",
    0: "The cluster does not answer.",
}


def create_app(doorkeeper: Doorkeeper, sessions: Sessions, *, namespace: str = "", verbs: bool = False) -> FastAPI:
    """The application. namespace: the only one it shows; verbs: whether it may change anything."""
    app = FastAPI(title="Crescendo", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.middleware("http")(_guard)
    console = Console(doorkeeper, sessions, namespace, verbs)
    app.add_api_route("/healthz", _healthz, methods=["GET"])
    app.add_api_route("/login", console.login_page, methods=["GET"], response_model=None)
    app.add_api_route("/login", console.login, methods=["POST"], response_model=None)
    app.add_api_route("/logout", console.logout, methods=["POST"], response_model=None)
    app.add_api_route("/", console.jobs, methods=["GET"], response_model=None)
    app.add_api_route("/jobs/{space}/{name}", console.job, methods=["GET"], response_model=None)
    app.add_api_route("/jobs/{space}/{name}/{verb}", console.act, methods=["POST"], response_model=None)
    return app


class Console:
    """The pages. Holds no state of its own: sessions are in cookies, jobs in the cluster."""

    def __init__(self, doorkeeper: Doorkeeper, sessions: Sessions, namespace: str, verbs: bool) -> None:
        self._doorkeeper = doorkeeper
        self._sessions = sessions
        self._namespace = namespace
        self._verbs = verbs
        # A job that the operator has not seen yet has no status: absent fields are empty.
        loader = PackageLoader("crescendo.console.cluster")
        self._pages = Environment(loader=loader, autoescape=True, undefined=ChainableUndefined)

    async def login_page(self) -> Response:
        """The form for a token."""
        return self._show("login.html", failed=False)

    async def login(self, request: Request) -> Response:
        """A session for a token that the API server knows."""
        token = (await _form(request)).get("token", "").strip()
        person = await self._doorkeeper.admit(token) if token else None
        if person is None:
            return self._show("login.html", 403, failed=True)
        answer = RedirectResponse("/", 303)
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        value = self._sessions.seal(person)
        answer.set_cookie(COOKIE, value, max_age=LIFETIME_S, httponly=True, samesite="strict", secure=secure, path="/")
        return answer

    async def logout(self) -> Response:
        """Forgets the session."""
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    async def jobs(self, request: Request) -> Response:
        """The list."""
        wanted = self._namespace or request.query_params.get("namespace", "") or "*"

        async def look(reader: JobReader, person: Person) -> Response:
            found = await reader.jobs(wanted)
            return self._show(
                "jobs.html", person=person, jobs=found, namespace=wanted, fixed=bool(self._namespace),
                paused="paused" in request.query_params,
            )  # fmt: skip

        return await self._reading(request, look)

    async def job(self, request: Request, space: str, name: str) -> Response:
        """One job with its conditions, pods and events."""

        async def look(reader: JobReader, person: Person) -> Response:
            found = await reader.job(space, name)
            pods = await _or_none(reader.pods(space, name))
            events = await _or_none(reader.events(space, found["metadata"]["uid"]))
            paused = "paused" in request.query_params
            return self._show("job.html", person=person, job=found, pods=pods, events=events, paused=paused)

        return await self._reading(request, look)

    async def act(self, request: Request, space: str, name: str, verb: str) -> Response:
        """Suspends, resumes or promotes with the person's own rights."""
        if not self._verbs or verb not in VERBS:
            return PlainTextResponse("This console only shows.\n", 403)
        stage = (await _form(request)).get("stage", "")
        spec: Manifest = {"promoteTo": stage} if verb == "promote" else {"suspend": verb == "suspend"}

        async def change(reader: JobReader, person: Person) -> Response:
            await reader.change(space, name, spec)
            return RedirectResponse(f"/jobs/{space}/{name}", 303)

        return await self._reading(request, change)

    async def _reading(self, request: Request, look: Callable[[JobReader, Person], Awaitable[Response]]) -> Response:
        person = self._sessions.open(request.cookies)
        if person is None:
            return RedirectResponse("/login", 303)
        reader = JobReader(person)
        try:
            return await look(reader, person)
        except ClusterRefusal as refusal:
            if refusal.code == 401:
                return RedirectResponse("/login", 303)
            said = _SAY.get(refusal.code, "The cluster refused.")
            return self._show("refusal.html", refusal.code or 502, person=person, said=said, detail=refusal.message)
        finally:
            await reader.close()

    def _show(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        text = self._pages.get_template(template).render(verbs=self._verbs, refresh_s=REFRESH_S, **values)
        return HTMLResponse(text, status)


async def _healthz() -> PlainTextResponse:
    return PlainTextResponse("ok\n")


async def _guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuses forms of other sites; puts the security headers on every answer."""
    if request.method == "POST" and not _same_origin(request):
        answer: Response = PlainTextResponse("The request comes from another site.\n", 403)
    else:
        answer = await call(request)
    for name, value in HEADERS.items():
        answer.headers[name] = value
    answer.headers.setdefault("Cache-Control", "no-store")
    return answer


async def _or_none(call: Awaitable[list[Manifest]]) -> list[Manifest] | None:
    """A part of the page that the person may not see is left out, not the page."""
    try:
        return await call
    except ClusterRefusal as refusal:
        if refusal.code == 403:
            return None
        raise


def _same_origin(request: Request) -> bool:
    origin = request.headers.get("origin", "")
    return origin.partition("://")[2] == request.headers.get("host", "-")


async def _form(request: Request) -> dict[str, str]:
    """A small URL-encoded form; larger bodies count as empty."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    return dict(parse_qsl(body.decode("utf-8", "replace")))
