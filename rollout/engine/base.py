"""The seam between the rollout service and what generates tokens.

An `Engine` is synchronous and belongs to one thread: `EngineThread` (thread.py) calls every method, so an
engine needs no locks. `VllmEngine` is the fast one; `ReferenceEngine` computes the same slowly, with transformers
alone; `ScriptedEngine` needs neither torch nor vLLM and serves controller tests and simulation.
tests/contract/test_engines.py runs one suite over all.

A request goes in with its prompt and whatever earlier segments generated; tokens come out by `step`, one
`EngineOutput` a request and step. Continuing by prompt + generated tokens gives what an uninterrupted
response would have given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from crescendo.common.errors import RequestError
from crescendo.common.types import FloatArray
from crescendo.proto.v1 import common_pb2

FinishReason: TypeAlias = common_pb2.FinishReason.ValueType


@dataclass(frozen=True)
class EngineRequest:
    """One response to generate, or to go on with.

    generated_token_ids: what the response holds already (a continuation); max_tokens: new tokens at most;
    ignore_eos: generate exactly max_tokens; seed: None draws from the engine's own generator.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    max_tokens: int
    sampling: common_pb2.Sampling
    generated_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None


class EngineOutput(NamedTuple):
    """What one step made of one request.

    log_probs: of token_ids, under the distribution that was sampled; finish_reason: unspecified while the
    response goes on, STOP (the end-of-sequence or a stop token, which is the last of token_ids), or LENGTH
    (max_tokens, or the engine's longest sequence).
    """

    request_id: str
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason


class ScoreOutput(NamedTuple):
    """Log-probabilities of a scored sequence, from its second token on: [T - 1]."""

    request_id: str
    log_probs: FloatArray


Output: TypeAlias = EngineOutput | ScoreOutput


def check_request(request: EngineRequest, longest: int) -> None:
    """Raises RequestError for one that holds nothing, or too much to get a token more. For engines of our own."""
    held = len(request.prompt_token_ids) + len(request.generated_token_ids)
    if not 0 < held < longest or request.max_tokens < 1:
        raise RequestError(
            f"request {request.request_id} holds {held} tokens and may get {request.max_tokens}; a sequence has at "
            f"most {longest}.",
            field="prompt_token_ids",
        )


def check_scored(token_ids: Sequence[int]) -> None:
    """Raises RequestError for a sequence without a token to score."""
    if len(token_ids) < 2:
        raise RequestError(f"a scored sequence has {len(token_ids)} tokens; it needs two.", field="token_ids")


class Engine(Protocol):
    """Generates tokens; see the module docstring for who calls it."""

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt and response together."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something."""
        ...

    def add(self, request: EngineRequest) -> None:
        """Takes a request; raises RequestError when it can never run."""
        ...

    def add_score(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Takes a sequence of at least two tokens whose log-probabilities are wanted, caches bypassed."""
        ...

    def step(self) -> list[Output]:
        """One forward pass over what is running."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forgets requests; unknown ids are passed over. No output for them follows."""
        ...

    def load_weights(self, manifest: common_pb2.WeightManifest) -> list[int] | None:
        """Loads one version in place and forgets every cached key and value.

        Returns digests of the bytes that came, in the manifest's order, where the engine itself took them (ipc, nccl);
        None where they lie in files that others can read.

        What runs is aborted. Raises RequestError when the manifest does not fit the model and
        WeightMismatchError when it leaves parameters out; the weights are undefined then, until a load succeeds.
        """
        ...

    def release(self, method: str) -> None:
        """Lets go of the device: `sleep` (weights and cache are discarded) or `restart` (the engine ends)."""
        ...

    def acquire(self, *, cache: bool = True) -> None:
        """Takes the device back. Weights are undefined until `load_weights` after either method.

        cache: false leaves the cache out where it can come later, by another call; nothing can be stepped before.
        """
        ...

    def close(self) -> None:
        """Ends the engine and its child processes."""
        ...
