"""Actions on a job: a page that says what will happen, and the form on it that does it.

Mounted only where the chart allows actions. Everything is done with the person's own token, after the API server said
that the person may; it decides once more when the change arrives. A form counts only from a page of the same session.
"""

import secrets
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from crescendo.common.errors import RequestError
from crescendo.console.cluster.actions import ACTIONS, Action, change, fitting, later_stages
from crescendo.console.cluster.pages import Pages, form_of
from crescendo.console.cluster.reader import Manifest, Person, Reader, Right
from crescendo.console.cluster.runs import Runs

_MAY_NOT: Final = "You may not do this to jobs of this namespace."


async def permitted(reader: Reader, job: Manifest, *, paused: bool) -> list[Action]:
    """The actions that fit the job and that the API server lets the person do."""
    fit = fitting(job, paused=paused)
    asked = {right for action in fit for right in _rights(action)}
    held = await reader.may(str(job["metadata"]["namespace"]), sorted(asked, key=str)) if asked else frozenset()
    return [action for action in fit if held.issuperset(_rights(action))]


class Acting:
    """The two routes of an action."""

    def __init__(self, pages: Pages, runs: Runs) -> None:
        self._pages = pages
        self._runs = runs
        self.router = APIRouter()
        path = "/jobs/{space}/{name}/actions/{verb}"
        self.router.add_api_route(path, self.confirm, methods=["GET"], response_model=None)
        self.router.add_api_route(path, self.act, methods=["POST"], response_model=None)

    async def confirm(self, request: Request, space: str, name: str, verb: str) -> Response:
        """The second step: what will happen, what is to be chosen, and the form."""

        async def look(reader: Reader, person: Person) -> Response:
            job = await reader.job(space, name)
            seen = await self._runs.look(job, samples=False)
            action = ACTIONS.get(verb)
            if action is None or action not in fitting(job, paused=seen.status.paused):
                return self._refuse(person, job, 409, "The job is not in a state for this now.")
            if action not in await permitted(reader, job, paused=seen.status.paused):
                return self._refuse(person, job, 403, _needs(action))
            return self._pages.show(
                "confirm.html", person=person, job=job, action=action, word=secrets.token_hex(4),
                proof=self._pages.sessions.form_proof(request.cookies),
                choices=later_stages(job) if action.choice == "stage" else seen.engines if action.choice else [],
            )  # fmt: skip

        return await self._pages.reading(request, look)

    async def act(self, request: Request, space: str, name: str, verb: str) -> Response:
        """Does it with the person's own rights, then shows the job."""
        form = await form_of(request)

        async def do(reader: Reader, person: Person) -> Response:
            job = await reader.job(space, name)
            action = ACTIONS.get(verb)
            if action is None:
                return self._refuse(person, job, 404, "There is no such action.")
            if not self._pages.sessions.proves(request.cookies, form.get("proof", "")):
                return self._refuse(person, job, 403, "This form is not of your session. Open the job's page again.")
            if form.get("uid") != job["metadata"]["uid"]:
                return self._refuse(person, job, 409, "The job was replaced by another of its name. Look again.")
            if not (await reader.may(space, _rights(action))).issuperset(_rights(action)):
                return self._refuse(person, job, 403, _needs(action))
            try:
                patch = change(action, job, uid=form["uid"], choice=form.get("choice", ""), word=form.get("word", ""))
            except RequestError as error:
                return self._refuse(person, job, 400, str(error))
            await reader.change(space, name, patch)
            return RedirectResponse(f"/jobs/{space}/{name}", 303)

        return await self._pages.reading(request, do, forbidden=_MAY_NOT)

    def _refuse(self, person: Person, job: Manifest, status: int, said: str) -> Response:
        return self._pages.show("refusal.html", status, person=person, job=job, said=said, detail="")


def _rights(action: Action) -> list[Right]:
    return [Right(verb, f"rljobs/{sub}" if sub else "rljobs") for verb, sub in action.needs]


def _needs(action: Action) -> str:
    rules = "; ".join(f"{right.verb} on {right.resource}" for right in _rights(action))
    return f"{_MAY_NOT} It needs, in API group rl.crescendo.dev: {rules}."
