"""What an architecture is: a shape read from a Hugging Face config, and rules that map its weights.

A rule names one Megatron parameter and the Hugging Face tensors it is made of. Pipeline parallelism gives it to
a stage (`place`), expert parallelism to the rank of its expert, and tensor parallelism cuts its Hugging Face
tensors (`cut`: by rows, by columns or not at all); `fuse` joins a rank's pieces into its Megatron parameter and
`split` takes them apart again. Import, export and checkpoints read the same rule, so that a round trip is equal
bit by bit in any layout, and a rank never needs more than its own pieces. The same rules move optimizer moments.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from crescendo.common.errors import ConfigError


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al., 2021) with an optional scaling of its frequencies.

    kind: default | linear (positions divided by factor) | llama3 (Llama 3.1: low frequencies divided by
    factor, a ramp between wavelengths original_positions / high_factor and original_positions / low_factor) |
    yarn (Peng et al., 2023, section 3.4: the ramp lies between channels that turn fast_turns and slow_turns times
    within original_positions; attention multiplies cosines and sines).
    """

    base: float
    kind: str = "default"
    factor: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_positions: int = 8192
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    whole_channels: bool = True  # yarn: the ramp's ends are rounded outwards to channels
    attention: float = 1.0


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of each feed-forward layer. ffn_size: of one expert.

    renormalize: the weights of the chosen experts are scaled to sum to one.
    """

    count: int
    chosen: int
    ffn_size: int
    renormalize: bool


@dataclass(frozen=True)
class ModelShape:
    """The numbers that build the model. Widths are in units, max_positions in tokens."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    norm_epsilon: float
    max_positions: int
    rope: Rope
    tie_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: Experts | None = None


class Cut(Enum):
    """How tensor parallelism divides a Hugging Face tensor."""

    NONE = -1
    ROWS = 0
    COLUMNS = 1


class Place(Enum):
    """Which pipeline stage holds a parameter."""

    FIRST = "first"
    LAYER = "layer"
    LAST = "last"


Shape = tuple[int, ...]
Fuse = Callable[[Sequence[torch.Tensor], ModelShape], torch.Tensor]
Split = Callable[[torch.Tensor, ModelShape], Sequence[torch.Tensor]]


def _only(tensors: Sequence[torch.Tensor], shape: ModelShape) -> torch.Tensor:
    return tensors[0]


def _itself(tensor: torch.Tensor, shape: ModelShape) -> Sequence[torch.Tensor]:
    return (tensor,)


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter.

    megatron: its name on the rank that holds it, with `{layer}` and `{expert}` for numbers within that rank;
    hugging_face, shapes: names and full shapes of its tensors, with `{layer}` and `{expert}` of the whole model;
    is_vocabulary: rows are tokens, padded to a multiple of the ranks; is_copy: another rule's tensors a second time
    (tied weights whose two uses lie in different stages), which export leaves out.
    """

    megatron: str
    hugging_face: tuple[str, ...]
    shapes: tuple[Shape, ...]
    cut: Cut = Cut.NONE
    fuse: Fuse = _only
    split: Split = _itself
    is_vocabulary: bool = False
    place: Place = Place.LAYER
    is_copy: bool = False
    layer: int = 0
    expert: int | None = None

    def of_layer(self, layer: int) -> "Rule":
        """The rule for a layer of the model."""
        names = tuple(name.replace("{layer}", str(layer)) for name in self.hugging_face)
        return replace(self, hugging_face=names, layer=layer)

    def of_expert(self, expert: int) -> "Rule":
        """The rule for an expert of the model."""
        names = tuple(name.replace("{expert}", str(expert)) for name in self.hugging_face)
        return replace(self, hugging_face=names, expert=expert)


@dataclass(frozen=True)
class Architecture:
    """A family of models. name: `model_type` in config.json; read: config.json to shape."""

    name: str
    read: Callable[[Mapping[str, Any]], ModelShape]
    layer_rules: Callable[[ModelShape], Sequence[Rule]]
    outer_rules: Callable[[ModelShape], Sequence[Rule]]

    def rules(self, shape: ModelShape) -> list[Rule]:
        """All rules of a model, embedding first, then layer by layer."""
        first, *rest = self.outer_rules(shape)
        repeated = self.layer_rules(shape)
        layers = [rule.of_layer(layer) for layer in range(shape.num_layers) for rule in repeated]
        return [first, *layers, *rest]


def fuse_qkv(tensors: Sequence[torch.Tensor], shape: ModelShape) -> torch.Tensor:
    """q, k, v to Megatron's order: per key/value group the group's query heads, its key, its value.

    Weights are [heads * head_dim, hidden], biases [heads * head_dim].
    """
    query, key, value = tensors
    groups = key.shape[0] // shape.head_dim
    tail = query.shape[1:]
    parts = [t.reshape(groups, -1, *tail) for t in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *tail)


def split_qkv(tensor: torch.Tensor, shape: ModelShape) -> Sequence[torch.Tensor]:
    """The inverse of fuse_qkv; the parts are views with rows in [groups, rows of a group] order."""
    heads = shape.num_heads // shape.num_kv_heads
    groups = tensor.shape[0] // ((heads + 2) * shape.head_dim)
    tail = tensor.shape[1:]
    rows = tensor.view(groups, (heads + 2) * shape.head_dim, *tail)
    sizes = [heads * shape.head_dim, shape.head_dim, shape.head_dim]
    return torch.split(rows, sizes, dim=1)


def fuse_rows(tensors: Sequence[torch.Tensor], shape: ModelShape) -> torch.Tensor:
    """Gate over up: Megatron's linear_fc1 of a gated unit."""
    return torch.cat(list(tensors), dim=0)


def split_halves(tensor: torch.Tensor, shape: ModelShape) -> Sequence[torch.Tensor]:
    """The inverse of fuse_rows for two equal parts."""
    return tensor.chunk(2, dim=0)


_ROPES = ("default", "linear", "llama3", "yarn")


def read_rope(config: Mapping[str, Any]) -> Rope:
    """Rotary parameters from config.json: `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind not in _ROPES:
        raise ConfigError(
            f"config.json: rope type is {kind!r}; the trainer knows {', '.join(_ROPES)}.",
            field="model.source",
            fix="Use a model without this rope scaling, or remove it if sequences stay within the original length.",
        )
    if float(given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0) != 1.0:
        raise ConfigError("config.json: partial_rotary_factor must be 1.", field="model.source")
    refused = [key for key in ("mscale", "mscale_all_dim") if kind == "yarn" and given.get(key) is not None]
    if refused:
        raise ConfigError(f"config.json: the trainer has no yarn with {refused[0]}.", field="model.source")
    positions = int(given.get("original_max_position_embeddings") or config.get("max_position_embeddings", 8192))
    factor = float(given.get("factor") or 1.0)
    attention = given.get("attention_factor")
    if attention is None:  # Peng et al. (2023), section 3.4
        attention = 0.1 * math.log(factor) + 1.0 if kind == "yarn" and factor > 1 else 1.0
    return Rope(
        base=float(given.get("rope_theta", config.get("rope_theta", 10000.0))),
        kind=kind,
        factor=factor,
        low_factor=float(given.get("low_freq_factor", 1.0)),
        high_factor=float(given.get("high_freq_factor", 4.0)),
        original_positions=positions,
        fast_turns=float(given.get("beta_fast") or 32.0),
        slow_turns=float(given.get("beta_slow") or 1.0),
        whole_channels=bool(given.get("truncate", True)),
        attention=float(attention),
    )


def read_shape(config: Mapping[str, Any], *, qkv_bias: bool = False, qk_norm: bool = False) -> ModelShape:
    """The shape of a Llama-like model; raises ConfigError for what the rules do not cover."""
    refused = {"mlp_bias": True, "use_sliding_window": True, "attention_bias": not qkv_bias}
    for key, value in refused.items():
        if value and config.get(key):
            raise ConfigError(f"config.json: {key} is true; the trainer has no mapping for it.", field="model.source")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"config.json: hidden_act is {activation!r}; it must be 'silu'.", field="model.source")
    heads = int(config["num_attention_heads"])
    return ModelShape(
        hidden_size=int(config["hidden_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        ffn_size=int(config["intermediate_size"]),
        vocab_size=int(config["vocab_size"]),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        max_positions=int(config.get("max_position_embeddings", 2048)),
        rope=read_rope(config),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )
