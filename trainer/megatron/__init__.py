"""The only place that imports Megatron-Core: the model, its parallel groups and the mapping from Hugging Face.

Megatron decorates its fused kernels with `torch.compile` when it is imported, which loads torch's compiler: half
of the start-up time, for kernels that this package switches off (model.py). So the decorator is a no-op while
Megatron is imported, once, here.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _identity(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function if function is not None else _identity


@contextmanager
def _without_compiler() -> Iterator[None]:
    compiler = torch.compile
    torch.compile = _identity  # type: ignore[assignment]
    try:
        # Megatron also warns about accelerator packages that it can do without.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.compile = compiler


with _without_compiler():
    import megatron.core.models.gpt
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.tensor_parallel.random  # noqa: F401
    from megatron.core.transformer.moe import moe_utils

# Megatron 0.16 defines this name only where Transformer Engine is installed, and asks for its value everywhere.
if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = None
