"""Has a model write the generator programs: the library's usage and the statement in, a program out (k1.5, 2.3.5).

The program is text until the sandbox runs it; here its code block is cut out, line by line.
"""

import ast
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from crescendo.common.errors import DeadlineError
from crescendo.common.rpc import Client
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from crescendo.reward_service.scorers.code_extract import last_code_block

_REQUEST = """\
Write a Python program that prints one random test input for the problem below. It is run once a case, with growing \
sizes. Follow the input format and the limits exactly; among the cases there should be small, large and special ones. \
Put the program into one ```python block.

Use this library:

{usage}

The problem:

{statement}
"""


@dataclass(frozen=True)
class Writing:
    """How the model is asked. render: text to prompt tokens; decode: tokens to text."""

    render: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    stop_token_ids: Sequence[int] = ()
    max_tokens: int = 1024
    temperature: float = 0.7
    timeout_s: float = 600.0


class GeneratorWriter:
    """`await writer(statement)`: a program's text, or None if the model wrote none."""

    def __init__(self, client: Client[rollout_pb2_grpc.RolloutServiceStub], writing: Writing) -> None:
        self._client = client
        self._writing = writing

    async def __call__(self, statement: str) -> str | None:
        """Raises a CrescendoError when the engine fails, DataError when the statement is too long for it."""
        prompt = self._writing.render(request_text(statement))
        return last_code_block(self._writing.decode(await self._generate(prompt)))

    async def _generate(self, prompt: Sequence[int]) -> list[int]:
        writing = self._writing
        sampling = common_pb2.Sampling(
            temperature=writing.temperature, top_p=1.0, stop_token_ids=writing.stop_token_ids
        )

        async def requests() -> AsyncIterator[rollout_pb2.GenerateRequest]:
            yield rollout_pb2.GenerateRequest(
                request_id="generator", prompt_token_ids=prompt, max_tokens=writing.max_tokens, sampling=sampling
            )

        tokens: list[int] = []
        is_done = False
        stream = self._client.stream(self._client.stub.Generate, requests(), timeout_s=writing.timeout_s)
        async for answer in stream:
            for delta in answer.deltas:
                tokens += delta.token_ids
                is_done = is_done or delta.finish_reason not in (
                    common_pb2.FINISH_REASON_UNSPECIFIED,
                    common_pb2.FINISH_REASON_ABORTED,
                )
        if not is_done:
            raise DeadlineError("the engine left a generator program unfinished.")
        return tokens


def request_text(statement: str) -> str:
    """What the model reads."""
    return _REQUEST.format(usage=usage(), statement=statement)


@lru_cache
def usage() -> str:
    """The library's own documentation: its docstring, then each function with what it does."""
    tree = ast.parse((files("crescendo.reward_service.judge.inside") / "cases.py").read_text())
    lines = [ast.get_docstring(tree) or "", ""]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            lines.append(f"{node.name}({ast.unparse(node.args)}): {ast.get_docstring(node)}")
    return "\n".join(lines)
