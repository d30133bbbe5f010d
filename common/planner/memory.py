"""Memory of training and inference by formula, in bytes on one device. Pure; plan.py adds the parts up.

Notation: N tokens in a micro-batch, R of them scored, h hidden width, q and k widths of all queries and of all keys,
f feed-forward width, V vocabulary, e bytes of a weight's type, t tensor-parallel size.

Activations follow the method of Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models,
section 4: count every tensor that a layer keeps for its backward pass), with the tensors that this trainer keeps in
place of theirs: RMSNorm, gated feed-forward, rotated queries and keys, an attention that keeps no scores (Dao et al.
2022, FlashAttention), no dropout.
"""

from dataclasses import dataclass

from crescendo.common.planner.shape import Shape

MAX_LOGITS = 1 << 25  # values of a chunk of logits on a CPU, and on a GPU: trainer/megatron/log_probs.py
MAX_LOGITS_ON_GPU = 1 << 27
TYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CONTEXT_BYTES = 600 << 20  # of a process that uses CUDA: context, kernels, library workspaces (assumed, not measured)


@dataclass(frozen=True)
class Training:
    """How a model is trained on one device.

    tokens: of a micro-batch; scored: of them, with a log-probability; on_gpu: with PyTorch's kernel for RMSNorm and
    larger chunks of logits.
    """

    shape: Shape
    dtype: str
    tokens: int
    scored: int
    tensor_parallel: int = 1
    on_gpu: bool = False

    @property
    def item_bytes(self) -> int:
        """e."""
        return TYPE_BYTES[self.dtype]

    @property
    def parameters(self) -> int:
        """On this device: tensor parallelism cuts all but the norms."""
        shape = self.shape
        norms = shape.num_layers * 2 * shape.hidden_size + shape.hidden_size
        return (shape.parameters - norms) // self.tensor_parallel + norms


def weights(training: Training) -> int:
    """The weights that compute."""
    return training.parameters * training.item_bytes


def main_weights(training: Training) -> int:
    """float32 copies of low-precision weights (Micikevicius et al. 2018, Mixed Precision Training)."""
    return 0 if training.dtype == "float32" else training.parameters * 4


def gradients(training: Training) -> int:
    """A float32 sum over micro-batches; a lower-precision gradient goes as soon as it is added to it."""
    return training.parameters * 4


def optimizer(training: Training) -> int:
    """AdamW's two moments in float32 (Loshchilov and Hutter 2019)."""
    return training.parameters * 8


def layer_activations(training: Training) -> int:
    """What one layer keeps for backward.

    Per token, in elements: what both norms keep (`norm`); for attention the rotated queries, keys and values
    spread over the query heads (3q), its output and the copy that the projection keeps (2q), and, where keys and
    values are not spread, the fused projection that values are a view of; for the feed-forward layer both halves,
    the activated one and the product, 4f, which tensor parallelism divides as it divides attention's. Besides, in
    float32: one sum of exponentials a head.
    """
    shape, t = training.shape, training.tensor_parallel
    q, k = shape.query_size, shape.kv_size
    grouped = shape.num_heads != shape.num_kv_heads
    attention = 5 * q if grouped else 3 * q + k + q + 2 * k
    if shape.qk_norm:
        attention += (q + 2 * k if grouped else 0) + q + k
    experts = max(1, shape.experts_per_token)
    elements = (attention + 4 * shape.ffn_size * experts) / t
    exact = 4 * shape.num_heads / t
    return int(training.tokens * (elements * training.item_bytes + exact)) + 2 * norm(training)


def norm(training: Training) -> int:
    """What an RMSNorm keeps: input, output, one factor a token; without a fused kernel also the input scaled, and of
    low-precision inputs a float32 copy."""
    e = training.item_bytes
    apart = 0 if training.on_gpu else e + (4 if training.dtype != "float32" else 0)
    return training.tokens * (training.shape.hidden_size * (2 * e + apart) + 4)


def activations(training: Training) -> int:
    """All layers', the final norm's, and the hidden states that are scored."""
    scored = training.scored * training.shape.hidden_size * training.item_bytes
    return training.shape.num_layers * layer_activations(training) + norm(training) + scored


def head(training: Training) -> int:
    """The output layer at its worst.

    Forward: logits of a chunk, their probabilities, and the product of both that the entropy sums, in float32.
    Backward: probabilities (twice, where one chunk holds all), their gradient in the weights' type, and the gradient
    of the output matrix before it is added up.
    """
    rows = -(-training.shape.vocab_size // training.tensor_parallel)
    at_once = max(1, (MAX_LOGITS_ON_GPU if training.on_gpu else MAX_LOGITS) // rows)
    chunk = min(training.scored, at_once) * rows
    kept = chunk if training.scored <= at_once else 0
    low = 0 if training.dtype == "float32" else training.item_bytes
    matrix = rows * training.shape.hidden_size * (4 + low)  # summed over chunks in float32
    return max(3 * chunk * 4, (chunk + kept) * 4 + chunk * low + matrix)


def layer_backward(training: Training) -> int:
    """Gradients on their way through one layer: of its output, of the feed-forward's four tensors."""
    shape, t = training.shape, training.tensor_parallel
    return int(training.tokens * (2 * shape.hidden_size + 4 * shape.ffn_size / t) * training.item_bytes)


def working(training: Training) -> int:
    """Activations with what comes on top at the worst time: the head's backward or the last layer's, whichever more."""
    return activations(training) + max(head(training), layer_backward(training))


def kv_cache_per_token(shape: Shape, dtype: str, tensor_parallel: int) -> int:
    """Keys and values of one token in all layers (Kwon et al. 2023, PagedAttention, section 3)."""
    return 2 * shape.num_layers * max(shape.kv_size // tensor_parallel, shape.head_dim) * TYPE_BYTES[dtype]


def engine_working(shape: Shape, dtype: str, batched_tokens: int, concurrency: int, tensor_parallel: int) -> int:
    """An engine's forward pass: nothing is kept, so one layer's tensors, and float32 logits of each running sequence
    (with their log-probabilities)."""
    elements = 2 * shape.hidden_size + (shape.query_size + 2 * shape.kv_size + 3 * shape.ffn_size) / tensor_parallel
    logits = min(concurrency, batched_tokens) * shape.vocab_size * 4 * 2
    return int(batched_tokens * elements * TYPE_BYTES[dtype]) + logits
