"""Who gets into the console: the one-time token, the session, Host and Origin."""

from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from crescendo.common.errors import RequestError
from crescendo.console.access import Access
from crescendo.console.app import create_app
from crescendo.proto.v1 import controller_pb2

HOST = "127.0.0.1:8123"


class MemoryRun:
    """A run in memory. It remembers the verbs it was told, and refuses promotion."""

    def __init__(self) -> None:
        self.verbs: list[str] = []

    async def status(self) -> controller_pb2.RunStatus:
        return controller_pb2.RunStatus(name="try", phase="rollout", step="rl", iteration=3, eta_seconds=-1)

    async def metrics(self, num_known: int) -> Sequence[controller_pb2.MetricsRow]:
        return []

    async def events(self) -> Sequence[controller_pb2.Event]:
        return []

    async def samples(self, limit: int) -> Sequence[controller_pb2.Sample]:
        return []

    async def act(self, verb: str, stage: str) -> str:
        self.verbs.append(verb)
        if verb == "promote":
            raise RequestError("the run is in its last stage.", fix="Wait.")
        return "told"

    async def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def access() -> Access:
    return Access([HOST, "localhost:8123"])


@pytest.fixture
def run() -> MemoryRun:
    return MemoryRun()


@pytest.fixture
async def browser(access: Access, run: MemoryRun) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(run, access))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
        yield client


async def log_in(browser: httpx.AsyncClient, access: Access) -> httpx.Response:
    return await browser.get("/", params={"token": access.token})


async def test_the_link_works_once_and_becomes_a_strict_cookie(browser: httpx.AsyncClient, access: Access) -> None:
    answer = await log_in(browser, access)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert access.token not in cookie
    page = await browser.get("/")
    assert page.status_code == 200
    assert "<h1>try</h1>" in page.text
    browser.cookies.clear()
    assert (await log_in(browser, access)).status_code == 403
    assert (await browser.get("/")).status_code == 403


@pytest.mark.parametrize("path", ["/", "/stream", "/static/console.js", "/static/plotly.min.js"])
async def test_without_a_session_nothing_is_served(browser: httpx.AsyncClient, path: str) -> None:
    assert (await browser.get(path)).status_code == 403
    assert (await browser.get(path, params={"token": "wrong"})).status_code == 403
    browser.cookies.set("crescendo_8123", "guessed")
    assert (await browser.get(path)).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:9999", ""])
async def test_other_host_names_are_refused(browser: httpx.AsyncClient, access: Access, host: str) -> None:
    await log_in(browser, access)
    assert (await browser.get("/", headers={"Host": host})).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8123", None])
async def test_verbs_from_other_origins_are_refused(
    browser: httpx.AsyncClient, access: Access, run: MemoryRun, origin: str | None
) -> None:
    await log_in(browser, access)
    headers = {} if origin is None else {"Origin": origin}
    assert (await browser.post("/verbs/pause", headers=headers)).status_code == 403
    assert run.verbs == []


async def test_verbs(browser: httpx.AsyncClient, access: Access, run: MemoryRun) -> None:
    headers = {"Origin": f"http://{HOST}"}
    assert (await browser.post("/verbs/pause", headers=headers)).status_code == 403, "no session yet"
    await log_in(browser, access)
    assert (await browser.post("/verbs/pause", headers=headers)).status_code == 303
    told = await browser.post("/verbs/resume", headers={**headers, "Accept": "application/json"})
    assert told.json() == {"message": "told"}
    refused = await browser.post("/verbs/promote", headers=headers)
    assert (refused.status_code, refused.text) == (409, "the run is in its last stage. Fix: Wait.\n")
    assert run.verbs == ["pause", "resume", "promote"]
    assert (await browser.post("/verbs/stop", headers=headers)).status_code == 409
    assert (await browser.get("/verbs/pause")).status_code == 405
    assert len(run.verbs) == 3


async def test_every_answer_has_the_security_headers(browser: httpx.AsyncClient, access: Access) -> None:
    answers = [await browser.get("/"), await log_in(browser, access), await browser.get("/")]
    answers.append(await browser.get("/static/console.css"))
    answers.append(await browser.get("/nowhere"))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "script-src 'self'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"


async def test_static_files_stay_in_their_folder(browser: httpx.AsyncClient, access: Access) -> None:
    await log_in(browser, access)
    assert (await browser.get("/static/console.js")).status_code == 200
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/../../pyproject.toml"):
        assert (await browser.get(path)).status_code == 404
    assert "plotly.js" in (await browser.get("/static/plotly.min.js")).text[:400]


async def test_a_run_that_cannot_be_read_is_explained(
    browser: httpx.AsyncClient, access: Access, run: MemoryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> controller_pb2.RunStatus:
        raise RequestError("config.yaml is damaged.", fix="Restore it.")

    monkeypatch.setattr(run, "status", broken)
    await log_in(browser, access)
    answer = await browser.get("/")
    assert (answer.status_code, answer.text) == (503, "config.yaml is damaged. Fix: Restore it.\n")


def test_consoles_on_one_machine_have_their_own_cookies() -> None:
    assert Access([HOST]).cookie != Access(["127.0.0.1:8124"]).cookie
    assert Access([HOST]).token != Access([HOST]).token
