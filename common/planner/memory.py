"""Memory of training by formula, in bytes on one device. Pure; plan.py adds the parts up.

Notation: N tokens of a micro-batch on this rank, R of them scored, h hidden width, q and k widths of all queries and of
all keys, f feed-forward width (of an expert in a mixture), V vocabulary, e bytes of a weight's type; t, p, c, x
tensor-, pipeline-, context- and expert-parallel sizes.

Activations follow the method of Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models,
section 4: count every tensor that a layer keeps for its backward pass), with the tensors that this trainer keeps in
place of theirs: RMSNorm, gated feed-forward, rotated queries and keys, an attention that keeps no scores (Dao et al.
2022, FlashAttention), no dropout. tests/bench/planner_peak.py holds all of it against measured peaks.
"""

from dataclasses import dataclass
from functools import cached_property

from crescendo.common.planner.shape import Shape

MAX_LOGITS = 1 << 25  # values of a chunk of logits on a CPU, and on a GPU: trainer/megatron/log_probs.py
MAX_LOGITS_ON_GPU = 1 << 27
TYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Training:
    """How a model is trained on one device, a rank of pipeline stage `stage`.

    tokens: of a micro-batch; scored: of them, with a log-probability; micro_batches: of a step, at least as many as a
    pipeline has in flight if there are enough; recompute: none or full; distributed: the optimizer's state is shared;
    on_gpu: with PyTorch's kernel for RMSNorm and larger chunks of logits.
    """

    shape: Shape
    dtype: str
    tokens: int
    scored: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: int = 1
    stage: int = 0
    micro_batches: int = 1
    recompute: str = "none"
    distributed: bool = False
    on_gpu: bool = False

    @property
    def item_bytes(self) -> int:
        """e."""
        return TYPE_BYTES[self.dtype]

    @property
    def replicas(self) -> int:
        """Ranks with the same dense weights, over which a distributed optimizer divides its state."""
        return self.data_parallel * self.context_parallel

    @property
    def expert_replicas(self) -> int:
        """Ranks with the same experts."""
        return max(1, self.replicas // self.expert_parallel)

    @property
    def own_tokens(self) -> int:
        """N: context parallelism divides a sequence."""
        return -(-self.tokens // self.context_parallel)

    @property
    def own_scored(self) -> int:
        """R; 0 but for the last stage."""
        return -(-self.scored // self.context_parallel) if self.is_last else 0

    @property
    def is_last(self) -> bool:
        """Whether this stage scores tokens."""
        return self.stage == self.pipeline_parallel - 1

    @property
    def layers(self) -> int:
        """Of this stage."""
        return -(-self.shape.num_layers // self.pipeline_parallel)

    @property
    def in_flight(self) -> int:
        """Micro-batches whose activations are held at once (Narayanan et al. 2021, PipeDream-Flush, section 2.2)."""
        return max(1, min(self.micro_batches, self.pipeline_parallel - self.stage))

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the embedding, or of the output matrix, on this rank."""
        return -(-self.shape.vocab_size // self.tensor_parallel)

    @property
    def matrix_parameters(self) -> int:
        """Of one of these matrices."""
        return self.vocabulary_rows * self.shape.hidden_size

    @cached_property
    def expert_parameters(self) -> int:
        """Of this rank's experts, if they are divided over ranks; 0 if each rank has all."""
        return self.layers * self.shape.layer_experts // self.expert_parallel if self.expert_parallel > 1 else 0

    @cached_property
    def dense_parameters(self) -> int:
        """Of all else on this rank."""
        shape = self.shape
        layer = -(-shape.layer_matrices // self.tensor_parallel) + shape.layer_vectors
        if self.expert_parallel == 1:
            layer += shape.layer_experts
        # Tied weights whose two uses lie in two stages are there twice.
        apart = not shape.tie_embeddings or self.pipeline_parallel > 1
        matrices = (self.stage == 0) + (self.is_last and apart)
        return self.layers * layer + matrices * self.matrix_parameters + shape.hidden_size * self.is_last

    @property
    def parameters(self) -> int:
        """On this rank."""
        return self.dense_parameters + self.expert_parameters

    @property
    def state_parameters(self) -> int:
        """Of them, those whose truth and moments this rank keeps."""
        if not self.distributed:
            return self.parameters
        dense = -(-self.dense_parameters // self.replicas)
        return dense + -(-self.expert_parameters // self.expert_replicas)


def weights(training: Training) -> int:
    """The weights that compute."""
    return training.parameters * training.item_bytes


def main_weights(training: Training) -> int:
    """float32 copies of low-precision weights (Micikevicius et al. 2018, Mixed Precision Training)."""
    return 0 if training.dtype == "float32" else training.state_parameters * 4


def gradients(training: Training) -> int:
    """A float32 sum over micro-batches; a lower-precision gradient goes as soon as it is added to it."""
    return training.parameters * 4


def optimizer(training: Training) -> int:
    """AdamW's two moments in float32 (Loshchilov and Hutter 2019), of this rank's share (Rajbhandari et al. 2020)."""
    return training.state_parameters * 8


def layer_activations(training: Training) -> int:
    """What one layer keeps for backward, of one micro-batch."""
    elements = training.own_tokens * (_attention(training) + _feed_forward(training)) + _gathered(training)
    exact = training.own_tokens * 4 * training.shape.num_heads // training.tensor_parallel + _masks(training)
    return elements * training.item_bytes + exact + _router(training) + 2 * norm(training)


def _attention(training: Training) -> int:
    """Elements a token: rotated queries, keys and values spread over the query heads (3q), the output and the copy that
    the projection keeps (2q); where keys and values are not spread, the fused projection that values are a view of."""
    shape, context = training.shape, training.context_parallel
    q, k = shape.query_size, shape.kv_size
    grouped = shape.num_heads != shape.num_kv_heads
    elements = 5 * q if grouped else 3 * q + k + q + 2 * k
    if context > 1:  # keys and values are those of all ranks: _gathered
        elements = 3 * q
    if shape.qk_norm:
        elements += (q + 2 * k if grouped else 0) + q + k
    return elements // training.tensor_parallel


def _gathered(training: Training) -> int:
    """Elements of the keys and values of all context ranks, as attention keeps them."""
    shape = training.shape
    if training.context_parallel == 1:
        return 0
    width = shape.query_size if shape.num_heads != shape.num_kv_heads else shape.kv_size
    return 2 * training.own_tokens * training.context_parallel * width // training.tensor_parallel


def _masks(training: Training) -> int:
    """Bytes: a context rank's two chunks see keys up to their own end, and on a CPU PyTorch keeps that as tensors."""
    context = training.context_parallel
    if context == 1 or training.on_gpu:
        return 0
    width = training.own_tokens // 2
    return width * width * (2 * context + 1) * training.item_bytes


def _feed_forward(training: Training) -> int:
    """Elements a token: both halves of the projection, the activated one and the product, 4f.

    In a mixture each chosen expert has these, its input, and its product weighted by the router's probability; tokens
    are as many as the chosen experts on average, wherever these lie.
    """
    shape = training.shape
    if shape.num_experts:
        return shape.experts_per_token * (shape.hidden_size + 5 * shape.ffn_size)
    return 4 * shape.ffn_size // training.tensor_parallel


def _router(training: Training) -> int:
    """Bytes: its input, logits and their softmax in float32; where each routed token goes."""
    shape = training.shape
    if not shape.num_experts:
        return 0
    copied = 0 if training.dtype == "float32" else 4 * shape.hidden_size
    routed = 24 * shape.experts_per_token
    return training.own_tokens * (copied + 2 * shape.num_experts + routed)


def norm(training: Training) -> int:
    """What an RMSNorm keeps: input, output, one factor a token; without a fused kernel also the input scaled, and of
    low-precision inputs a float32 copy."""
    e = training.item_bytes
    apart = 0 if training.on_gpu else e + (4 if training.dtype != "float32" else 0)
    return training.own_tokens * (training.shape.hidden_size * (2 * e + apart) + 4)


def hidden(training: Training) -> int:
    """The states between two layers."""
    return training.own_tokens * training.shape.hidden_size * training.item_bytes


def activations(training: Training) -> int:
    """All layers' of all micro-batches in flight, the final norm's, and the hidden states that are scored.

    Recomputed, a layer keeps its input alone.
    """
    layer = hidden(training) if training.recompute == "full" else layer_activations(training)
    scored = training.own_scored * training.shape.hidden_size * training.item_bytes
    stage = training.layers * layer + (norm(training) if training.is_last else hidden(training))
    return training.in_flight * stage + scored


def head(training: Training) -> int:
    """The output layer at its worst; nothing but for the last stage.

    Forward: logits of a chunk, their probabilities, and the product of both that the entropy sums, in float32.
    Backward: probabilities (twice, where one chunk holds all), their gradient in the weights' type, and the gradient
    of the output matrix before it is added up.
    """
    if not training.is_last:
        return 0
    rows = training.vocabulary_rows
    at_once = max(1, (MAX_LOGITS_ON_GPU if training.on_gpu else MAX_LOGITS) // rows)
    chunk = min(training.own_scored, at_once) * rows
    kept = chunk if training.own_scored <= at_once else 0
    low = 0 if training.dtype == "float32" else training.item_bytes
    matrix = rows * training.shape.hidden_size * (4 + low)  # summed over chunks in float32
    return max(3 * chunk * 4, (chunk + kept) * 4 + chunk * low + matrix)


def layer_backward(training: Training) -> int:
    """Gradients on their way through one layer: of its output, of the feed-forward's four tensors; recomputed, also
    all that the layer keeps."""
    shape = training.shape
    experts = max(1, shape.experts_per_token)
    elements = 2 * shape.hidden_size + 4 * shape.ffn_size * experts // training.tensor_parallel
    again = layer_activations(training) if training.recompute == "full" else 0
    return training.own_tokens * elements * training.item_bytes + again


def working(training: Training) -> int:
    """Activations with what comes on top at the worst time: the head's backward or the last layer's, whichever more."""
    return activations(training) + max(head(training), layer_backward(training))


def step(training: Training) -> int:
    """What the optimizer's step needs besides its state, after the backward pass: a reduced share, if it is shared."""
    if not training.distributed:
        return 0
    largest = max(
        -(-training.dense_parameters // training.replicas),
        -(-training.expert_parameters // training.expert_replicas),
    )
    return largest * 4


def resident(training: Training) -> int:
    """What is there all the time: weights, gradients and the optimizer's state."""
    return weights(training) + main_weights(training) + gradients(training) + optimizer(training)


def peak(training: Training) -> int:
    """The most that comes on top of what is resident."""
    return max(working(training), step(training))


def checkpoint(training: Training) -> int:
    """What saving needs on the device: a shared part is gathered whole in float32."""
    return max(training.dense_parameters, training.expert_parameters) * 4 if training.distributed else 0


def checkpoint_copy(training: Training, *, moments: bool) -> int:
    """Host memory of this rank's pieces in float32: weights, and moments unless the next step forgets them."""
    return training.parameters * (12 if moments else 4)
