"""The repetition stop: when has a response started to loop?

The rule (RepetitionRule in common.proto, RepetitionConfig in the run file): a response ends as soon as, for
some n <= ngram_tokens, its last n-gram occurs `count` times back to back at its end, all of them within its
last window_tokens tokens. In other words: its last n * count tokens have period n, and n * count <=
window_tokens.

With r_n the number of latest tokens that equal the token n places before them, that is r_n >= n * (count - 1).
`RepetitionDetector` keeps r_n for those n only for which it is not zero: the lags at which the newest token
occurred before. So a token costs as many steps as it has earlier occurrences among the last ngram_tokens,
about one in ordinary text.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from crescendo.proto.v1 import common_pb2


def longest_period(rule: common_pb2.RepetitionRule) -> int:
    """The longest n-gram that fits count times into the window; 0 when the rule is off."""
    if rule.ngram_tokens <= 0 or rule.count < 2:
        return 0
    return min(rule.ngram_tokens, rule.window_tokens // rule.count)


class RepetitionDetector:
    """Applies the rule to one response, token by token; costs no more than the rule's window of memory."""

    def __init__(self, rule: common_pb2.RepetitionRule, earlier: Sequence[int] = ()) -> None:
        """earlier: what the response holds already, if it is continued."""
        self._longest = longest_period(rule)
        self._repeats = rule.count - 1
        self._recent: deque[int] = deque()
        self._positions: dict[int, deque[int]] = {}
        self._runs: dict[int, int] = {}
        self._next = 0
        for token in earlier[-rule.window_tokens :] if self._longest else ():
            self.add(token)

    def add(self, token: int) -> bool:
        """Takes the next token; True when the response ends here."""
        if not self._longest:
            return False
        position = self._next
        self._next += 1
        earlier = self._positions.setdefault(token, deque())
        runs: dict[int, int] = {}
        looping = False
        for before in earlier:
            lag = position - before
            run = self._runs.get(lag, 0) + 1
            runs[lag] = run
            looping = looping or run >= lag * self._repeats
        self._runs = runs
        earlier.append(position)
        self._recent.append(token)
        if len(self._recent) > self._longest:
            self._forget_oldest()
        return looping

    def _forget_oldest(self) -> None:
        oldest = self._recent.popleft()
        positions = self._positions[oldest]
        positions.popleft()
        if not positions:
            del self._positions[oldest]


def first_stop(tokens: Iterable[int], rule: common_pb2.RepetitionRule) -> int | None:
    """How many tokens of a response the rule lets through; None when it never stops it."""
    detector = RepetitionDetector(rule)
    for count, token in enumerate(tokens, start=1):
        if detector.add(token):
            return count
    return None


def false_stop_rate(responses: Sequence[Sequence[int]], rule: common_pb2.RepetitionRule) -> float:
    """Share of responses, all known to be correct, that the rule would have stopped; 0 of none."""
    stopped = sum(first_stop(response, rule) is not None for response in responses)
    return stopped / len(responses) if responses else 0.0
