"""A deterministic engine without torch or vLLM, for controller tests and simulation.

Every token and log-probability is a hash of (seed, prompt, sample, position, weight version), so that a
response that is parked and continued equals one that was not, whichever engine goes on with it. Requests with
temperature 0 leave the sample out, as greedy decoding would. How long a response is depends on the prompt and
the sample only.

Options (ServiceSpec.options), all strings:
    scripted.lengths       "fixed:32", "uniform:4:64", or "longtail:32:512" (median 32; one in ten up to 512)
    scripted.step_s        seconds that a step takes
    scripted.repeat_share  share of responses that fall into a loop halfway and never end by themselves
    scripted.canary_error  added to the log-probabilities of canaries: an engine that loaded wrongly
    scripted.die_at_step   the step that raises: an engine that dies
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from crescendo.common.errors import ConfigError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.base import EngineOutput, EngineRequest, Output, ScoreOutput, check_request, check_scored
from crescendo.rollout.engine.settings import EngineSettings

LOOP_TOKENS = 3
LARGEST_NEGATIVE_LOG_PROB = 2.0


@dataclass
class _Response:
    """A running request: position counts from the start of the response."""

    request: EngineRequest
    key: int
    length: int
    loop_from: int
    position: int
    last: int


class ScriptedEngine:
    """The seam of base.py, scripted."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        options = settings.options
        self._lengths = _parse_lengths(options.get("scripted.lengths", "uniform:4:64"))
        self._step_s = float(options.get("scripted.step_s", "0"))
        self._repeat_share = float(options.get("scripted.repeat_share", "0"))
        self._canary_error = float(options.get("scripted.canary_error", "0"))
        self._die_at_step = int(options.get("scripted.die_at_step", "-1"))
        self._vocabulary = max(2, settings.vocabulary_size)
        self._eos = settings.eos_token_ids[0] if settings.eos_token_ids else -1
        self._running: dict[str, _Response] = {}
        self._scoring: dict[str, tuple[int, ...]] = {}
        self._canaries: dict[tuple[int, ...], Sequence[float]] = {}
        self._version = 0
        self._num_steps = 0

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt and response together."""
        return self._settings.max_sequence_tokens

    @property
    def has_work(self) -> bool:
        """Whether requests wait."""
        return bool(self._running or self._scoring)

    def add(self, request: EngineRequest) -> None:
        """Takes a request; raises RequestError for one that is empty or too long."""
        check_request(request, self.max_sequence_tokens)
        sample = request.request_id.rpartition("/")[2].partition("#")[0] if request.sampling.temperature > 0 else ""
        prompt = np.asarray(request.prompt_token_ids, dtype=np.int32).tobytes()
        key = _hash(self._settings.seed, xxhash.xxh3_64_intdigest(prompt), xxhash.xxh3_64_intdigest(sample.encode()))
        length = self._length(key)
        loops = _share(_hash(key, 2)) < self._repeat_share
        start = len(request.generated_token_ids)
        self._running[request.request_id] = _Response(
            request, key, length, length // 2 if loops else -1, start, start + request.max_tokens
        )

    def add_score(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Takes a sequence to score."""
        check_scored(token_ids)
        self._scoring[request_id] = tuple(token_ids)

    def step(self) -> list[Output]:
        """One token for every running request, and all scores."""
        if self._step_s:
            time.sleep(self._step_s)
        if self._num_steps == self._die_at_step:
            raise RuntimeError(f"scripted.die_at_step is {self._die_at_step}")
        self._num_steps += 1
        outputs: list[Output] = [ScoreOutput(one, self._score(tokens)) for one, tokens in self._scoring.items()]
        self._scoring.clear()
        for request_id in list(self._running):
            outputs.append(self._advance(request_id))
        return outputs

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forgets requests."""
        for one in request_ids:
            self._running.pop(one, None)
            self._scoring.pop(one, None)

    def load_weights(self, manifest: common_pb2.WeightManifest) -> list[int] | None:
        """Takes the version, and the canaries' log-probabilities as its own."""
        self._version = manifest.version
        self._canaries = {tuple(one.token_ids): list(one.log_probs) for one in manifest.canaries}
        return [one.digest for one in manifest.tensors] if manifest.access else None

    def release(self, method: str) -> None:
        """Holds no device."""

    def acquire(self, *, cache: bool = True) -> None:
        """Needs no device."""

    def close(self) -> None:
        """Forgets everything."""
        self._running.clear()
        self._scoring.clear()

    def _advance(self, request_id: str) -> EngineOutput:
        response = self._running[request_id]
        request, position = response.request, response.position
        looping = 0 <= response.loop_from <= position
        at = response.loop_from + (position - response.loop_from) % LOOP_TOKENS if looping else position
        ends = position >= response.length - 1 and response.loop_from < 0 and self._eos >= 0 and not request.ignore_eos
        token = self._eos if ends else self._token(response.key, at)
        log_prob = self._log_prob(len(request.prompt_token_ids) + position, token)
        response.position += 1
        reason = common_pb2.FINISH_REASON_UNSPECIFIED
        if ends or token in request.sampling.stop_token_ids:
            reason = common_pb2.FINISH_REASON_STOP
        elif response.position >= response.last:
            reason = common_pb2.FINISH_REASON_LENGTH
        if reason != common_pb2.FINISH_REASON_UNSPECIFIED:
            del self._running[request_id]
        return EngineOutput(request_id, [token], [log_prob], reason)

    def _token(self, key: int, position: int) -> int:
        token = _hash(key, position, self._version) % (self._vocabulary - 1)
        return token + 1 if 0 <= self._eos <= token else token

    def _log_prob(self, position: int, token: int) -> float:
        share = _share(_hash(self._settings.seed, position, token, self._version))
        return float(np.float32(-LARGEST_NEGATIVE_LOG_PROB * share))

    def _score(self, tokens: tuple[int, ...]) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        known = self._canaries.get(tokens)
        if known is not None:
            return np.asarray(known, dtype=np.float32) + np.float32(self._canary_error)
        scores = [self._log_prob(position, tokens[position]) for position in range(1, len(tokens))]
        return np.asarray(scores, dtype=np.float32)

    def _length(self, key: int) -> int:
        kind, low, high = self._lengths
        draw = _share(_hash(key, 1))
        if kind == "uniform":
            return low + int(draw * (high - low + 1))
        if kind == "longtail":
            return int(low * 2 ** (2 * draw / 0.9 - 1)) if draw < 0.9 else low + int((draw - 0.9) * 10 * (high - low))
        return low


def _hash(*values: int) -> int:
    packed = b"".join((value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") for value in values)
    return int(xxhash.xxh3_64_intdigest(packed))


def _share(value: int) -> float:
    return value / 2**64


def _parse_lengths(text: str) -> tuple[str, int, int]:
    kind, _, rest = text.partition(":")
    numbers = [int(one) for one in rest.split(":") if one.isdigit()]
    wanted = {"fixed": 1, "uniform": 2, "longtail": 2}.get(kind, 0)
    if not wanted or len(numbers) != wanted or min(numbers) < 1 or numbers != sorted(numbers):
        raise ConfigError(
            f"scripted.lengths is {text!r}; it must be fixed:N, uniform:LOW:HIGH or longtail:MEDIAN:HIGH.",
            field="scripted.lengths",
            fix="Write for example uniform:4:64.",
        )
    return kind, numbers[0], numbers[-1]
