"""Transient verbs asked for by annotation: taken once while the job runs, refused otherwise."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.controller.operator.plan import plan, told
from crescendo.controller.operator.requests import ANNOTATION, Request, acknowledged, pending
from crescendo.controller.operator.resource import Job
from tests.unit.controller.rljob.test_plan import started
from tests.unit.controller.rljob.world import START, World


def wish(text: str) -> Request | str | None:
    return pending(Job("math", "team", "uid-1", 1, START, False, {}, {}, {ANNOTATION: text}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pause a1", Request("pause", "", "a1")),
        ("drain 2026-11-21", Request("drain", "", "2026-11-21")),
        ("quarantine:rollout-1 b", Request("quarantine", "rollout-1", "b")),
        ("", None),
        ("pause", "pause"),
        ("quarantine b", "quarantine b"),
        ("pause:rollout-1 b", "pause:rollout-1 b"),
        ("shutdown now", "shutdown now"),
        ("quarantine:../x b", "quarantine:../x b"),
    ],
)
def test_the_form(text: str, expected: Request | str | None) -> None:
    assert wish(text) == expected


@given(st.text(max_size=600))
def test_any_text_is_answered_once(text: str) -> None:
    asked = wish(text)
    if asked is None:
        return
    status = {"request": acknowledged(asked, "no", START)}
    assert pending(Job("math", "team", "uid-1", 1, START, False, {}, status, {ANNOTATION: text})) is None


def test_a_running_job_is_asked_and_only_once() -> None:
    world = started()
    world.annotations = {ANNOTATION: "pause a1"}
    asked = plan(world.observed()).ask
    assert asked == Request("pause", "", "a1")
    world.status = {**world.status, "request": acknowledged(asked, "", world.now)}
    assert plan(world.observed()).ask is None
    world.annotations = {ANNOTATION: "pause a2"}
    assert plan(world.observed()).ask == Request("pause", "", "a2")


def test_a_run_that_does_not_answer_is_asked_again_later() -> None:
    world = started()
    world.annotations, world.report = {ANNOTATION: "checkpoint a1"}, None
    decided = world.reconcile()
    assert (decided.ask, world.status.get("request")) == (None, None)


def test_a_job_that_does_not_run_refuses_with_an_event() -> None:
    world = World(spec={"run": {}}, annotations={ANNOTATION: "drain a1"})
    decided = world.reconcile()
    assert world.status["request"]["state"] == "Refused"
    assert "does not run" in world.status["request"]["message"]
    assert decided.events[-1].reason == "RequestRefused"
    assert not any(note.reason == "RequestRefused" for note in world.reconcile().events)


def test_nothing_is_taken_where_nobody_reviews_who_asks() -> None:
    world = started()
    world.annotations = {ANNOTATION: "pause a1"}
    decided = plan(replace(world.observed(), verbs_reviewed=False))
    assert decided.ask is None
    assert decided.status is not None
    assert "admission policy" in decided.status["request"]["message"]
    assert [note.reason for note in decided.events] == ["RequestRefused"]


def test_what_is_no_verb_is_refused_with_the_form() -> None:
    world = started()
    world.annotations = {ANNOTATION: "explode " + "x" * 1000}
    world.reconcile()
    assert "quarantine:ENGINE" in world.status["request"]["message"]
    assert world.reconcile().events == ()


def test_the_event_says_what_the_run_said() -> None:
    request = Request("quarantine", "rollout-1", "a")
    assert told(request, "").reason == "RequestTaken"
    refused = told(request, "rollout-1 is the only engine left")
    assert (refused.kind, refused.reason) == ("Warning", "RequestRefused")
    assert "only engine" in refused.message
