"""The reference engine: transformers' own model, a request at a time. Slow and exact, for machines without vLLM.

Each request has a cache of its own, so what it gets does not depend on what else runs; log-probabilities are computed
in float32 from the model's logits, without fused kernels. What other engines report can be held against it. Lives on
the engine's thread (thread.py); the model is built from the folder's config.json and, with dummy weights, filled by
the first weight update.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from crescendo.common.errors import RequestError, WeightMismatchError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.arriving import Arriving
from crescendo.rollout.engine.base import EngineOutput, EngineRequest, Output, ScoreOutput, check_request, check_scored
from crescendo.rollout.engine.settings import EngineSettings
from crescendo.rollout.engine.shards import check_manifest

SCORED_AT_ONCE = 1024  # positions whose logits exist at one time


@dataclass
class _Running:
    """A request: `next_ids` go through the model at the next step, and the cache holds all before them."""

    request: EngineRequest
    next_ids: list[int]
    stops: frozenset[int]
    room: int
    generator: torch.Generator | None
    cache: DynamicCache = field(default_factory=DynamicCache)
    num_generated: int = 0


class ReferenceEngine:
    """The seam of base.py over transformers."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = torch.device(settings.device)
        if settings.threads and self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self._running: dict[str, _Running] = {}
        self._scoring: dict[str, tuple[int, ...]] = {}
        self._generator = torch.Generator(self._device).manual_seed(settings.seed)
        self._model: Any = self._build(dummy=settings.dummy_weights)

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt and response together."""
        return self._settings.max_sequence_tokens

    @property
    def has_work(self) -> bool:
        """Whether requests run or wait."""
        return bool(self._running or self._scoring)

    def add(self, request: EngineRequest) -> None:
        """Takes a request; raises RequestError for one that is empty or too long."""
        check_request(request, self.max_sequence_tokens)
        held = [*request.prompt_token_ids, *request.generated_token_ids]
        eos = () if request.ignore_eos else self._settings.eos_token_ids
        seeded = torch.Generator(self._device).manual_seed(request.seed) if request.seed is not None else None
        self._running[request.request_id] = _Running(
            request,
            held,
            frozenset((*request.sampling.stop_token_ids, *eos)),
            min(request.max_tokens, self.max_sequence_tokens - len(held)),
            seeded,
        )

    def add_score(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Takes a sequence to score; raises RequestError when it has less than two tokens."""
        check_scored(token_ids)
        self._scoring[request_id] = tuple(token_ids)

    def step(self) -> list[Output]:
        """One sequence scored, or one token for each running request."""
        with torch.inference_mode():
            if self._scoring:
                request_id, tokens = next(iter(self._scoring.items()))
                del self._scoring[request_id]
                return [ScoreOutput(request_id, self._score(tokens))]
            turn = list(self._running.items())[: self._settings.max_concurrency]
            return [self._advance(request_id, running) for request_id, running in turn]

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forgets requests."""
        for one in request_ids:
            self._running.pop(one, None)
            self._scoring.pop(one, None)

    def load_weights(self, manifest: common_pb2.WeightManifest) -> list[int] | None:
        """Loads one version in place; see the seam."""
        check_manifest(manifest)
        self.abort([*self._running, *self._scoring])
        parameters = dict(self._model.named_parameters())
        arriving = Arriving(manifest, self._device)
        with torch.no_grad():
            for name, tensor in arriving.tensors():
                parameter = parameters.pop(name, None)
                if parameter is None or parameter.shape != tensor.shape:
                    raise RequestError(
                        f"the manifest of version {manifest.version} does not fit the model: {name} of shape "
                        f"{list(tensor.shape)} "
                        f"{'is not there' if parameter is None else f'has shape {list(parameter.shape)}'}.",
                        field="manifest.tensors",
                        fix="Publish the tensors of the model that the engine was started with.",
                    )
                parameter.copy_(tensor)
        if parameters:
            raise WeightMismatchError(
                f"the manifest does not fill {len(parameters)} parameters of the model, such as {min(parameters)}.",
                field="manifest.tensors",
                fix="Publish every tensor under its Hugging Face name.",
            )
        return arriving.digests

    def release(self, method: str) -> None:
        """Drops the model: weights come anew through UpdateWeights, whichever way it was let go."""
        self.close()

    def acquire(self, *, cache: bool = True) -> None:
        """Builds the model again; its weights are undefined. Caches grow with requests, so none is made here."""
        if self._model is None:
            self._model = self._build(dummy=True)

    def close(self) -> None:
        """Forgets requests and model."""
        self._running.clear()
        self._scoring.clear()
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # Inside ------------------------------------------------------------------------------------------

    def _build(self, *, dummy: bool) -> Any:
        path, dtype = self._settings.model_path, getattr(torch, self._settings.dtype)
        if dummy:
            with self._device:
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        return model.to(self._device).eval()

    def _advance(self, request_id: str, running: _Running) -> EngineOutput:
        ids = torch.tensor([running.next_ids], device=self._device)
        made = self._model(input_ids=ids, past_key_values=running.cache, use_cache=True, logits_to_keep=1)
        token, log_prob = self._draw(made.logits[0, -1].float(), running)
        running.next_ids = [token]
        running.num_generated += 1
        reason = common_pb2.FINISH_REASON_UNSPECIFIED
        if token in running.stops:
            reason = common_pb2.FINISH_REASON_STOP
        elif running.num_generated >= running.room:
            reason = common_pb2.FINISH_REASON_LENGTH
        if reason != common_pb2.FINISH_REASON_UNSPECIFIED:
            del self._running[request_id]
        return EngineOutput(request_id, [token], [log_prob], reason)

    def _draw(self, logits: torch.Tensor, running: _Running) -> tuple[int, float]:
        """A token and its log-probability under the distribution it was drawn from; temperature 0 is greedy."""
        sampling = running.request.sampling
        if sampling.temperature <= 0:
            log_probs = logits.log_softmax(dim=-1)
            token = int(log_probs.argmax())
        else:
            log_probs = processed(logits, sampling).log_softmax(dim=-1)
            generator = running.generator or self._generator
            token = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
        return token, float(log_probs[token])

    def _score(self, tokens: tuple[int, ...]) -> Any:
        ids = torch.tensor([tokens], device=self._device)
        hidden = self._model.get_decoder()(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[0]
        head = self._model.get_output_embeddings()
        parts = []
        for start in range(0, len(hidden), SCORED_AT_ONCE):
            log_probs = head(hidden[start : start + SCORED_AT_ONCE]).float().log_softmax(dim=-1)
            targets = ids[0, 1 + start : 1 + start + len(log_probs)]
            parts.append(log_probs.gather(1, targets[:, None])[:, 0])
        return torch.cat(parts).cpu().numpy()


def processed(logits: torch.Tensor, sampling: common_pb2.Sampling) -> torch.Tensor:
    """Logits after temperature, top-k and top-p (Holtzman et al. 2020, nucleus sampling), [V] float32."""
    logits = logits / sampling.temperature
    if sampling.top_k > 0:
        lowest = logits.topk(min(sampling.top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if 0 < sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        logits = logits.masked_fill((before >= sampling.top_p)[order.argsort()], -torch.inf)
    return logits
