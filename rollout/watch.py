"""What ends a response besides the engine's own reasons: the repetition rule and stop strings.

One `ResponseWatch` follows one response, in a rollout phase and in Generate alike. Pure; no I/O.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.base import FinishReason
from crescendo.rollout.repetition import RepetitionDetector

Decode: TypeAlias = Callable[[Sequence[int]], str]


class ResponseWatch:
    """Looks at each token of a response as it is generated.

    decode: token ids to text, needed for stop strings only.
    """

    def __init__(
        self,
        rule: common_pb2.RepetitionRule,
        stop_strings: Sequence[str],
        decode: Decode | None,
        earlier: Sequence[int] = (),
    ) -> None:
        """earlier: tokens of the response so far. Raises RequestError for stop strings without a tokenizer."""
        if stop_strings and decode is None:
            raise RequestError(
                f"sampling.stop_strings is {list(stop_strings)}, but the model folder has no tokenizer.json.",
                field="sampling.stop_strings",
                fix="Use stop_token_ids, or add the tokenizer to the model folder.",
            )
        self._repetition = RepetitionDetector(rule, earlier)
        self._stop_strings = tuple(stop_strings)
        self._decode = decode
        # A token is at least one byte and a character at most four, so a stop string ends within so many tokens.
        self._tail_tokens = 4 * max((len(one) for one in stop_strings), default=0)
        self._tail: list[int] = list(earlier[-self._tail_tokens :]) if self._tail_tokens else []

    def end_of(self, token_ids: Sequence[int]) -> tuple[int, FinishReason] | None:
        """Takes new tokens; (how many of them belong to the response, why it ends), or None: it goes on."""
        for count, token in enumerate(token_ids, start=1):
            if self._repetition.add(token):
                return count, common_pb2.FINISH_REASON_REPEAT
            if self._stop_strings and self._hits_stop_string(token):
                return count, common_pb2.FINISH_REASON_STOP
        return None

    def _hits_stop_string(self, token: int) -> bool:
        self._tail = [*self._tail[1 - self._tail_tokens :], token]
        text = self._decode(self._tail) if self._decode else ""
        return any(one in text for one in self._stop_strings)
