"""The web application: one page, rendered on the server; a stream of its changed parts; three verbs.

Without JavaScript the page is complete but for the charts (their numbers are in a table) and shows the moment
it was loaded; with it, `static/console.js` replaces parts as they change.
"""

import asyncio
import importlib.util
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from crescendo.common.errors import CrescendoError, RequestError
from crescendo.console.access import Access, Guard
from crescendo.console.render import Look, Renderer, chart_rows
from crescendo.console.source import VERBS, RunSource
from crescendo.proto.v1 import controller_pb2

INTERVAL_S = 1.0
FINISHED_INTERVAL_S = 5.0  # its files are read again in case somebody resumes it
HEARTBEAT_TICKS = 10
MAX_STREAMS = 16
SHOWN_SAMPLES = 8
STATIC_CACHE = "private, max-age=3600"
_STATIC = Path(__file__).parent / "static"


def plotly_script() -> Path:
    """plotly's JavaScript, which ships inside its Python package (found without importing it)."""
    spec = importlib.util.find_spec("plotly")
    folder = next(iter(spec.submodule_search_locations or ())) if spec is not None else ""
    return Path(folder) / "package_data" / "plotly.min.js"


def plotly_style_ids() -> tuple[str, ...]:
    """Ids of the style elements that plotly's script adds as it loads, unless an element with the id is there.

    The page carries such elements: the security policy forbids styles in the page, and no chart of ours needs them.
    """
    return tuple(re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly_script().read_text(encoding="utf-8")))


def create_app(source: RunSource, access: Access) -> ASGIApp:
    """The guarded application over a run."""
    app = FastAPI(title="Crescendo", docs_url=None, redoc_url=None, openapi_url=None)
    renderer = Renderer(plotly_style_ids())
    streams = Streams(source, renderer)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(renderer.page(await look(source, [])))

    @app.get("/stream")
    async def stream() -> Response:
        return streams.open()

    @app.post("/verbs/{verb}")
    async def act(verb: str, request: Request) -> Response:
        return await _act(source, verb, request)

    @app.get("/static/plotly.min.js")
    async def plotly() -> FileResponse:
        return FileResponse(plotly_script(), media_type="text/javascript", headers={"Cache-Control": STATIC_CACHE})

    @app.exception_handler(CrescendoError)
    async def explain(request: Request, error: CrescendoError) -> Response:
        return Response(f"{error}\n", 503, media_type="text/plain")

    app.mount("/static", StaticFiles(directory=_STATIC))
    return Guard(app, access)


async def _act(source: RunSource, verb: str, request: Request) -> Response:
    wants_json = "application/json" in request.headers.get("accept", "")
    try:
        if verb not in VERBS:
            raise RequestError(f"{verb!r} is no verb; there are: {', '.join(VERBS)}.", field="verb")
        said = await source.act(verb, "")
    except CrescendoError as error:
        if wants_json:
            return JSONResponse({"message": str(error)}, 409)
        return Response(f"{error}\n", 409, media_type="text/plain")
    return JSONResponse({"message": said}) if wants_json else RedirectResponse("/", 303)


class Streams:
    """Server-sent events: each browser gets the parts that changed since its last event."""

    def __init__(self, source: RunSource, renderer: Renderer) -> None:
        self._source = source
        self._renderer = renderer
        self._open = 0

    def open(self) -> Response:
        """A stream, or 503 when too many are open."""
        if self._open >= MAX_STREAMS:
            return Response("Too many open pages.\n", 503, media_type="text/plain")
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        self._open += 1
        known: dict[str, str] = {}
        rows: list[controller_pb2.MetricsRow] = []
        quiet, interval_s = 0, INTERVAL_S
        try:
            while True:
                try:
                    seen, changes = await self._changes(known, rows)
                    interval_s = INTERVAL_S if seen.is_going_on else FINISHED_INTERVAL_S
                except CrescendoError as error:
                    changes = {"problem": str(error)}
                quiet = 0 if changes else quiet + 1
                if changes:
                    yield f"data: {json.dumps(changes)}\n\n"
                elif quiet % HEARTBEAT_TICKS == 0:
                    yield ": still here\n\n"
                await asyncio.sleep(interval_s)
        finally:
            self._open -= 1

    async def _changes(
        self, known: dict[str, str], rows: list[controller_pb2.MetricsRow]
    ) -> tuple[Look, dict[str, object]]:
        first_row = len(rows)
        seen = await look(self._source, rows)
        changed = {name: html for name, html in self._renderer.parts(seen).items() if known.get(name) != html}
        known.update(changed)
        changes: dict[str, object] = {"parts": changed} if changed else {}
        if len(rows) > first_row:
            changes |= {"first_row": first_row, "rows": chart_rows(rows[first_row:])}
        return seen, changes


async def look(source: RunSource, rows: list[controller_pb2.MetricsRow]) -> Look:
    """Everything that the page shows, asked at once; new metric rows are added to `rows`."""
    status, new_rows, events, samples = await asyncio.gather(
        source.status(), source.metrics(len(rows)), source.events(), source.samples(SHOWN_SAMPLES)
    )
    rows.extend(new_rows)
    return Look(status, rows, events, samples)
