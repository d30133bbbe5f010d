"""Memory of inference by formula, in bytes on one device of an engine. Pure; plan.py adds the parts up."""

from crescendo.common.planner.memory import TYPE_BYTES
from crescendo.common.planner.shape import Shape


def engine_weights(shape: Shape, dtype: str, tensor_parallel: int) -> int:
    """Matrices, experts among them, are divided; norms and routers are not."""
    vectors = shape.num_layers * shape.layer_vectors + shape.hidden_size
    return (-(-(shape.parameters - vectors) // tensor_parallel) + vectors) * TYPE_BYTES[dtype]


def kv_cache_per_token(shape: Shape, dtype: str, tensor_parallel: int) -> int:
    """Keys and values of one token in all layers (Kwon et al. 2023, PagedAttention, section 3).

    More devices than heads of keys each have one head whole.
    """
    return 2 * shape.num_layers * max(shape.kv_size // tensor_parallel, shape.head_dim) * TYPE_BYTES[dtype]


def engine_working(shape: Shape, dtype: str, batched_tokens: int, concurrency: int, tensor_parallel: int) -> int:
    """An engine's forward pass: nothing is kept, so one layer's tensors, and float32 logits of each running sequence
    (with their log-probabilities)."""
    experts = max(1, shape.experts_per_token)
    divided = shape.query_size + 2 * shape.kv_size + 3 * shape.ffn_size * experts
    elements = 2 * shape.hidden_size + divided / tensor_parallel
    logits = min(concurrency, batched_tokens) * shape.vocab_size * 4 * 2
    return int(batched_tokens * elements * TYPE_BYTES[dtype]) + logits
