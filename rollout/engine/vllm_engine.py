"""vLLM behind the seam of base.py: its engine core, in this process, stepped by EngineThread.

vLLM's own output processing makes a Python object a log-probability; here the core's arrays are read as they
are, which is why this path costs less than `LLM.generate`. Weights arrive through vLLM's RL interface
(start_weight_update, update_weights, finish_weight_update) and our transfer engine (weight_transfer.py). With
tensor_parallel above 1 vLLM's executor starts worker processes; the core stays here. On GPUs they are Ray actors in
bundles of the run's placement group, which end with this process, elsewhere its children.

Log-probabilities are `processed_logprobs`: of the distribution after temperature, top-k and top-p.
"""

import gc
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from crescendo.common.device_memory import VISIBLE
from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.base import EngineOutput, EngineRequest, FinishReason, Output, ScoreOutput
from crescendo.rollout.engine.settings import EngineSettings
from crescendo.rollout.engine.shards import check_manifest
from crescendo.rollout.engine.vllm_environment import prepare_environment

log = logging.getLogger(__name__)

SLEEP_LEVEL = 2  # discard weights and cache: weights come anew through UpdateWeights


class VllmEngine:
    """One vLLM engine core. Made and used on one thread."""

    def __init__(self, settings: EngineSettings) -> None:
        prepare_environment(settings)
        self._settings = settings
        self._scoring: set[str] = set()
        self._running: set[str] = set()
        self._llm: Any = None
        self._awake: set[str] = set()  # tags of vLLM's allocator whose memory is there
        self._start(dummy_weights=settings.dummy_weights)

    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt and response together."""
        return int(self._llm.model_config.max_model_len) if self._llm else self._settings.max_sequence_tokens

    @property
    def has_work(self) -> bool:
        """Whether requests run or wait."""
        return bool(self._running or self._scoring)

    def add(self, request: EngineRequest) -> None:
        """Takes a request; raises RequestError when vLLM refuses it."""
        from vllm import SamplingParams

        sampling = request.sampling
        if request.seed is not None and not self._seeds_work:
            raise RequestError(
                "sampling.seed is set; on a CPU vLLM draws with a seed only while it does not split prompts.",
                field="sampling.seed",
                fix="Set run.deterministic, or leave the seed out.",
            )
        stops = set(sampling.stop_token_ids) | (set() if request.ignore_eos else set(self._settings.eos_token_ids))
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p or 1.0,
            top_k=sampling.top_k,
            max_tokens=request.max_tokens,
            stop_token_ids=sorted(stops),
            ignore_eos=True,  # the folder's own end-of-sequence ids are among stop_token_ids
            logprobs=0,
            seed=request.seed,
            detokenize=False,
            skip_clone=True,
        )
        self._submit(request.request_id, [*request.prompt_token_ids, *request.generated_token_ids], params)
        self._running.add(request.request_id)

    def add_score(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Takes a sequence to score; asking for prompt log-probabilities makes vLLM bypass its prefix cache."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, skip_clone=True)
        self._submit(request_id, list(token_ids), params)
        self._scoring.add(request_id)

    def step(self) -> list[Output]:
        """One forward pass."""
        outputs: list[Output] = []
        for one in self._llm.engine_core.get_output().outputs:
            made = self._score_output(one) if one.request_id in self._scoring else self._output(one)
            if made is not None:
                outputs.append(made)
        return outputs

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forgets requests."""
        known = [one for one in request_ids if one in self._running or one in self._scoring]
        self._running.difference_update(known)
        self._scoring.difference_update(known)
        if known and self._llm:
            self._llm.engine_core.abort_requests(known)

    def load_weights(self, manifest: common_pb2.WeightManifest) -> list[int] | None:
        """Loads one version in place; see the seam."""
        check_manifest(manifest)
        self.abort([*self._running, *self._scoring])
        update = {"manifest": manifest.SerializeToString()}
        self._llm.collective_rpc("start_weight_update")
        try:
            self._llm.collective_rpc("update_weights", kwargs={"update_info": update})
        except (KeyError, ValueError, AssertionError, RuntimeError) as error:  # names or shapes that it lacks
            raise RequestError(
                f"the manifest of version {manifest.version} does not fit the model: {error}",
                field="manifest.tensors",
                fix="Publish the tensors of the model that the engine was started with, under Hugging Face names.",
            ) from error
        self._llm.collective_rpc("finish_weight_update")
        self._llm.set_weight_version(str(manifest.version))
        if not self._llm.reset_prefix_cache():
            raise RequestError("the prefix cache could not be reset: requests are still running.", field="manifest")
        return self._streamed_digests() if manifest.access else None

    def _streamed_digests(self) -> list[int]:
        """Of what the workers took; where one differs from the first, none is right."""
        first, *others = self._llm.collective_rpc("weight_digests")
        return first if all(other == first for other in others) else [0] * len(first)

    def release(self, method: str) -> None:
        """Lets go of the GPU."""
        self.abort([*self._running, *self._scoring])
        if method == "sleep":
            self._llm.sleep(level=SLEEP_LEVEL)
            self._awake.clear()
        else:
            self.close()
            gc.collect()  # what refers to device memory goes now, not whenever

    def acquire(self, *, cache: bool = True) -> None:
        """Takes the GPU back; weights must be loaded before anything runs. A core that ended starts whole."""
        if self._llm is None:
            self._start(dummy_weights=True)
        elif self._awake != {"weights", "kv_cache"}:
            wanted = [tag for tag in ("weights", "kv_cache") if tag not in self._awake and (cache or tag == "weights")]
            self._llm.wake_up(wanted)
            self._awake.update(wanted)

    def close(self) -> None:
        """Ends the core and its workers."""
        llm, self._llm = self._llm, None
        self._running.clear()
        self._scoring.clear()
        if llm is not None:
            llm.engine_core.shutdown()

    # Inside ------------------------------------------------------------------------------------------

    def _start(self, *, dummy_weights: bool) -> None:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from crescendo.rollout.engine.weight_transfer import BACKEND, register

        register()
        settings = self._settings
        on_cpu = settings.device == "cpu"
        self._seeds_work = not on_cpu or settings.deterministic
        tokens = settings.max_batched_tokens
        arguments = EngineArgs(
            model=settings.model_path,
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=settings.dtype,
            load_format="dummy" if dummy_weights else "auto",
            seed=settings.seed,
            enforce_eager=settings.enforce_eager,
            max_model_len=settings.max_sequence_tokens,
            max_num_seqs=settings.max_concurrency,
            # Without chunked prefill a prompt must fit one step; with it, a CPU generator cannot be seeded.
            max_num_batched_tokens=tokens if not settings.deterministic else max(tokens, settings.max_sequence_tokens),
            enable_chunked_prefill=not settings.deterministic,
            enable_prefix_caching=settings.prefix_caching,
            block_size=settings.block_size,
            tensor_parallel_size=settings.tensor_parallel,
            distributed_executor_backend=_executor(settings),
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_memory_bytes=int(settings.kv_cache_gib * 2**30) if on_cpu else None,
            enable_sleep_mode=not on_cpu,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
            worker_extension_cls="crescendo.rollout.engine.weight_loader.WorkerDigests",
        )
        self._llm = LLMEngine.from_engine_args(arguments)
        self._awake = {"weights", "kv_cache"}
        self._see_devices()
        self._tasks = self._llm.get_supported_tasks()

    def _see_devices(self) -> None:
        """Has free memory measured on the workers' GPUs, since this process was given none of its own."""
        found = self._llm.vllm_config.parallel_config.assigned_physical_gpu_ids
        if self._settings.bundles and self._settings.device != "cpu" and found:
            os.environ[VISIBLE] = ",".join(map(str, found))

    def _submit(self, request_id: str, token_ids: list[int], params: Any) -> None:
        try:
            request = self._llm.input_processor.process_inputs(
                request_id, {"type": "token", "prompt_token_ids": token_ids}, params, self._tasks
            )
            self._llm.engine_core.add_request(request)
        except ValueError as error:
            raise RequestError(f"vLLM refuses request {request_id}: {error}", field="request") from None

    def _output(self, output: Any) -> EngineOutput | None:
        if output.request_id not in self._running:
            return None
        reason = _REASONS[output.finish_reason]
        if reason != common_pb2.FINISH_REASON_UNSPECIFIED:
            self._running.discard(output.request_id)
        log_probs = output.new_logprobs.logprobs[:, 0].tolist() if output.new_logprobs is not None else []
        return EngineOutput(output.request_id, output.new_token_ids, log_probs, reason)

    def _score_output(self, output: Any) -> ScoreOutput | None:
        tensors = output.new_prompt_logprobs_tensors
        if tensors is None:
            return None
        self._scoring.discard(output.request_id)
        return ScoreOutput(output.request_id, tensors.logprobs[:, 0].numpy().astype(np.float32))


def _executor(settings: EngineSettings) -> str | None:
    """What starts the workers; None where there is but one, in this process."""
    if settings.tensor_parallel == 1:
        return None
    return "ray" if settings.bundles else "mp"


class _Reasons(dict[Any, FinishReason]):
    """vLLM's finish reasons by number, as ours; whatever is new there ends the request as aborted."""

    def __missing__(self, key: Any) -> FinishReason:
        return common_pb2.FINISH_REASON_ABORTED


_REASONS = _Reasons(
    {
        None: common_pb2.FINISH_REASON_UNSPECIFIED,
        0: common_pb2.FINISH_REASON_STOP,
        1: common_pb2.FINISH_REASON_LENGTH,
    }
)
