"""The program of a functional test's sandbox: loads the candidate and calls it case by case. It knows no answer.

Standard input is one value (see wire): source, entry, calls, case_s, value_bytes, with_arguments. What the candidate
does to this process (leave it, patch it, write into the channel) changes which answers arrive and nothing else.
"""

import builtins
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from crescendo.reward_service.judge.inside.channel import (
    BEFORE_CASES,
    LATE,
    RAISED,
    UNSENDABLE,
    VALUE,
    Send,
    open_channel,
)
from crescendo.reward_service.judge.inside.prelude import PRELUDE
from crescendo.reward_service.judge.inside.structures import ListNode, TreeNode, list_node, tree_node
from crescendo.reward_service.judge.inside.wire import WireError, decode, encode

AGAIN_S = 0.05
MAX_TEXT = 200
RECURSION_LIMIT = 10_000


class CaseLate(BaseException):
    """The case's deadline passed. Not an Exception, so that `except Exception` in a candidate does not stop it."""


class Clock:
    """A deadline for one case by SIGALRM. A candidate may disarm it: the run's own deadline is the sandbox's."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_armed = False
        signal.signal(signal.SIGALRM, self._ring)

    def start(self) -> None:
        """Arms it; it rings again and again, in case the candidate catches the first one."""
        self._is_armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds, AGAIN_S)

    def stop(self) -> None:
        """Disarms it."""
        self._is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._is_armed:
            raise CaseLate


def main() -> None:
    """Runs every case and leaves without the candidate's exit handlers."""
    task: Any = decode(sys.stdin.buffer.read(), tree_node, list_node)
    send = open_channel()
    leave = os._exit
    try:
        sys.setrecursionlimit(RECURSION_LIMIT)
        clock = Clock(task["case_s"])
        function = load(task, clock, send)
        if function is not None:
            for number, (arguments, named) in enumerate(task["calls"]):
                status, payload = answer(task, clock, function, arguments, named)
                send(number, status, payload)
    finally:
        leave(0)


def load(task: dict[str, Any], clock: Clock, send: Send) -> Callable[..., object] | None:
    """The candidate's function; None when there is none, which a frame has then told."""
    given: dict[str, object] = dict(vars(builtins))
    exec(PRELUDE, given)  # noqa: S102 - our own text
    given |= {"ListNode": ListNode, "TreeNode": TreeNode, "list_node": list_node, "tree_node": tree_node}
    # As built-ins, so that a candidate which defines no `add` is not taken to have operator's.
    namespace: dict[str, object] = {"__name__": "solution", "__builtins__": given}
    try:
        clock.start()
        try:
            exec(compile(str(task["source"]), "solution.py", "exec"), namespace)  # noqa: S102 - what a sandbox is for
            return resolve(namespace, task["entry"])
        finally:
            clock.stop()
    except CaseLate:
        send(BEFORE_CASES, LATE, b"")
    except BaseException as error:  # noqa: BLE001 - whatever the candidate raises is reported, SystemExit too
        send(BEFORE_CASES, RAISED, described(error))
    return None


def resolve(namespace: dict[str, object], entry: list[Any]) -> Callable[..., object]:
    """The callable that an entry names: a name, then attributes and, as None, calls without arguments."""
    name, *steps = entry
    if name not in namespace:
        raise NameError(f"{name} is not defined")
    found: Any = namespace[name]
    for step in steps:
        found = found() if step is None else getattr(found, step)
    if not callable(found):
        raise TypeError(f"{name} is not callable")
    return found  # type: ignore[no-any-return]


def answer(
    task: dict[str, Any],
    clock: Clock,
    function: Callable[..., object],
    arguments: list[object],
    named: dict[str, object],
) -> tuple[bytes, bytes]:
    """Status and payload of one call; with_arguments adds the arguments as the call left them."""
    try:
        clock.start()
        try:
            value = function(*arguments, **named)
            return VALUE, encode([value, arguments, named] if task["with_arguments"] else value, task["value_bytes"])
        finally:
            clock.stop()
    except CaseLate:
        return LATE, b""
    except WireError as error:
        return UNSENDABLE, encode(str(error)[:MAX_TEXT])
    except BaseException as error:  # noqa: BLE001 - as in load
        return RAISED, described(error)


def described(error: BaseException) -> bytes:
    """Type and text of an exception. The text is made by the candidate's code, which may fail once more."""
    try:
        return encode([type(error).__name__[:MAX_TEXT], str(error)[:MAX_TEXT]])
    except BaseException:  # noqa: BLE001 - as in load
        return encode(["Exception", ""])


if __name__ == "__main__":
    main()
