"""The policy: Megatron's GPTModel with packed forward passes and Hugging Face weights.

Built by trainer/worker.py, one a rank. Megatron's embedding, decoder and output weight are used as they are;
only the way between them is ours, so that nothing but scored positions reaches the output layer. With pipeline
parallelism a rank holds a stage of it, and pipeline.py moves activations between stages.
"""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from crescendo.common.errors import ConfigError
from crescendo.trainer.megatron.architectures import Architecture, Cut, ModelShape, architecture_of
from crescendo.trainer.megatron.attention import PackedRow, RotaryTable
from crescendo.trainer.megatron.context import joined_scores
from crescendo.trainer.megatron.layers import block_spec
from crescendo.trainer.megatron.layout import check_layout
from crescendo.trainer.megatron.log_probs import token_log_probs
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.megatron.weights import (
    Exported,
    HuggingFaceFolder,
    Placed,
    TensorSource,
    export_shapes,
    export_tensors,
    import_weights,
    padded_vocabulary,
    placed,
)
from crescendo.trainer.optimizer_spans import Kind
from crescendo.trainer.packing import ContextPart, MicroBatch, context_part

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RECOMPUTE = ("none", "full")
# Norms of single heads are replicated over tensor-parallel ranks, but each rank's heads give another gradient.
_PARTIAL = ("q_layernorm", "k_layernorm")


@dataclass(frozen=True)
class Scores:
    """Log-probabilities and entropies of a micro-batch's scored tokens, [R] float32 each."""

    log_probs: torch.Tensor
    entropies: torch.Tensor


class PolicyModel:
    """The model of one rank. parameters: by Megatron name; config: the folder's config.json.

    recompute: none keeps all activations for the backward pass, full only each layer's input.
    """

    def __init__(
        self, architecture: Architecture, config: Mapping[str, Any], dtype: str, at: Layout, recompute: str = "none"
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"model.dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.", field="model.dtype")
        if recompute not in RECOMPUTE:
            raise ConfigError(
                f"trainer.recompute is {recompute!r}; it must be one of {', '.join(RECOMPUTE)}.",
                field="trainer.recompute",
            )
        self.architecture = architecture
        self.config = dict(config)
        self.shape: ModelShape = architecture.read(config)
        self.at = at
        self.dtype = DTYPES[dtype]
        check_layout(self.shape, at)
        self.module = _build(self.shape, self.dtype, at, recompute)
        self.where: list[Placed] = placed(architecture.rules(self.shape), self.shape, at)
        self.parameters: dict[str, torch.nn.Parameter] = dict(self.module.named_parameters())
        self._decoder: Any = self.module.decoder
        self.progressed_at = 0.0  # monotonic time of the last forward pass
        self._rotary = RotaryTable(self.shape.rope, self.shape.head_dim, at.device, self.dtype)

    @classmethod
    def from_folder(cls, path: Path, dtype: str, at: Layout, recompute: str = "none") -> "PolicyModel":
        """Builds the model that a Hugging Face folder describes and loads its weights.

        Raises DataError for a damaged folder, ConfigError for an architecture or layout without a mapping.
        """
        folder = HuggingFaceFolder(path)
        model = cls(architecture_of(folder.config), folder.config, dtype, at, recompute)
        model.load(folder)
        return model

    def load(self, source: TensorSource) -> None:
        """Replaces the weights by a source's, of which it reads this rank's slices."""
        with torch.no_grad():
            for name, tensor in import_weights(source, self.where, self.shape, self.at):
                self.parameters[name].copy_(tensor)

    def export(self) -> Iterator[Exported]:
        """All weights under Hugging Face names; every rank that holds unique weights must iterate to the end."""
        detached = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return export_tensors(detached, self.where, self.shape, self.at)

    def export_layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of what `export` yields."""
        return export_shapes(self.where)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, over all ranks, padding left out."""
        return sum(math.prod(shape) for _, shape in self.export_layout())

    @property
    def length_multiple(self) -> int:
        """What packed blocks' lengths must be a multiple of."""
        return 1 if self.at.context_parallel == 1 else 2 * self.at.context_parallel

    def kinds(self) -> dict[str, Kind]:
        """How the optimizer treats each parameter, by Megatron name."""
        tied = self.shape.tie_embeddings and self.at.pipeline_parallel > 1
        return {
            each.name: Kind(
                expert=each.rule.expert is not None and self.at.expert_parallel > 1,
                decayed=len(each.rule.shapes[0]) > 1,
                cut=each.rule.cut is not Cut.NONE,
                partial=any(part in each.name for part in _PARTIAL),
                tied=tied and each.rule.is_vocabulary,
                copied=each.rule.is_copy,
            )
            for each in self.where
            if each.is_on(self.at)
        }

    def scores(self, batch: MicroBatch, temperature: float) -> Scores:
        """One forward pass of a whole model. Gradients flow to log_probs unless torch.no_grad is on."""
        return self.score(self.hidden(batch), batch, temperature)

    def hidden(self, batch: MicroBatch) -> torch.Tensor:
        """This stage's layers: [N, 1, H]. A later stage's input was set by Megatron's schedule."""
        device = self.at.device
        part = self._part(batch)
        positions = torch.from_numpy(batch.positions)
        tokens = torch.from_numpy(batch.token_ids)
        if part is not None:
            kept = torch.from_numpy(part.kept)
            positions, tokens = positions[kept], tokens[kept]
        longest = max(block.length for block in batch.blocks)
        cos, sin = self._rotary.at(positions.to(device), longest)
        row = PackedRow(
            qkv_format="sbhd",
            blocks=batch.blocks if part is None else part.blocks,
            cos=cos,
            sin=sin,
            context_rank=self.at.context_rank,
            context_parts=self.at.context_parallel,
            context_group=self.at.context_group,
        )
        embedding: Any = self.module.embedding if self.at.is_first_stage else None
        embedded = embedding(tokens.to(device)[None], None) if embedding is not None else None
        hidden: torch.Tensor = self._decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=row)
        self.progressed_at = time.monotonic()
        return hidden

    def score(self, hidden: torch.Tensor, batch: MicroBatch, temperature: float) -> Scores:
        """The last stage's end: hidden [N, 1, H] to scores of all R tokens, also of other context ranks'."""
        device = self.at.device
        part = self._part(batch)
        predict, targets = batch.predict, batch.targets
        if part is not None:
            predict, targets = part.predict, targets[part.scored]
        rows = padded_vocabulary(self.shape, self.at.tensor_parallel) // self.at.tensor_parallel
        first = rows * self.at.tensor_rank
        log_probs, entropies = token_log_probs(
            hidden[:, 0].index_select(0, torch.from_numpy(predict).to(device)),
            self._output_weight(),
            torch.from_numpy(targets).to(device),
            temperature=temperature,
            valid_rows=max(0, min(rows, self.shape.vocab_size - first)),
            first_row=first,
            group=self.at.tensor_group,
        )
        if part is not None:
            log_probs, entropies = joined_scores(log_probs, entropies, batch, self.at)
        self.progressed_at = time.monotonic()
        return Scores(log_probs, entropies)

    def _part(self, batch: MicroBatch) -> ContextPart | None:
        if self.at.context_parallel == 1:
            return None
        return context_part(batch, self.at.context_rank, self.at.context_parallel)

    def _output_weight(self) -> torch.Tensor:
        shared = self.shape.tie_embeddings and self.at.pipeline_parallel == 1
        return self.parameters["embedding.word_embeddings.weight" if shared else "output_layer.weight"]


def _build(shape: ModelShape, dtype: torch.dtype, at: Layout, recompute: str) -> torch.nn.Module:
    # Megatron warns about optional packages, its own default settings and, from 0.19 on, GPTModel's far future.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: torch.nn.Module = GPTModel(
            megatron_config(shape, dtype, at, recompute),
            block_spec(shape, at),
            vocab_size=padded_vocabulary(shape, at.tensor_parallel),
            max_sequence_length=shape.max_positions,
            pre_process=at.is_first_stage,
            post_process=at.is_last_stage,
            # Tied weights in two stages are two parameters with one gradient (optimizer.py).
            share_embeddings_and_output_weights=shape.tie_embeddings and at.pipeline_parallel == 1,
            position_embedding_type="none",  # attention.py turns queries and keys itself
        )
    return model.to(at.device, dtype)  # Megatron keeps routers in float32


def megatron_config(shape: ModelShape, dtype: torch.dtype, at: Layout, recompute: str) -> TransformerConfig:
    """Megatron's settings: no fusion, no dropout, weights from outside."""
    full = recompute == "full"
    config = TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_size,
        tensor_model_parallel_size=at.tensor_parallel,
        pipeline_model_parallel_size=at.pipeline_parallel,
        context_parallel_size=at.context_parallel,
        batch_p2p_comm=at.device.type == "cuda",
        calculate_per_token_loss=True,  # losses are scaled already: the schedule divides by nothing
        recompute_granularity="full" if full else None,
        recompute_method="uniform" if full else None,
        recompute_num_layers=1 if full else None,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=True,  # lets the spec choose the activation module
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        qk_layernorm=shape.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=at.device.type == "cpu",
        perform_initialization=False,  # weights are always loaded
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        **_mixture(shape, at),
    )
    # Micro-batches differ in tokens. Set afterwards, because Megatron refuses it with the all-gather dispatcher, which
    # needs expert ranks alike, as packing.pack_alike makes them.
    config.variable_seq_lengths = at.pipeline_parallel > 1
    return config


def _mixture(shape: ModelShape, at: Layout) -> dict[str, Any]:
    """Megatron's settings for experts: a plain softmax router without balancing losses or dropped tokens."""
    if shape.experts is None:
        return {}
    return {
        "num_moe_experts": shape.experts.count,
        "moe_ffn_hidden_size": shape.experts.ffn_size,
        "moe_router_topk": shape.experts.chosen,
        "moe_router_pre_softmax": not shape.experts.renormalize,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_router_dtype": "fp32",
        # The all-to-all dispatcher needs CUDA streams; packing.pack_alike makes the all-gather's parts equal.
        "moe_token_dispatcher_type": "alltoall" if at.device.type == "cuda" else "allgather",
        "expert_model_parallel_size": at.expert_parallel,
    }
