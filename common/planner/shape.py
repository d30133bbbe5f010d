"""The numbers of a model that memory depends on, from its config.json. Pure; without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.errors import DataError


@dataclass(frozen=True)
class Shape:
    """A decoder in Hugging Face's terms. num_experts: 0 for a dense model; ffn_size: of one expert then."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    experts_per_token: int = 0

    @property
    def query_size(self) -> int:
        """Width of all queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys, or of all values."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer that tensor parallelism divides: attention, and the feed-forward but of experts."""
        h, q, kv = self.hidden_size, self.query_size, self.kv_size
        attention = h * (q + 2 * kv) + q * h + (q + 2 * kv) * self.qkv_bias
        return attention + (0 if self.num_experts else 3 * h * self.ffn_size)

    @property
    def layer_vectors(self) -> int:
        """Parameters of one layer that every tensor-parallel rank has whole: norms, and a router."""
        return 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm + self.hidden_size * self.num_experts

    @property
    def layer_experts(self) -> int:
        """Parameters of one layer's experts."""
        return 3 * self.hidden_size * self.ffn_size * self.num_experts

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        return self.layer_matrices + self.layer_vectors + self.layer_experts

    @property
    def embedding_parameters(self) -> int:
        """Of one embedding or output matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        matrices = 1 if self.tie_embeddings else 2
        return self.num_layers * self.layer_parameters + matrices * self.embedding_parameters + self.hidden_size

    @classmethod
    def of_scratch(cls, scratch: ScratchModelConfig) -> "Shape":
        """Of a model made from nothing."""
        return cls(
            scratch.hidden_size,
            scratch.num_layers,
            scratch.num_heads,
            scratch.num_kv_heads,
            scratch.head_dim,
            scratch.ffn_size,
            len(scratch.vocabulary),
            scratch.tie_embeddings,
            qkv_bias=scratch.architecture == "qwen2",
            qk_norm=scratch.architecture == "qwen3",
        )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Shape":
        """Of a model folder's config.json; raises DataError when a size is missing."""
        try:
            heads = int(config["num_attention_heads"])
            kind = str(config.get("model_type", ""))
            experts = int(config.get("num_experts") or config.get("num_local_experts") or 0)
            return cls(
                int(config["hidden_size"]),
                int(config["num_hidden_layers"]),
                heads,
                int(config.get("num_key_value_heads") or heads),
                int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                int(config["moe_intermediate_size"] if experts else config["intermediate_size"]),
                int(config["vocab_size"]),
                bool(config.get("tie_word_embeddings", False)),
                qkv_bias=kind == "qwen2" or bool(config.get("attention_bias")),
                qk_norm=kind.startswith("qwen3"),
                num_experts=experts,
                experts_per_token=int(config.get("num_experts_per_tok") or 0),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"the model's config.json does not say its size: {type(error).__name__}: {error}.",
                field="model.source",
                fix="Give a model of a supported family: llama, qwen2, qwen3, qwen3_moe.",
            ) from None
