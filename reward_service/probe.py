"""`python -m crescendo.reward_service.probe ADDRESS`: tries a reward service and its executor.

Grades a right and a wrong answer of 1 + 1, and runs a program that adds 1 + 1 and asks for sockets, which the sandbox
has to refuse. `helm test` runs it, with an identity of role `probe`; people may, on loopback, with the run's token in
the environment variable CRESCENDO_TOKEN. Prints what it saw; exit code 0 when everything was as it has to be.
"""

import argparse
import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Final

from crescendo.common.errors import CrescendoError
from crescendo.common.rpc import Client, Endpoint
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc

TOKEN_VARIABLE: Final = "CRESCENDO_TOKEN"
ITEM_DEADLINE_S: Final = 20.0
CALL_S: Final = 60.0
# Says for each family whether it got a socket; 1 + 1 shows that it ran at all.
PROGRAM: Final = """\
import socket
print(sum(map(int, input().split())))
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    try:
        socket.socket(family)
    except OSError:
        print("refused")
    else:
        print("granted")
"""
HELD: Final = "2 refused refused refused"


@dataclass(frozen=True)
class Check:
    """What is graded, and what the verdict has to be."""

    says: str
    item: reward_pb2.ScoreItem
    expected: "common_pb2.Verdict.ValueType"


def checks() -> list[Check]:
    """A right answer, a wrong one, and a program."""
    return [
        Check("1 + 1 = 2", _answer("2"), common_pb2.VERDICT_CORRECT),
        Check("1 + 1 = 3", _answer("3"), common_pb2.VERDICT_WRONG),
        Check("a program adds 1 + 1 and is refused sockets", _program(), common_pb2.VERDICT_CORRECT),
    ]


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="crescendo.reward_service.probe", description="Tries a reward service.")
    parser.add_argument("address", metavar="ADDRESS", help="host:port of the reward service")
    try:
        return asyncio.run(probe(parser.parse_args().address, os.environ.get(TOKEN_VARIABLE, "")))
    except CrescendoError as error:
        print(f"reward service: {error}", file=sys.stderr)
        return error.exit_code


async def probe(address: str, token: str) -> int:
    """Makes each check and prints its verdict; returns the exit code, raises what the call does."""
    wanted = checks()
    client = Client(Endpoint(address, token), reward_pb2_grpc.RewardServiceStub)
    request = reward_pb2.ScoreRequest(items=[check.item for check in wanted], deadline_seconds=ITEM_DEADLINE_S)
    try:
        answered = await client.call(client.stub.Score, request, timeout_s=CALL_S, attempts=5)
    finally:
        await client.close()
    held = [_holds(check, result) for check, result in zip(wanted, answered.results, strict=True)]
    return 0 if all(held) else 1


def _holds(check: Check, result: reward_pb2.ScoreResult) -> bool:
    """Prints one line."""
    component = result.components[0] if result.components else common_pb2.RewardComponent()
    held = component.verdict == check.expected
    found = common_pb2.Verdict.Name(component.verdict)
    if not held:
        found += f" instead of {common_pb2.Verdict.Name(check.expected)}"
    because = result.fault.message if result.HasField("fault") else "" if held else component.detail
    told = f", {because}" if because else ""
    print(f"{check.says}: {found} in {result.boundary}/{result.jail}, {result.seconds:.3f} s{told}")
    return held


def _answer(answer: str) -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(
        item_id=f"probe-{answer}",
        prompt=b"What is 1 + 1?",
        response=f"1 + 1 = \\boxed{{{answer}}}".encode(),
        gold_answers=["2"],
        chain=[reward_pb2.ScorerSpec(name="math_answer", weight=1.0)],
        finish_reason=common_pb2.FINISH_REASON_STOP,
        num_tokens=1,
    )


def _program() -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(
        item_id="probe-program",
        prompt=b"Add two numbers.",
        response=f"```python\n{PROGRAM}```".encode(),
        metadata={"tests": json.dumps({"inputs": ["1 1"], "outputs": [HELD]})},
        chain=[reward_pb2.ScorerSpec(name="code", weight=1.0)],
        finish_reason=common_pb2.FINISH_REASON_STOP,
        num_tokens=1,
    )


if __name__ == "__main__":
    sys.exit(main())
