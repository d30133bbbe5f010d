"""What every page of the cluster's console shares: templates, the session, the reader, refusals in words."""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import ChainableUndefined, Environment, PackageLoader

from crescendo.console.cluster.reader import ClusterRefusal, Person, Reader
from crescendo.console.cluster.sessions import Sessions
from crescendo.console.cluster.view import moment, plain

MAX_FORM_BYTES: Final = 16384
DEEP_LINK: Final = re.compile(r"/jobs/[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9.-]{0,62}")
_SAY: Final = {
    400: "The cluster does not understand this request.",
    403: "You may not see this. Ask for a role that reads rljobs in the namespace.",
    404: "There is no such job, or the RLJob definition is not installed in this cluster.",
    409: "The job was changed while you looked at it. Look again.",
    422: "The cluster does not take this change.",
    429: "The cluster has too much to do at the moment. Try again.",
    0: "The cluster does not answer. This page tries again by itself.",
}
Look = Callable[[Reader, Person], Awaitable[Response]]


class Pages:
    """Renders. Holds no state of its own: sessions are in cookies, jobs in the cluster.

    readers: the cluster as a person sees it, made for one request; namespace: the only one that is shown, if any.
    """

    def __init__(self, sessions: Sessions, readers: Callable[[Person], Reader], namespace: str = "") -> None:
        self.sessions = sessions
        self.namespace = namespace
        self._readers = readers
        # A job that the operator has not seen yet has no status: absent fields are empty.
        self._templates = Environment(
            loader=PackageLoader("crescendo.console.cluster"),
            autoescape=True,
            undefined=ChainableUndefined,
            finalize=plain,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["moment"] = moment

    async def reading(self, request: Request, look: Look, *, forbidden: str = "") -> Response:
        """What `look` answers, for a person with a session; refusals of the cluster in words.

        forbidden: what to say when the person may not, in place of the words for reading.
        """
        person = self.sessions.open(request.cookies)
        if person is None:
            wanted = request.url.path
            return RedirectResponse(f"/login?next={wanted}" if DEEP_LINK.fullmatch(wanted) else "/login", 303)
        if self.namespace and request.path_params.get("space", self.namespace) != self.namespace:
            said = f"This console shows namespace {self.namespace} only."
            return self.show("refusal.html", 404, person=person, said=said)
        reader = self._readers(person)
        try:
            return await look(reader, person)
        except ClusterRefusal as refusal:
            if refusal.code == 401:
                return RedirectResponse("/login?ended", 303)
            said = forbidden if refusal.code == 403 and forbidden else _SAY.get(refusal.code, "The cluster refused.")
            return self.show(
                "refusal.html", refusal.code or 502, person=person, said=said, detail=refusal.message,
                acting=request.method == "POST",
                refresh_s=10 if refusal.code == 0 and request.method == "GET" else 0,
            )  # fmt: skip
        finally:
            await reader.close()

    def show(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page."""
        return HTMLResponse(self._templates.get_template(template).render(**values), status)


async def form_of(request: Request) -> dict[str, str]:
    """A small URL-encoded form; larger bodies count as empty."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    return dict(parse_qsl(body.decode("utf-8", "replace")))
