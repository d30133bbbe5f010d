"""What `helm test` asks of reward service and executor, and that it sees each thing that is not as it has to be."""

import subprocess
import sys

import grpc
import pytest

from crescendo.common.rpc import serve
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from crescendo.reward_service import probe

RIGHT = {check.item.item_id: check.expected for check in probe.checks()}
FAULT = reward_pb2.ScoreResult(fault=common_pb2.ErrorDetail(message="no sandbox works here"))


class Servicer(reward_pb2_grpc.RewardServiceServicer):
    """Gives the verdicts that it is told to."""

    def __init__(self, verdicts: dict[str, int], fault: str = "") -> None:
        self._verdicts = verdicts
        self._fault = fault

    async def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        return reward_pb2.ScoreResponse(results=[self._result(item.item_id) for item in request.items])

    def _result(self, name: str) -> reward_pb2.ScoreResult:
        if name == self._fault:
            return FAULT
        component = common_pb2.RewardComponent(verdict=self._verdicts[name], detail="case 1: another output")
        return reward_pb2.ScoreResult(components=[component], boundary="shared-kernel", jail="landlock")


async def told(servicer: Servicer, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    server = await serve(
        lambda grpc_server: reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, grpc_server),
        ["crescendo.v1.RewardService"],
    )
    try:
        return await probe.probe(server.address, ""), capsys.readouterr().out
    finally:
        await server.stop(0)


async def test_all_as_it_has_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = await told(Servicer(RIGHT), capsys)
    assert code == 0
    assert [line.split(" in ")[0] for line in said.splitlines()] == [
        "1 + 1 = 2: VERDICT_CORRECT",
        "1 + 1 = 3: VERDICT_WRONG",
        "a program adds 1 + 1 and is refused sockets: VERDICT_CORRECT",
    ]


@pytest.mark.parametrize("name", RIGHT)
async def test_one_that_is_not_fails_and_the_others_are_told_all_the_same(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = await told(Servicer({**RIGHT, name: common_pb2.VERDICT_UNSUPPORTED}), capsys)
    assert code == 1
    assert len(said.splitlines()) == len(RIGHT)
    assert f"VERDICT_UNSUPPORTED instead of {common_pb2.Verdict.Name(RIGHT[name])}" in said
    assert "case 1: another output" in said


async def test_a_fault_of_the_service_fails(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = await told(Servicer(RIGHT, fault="probe-program"), capsys)
    assert code == 1
    assert "no sandbox works here" in said


def test_outside_of_a_sandbox_the_program_says_so() -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-c", probe.PROGRAM],
        input="1 1", capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ran.stdout.split()[:2] == ["2", "granted"]
    assert len(ran.stdout.split()) == len(probe.HELD.split())
