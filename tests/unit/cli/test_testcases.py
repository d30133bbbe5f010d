"""`crescendo data testcases`: what is kept, what goes and why, and how a model is asked for a generator."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from crescendo.cli import testcases
from crescendo.cli.main import main, parser
from crescendo.cli.testcases_options import RULES
from crescendo.common.errors import DeadlineError
from crescendo.proto.v1 import common_pb2, rollout_pb2
from crescendo.reward_service.judge.code_tests import StdioTests, read_tests
from crescendo.reward_service.judge.generator_writer import GeneratorWriter, Writing
from crescendo.reward_service.judge.selection import SelectionRules
from crescendo.reward_service.sandbox.opening import Closed, Opened
from crescendo.reward_service.sandbox.options import SandboxOptions
from tests.fakes.plain_sandbox import PlainSandbox

GENERATOR = "from cases import *\nwrite(whole(1, 10**9))\n"
DOUBLES = ["print(2 * int(input()))", "n = int(input())\nprint(n + n)", "print(int(input()) << 1)"]
SMALL = ["--num-cases=4", "--num-references=3", "--min-agree=2", "--min-valid=3", "--min-pass=3", "--plain"]


@pytest.fixture
def plain_sandbox(monkeypatch: pytest.MonkeyPatch) -> PlainSandbox:
    """In place of a jail."""
    sandbox = PlainSandbox()

    async def opened(options: SandboxOptions) -> Opened:
        return Opened(sandbox, "")

    monkeypatch.setattr(testcases, "open_sandbox", opened)
    return sandbox


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": "Double it.", "solutions": DOUBLES} | row) + "\n" for row in rows))
    return str(path)


def test_what_is_kept_and_what_goes(
    tmp_path: Path, plain_sandbox: PlainSandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        tmp_path,
        {"generator": GENERATOR, "level": 3},
        {"generator": GENERATOR, "special_judge": True},
        {"generator": "1 / 0"},
        {},
        {"generator": GENERATOR, "solutions": [*DOUBLES[:2], "print(1)"]},
        {"generator": GENERATOR, "solutions": "print(1)"},
    )
    assert main(["data", "testcases", file, *SMALL]) == 0
    (kept,) = [json.loads(line) for line in (tmp_path / "problems.testcases.jsonl").read_text().splitlines()]
    assert kept["level"] == 3
    tests = read_tests(json.dumps(kept["tests"]))
    assert isinstance(tests, StdioTests)
    assert len(tests.cases) == 4
    assert all(int(case.output) == 2 * int(case.input) for case in tests.cases)
    report = json.loads((tmp_path / "problems.testcases.jsonl.report.json").read_text())
    assert report["removed"] == {
        "special_judge": 1,
        "bad_generator": 1,
        "no_generator": 1,
        "references_fail": 1,
        "bad_row": 1,
    }
    assert "ZeroDivisionError" in report["examples"]["bad_generator"][0]["reason"]
    assert "6 rows, 1 kept, 5 removed" in capsys.readouterr().out


def test_without_a_sandbox_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def closed(options: SandboxOptions) -> Opened:
        return Opened(Closed(PlainSandbox().posture, "no jail works here"), "")

    monkeypatch.setattr(testcases, "open_sandbox", closed)
    assert main(["data", "testcases", written(tmp_path, {"generator": GENERATOR}), *SMALL]) == 3
    assert "no jail works here" in capsys.readouterr().err
    assert not (tmp_path / "problems.testcases.jsonl").exists()


@pytest.mark.parametrize("arguments", [["--min-agree=1"], ["--case-seconds=-1"], ["--engine=a:1"], ["--model=m"]])
def test_arguments_that_cannot_be(tmp_path: Path, plain_sandbox: PlainSandbox, arguments: list[str]) -> None:
    assert main(["data", "testcases", written(tmp_path, {}), *SMALL, *arguments]) != 0
    assert not plain_sandbox.programs


def test_defaults_are_those_of_the_rules() -> None:
    options = parser().parse_args(["data", "testcases", "x"])
    assert SelectionRules(**{name: getattr(options, name) for name in RULES}) == SelectionRules()


class Engine:
    """Answers as a RolloutService does, one word a token."""

    stub = type("Stub", (), {"Generate": None})

    def __init__(self, text: str, reason: common_pb2.FinishReason.ValueType) -> None:
        self.words = text.split(" ")
        self.reason = reason
        self.asked: list[rollout_pb2.GenerateRequest] = []

    async def stream(
        self, method: object, requests: AsyncIterator[rollout_pb2.GenerateRequest], timeout_s: float
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        self.asked = [request async for request in requests]
        for place in range(len(self.words)):
            last = place + 1 == len(self.words)
            delta = rollout_pb2.GenerateDelta(
                request_id="generator", token_ids=[place], finish_reason=self.reason if last else 0
            )
            yield rollout_pb2.GenerateResponse(deltas=[delta])

    def writer(self, seen: list[str]) -> GeneratorWriter:
        def render(text: str) -> Sequence[int]:
            seen.append(text)
            return [1, 2, 3]

        writing = Writing(render, lambda tokens: " ".join(self.words[token] for token in tokens), max_tokens=9)
        return GeneratorWriter(self, writing)  # type: ignore[arg-type]


async def test_a_model_is_given_library_and_statement() -> None:
    seen: list[str] = []
    engine = Engine("Sure:\n```python\nfrom cases import *\nwrite(1)\n```\nDone.", common_pb2.FINISH_REASON_STOP)
    assert await engine.writer(seen)("Print n.") == "from cases import *\nwrite(1)"
    assert "Print n." in seen[0]
    for part in ("from cases import *", "size(least: int, most: int)", "graph(", "write(*values"):
        assert part in seen[0]
    assert (list(engine.asked[0].prompt_token_ids), engine.asked[0].max_tokens) == ([1, 2, 3], 9)
    assert await Engine("no program", common_pb2.FINISH_REASON_LENGTH).writer([])("Print n.") is None
    with pytest.raises(DeadlineError):
        await Engine("```python", common_pb2.FINISH_REASON_UNSPECIFIED).writer([])("Print n.")
