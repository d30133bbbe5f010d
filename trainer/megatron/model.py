"""The policy: Megatron's GPTModel with packed forward passes and Hugging Face weights.

Built by trainer/worker.py, one a rank. Megatron's embedding, decoder and output weight are used as they are;
only the way between them is ours, so that nothing but scored positions reaches the output layer.
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
from crescendo.trainer.megatron.architectures import Architecture, Cut, ModelShape, Rule, architecture_of
from crescendo.trainer.megatron.attention import PackedRow, RotaryTable
from crescendo.trainer.megatron.layers import block_spec
from crescendo.trainer.megatron.log_probs import token_log_probs
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.megatron.weights import (
    Exported,
    HuggingFaceFolder,
    export_shapes,
    export_tensors,
    import_weights,
    padded_vocabulary,
)
from crescendo.trainer.packing import MicroBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Scores:
    """Log-probabilities and entropies of a micro-batch's scored tokens, [R] float32 each."""

    log_probs: torch.Tensor
    entropies: torch.Tensor


class PolicyModel:
    """The model of one rank. parameters: by Megatron name; config: the folder's config.json."""

    def __init__(self, architecture: Architecture, config: Mapping[str, Any], dtype: str, at: Layout) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"model.dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.", field="model.dtype")
        self.architecture = architecture
        self.config = dict(config)
        self.shape: ModelShape = architecture.read(config)
        self.at = at
        self.dtype = DTYPES[dtype]
        self._check_cut()
        self.module = _build(self.shape, self.dtype, at)
        self.rules: list[Rule] = architecture.rules(self.shape)
        self.parameters: dict[str, torch.nn.Parameter] = dict(self.module.named_parameters())
        self._embedding: Any = self.module.embedding
        self._decoder: Any = self.module.decoder
        self.progressed_at = 0.0  # monotonic time of the last forward pass
        self._rotary = RotaryTable(self.shape.rope, self.shape.head_dim, at.device, self.dtype)

    @classmethod
    def from_folder(cls, path: Path, dtype: str, at: Layout) -> "PolicyModel":
        """Builds the model that a Hugging Face folder describes and loads its weights.

        Raises DataError for a damaged folder, ConfigError for an architecture or layout without a mapping.
        """
        folder = HuggingFaceFolder(path)
        model = cls(architecture_of(folder.config), folder.config, dtype, at)
        model.load(folder)
        return model

    def _check_cut(self) -> None:
        parts = self.at.tensor_parallel
        sizes = {
            "num_attention_heads": self.shape.num_heads,
            "num_key_value_heads": self.shape.num_kv_heads,
            "intermediate_size": self.shape.ffn_size,
        }
        for name, size in sizes.items():
            if size % parts:
                raise ConfigError(
                    f"trainer.tensor_parallel is {parts}; it must divide the model's {name}, {size}.",
                    field="trainer.tensor_parallel",
                    fix="Choose a divisor of all of the model's heads and widths.",
                )

    def load(self, folder: HuggingFaceFolder) -> None:
        """Replaces the weights by a folder's."""
        with torch.no_grad():
            import_weights(self.parameters, folder, self.rules, self.shape, self.at)

    def export(self) -> Iterator[Exported]:
        """All weights under Hugging Face names; every tensor-parallel rank must iterate to the end."""
        detached = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return export_tensors(detached, self.rules, self.shape, self.at)

    def export_layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of what `export` yields."""
        return export_shapes(self.parameters, self.rules, self.shape, self.at)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, over all ranks, padding left out."""
        return sum(math.prod(shape) for _, shape in self.export_layout())

    def scores(self, batch: MicroBatch, temperature: float) -> Scores:
        """One forward pass. Gradients flow to log_probs unless torch.no_grad is on."""
        device = self.at.device
        tokens = torch.from_numpy(batch.token_ids).to(device)
        positions = torch.from_numpy(batch.positions).to(device)
        longest = max(block.length for block in batch.blocks)
        cos, sin = self._rotary.at(positions, longest)
        row = PackedRow(qkv_format="sbhd", blocks=batch.blocks, cos=cos, sin=sin)
        embedded = self._embedding(tokens[None], None)
        hidden = self._decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=row)
        scored = hidden[:, 0].index_select(0, torch.from_numpy(batch.predict).to(device))
        rows = padded_vocabulary(self.shape, self.at.tensor_parallel) // self.at.tensor_parallel
        first = rows * self.at.tensor_rank
        log_probs, entropies = token_log_probs(
            scored,
            self._output_weight(),
            torch.from_numpy(batch.targets).to(device),
            temperature=temperature,
            valid_rows=min(rows, self.shape.vocab_size - first),
            first_row=first,
            group=self.at.tensor_group,
        )
        self.progressed_at = time.monotonic()
        return Scores(log_probs, entropies)

    def sharded(self) -> dict[str, bool]:
        """Which parameters tensor parallelism divides, by Megatron name."""
        return {rule.megatron: rule.cut is not Cut.NONE for rule in self.rules}

    def _output_weight(self) -> torch.Tensor:
        name = "embedding.word_embeddings.weight" if self.shape.tie_embeddings else "output_layer.weight"
        return self.parameters[name]


def _build(shape: ModelShape, dtype: torch.dtype, at: Layout) -> torch.nn.Module:
    # Megatron warns about optional packages, its own default settings and, from 0.19 on, GPTModel's far future.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: torch.nn.Module = GPTModel(
            megatron_config(shape, dtype, at),
            block_spec(shape),
            vocab_size=padded_vocabulary(shape, at.tensor_parallel),
            max_sequence_length=shape.max_positions,
            share_embeddings_and_output_weights=shape.tie_embeddings,
            position_embedding_type="none",  # attention.py turns queries and keys itself
        )
    return model.to(at.device)


def megatron_config(shape: ModelShape, dtype: torch.dtype, at: Layout) -> TransformerConfig:
    """Megatron's settings: no fusion, no dropout, weights from outside."""
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_size,
        tensor_model_parallel_size=at.tensor_parallel,
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
    )
