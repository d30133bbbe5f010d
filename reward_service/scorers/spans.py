"""Named spans of a response: the whole, the thinking, or the summary after it. Byte or text search, linear, no parsing.

Used by scorers in the confined workers (on text) and by the reward process (on bytes) when it cuts out what a
remote reward model is to judge: DeepSeek-R1 section 2.3.4 rewards helpfulness on the final summary only and
harmlessness on the whole response.
"""

from typing import AnyStr

OPEN, CLOSE = "<think>", "</think>"
SPANS = ("all", "thinking", "summary")


def span_of(response: AnyStr, span: str) -> AnyStr:
    """The named span. Without a closing tag there is no summary, and everything is thinking.

    thinking: what precedes the last closing tag, less an opening tag at its start; summary: what follows it.
    """
    if span == "all":
        return response
    opening, closing = _marks(response)
    before, found, after = response.rpartition(closing)
    if not found:
        return response.removeprefix(opening) if span == "thinking" else response[:0]
    return before.lstrip().removeprefix(opening) if span == "thinking" else after


def _marks(response: AnyStr) -> tuple[AnyStr, AnyStr]:
    if isinstance(response, bytes):
        return OPEN.encode(), CLOSE.encode()
    return OPEN, CLOSE
