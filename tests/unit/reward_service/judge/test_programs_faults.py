"""What the executor makes of a jail that breaks: a fault of the service, never a value."""

from collections.abc import Sequence

import pytest

from crescendo.proto.v1 import reward_pb2
from crescendo.reward_service import programs
from crescendo.reward_service.judge.messages import program_message
from crescendo.reward_service.programs import ProgramGrading
from crescendo.reward_service.sandbox.opening import Opened
from crescendo.reward_service.sandbox.options import SandboxOptions
from crescendo.reward_service.sandbox.protocol import Ending, Limits, Outcome, Program
from crescendo.reward_service.workers import Step
from tests.fakes.plain_sandbox import PlainSandbox

ITEM = reward_pb2.ScoreItem(item_id="a", chain=[reward_pb2.ScorerSpec(name="code", weight=1.0)])
PROGRAM = Program("python", {"main.py": b"print(1)"}, limits=Limits())


class OneProgram:
    """A pool whose workers want one program run, and then are content."""

    async def take(
        self,
        asked: Sequence[tuple[reward_pb2.ScoreItem, Sequence[reward_pb2.LinkRuns]]],
        deadline_s: float,
        *,
        fresh: bool = False,
    ) -> list[Step]:
        result = reward_pb2.ScoreResult(item_id="a")
        result.components.add(name="code", raw=1.0, weight=1.0)
        need = reward_pb2.LinkRuns(link=0, programs=[program_message(PROGRAM)])
        return [Step(result, () if ended else (need,)) for _, ended in asked]


class Ends(PlainSandbox):
    """Ends every program in one way."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.ending = ending

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        return Outcome(self.ending, reason="the jail broke")


@pytest.mark.parametrize(
    ("ending", "is_fault"), [(Ending.SANDBOX_ERROR, True), (Ending.EXITED, False), (Ending.TIMEOUT, False)]
)
async def test_a_broken_jail_is_a_retryable_fault(
    ending: Ending, is_fault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def opened(options: SandboxOptions) -> Opened:
        return Opened(Ends(ending), "")

    monkeypatch.setattr(programs, "open_sandbox", opened)
    grading = ProgramGrading(OneProgram(), SandboxOptions())  # type: ignore[arg-type]
    (result,) = await grading.grade([ITEM], 5.0)
    assert result.HasField("fault") == is_fault
    assert result.fault.retryable == is_fault
    assert len(result.components) == (0 if is_fault else 1)
