"""The cluster's console before a cluster in memory: who gets in, what is shown, what is said when it cannot be."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from crescendo.console.cluster.reader import ClusterRefusal, Person, Right
from crescendo.console.cluster.runs import Seen, cut
from crescendo.console.cluster.sessions import COOKIE, Sessions
from crescendo.console.cluster.throttle import MAX_ADDRESSES, MAX_FAILURES, WINDOW_S, Throttle
from crescendo.console.cluster.view import SHOWN_JOBS, ago, event_rows, pod_rows
from crescendo.proto.v1 import controller_pb2
from tests.unit.console.cluster_fakes import (
    EVERYTHING,
    MemoryCluster,
    MemoryRuns,
    OneToken,
    browser,
    metric_rows,
    rljob,
    sign_in,
)

HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m"
LISTS = {Right("list", "rljobs")}


async def page_of(cluster: MemoryCluster, path: str, runs: MemoryRuns | None = None, **options: Any) -> httpx.Response:
    async with browser(cluster, runs=runs, **options) as client:
        await sign_in(client)
        return await client.get(path)


# Getting in -------------------------------------------------------------------------------------------------


async def test_nothing_is_shown_without_a_session() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    async with browser(cluster) as client:
        for path, leads_to in (("/", "/login"), ("/jobs/team/math", "/login?next=/jobs/team/math")):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, leads_to)
        client.cookies.set(COOKIE, "forged")
        assert (await client.get("/")).status_code == 303
    assert cluster.people == []


async def test_the_session_is_a_cookie_that_holds_the_token_sealed() -> None:
    async with browser(MemoryCluster()) as client:
        answer = await sign_in(client, "good.secret.token")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert "secure" not in cookie.lower(), "this one came over plain HTTP"
    assert "good.secret.token" not in str(answer.headers) + answer.text


async def test_behind_tls_the_cookie_is_secure() -> None:
    async with browser(MemoryCluster()) as client:
        client.headers["x-forwarded-proto"] = "https"
        assert "secure" in (await sign_in(client)).headers["set-cookie"].lower()


async def test_a_link_is_found_again_after_signing_in_and_leads_nowhere_else() -> None:
    async with browser(MemoryCluster(rights=LISTS)) as client:
        assert 'name="next" value="/jobs/team/math"' in (await client.get("/login?next=/jobs/team/math")).text
        for wanted, leads_to in (
            ("/jobs/team/math", "/jobs/team/math"), ("//evil.example/jobs/a/b", "/"), ("https://evil.example", "/"),
        ):  # fmt: skip
            answer = await client.post("/login", data={"token": "good", "next": wanted})
            assert answer.headers["location"] == leads_to


@pytest.mark.parametrize(
    ("name", "rights", "leads_to"),
    [
        ("ann", set(), "/"),
        ("system:serviceaccount:team:ann", set(), "/?namespace=team"),
        ("system:serviceaccount:team:ann", LISTS, "/"),
    ],
)
async def test_people_land_where_they_may_look(name: str, rights: set[Right], leads_to: str) -> None:
    async with browser(MemoryCluster(rights=rights), OneToken(name)) as client:
        assert (await sign_in(client)).headers["location"] == leads_to


async def test_guessing_tokens_is_slowed_down() -> None:
    door = OneToken()
    async with browser(MemoryCluster(), door) as client:
        for _ in range(MAX_FAILURES):
            assert (await sign_in(client, "bad")).status_code == 403
        answer = await sign_in(client, "good")
    assert (answer.status_code, door.asked) == (429, MAX_FAILURES)
    assert 0 < int(answer.headers["retry-after"]) <= WINDOW_S


def test_a_throttle_forgets() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for _ in range(MAX_FAILURES):
        throttle.failed("a")
    assert throttle.wait_s("a") == WINDOW_S
    assert throttle.wait_s("b") == 0
    now[0] = WINDOW_S
    assert throttle.wait_s("a") == 0
    for number in range(2 * MAX_ADDRESSES):
        throttle.failed(str(number))
    assert len(throttle._failures) == MAX_ADDRESSES


async def test_signing_in_says_what_is_wrong() -> None:
    door = OneToken()
    async with browser(MemoryCluster(), door) as client:
        assert "does not know this token" in (await sign_in(client, "bad")).text
        too_long = await sign_in(client, "good" * 1000)
        assert (too_long.status_code, "too many for a browser" in too_long.text) == (400, True)
        door.refuses = ClusterRefusal("connection refused", 0)
        away = await sign_in(client)
        assert (away.status_code, "connection refused" in away.text) == (502, True)


async def test_an_expired_token_ends_the_session_in_words() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    async with browser(cluster) as client:
        await sign_in(client)
        cluster.refuses = ClusterRefusal("Unauthorized", 401)
        answer = await client.get("/jobs/team/math")
        assert answer.headers["location"] == "/login?ended"
        page = await client.get("/login?ended")
        assert "Your session has ended" in page.text
        assert COOKIE not in client.cookies


def test_sessions_expire_and_forms_belong_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, person = Sessions(b"secret"), Person("ann", "t")
    cookies = {COOKIE: sessions.seal(person)}
    assert sessions.open(cookies) == person
    assert Sessions(b"other").open(cookies) is None
    assert sessions.proves(cookies, sessions.form_proof(cookies))
    assert not sessions.proves({COOKIE: sessions.seal(person)}, sessions.form_proof(cookies))
    assert not sessions.proves(cookies, "")
    monkeypatch.setattr("crescendo.console.cluster.sessions.LIFETIME_S", -1)
    assert sessions.open(cookies) is None


def test_replicas_agree_on_sessions_whenever_they_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRESCENDO_IDENTITY", str(tmp_path))

    def issue(number: int) -> None:
        for name in ("tls.key", "tls.crt", "ca.crt"):
            (tmp_path / name).write_text(f"{name} {number}")
            os.utime(tmp_path / name, (number, number))

    issue(1)
    early = Sessions.from_environment()
    old = {COOKIE: early.seal(Person("ann", "t"))}
    issue(2)
    late = Sessions.from_environment()
    cookies = {COOKIE: late.seal(Person("ann", "t"))}
    assert early.open(cookies) == late.open(cookies) == Person("ann", "t")
    assert early.proves(cookies, late.form_proof(cookies))
    assert early.open(old) is late.open(old) is None


# Headers ----------------------------------------------------------------------------------------------------


async def test_every_answer_has_the_security_headers() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    async with browser(cluster) as client:
        await sign_in(client)
        paths = ("/", "/login", "/jobs/team/math", "/jobs/team/none", "/nowhere", "/static/console.css", "/healthz")
        answers = [await client.get(path) for path in paths]
        client.headers["origin"] = "http://evil.example"
        answers.append(await client.post("/logout"))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == ("no-cache" if "/static/" in str(answer.url) else "no-store")
        assert not re.search(r"<script| style=| on\w+=", answer.text), answer.url


@pytest.mark.parametrize("origin", ["http://evil.example", "null", ""])
async def test_forms_of_other_sites_are_refused(origin: str) -> None:
    async with browser(MemoryCluster()) as client:
        client.headers["origin"] = origin
        assert (await sign_in(client)).status_code == 403


# Lists ------------------------------------------------------------------------------------------------------


async def test_the_list_shows_what_kubectl_shows() -> None:
    page = (await page_of(MemoryCluster(rljob(), rights=LISTS), "/")).text
    shown = (
        "math", "team", "Running", "context-16k", "2/3", "212/600", "0.613", "6214", "32", "5/5", "9h12m", "Colocated",
        "research",
    )  # fmt: skip
    for value in shown:
        assert re.search(rf">\s*{re.escape(value)}\s*<", page), value


async def test_the_list_is_filtered_sorted_and_bounded() -> None:
    jobs = [rljob(f"job-{number:03}") for number in range(SHOWN_JOBS + 5)]
    jobs[7]["status"] |= {"phase": "Failed"}
    jobs[9]["status"]["progress"]["reward"] = "0.99"
    cluster = MemoryCluster(*jobs, rljob("other", "elsewhere"), rights=LISTS)

    async def names(query: str) -> list[str]:
        return re.findall(r">([\w-]+)</a> <small>", (await page_of(cluster, f"/?{query}")).text)

    assert await names("phase=Failed") == ["job-007"]
    assert await names("text=elsewhere/") == ["other"]
    assert await names("namespace=elsewhere") == ["other"]
    assert (await names("sort=name"))[:2] == ["other", "job-000"]
    assert (await names("sort=reward"))[0] == "job-009"
    page = await page_of(cluster, "/")
    assert "6 more match" in page.text
    assert "None of the 206 jobs here matches" in (await page_of(cluster, "/?text=nothing")).text


async def test_who_may_not_list_everything_is_asked_for_a_namespace() -> None:
    cluster = MemoryCluster(rljob())
    page = await page_of(cluster, "/")
    assert page.status_code == 403
    assert "You may not see this" in page.text
    assert 'name="namespace"' in page.text
    assert ">math<" in (await page_of(cluster, "/?namespace=team")).text


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [(404, 404, "definition is not installed"), (0, 502, "does not answer"), (500, 500, "The cluster refused")],
)
async def test_refusals_are_explained(code: int, status: int, said: str) -> None:
    cluster = MemoryCluster(rights=LISTS)
    async with browser(cluster) as client:
        await sign_in(client)
        cluster.refuses = ClusterRefusal(HOSTILE, code)
        page = await client.get("/")
    assert (page.status_code, said in page.text, "<script>" in page.text) == (status, True, False)
    assert ('http-equiv="refresh"' in page.text) == (code == 0), "a cluster that is away is tried again"


async def test_no_jobs() -> None:
    assert "There are no jobs here" in (await page_of(MemoryCluster(rights=LISTS), "/")).text


async def test_a_console_of_one_namespace_shows_no_other() -> None:
    cluster = MemoryCluster(rljob(), rljob("math", "other"), rights=EVERYTHING)
    listed = await page_of(cluster, "/?namespace=other", namespace="team")
    assert "other" not in re.findall(r"<small>([\w-]+)</small>", listed.text)
    assert (await page_of(cluster, "/jobs/team/math", namespace="team")).status_code == 200
    assert (await page_of(cluster, "/jobs/other/math", namespace="team")).status_code == 404


# A job ------------------------------------------------------------------------------------------------------


def living(text: str = "math") -> Seen:
    status = controller_pb2.RunStatus(name=text, phase="rollout", iteration=212)
    status.stages.add(name=text, state="active", gate_report=text, entered_iteration=201)
    status.workers.add(worker_id=text, role="rollout", state=text)
    status.timeline.add(phase=text, iteration=212, end_seconds=3)
    event = controller_pb2.Event(kind=text, message=text, unix_seconds=1e18)
    sample = controller_pb2.Sample(prompt=text, response=f"answer {text}", reward=1)
    for message in (status, event, sample):
        cut(message)
    return Seen(status, metric_rows(30), [event], [sample], live=True)


async def test_a_job_that_runs_shows_its_run() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    runs = MemoryRuns(living("now"))
    page = (await page_of(cluster, "/jobs/team/math", runs)).text
    assert page.count("<polyline") == 4, "reward, accuracy, length, clipped"
    assert 'class="dot faint"' in page, "accuracy of the trained responses"
    for part in ("iteration 201", "Phases", "Workers", "Events of the run", "Newest responses", "answer now"):
        assert part in page
    assert runs.asked == [True]


async def test_responses_need_the_right_to_read_logs() -> None:
    runs = MemoryRuns(living())
    page = (await page_of(MemoryCluster(rljob(), rights=LISTS), "/jobs/team/math", runs)).text
    assert runs.asked == [False]
    assert "may read the logs" in page
    assert "Newest responses" not in page


async def test_hostile_text_stays_text() -> None:
    job = rljob(phase=HOSTILE, reason=HOSTILE, message=HOSTILE, request={"text": HOSTILE, "state": HOSTILE})
    job["metadata"]["annotations"] = {"rl.crescendo.dev/request": f"pause:{HOSTILE} x"}
    job["status"]["progress"] |= {"reward": HOSTILE, "stage": HOSTILE, "summary": HOSTILE}
    job["status"]["conditions"][0] |= {"reason": HOSTILE, "message": HOSTILE}
    cluster = MemoryCluster(job, rights=EVERYTHING)
    cluster.event_list = [{"reason": HOSTILE, "note": HOSTILE, "eventTime": HOSTILE, "type": HOSTILE}]
    cluster.pod_list = [{"metadata": {"name": HOSTILE}, "status": {"phase": HOSTILE}}]
    page = (await page_of(cluster, "/jobs/team/math", MemoryRuns(living(HOSTILE)), actions=True)).text
    page += (await page_of(cluster, "/")).text
    assert page.count("&lt;script&gt;alert(1)") > 15
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


async def test_a_job_that_nobody_has_seen_yet() -> None:
    job = rljob()
    del job["status"]
    page = (await page_of(MemoryCluster(job, rights=LISTS), "/jobs/team/math")).text
    assert "not seen yet" in page
    assert "the operator has not seen this job" in page
    assert page.count('class="card stage waiting"') == 3


async def test_a_run_that_does_not_answer() -> None:
    runs = MemoryRuns(Seen(controller_pb2.RunStatus(name="math"), problem="no answer within 4 s"))
    page = (await page_of(MemoryCluster(rljob(), rights=LISTS), "/jobs/team/math", runs)).text
    assert "does not answer: no answer within 4 s" in page
    assert "212/600" in page


async def test_a_page_reloads_itself_until_it_is_paused() -> None:
    cluster = MemoryCluster(rljob(), rights=LISTS)
    assert 'http-equiv="refresh" content="10"' in (await page_of(cluster, "/jobs/team/math")).text
    assert "http-equiv" not in (await page_of(cluster, "/jobs/team/math?paused")).text


def test_pods_say_what_holds_them_back() -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}, "restartCount": 3}
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/8 nodes"}
    pods = [
        {"metadata": {"name": "b"}, "status": {"phase": "Pending", "containerStatuses": [waiting]}},
        {"metadata": {"name": "a"}, "status": {"phase": "Pending", "conditions": [unscheduled]}},
        {"metadata": {"name": "c", "deletionTimestamp": "x"}, "status": {"phase": "Running"}},
    ]
    rows = pod_rows(pods, now)
    assert [row.trouble for row in rows] == ["Unschedulable: 0/8 nodes", "ImagePullBackOff: not found", ""]
    assert [row.restarts for row in rows] == [0, 3, 0]
    assert rows[2].phase == "Terminating"


def test_events_come_newest_first() -> None:
    now = datetime(2026, 11, 22, 1, tzinfo=UTC)
    events = [
        {"reason": "Old", "eventTime": "2026-11-22T00:00:00.5Z"},
        {"reason": "New", "lastTimestamp": "2026-11-22T00:59:00Z", "count": 4, "type": "Warning"},
    ]
    assert [(row.kind, row.age, row.count) for row in event_rows(events, now)] == [("New", "60s", 4), ("Old", "59m", 1)]


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172800, "2d")])
def test_ages(seconds: int, shown: str) -> None:
    now = datetime.fromtimestamp(1_800_000_000 + seconds, UTC)
    assert ago(datetime.fromtimestamp(1_800_000_000, UTC).isoformat(), now) == shown
    assert ago("never", now) == ""
