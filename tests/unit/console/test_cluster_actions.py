"""Actions from the cluster's console: where there are any, who may, what is sent, what is refused."""

from typing import Any

import httpx
import pytest

from crescendo.common.errors import RequestError
from crescendo.console.cluster.actions import ACTIONS, change, fitting, unanswered
from crescendo.console.cluster.reader import ClusterRefusal, Right
from crescendo.console.cluster.runs import Seen
from crescendo.proto.v1 import controller_pb2
from tests.unit.console.cluster_fakes import EVERYTHING, MemoryCluster, MemoryRuns, browser, hidden, rljob, sign_in

PATH = "/jobs/team/math/actions"
WISH = "rl.crescendo.dev/request"
LOOKS = {Right("list", "rljobs")}


def engines(*names: str) -> MemoryRuns:
    status = controller_pb2.RunStatus(name="math")
    for name in names:
        status.workers.add(worker_id=name, role="rollout")
    return MemoryRuns(Seen(status, live=True))


async def confirmed(cluster: MemoryCluster, verb: str, runs: MemoryRuns | None = None, **more: str) -> httpx.Response:
    """What comes of an action whose form is filled in and sent."""
    async with browser(cluster, runs=runs, actions=True) as client:
        await sign_in(client)
        page = await client.get(f"{PATH}/{verb}")
        assert page.status_code == 200, page.text
        return await client.post(f"{PATH}/{verb}", data={**hidden(page.text), **more})


async def test_a_console_that_only_shows_has_no_such_routes() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    async with browser(cluster) as client:
        await sign_in(client)
        assert "/actions/" not in (await client.get("/jobs/team/math")).text
        for verb in ACTIONS:
            assert (await client.get(f"{PATH}/{verb}")).status_code == 404
            assert (await client.post(f"{PATH}/{verb}")).status_code == 404
            assert (await client.post(f"/jobs/team/math/{verb}")).status_code == 404
    assert cluster.changes == []


async def test_buttons_are_those_that_the_person_may_press() -> None:
    some = LOOKS | {Right("patch", "rljobs"), Right("update", "rljobs/pause")}
    for rights, shown in (
        (LOOKS, set()),
        (LOOKS | {Right("update", "rljobs/pause")}, set()),
        (some, {"pause", "promote", "suspend"}),
        (EVERYTHING, {"pause", "drain", "checkpoint", "promote", "quarantine", "suspend"}),
    ):
        async with browser(MemoryCluster(rljob(), rights=rights), actions=True) as client:
            await sign_in(client)
            page = (await client.get("/jobs/team/math")).text
        assert {verb for verb in ACTIONS if f"{PATH}/{verb}" in page} == shown


@pytest.mark.parametrize("verb", ["pause", "drain", "checkpoint"])
async def test_a_wish_is_an_annotation_with_a_word_of_its_own(verb: str) -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    for _ in range(2):
        answer = await confirmed(cluster, verb)
        assert (answer.status_code, answer.headers["location"]) == (303, "/jobs/team/math")
    patches = [patch for _, _, patch in cluster.changes]
    wishes = {patch["metadata"]["annotations"][WISH] for patch in patches}
    assert len(wishes) == 2
    assert all(wish.startswith(f"{verb} ") for wish in wishes)
    assert all(set(patch) == {"metadata"} and patch["metadata"]["uid"] == "uid-team-math" for patch in patches)


async def test_promotion_leads_forward_only() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    async with browser(cluster, actions=True) as client:
        await sign_in(client)
        page = (await client.get(f"{PATH}/promote")).text
    assert "<option>context-24k</option>" in page
    assert page.count("<option>") == 1
    assert (await confirmed(cluster, "promote", choice="context-24k")).status_code == 303
    assert cluster.changes[0][2]["spec"] == {"promoteTo": "context-24k"}
    for stage in ("context-8k", "context-16k", ""):
        refused = await confirmed(cluster, "promote", choice=stage)
        assert (refused.status_code, "does not follow" in refused.text) == (400, True)
    assert len(cluster.changes) == 1


async def test_an_engine_is_chosen_from_those_of_the_run() -> None:
    cluster, runs = MemoryCluster(rljob(), rights=EVERYTHING), engines("rollout-0", "rollout-1")
    async with browser(cluster, runs=runs, actions=True) as client:
        await sign_in(client)
        assert "<option>rollout-1</option>" in (await client.get(f"{PATH}/quarantine")).text
    assert (await confirmed(cluster, "quarantine", runs, choice="rollout-1")).status_code == 303
    assert cluster.changes[0][2]["metadata"]["annotations"][WISH].startswith("quarantine:rollout-1 ")
    refused = await confirmed(cluster, "quarantine", runs, choice="rollout-1 x\npause")
    assert (refused.status_code, len(cluster.changes)) == (400, 1)


async def test_a_suspended_job_is_resumed() -> None:
    job = rljob(phase="Suspended")
    job["spec"]["suspend"] = True
    cluster = MemoryCluster(job, rights=EVERYTHING)
    await confirmed(cluster, "resume")
    assert cluster.changes[0][2]["spec"] == {"suspend": False}


@pytest.mark.parametrize("broken", [{"proof": ""}, {"proof": "0" * 64}, {"word": ""}, {"word": "pause x"}])
async def test_a_form_counts_only_as_it_was_given_out(broken: dict[str, str]) -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    assert (await confirmed(cluster, "pause", **broken)).status_code in (400, 403)
    assert cluster.changes == []


async def test_a_form_of_another_session_is_refused() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    async with browser(cluster, actions=True) as client:
        await sign_in(client, "good-one")
        form = hidden((await client.get(f"{PATH}/pause")).text)
        await sign_in(client, "good-two")
        assert (await client.post(f"{PATH}/pause", data=form)).status_code == 403
        client.cookies.clear()
        assert (await client.post(f"{PATH}/pause", data=form)).headers["location"] == "/login"
    assert cluster.changes == []


async def test_a_job_of_the_same_name_is_another() -> None:
    cluster = MemoryCluster(rljob(), rights=EVERYTHING)
    refused = await confirmed(cluster, "suspend", uid="uid-of-an-earlier-job")
    assert (refused.status_code, "replaced by another" in refused.text) == (409, True)


async def test_what_the_person_may_not_is_refused_before_and_by_the_cluster() -> None:
    cluster = MemoryCluster(rljob(), rights=LOOKS | {Right("patch", "rljobs")})
    async with browser(cluster, actions=True) as client:
        await sign_in(client)
        form = hidden((await client.get(f"{PATH}/suspend")).text)
        assert (await client.get(f"{PATH}/pause")).status_code == 403
        refused = await client.post(f"{PATH}/pause", data=form)
        assert (refused.status_code, "update on rljobs/pause" in refused.text) == (403, True)

        async def forbidden(*_: Any) -> None:
            raise ClusterRefusal("ann may not suspend", 403)

        cluster.change = forbidden  # type: ignore[method-assign]
        refused = await client.post(f"{PATH}/suspend", data=form)
    assert refused.status_code == 403
    assert "You may not do this" in refused.text
    assert "ann may not suspend" in refused.text
    assert cluster.changes == []


@pytest.mark.parametrize("verb", ["delete", "stop", "unpause", "resume"])
async def test_what_does_not_fit_is_not_offered(verb: str) -> None:
    async with browser(MemoryCluster(rljob(), rights=EVERYTHING), actions=True) as client:
        await sign_in(client)
        assert (await client.get(f"{PATH}/{verb}")).status_code == 409


async def test_the_answer_is_shown() -> None:
    job = rljob(request={"text": "pause 0000aaaa", "state": "Refused", "message": "the run ends already"})
    async with browser(MemoryCluster(job, rights=EVERYTHING), actions=True) as client:
        await sign_in(client)
        assert "pause, refused: the run ends already" in (await client.get("/jobs/team/math")).text
    job["metadata"]["annotations"] = {WISH: "drain 0000bbbb"}
    async with browser(MemoryCluster(job, rights=EVERYTHING), actions=True) as client:
        await sign_in(client)
        page = (await client.get("/jobs/team/math")).text
    assert "Asked for: drain." in page
    assert 'content="2"' in page, "an answer is waited for more closely"


@pytest.mark.parametrize(
    ("phase", "paused", "offered"),
    [
        ("Running", False, ["pause", "drain", "checkpoint", "promote", "quarantine", "suspend"]),
        ("Running", True, ["unpause", "checkpoint", "promote", "quarantine", "suspend"]),
        ("Queued", False, ["suspend"]), ("Restarting", False, ["suspend"]), ("", False, ["suspend"]),
        ("Succeeded", False, []), ("Failed", False, []),
    ],
)  # fmt: skip
def test_what_is_offered_fits_the_phase(phase: str, paused: bool, offered: list[str]) -> None:
    assert [action.verb for action in fitting(rljob(phase=phase), paused=paused)] == offered


def test_the_last_stage_has_none_after_it() -> None:
    job = rljob()
    job["status"]["progress"]["stage"] = "context-24k"
    assert "promote" not in [action.verb for action in fitting(job, paused=False)]


def test_nothing_is_changed_but_what_was_asked() -> None:
    for action in ACTIONS.values():
        choice = {"stage": "context-24k", "engine": "rollout-0"}.get(action.choice, "")
        patch = change(action, rljob(), uid="u", choice=choice, word="0a1b2c3d")
        assert set(patch) == ({"metadata"} if action.transient else {"metadata", "spec"})
        assert set(patch["metadata"]) == ({"uid", "annotations"} if action.transient else {"uid"})
    with pytest.raises(RequestError, match="no engine's name"):
        change(ACTIONS["quarantine"], rljob(), uid="u", choice="", word="0a1b2c3d")


def test_what_waits_for_an_answer() -> None:
    job = rljob()
    assert unanswered(job) == ""
    job["spec"]["promoteTo"] = "context-24k"
    assert unanswered(job) == "promotion to context-24k"
    job["status"]["promotedTo"] = "context-24k"
    assert unanswered(job) == ""
    assert unanswered(rljob(phase="Suspending")) == "suspension"
    job["metadata"]["annotations"] = {WISH: "quarantine:rollout-1 1"}
    assert unanswered(job) == "quarantine rollout-1"
    job["status"]["phase"] = "Failed"
    assert unanswered(job) == ""
