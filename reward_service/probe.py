"""`python -m crescendo.reward_service.probe ADDRESS`: grades 1 + 1 through a reward service and its executor.

`helm test` runs it, with an identity of role `probe`; people may, on loopback, with the run's token in the environment
variable CRESCENDO_TOKEN. Prints what it saw; exit code 0 when a right and a wrong answer were told apart.
"""

import argparse
import asyncio
import os
import sys
from typing import Final

from crescendo.common.errors import CrescendoError
from crescendo.common.rpc import Client, Endpoint
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc

TOKEN_VARIABLE: Final = "CRESCENDO_TOKEN"
ITEM_DEADLINE_S: Final = 20.0
CALL_S: Final = 60.0
ANSWERS: Final = {"2": common_pb2.VERDICT_CORRECT, "3": common_pb2.VERDICT_WRONG}


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="crescendo.reward_service.probe", description="Grades 1 + 1.")
    parser.add_argument("address", metavar="ADDRESS", help="host:port of the reward service")
    try:
        return asyncio.run(probe(parser.parse_args().address, os.environ.get(TOKEN_VARIABLE, "")))
    except CrescendoError as error:
        print(f"reward service: {error}", file=sys.stderr)
        return error.exit_code


async def probe(address: str, token: str) -> int:
    """Grades each answer and prints its verdict; returns the exit code, raises what the call does."""
    client = Client(Endpoint(address, token), reward_pb2_grpc.RewardServiceStub)
    request = reward_pb2.ScoreRequest(items=[_item(answer) for answer in ANSWERS], deadline_seconds=ITEM_DEADLINE_S)
    try:
        answered = await client.call(client.stub.Score, request, timeout_s=CALL_S, attempts=5)
    finally:
        await client.close()
    right = True
    for result, (answer, expected) in zip(answered.results, ANSWERS.items(), strict=True):
        verdict = result.components[0].verdict if result.components else common_pb2.VERDICT_UNSPECIFIED
        name = common_pb2.Verdict.Name(verdict)
        fault = f", fault: {result.fault.message}" if result.HasField("fault") else ""
        print(f"1 + 1 = {answer}: {name} in {result.boundary}/{result.jail}, {result.seconds:.3f} s{fault}")
        right = right and verdict == expected
    return 0 if right else 1


def _item(answer: str) -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(
        item_id=f"probe-{answer}",
        prompt=b"What is 1 + 1?",
        response=f"1 + 1 = \\boxed{{{answer}}}".encode(),
        gold_answers=["2"],
        chain=[reward_pb2.ScorerSpec(name="math_answer", weight=1.0)],
        finish_reason=common_pb2.FINISH_REASON_STOP,
        num_tokens=1,
    )


if __name__ == "__main__":
    sys.exit(main())
