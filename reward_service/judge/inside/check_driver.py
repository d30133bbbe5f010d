"""The program of a check's sandbox: runs a check that could not be read, against a stand-in for the candidate.

Standard input is one value (see wire): source, function, candidate, recorded ([call, status, payload] in order),
value_bytes. The stand-in answers the recorded calls; the candidate itself runs elsewhere. At the first call that is not
recorded it begins to collect: from there on calls return a placeholder that agrees to nearly everything, so that most
checks name all their calls at once, and what they find no longer counts. Collected calls go out as frames; after them,
or alone, one frame tells how the check ended.
"""

import builtins
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

from crescendo.reward_service.judge.inside.channel import RAISED, VALUE, open_channel
from crescendo.reward_service.judge.inside.prelude import PRELUDE
from crescendo.reward_service.judge.inside.structures import (
    ListNode,
    TreeNode,
    is_same_list,
    is_same_tree,
    list_node,
    tree_node,
)
from crescendo.reward_service.judge.inside.wire import WireError, decode, encode

CALL = b"C"
PASSED = b"P"
FAILED = b"F"
MAX_COLLECTED = 5_000
MAX_TEXT = 200


class Unanswered(BaseException):
    """The candidate has no answer to a call; the check cannot go on."""


class Pending:
    """Stands for an answer that is not known yet."""

    def _again(self, *arguments: object, **named: object) -> "Pending":
        return self

    __getattr__ = __call__ = __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _again
    __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __pow__ = __neg__ = __abs__ = __round__ = _again

    def _agree(self, *arguments: object) -> bool:
        return True

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _agree

    def __bool__(self) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[object]:
        return iter(())

    def __float__(self) -> float:
        return 0.0

    def __int__(self) -> int:
        return 0


class Candidate:
    """The stand-in: recorded answers while the calls are the recorded ones, then placeholders."""

    def __init__(self, recorded: list[Any], value_bytes: int) -> None:
        self.num_answered = 0
        self.is_unanswered = False
        self.first_collected = 0
        self.collected: list[bytes] = []
        self._recorded = recorded
        self._value_bytes = value_bytes

    def __call__(self, *arguments: object, **named: object) -> object:
        """The answer to a call; updates arguments that the candidate changed."""
        call = encode([list(arguments), named], self._value_bytes)
        number = self.num_answered
        if self.collected or number >= len(self._recorded) or self._recorded[number][0] != call:
            if not self.collected:
                self.first_collected = number
            if len(self.collected) >= MAX_COLLECTED:
                raise Unanswered
            self.collected.append(call)
            return Pending()
        self.num_answered += 1
        _, status, payload = self._recorded[number]
        if status == RAISED and (error := raised(decode(payload))) is not None:
            raise error
        if status != VALUE:
            self.is_unanswered = True
            raise Unanswered
        answer: Any = decode(payload, tree_node, list_node)
        value, after, named_after = answer
        for before, now in zip([*arguments, *named.values()], [*after, *named_after.values()], strict=True):
            update(before, now)
        return value


def raised(told: Any) -> Exception | None:
    """The exception that the candidate raised; None for those that leave a program, as SystemExit does."""
    kind = getattr(builtins, told[0], None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        return kind(told[1]) if issubclass(kind, Exception) else None
    return RuntimeError(f"{told[0]}: {told[1]}")


def update(before: Any, now: Any) -> None:
    """Makes an argument what the candidate made of it."""
    if type(before) is not type(now):
        return
    if isinstance(before, list):
        before[:] = now
    elif isinstance(before, dict | set):
        before.clear()
        before.update(now)
    elif isinstance(before, ListNode):
        before.val, before.next = now.val, now.next
    elif isinstance(before, TreeNode):
        before.val, before.left, before.right = now.val, now.left, now.right


def main() -> None:
    """Runs the check once and tells."""
    task: Any = decode(sys.stdin.buffer.read())
    send = open_channel()
    candidate = Candidate(task["recorded"], task["value_bytes"])
    status, text = run(task, candidate)
    if candidate.is_unanswered:  # whatever the check made of that: it may catch everything
        status, text = FAILED, "a call was not answered"
    for place, call in enumerate(candidate.collected):
        send(candidate.first_collected + place, CALL, call)
    send(candidate.num_answered, status, encode(text))
    os._exit(0)


def run(task: dict[str, Any], candidate: Callable[..., object]) -> tuple[bytes, str]:
    """How the check ended: PASSED, or FAILED with the reason."""
    random.seed(0)  # a check that draws its cases draws the same ones each time it is run
    namespace: dict[str, object] = {"__name__": "check", task["candidate"]: candidate}
    try:
        exec(PRELUDE, namespace)  # noqa: S102 - our own text
        namespace |= {"ListNode": ListNode, "TreeNode": TreeNode, "list_node": list_node, "tree_node": tree_node}
        namespace |= {"is_same_list": is_same_list, "is_same_tree": is_same_tree, task["candidate"]: candidate}
        exec(compile(task["source"], "check.py", "exec"), namespace)  # noqa: S102 - what a sandbox is for
        if task["function"]:
            check: Any = namespace[task["function"]]
            check(candidate)
    except Unanswered:
        return FAILED, "the check stopped at a call"
    except WireError as error:
        return FAILED, f"a call cannot travel: {error}"
    except AssertionError as error:
        return FAILED, f"an assertion failed {str(error)[:MAX_TEXT]}".rstrip()
    except Exception as error:  # noqa: BLE001 - a check on a wrong answer raises what it likes
        return FAILED, f"{type(error).__name__}: {error}"[:MAX_TEXT]
    return PASSED, ""


if __name__ == "__main__":
    main()
