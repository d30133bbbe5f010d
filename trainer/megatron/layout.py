"""Which layouts a model can be divided into."""

from crescendo.common.errors import ConfigError
from crescendo.trainer.megatron.architectures import ModelShape
from crescendo.trainer.megatron.parallel import Layout


def check_layout(shape: ModelShape, at: Layout) -> None:
    """Raises ConfigError, naming field and fix, when the layout does not fit the model."""
    for field, parts, what, size in (
        ("tensor_parallel", at.tensor_parallel, "num_attention_heads", shape.num_heads),
        ("tensor_parallel", at.tensor_parallel, "num_key_value_heads", shape.num_kv_heads),
        ("tensor_parallel", at.tensor_parallel, "intermediate_size", shape.ffn_size),
        ("pipeline_parallel", at.pipeline_parallel, "num_hidden_layers", shape.num_layers),
        ("expert_parallel", at.expert_parallel, "num_experts", shape.experts.count if shape.experts else 1),
    ):
        if size % parts:
            raise ConfigError(
                f"trainer.{field} is {parts}; it must divide the model's {what}, {size}.",
                field=f"trainer.{field}",
                fix=f"Choose a divisor of {size}.",
            )
    if shape.experts is not None and at.tensor_parallel > 1:
        raise ConfigError(
            f"trainer.tensor_parallel is {at.tensor_parallel}; for a mixture of experts it must be 1.",
            field="trainer.tensor_parallel",
            fix="Divide the experts with expert_parallel, and layers with pipeline_parallel.",
        )
