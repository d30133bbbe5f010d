"""The page's parts: hostile text stays text, unknown numbers stay away, phases are laid out right."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crescendo.console.render import MAX_TEXT, Look, Renderer, chart_rows, next_stage, numbers, visible
from crescendo.console.timeline import WIDTH, timeline
from crescendo.proto.v1 import common_pb2, controller_pb2

RENDERER = Renderer()
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


def look(**parts: object) -> Look:
    status = controller_pb2.RunStatus(name="try", phase="rollout", step="rl", iteration=7, eta_seconds=-1)
    given = {"status": status, "rows": [], "events": [], "samples": [], **parts}
    return Look(**given)  # type: ignore[arg-type]


def sample(text: str) -> controller_pb2.Sample:
    wrong = common_pb2.RewardComponent(name=text, verdict=common_pb2.VERDICT_WRONG)
    return controller_pb2.Sample(prompt=text, response=text, gold_answer=text, components=[wrong], num_segments=2)


def test_hostile_text_is_escaped_everywhere() -> None:
    status = controller_pb2.RunStatus(name=HOSTILE, phase="failed", failure=HOSTILE, stage=HOSTILE)
    status.stages.add(name=HOSTILE, state="active", gate=HOSTILE, gate_report=HOSTILE)
    status.workers.add(worker_id=HOSTILE, role=HOSTILE, state=HOSTILE)
    status.timeline.add(phase=HOSTILE, iteration=1, end_seconds=1)
    event = controller_pb2.Event(kind=HOSTILE, message=HOSTILE, facts={HOSTILE: HOSTILE}, severity=HOSTILE)
    row = controller_pb2.MetricsRow(stage=HOSTILE, values={"iteration": 1})
    page = RENDERER.page(look(status=status, rows=[row], events=[event], samples=[sample(HOSTILE)]))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 12


@given(st.text(max_size=200))
def test_no_model_text_makes_a_tag(text: str) -> None:
    plain = RENDERER.parts(look(samples=[sample("")]))["samples"]
    html = RENDERER.parts(look(samples=[sample(text)]))["samples"]
    assert html.count("<") <= plain.count("<") + 2, "the expected answer's <bdi> comes on top, nothing else"


def test_long_and_invisible_text_is_shown_bounded() -> None:
    assert len(visible("x" * 1_000_000)) < MAX_TEXT + 20
    assert visible("a\x00b\x1b[31mc\n\td\x85") == "a\ufffdb\ufffd[31mc\n\td\ufffd"


def test_an_empty_run_renders() -> None:
    page = RENDERER.page(look(status=controller_pb2.RunStatus(name="new", phase="start", committed_iteration=-1)))
    assert "No response has been scored yet." in page
    assert "No worker has reported yet." in page
    assert "No iteration has ended yet." in page


@pytest.mark.parametrize(
    ("status", "shown", "hidden"),
    [
        (controller_pb2.RunStatus(phase="rollout"), 'action="/verbs/pause"', 'action="/verbs/resume"'),
        (controller_pb2.RunStatus(phase="rollout", paused=True), 'action="/verbs/resume"', 'action="/verbs/pause"'),
        (controller_pb2.RunStatus(phase="done"), ">done<", "/verbs/"),
        (controller_pb2.RunStatus(phase="stopped"), "crescendo resume", "/verbs/"),
        (controller_pb2.RunStatus(phase="failed", failure="engine died"), "engine died", "/verbs/"),
    ],
)
def test_the_verbs_fit_the_phase(status: controller_pb2.RunStatus, shown: str, hidden: str) -> None:
    head = RENDERER.parts(look(status=status))["head"]
    assert shown in head
    assert hidden not in head


def test_the_next_stage_is_the_one_after_the_active() -> None:
    status = controller_pb2.RunStatus()
    for name, state in (("short", "done"), ("medium", "active"), ("long", "waiting")):
        status.stages.add(name=name, state=state)
    assert next_stage(status) == "long"
    status.stages[1].state, status.stages[2].state = "done", "active"
    assert next_stage(status) == ""


def test_numbers_show_what_is_known() -> None:
    status = controller_pb2.RunStatus(phase="train", metrics={"reward": 0.5}, committed_iteration=-1)
    rows = [controller_pb2.MetricsRow(values={"iteration": i, "validation_accuracy": i / 10}) for i in (1, 2)]
    assert numbers(look(status=status, rows=rows)) == [("held-out accuracy", "20.0", "%"), ("reward", "0.500", "")]
    assert chart_rows([*rows, controller_pb2.MetricsRow(stage="sft", values={"sft_step": 1})]) == [
        {"stage": "", "iteration": 1.0, "validation_accuracy": 0.1},
        {"stage": "", "iteration": 2.0, "validation_accuracy": 0.2},
    ]


def span(phase: str, iteration: int, start: float, end: float) -> controller_pb2.PhaseSpan:
    return controller_pb2.PhaseSpan(phase=phase, iteration=iteration, start_seconds=start, end_seconds=end)


def test_the_time_line_is_to_scale() -> None:
    drawn = timeline([span("rollout", 1, 10, 13), span("train", 1, 13, 14), span("rollout", 2, 14, 18)])
    assert [box.x for box in drawn.boxes] == [0.0, 375.0, 500.0]
    assert [box.width for box in drawn.boxes] == [375.0, 125.0, 500.0]
    assert drawn.ticks == ((0.0, 1), (500.0, 2))
    assert [(share.phase, round(share.percent)) for share in drawn.shares] == [("rollout", 88), ("train", 12)]


spans = st.lists(st.tuples(st.sampled_from(["train", "odd"]), st.integers(0, 20), st.floats(0, 1e5), st.floats(0, 1e4)))


@example([("train", 1, 0.0, 5e-324)])
@given(spans)
def test_boxes_stay_in_the_drawing(given_spans: list[tuple[str, int, float, float]]) -> None:
    drawn = timeline([span(phase, number, start, start + length) for phase, number, start, length in given_spans])
    assert all(0 <= box.x <= WIDTH and box.x + box.width <= WIDTH + 1 for box in drawn.boxes)
