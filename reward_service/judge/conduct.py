"""Takes the steps of a judging one after another, in this process: for benches, test-case generation and tests.

The executor does the same with each step in a confined worker. Here decoding and comparing happen in the caller's own
process, so a caller that judges model text passes `take` a function that asks a confined one.
"""

import time
from collections.abc import Awaitable, Callable, Sequence

from crescendo.common.errors import DeadlineError, InternalError
from crescendo.reward_service.judge.steps import MAX_STEPS, Rules, Step, judge_step
from crescendo.reward_service.judge.together import together
from crescendo.reward_service.judge.verdicts import Judged
from crescendo.reward_service.sandbox.protocol import Outcome, Sandbox


async def judge(source: str, tests: str, rules: Rules, sandbox: Sandbox, deadline_s: float) -> Judged:
    """Judges one candidate; raises what the sandbox raises, and DeadlineError."""

    async def take(ended: Sequence[Outcome]) -> Step:
        return judge_step(source, tests, ended, rules)

    return await conduct(take, sandbox, deadline_s)


async def conduct(take: Callable[[Sequence[Outcome]], Awaitable[Step]], sandbox: Sandbox, deadline_s: float) -> Judged:
    """Asks for steps and runs their programs until there is a judgement."""
    ends_s = time.monotonic() + deadline_s
    ended: list[Outcome] = []
    for _ in range(MAX_STEPS):
        step = await take(ended)
        if isinstance(step, Judged):
            return step
        remaining_s = ends_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineError(f"a judging took longer than {deadline_s:g} s.", field="deadline_s")
        ended += await together(sandbox.run(program, remaining_s) for program in step)
    raise InternalError(f"a judging took more than {MAX_STEPS} steps.")
