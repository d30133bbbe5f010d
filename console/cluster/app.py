"""The cluster's console: a list of jobs, a page a job, and, where the chart allows it, actions.

Rendered on the server, works without JavaScript. A page reloads itself every ten seconds unless it is paused.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from crescendo.common.errors import RequestError
from crescendo.console.access import with_headers
from crescendo.console.cluster import view
from crescendo.console.cluster.acting import Acting, permitted
from crescendo.console.cluster.actions import unanswered
from crescendo.console.cluster.curves import curves
from crescendo.console.cluster.pages import DEEP_LINK, Pages, form_of
from crescendo.console.cluster.reader import EVERYWHERE, ClusterRefusal, JobReader, Manifest, Person, Reader, Right
from crescendo.console.cluster.runs import ControllerRuns, Runs, Seen
from crescendo.console.cluster.sessions import COOKIE, LIFETIME_S, Sessions
from crescendo.console.cluster.throttle import Throttle
from crescendo.console.render import Look, Renderer

STATIC: Final = Path(__file__).parent.parent / "static"
REFRESH_S: Final = 10
WAITING_S: Final = 2
_ENDED: Final = "Your session has ended: sign in again."
READS_OUTPUT: Final = Right("get", "pods/log", "")
LISTS_JOBS: Final = Right("list", "rljobs")


class Admits(Protocol):
    """Says whose token it is."""

    async def admit(self, token: str) -> Person | None: ...


def create_app(
    doorkeeper: Admits,
    sessions: Sessions,
    *,
    readers: Callable[[Person], Reader] = JobReader,
    runs: Runs | None = None,
    namespace: str = "",
    actions: bool = False,
) -> ASGIApp:
    """The guarded application. namespace: the only one it shows; actions: whether there are any."""
    app = FastAPI(title="Crescendo", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    pages, runs = Pages(sessions, readers, namespace), runs or ControllerRuns()
    door, console = Door(pages, doorkeeper, readers), Console(pages, runs, actions)
    app.add_api_route("/healthz", _healthz, methods=["GET"])
    app.add_api_route("/login", door.page, methods=["GET"], response_model=None)
    app.add_api_route("/login", door.enter, methods=["POST"], response_model=None)
    app.add_api_route("/logout", door.leave, methods=["POST"], response_model=None)
    app.add_api_route("/", console.jobs, methods=["GET"], response_model=None)
    app.add_api_route("/jobs/{space}/{name}", console.job, methods=["GET"], response_model=None)
    if actions:
        app.include_router(Acting(pages, runs).router)
    return Guard(app)


class Door:
    """Signing in and out."""

    def __init__(self, pages: Pages, doorkeeper: Admits, readers: Callable[[Person], Reader]) -> None:
        self._pages = pages
        self._doorkeeper = doorkeeper
        self._readers = readers
        self._throttle = Throttle()

    async def page(self, request: Request) -> Response:
        """The form for a token."""
        ended, wanted = "ended" in request.query_params, request.query_params.get("next", "")
        answer = self._pages.show("login.html", said=_ENDED if ended else "", wanted=wanted)
        if ended:
            answer.delete_cookie(COOKIE, path="/")
        return answer

    async def enter(self, request: Request) -> Response:
        """A session for a token that the API server knows."""
        address = request.client.host if request.client else ""
        wait_s = self._throttle.wait_s(address)
        if wait_s > 0:
            answer = self._fail(429, f"Too many attempts from your address. Try again in {wait_s:.0f} s.")
            answer.headers["Retry-After"] = f"{wait_s:.0f}"
            return answer
        form = await form_of(request)
        token, wanted = form.get("token", "").strip(), form.get("next", "")
        try:
            person = await self._doorkeeper.admit(token) if token else None
            if person is None:
                self._throttle.failed(address)
                return self._fail(403, "The cluster does not know this token, or it has expired.")
            sealed = self._pages.sessions.seal(person)
            first = wanted if DEEP_LINK.fullmatch(wanted) else await self._first_page(person)
        except ClusterRefusal as refusal:
            return self._fail(502, f"The cluster cannot be asked about the token: {refusal.message}")
        except RequestError as error:
            return self._fail(400, str(error))
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        welcome = RedirectResponse(first, 303)
        # Lax: a link in a chat leads to the page. What changes something is posted, which lax cookies do not go with.
        welcome.set_cookie(COOKIE, sealed, max_age=LIFETIME_S, httponly=True, samesite="lax", secure=secure, path="/")
        return welcome

    async def leave(self) -> Response:
        """Forgets the session."""
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    async def _first_page(self, person: Person) -> str:
        """All jobs for who may list them all; else, for a service account, those of its namespace."""
        if self._pages.namespace or not person.home:
            return "/"
        reader = self._readers(person)
        try:
            everything = await reader.may(EVERYWHERE, [LISTS_JOBS])
        finally:
            await reader.close()
        return "/" if everything else f"/?namespace={person.home}"

    def _fail(self, status: int, said: str) -> Response:
        return self._pages.show("login.html", status, said=said)


class Console:
    """The pages that show."""

    def __init__(self, pages: Pages, runs: Runs, actions: bool) -> None:
        self._pages = pages
        self._runs = runs
        self._actions = actions
        self._renderer = Renderer()

    async def jobs(self, request: Request) -> Response:
        """The list."""
        asked = request.query_params
        wanted = self._pages.namespace or asked.get("namespace", "").strip() or EVERYWHERE
        chosen = {"phase": asked.get("phase", ""), "text": asked.get("text", ""), "sort": asked.get("sort", "newest")}

        async def look(reader: Reader, person: Person) -> Response:
            frame: dict[str, Any] = {
                "person": person, "namespace": wanted, "fixed": bool(self._pages.namespace),
                "paused": "paused" in asked, "refresh_s": REFRESH_S, "asked": chosen,
                "phases": view.PHASES, "sorts": view.SORTS,
            }  # fmt: skip
            try:
                found = await reader.jobs(wanted)
            except ClusterRefusal as refusal:
                if refusal.code != 403 or self._pages.namespace:
                    raise
                return self._pages.show("jobs.html", 403, **frame, forbidden=refusal.message)
            rows, more = view.shown(view.listed(found, datetime.now(UTC), **chosen))
            return self._pages.show("jobs.html", **frame, rows=rows, more=more, total=len(found))

        return await self._pages.reading(request, look)

    async def job(self, request: Request, space: str, name: str) -> Response:
        """One job: progress, stages, curves, engines, conditions, pods, events."""

        async def look(reader: Reader, person: Person) -> Response:
            job, now = await reader.job(space, name), datetime.now(UTC)
            reads_output = bool(await reader.may(space, [READS_OUTPUT]))
            seen, pods, events = await asyncio.gather(
                self._runs.look(job, samples=reads_output),
                _or_none(reader.pods(space, name)),
                _or_none(reader.events(space, job["metadata"]["uid"])),
            )
            row, waits = view.row_of(job, now), unanswered(job)
            return self._pages.show(
                "job.html", person=person, job=job, row=row, figures=view.figures(job, row), seen=seen,
                curves=curves(seen.rows), parts=self._parts(seen), reads_output=reads_output, waits=waits,
                actions=await permitted(reader, job, paused=seen.status.paused) if self._actions else (),
                pods=None if pods is None else view.pod_rows(pods, now),
                events=None if events is None else view.event_rows(events, now),
                paused="paused" in request.query_params, refresh_s=WAITING_S if waits else REFRESH_S,
            )  # fmt: skip

        return await self._pages.reading(request, look)

    def _parts(self, seen: Seen) -> dict[str, str]:
        """The parts that the run's own console shows as well; they are escaped."""
        return self._renderer.parts(Look(seen.status, seen.rows, (), seen.samples))


class Guard:
    """ASGI middleware: refuses forms of other sites, puts the security headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks an HTTP request; everything else but the app's life cycle is refused."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        # Style sheet and icon may be kept, but are asked for again by their tags.
        guarded = with_headers(send, cache="no-cache" if scope["path"].startswith("/static/") else "no-store")
        if scope["method"] not in ("GET", "HEAD") and not _same_origin(Headers(scope=scope)):
            await PlainTextResponse("The request comes from another site.\n", 403)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)


def _same_origin(headers: Headers) -> bool:
    return headers.get("origin", "").partition("://")[2] == headers.get("host", "-")


async def _healthz() -> PlainTextResponse:
    return PlainTextResponse("ok\n")


async def _or_none(call: Awaitable[Sequence[Manifest]]) -> Sequence[Manifest] | None:
    """A part of the page that the person may not see is left out, not the page."""
    try:
        return await call
    except ClusterRefusal as refusal:
        if refusal.code == 403:
            return None
        raise
